"""Names of data sets: `digits`, `cifar10`, `cifar100` and `folder:DIR`."""

from __future__ import annotations

from edgecompress.data.cifar import ARCHIVES, load_cifar
from edgecompress.data.digits import load_digits
from edgecompress.data.folder import load_folder
from edgecompress.data.images import DataSet
from edgecompress.errors import UnknownNameError, UsageError


def data_names() -> dict[str, str]:
    """Name of every known data set with a line about it."""
    return {
        "digits": "1,797 handwritten digits (scikit-learn), 32×32 RGB, 10 classes; embedded, for demonstration",
        "cifar10": "50,000 + 10,000 photographs, 32×32 RGB, 10 classes; downloaded once (170 MB)",
        "cifar100": "the same with 100 classes; downloaded once (170 MB)",
        "folder:DIR": "images in a folder a class; DIR/train with DIR/test or DIR/val, or one tree that is split",
    }


def load_data(name: str, *, image_size: int | None = None, skip_bad: bool = False) -> DataSet:
    """The data set called `name`. Raises `UsageError` for an unknown name or unusable files."""
    if name == "digits":
        if image_size not in (None, 32):
            raise UsageError(f"image size {image_size} for data 'digits': only 32 is allowed")
        return load_digits()
    if name in ARCHIVES:
        if image_size not in (None, 32):
            raise UsageError(f"image size {image_size} for data '{name}': only 32 is allowed")
        return load_cifar(name)
    kind, _, rest = name.partition(":")
    if kind == "folder" and rest:
        return load_folder(rest, image_size=image_size, skip_bad=skip_bad)
    raise UnknownNameError("data", name, data_names(), "(a folder of images is folder:DIR)")
