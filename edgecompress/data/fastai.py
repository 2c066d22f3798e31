"""Imagenette and Imagewoof (Howard 2019): ten easy and ten hard classes of ImageNet, shorter side
160 pixels, as published by fast.ai.
"""

from __future__ import annotations

from dataclasses import replace

from edgecompress.data.download import Archive, unpacked
from edgecompress.data.folder import load_folder
from edgecompress.data.images import DataSet

_HOME = "https://s3.amazonaws.com/fast-ai-imageclas/"
TREES = {
    "imagenette": Archive(
        _HOME + "imagenette2-160.tgz", ("e793b78cc4c9e9a4ccc0c1155377a412",), "imagenette2-160"
    ),
    "imagewoof": Archive(
        _HOME + "imagewoof2-160.tgz",
        ("3d200a7be99704a0d7509be2a9fbfe15", "fcd23cc7dfce8837c95a8f9d63a128b7"),
        "imagewoof2-160",
    ),
}
NAMES = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
    "n02086240": "Shih-Tzu",
    "n02087394": "Rhodesian ridgeback",
    "n02088364": "beagle",
    "n02089973": "English foxhound",
    "n02093754": "Border terrier",
    "n02096294": "Australian terrier",
    "n02099601": "golden retriever",
    "n02105641": "Old English sheepdog",
    "n02111889": "Samoyed",
    "n02115641": "dingo",
}


SHORTER_SIDE = 160
"""Pixels of the published images; reading them larger gains nothing."""


def load_fastai(
    name: str,
    image_size: int | None,
    skip_bad: bool = False,
    default_size: int = SHORTER_SIDE,
) -> DataSet:
    """The data set `imagenette` or `imagewoof`: a tenth of `train/` is the validation split, `val/`
    is the test split. `image_size` is the side of the stored squares, in pixels; by default
    `default_size`, at most `SHORTER_SIDE`.

    Raises `EnvironmentMissingError` with the file to place and where, when the archive cannot be
    downloaded.
    """
    data = load_folder(
        str(unpacked(name, TREES[name])),
        image_size=image_size,
        skip_bad=skip_bad,
        default_size=min(default_size, SHORTER_SIDE),
    )
    return replace(
        data,
        name=name,
        label=name,
        classes=tuple(NAMES.get(label, label) for label in data.classes),
    )
