"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): the authors' binary archives, downloaded once, checked,
and read without pickle.

50,000 training images (a fixed tenth of each class is the validation split) and 10,000 test images,
32×32 RGB.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from edgecompress.data.download import Archive, unpacked
from edgecompress.data.images import Augmentation, DataSet, Images, pixel_statistics, stratified
from edgecompress.data.preprocess import Preprocess
from edgecompress.errors import UsageError

PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Cifar:
    """The contents of an archive: file names, and the number of label bytes.

    A record is `labels` bytes, the last of them the class, then the pixels of one image.
    """

    archive: Archive
    train: tuple[str, ...]
    test: str
    names: str
    labels: int


ARCHIVES = {
    "cifar10": Cifar(
        Archive(
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            ("c32a1d4ab5d03f1284b67883e8d87530",),
            "cifar-10-batches-bin",
        ),
        tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        "test_batch.bin",
        "batches.meta.txt",
        1,
    ),
    "cifar100": Cifar(
        Archive(
            "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
            ("03b5dce01913d631647c71ecec9e9cb8",),
            "cifar-100-binary",
        ),
        ("train.bin",),
        "test.bin",
        "fine_label_names.txt",
        2,
    ),
}


def load_cifar(name: str) -> DataSet:
    """The data set `cifar10` or `cifar100`.

    Raises `EnvironmentMissingError` with the file to place and where, when the archive cannot be
    downloaded, and `UsageError` when it is damaged.
    """
    cifar = ARCHIVES[name]
    root = unpacked(name, cifar.archive)
    training = _read([root / part for part in cifar.train], cifar)
    test = _read([root / cifar.test], cifar)
    names = (root / cifar.names).read_text().splitlines()
    classes = tuple(line.strip() for line in names if line.strip())
    train, validation = (training.rows(index) for index in stratified(training.labels, (0.1,)))
    preprocess = Preprocess(*pixel_statistics(train.pixels))
    return DataSet(
        name,
        name,
        classes,
        train,
        validation,
        test,
        preprocess,
        Augmentation(flip="alternate", shift=4),
    )


def _read(paths: list[Path], cifar: Cifar) -> Images:
    """The records of all files, as pixels (N, 3, 32, 32) and labels (N,)."""
    size = cifar.labels + PIXELS
    raw = np.concatenate([np.fromfile(path, dtype=np.uint8) for path in paths])
    if raw.size % size or not raw.size:
        raise UsageError(f"'{paths[0].parent}' is damaged: remove that folder and run again")
    records = torch.from_numpy(raw).reshape(-1, size)
    return Images(
        records[:, cifar.labels :].reshape(-1, 3, 32, 32).contiguous(),
        records[:, cifar.labels - 1].long(),
    )
