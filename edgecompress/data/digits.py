"""scikit-learn's 1,797 handwritten digits (8×8, 17 grey levels; UCI optdigits test set), enlarged
to 32×32 RGB. Embedded: no download.

A demonstration, not a benchmark: every output says "digits (demo)".
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from edgecompress.data.images import DataSet, Images, pixel_statistics, stratified
from edgecompress.data.preprocess import Preprocess
from edgecompress.errors import EnvironmentMissingError

SIDE = 32


def load_digits() -> DataSet:
    """1,169 training, 269 validation and 359 test images: 65 / 15 / 20 %, each class in
    proportion.

    Raises `EnvironmentMissingError` when scikit-learn is not installed.
    """
    table = torch.from_numpy(_table())
    grey = table[:, :-1].view(-1, 1, 8, 8) * (255 / 16)
    large = F.interpolate(grey, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    pixels = large.round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    labels = table[:, -1].long()
    train, validation, test = (
        Images(pixels[index], labels[index]) for index in stratified(labels, (0.15, 0.20))
    )
    classes = tuple(str(digit) for digit in range(10))
    return DataSet(
        "digits",
        "digits (demo)",
        classes,
        train,
        validation,
        test,
        Preprocess(*pixel_statistics(train.pixels)),
    )


def _table() -> npt.NDArray[np.float32]:
    """The file of scikit-learn, (1797, 65): grey levels (0..16) row by row, then the class. Read
    from its place: importing the library takes longer than a small training.
    """
    library = find_spec("sklearn")
    origin = library.origin if library is not None else None
    path = Path(origin or "").parent / "datasets" / "data" / "digits.csv.gz"
    if not path.is_file():
        raise EnvironmentMissingError(
            "data 'digits' needs scikit-learn: run pip install 'edgecompress[train]'"
        )
    return np.loadtxt(path, delimiter=",", dtype=np.float32)
