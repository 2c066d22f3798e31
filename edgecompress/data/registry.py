"""Data sets by name: `digits`, `cifar10`, `folder:DIR`, ..., and `A+B` for several with one head
each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from edgecompress.data.arrays import load_arrays
from edgecompress.data.cifar import ARCHIVES, load_cifar
from edgecompress.data.digits import load_digits
from edgecompress.data.fastai import TREES, load_fastai
from edgecompress.data.folder import DEFAULT_SIZE, load_folder
from edgecompress.data.images import DataSet
from edgecompress.data.joined import joined
from edgecompress.data.preprocess import IMAGENET, PIXELS, Preprocess
from edgecompress.data.sine import sine_data_set
from edgecompress.data.task import Reconstruction
from edgecompress.errors import UnknownNameError, UsageError


def data_names() -> dict[str, str]:
    """The name of every known data set, with a one-line description."""
    return {
        "digits": "1,797 handwritten digits (scikit-learn), 32×32 RGB, 10 classes; embedded, for "
        "demonstration",
        "cifar10": "50,000 + 10,000 photographs, 32×32 RGB, 10 classes; downloaded once (170 MB)",
        "cifar100": "the same with 100 classes; downloaded once (170 MB)",
        "imagenette": "9,469 + 3,925 photographs of 10 easy classes of ImageNet, shorter side "
        "160; downloaded once (99 MB)",
        "imagewoof": "9,025 + 3,929 photographs of 10 breeds of dogs, shorter side 160; "
        "downloaded once (92 MB)",
        "sine": "30,000 samples of y = sin(10 pi x) + noise: a regression, for merging (model mlp)",
        "folder:DIR": "images, one folder per class; DIR/train with DIR/val and DIR/test, or one "
        "tree that is split",
        "npz:FILE": "arrays of images, signals or features in one file of numpy: train_images, "
        "train_labels, ... (MedMNIST), x_train, y_train, ... (Keras), or images, labels",
        "A+B": "several of these as one, with one head per data set (merge --heads separate)",
    }


def load_data(
    name: str,
    *,
    image_size: int | None = None,
    resize: int | None = None,
    normalize: str = "data",
    skip_bad: bool = False,
    default_size: int = DEFAULT_SIZE,
) -> DataSet:
    """The data set called `name`. Raises `UsageError` for an unknown name or unusable files.

    With `image_size`, in pixels, networks read squares of that side: the shorter side of an image
    is resized to `resize` (default `image_size`) and the central square is cut out. `normalize`
    takes the statistics of the training split (`data`) or ImageNet's (`imagenet`). With `skip_bad`
    corrupt images of a folder are skipped. Photographs of several sizes are read as squares of side
    `default_size` where no `image_size` is given.
    """
    if resize is not None and (image_size is None or resize < image_size):
        raise UsageError(
            f"--resize {resize} is smaller than the image cut from it ({image_size}): give "
            "--image-size, at most as large"
        )
    shorter = resize or image_size
    data = _load(name, _Stored(shorter, skip_bad, default_size))
    if data.preprocess.scale != PIXELS:
        if image_size is not None or normalize != "data":
            raise UsageError(
                f"data '{name}' holds no images: leave --image-size, --resize and --normalize out"
            )
        return data

    mean, std = _statistics(data, name, normalize)
    stored = data.native_shape[1:]
    if image_size is None or (stored == (image_size, image_size) and shorter == image_size):
        return replace(data, preprocess=Preprocess(mean, std))
    return replace(data, preprocess=Preprocess(mean, std, shorter, image_size))


def reconstructing(data: DataSet) -> DataSet:
    """The images of `data` for an autoencoder: its outputs are compared with what it reads, and
    classes mean nothing. Raises `UsageError` for data without images.
    """
    if data.preprocess.scale != PIXELS:
        raise UsageError(f"data '{data.name}' holds no images: --task reconstruction needs some")
    return replace(data, classes=("image",), task=Reconstruction(), parts=())


def _statistics(
    data: DataSet, name: str, normalize: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, for values in 0..1."""
    if normalize == "data":
        return data.preprocess.mean, data.preprocess.std
    mean, std = IMAGENET
    if len(mean) != data.native_shape[0]:
        raise UsageError(
            f"--normalize imagenet is for RGB, data '{name}' has {data.native_shape[0]} "
            "channel(s): use --normalize data"
        )
    return mean, std


@dataclass(frozen=True)
class _Stored:
    """How photographs are kept: at most `size` large, by default `default_size`."""

    size: int | None
    skip_bad: bool
    default_size: int


def _load(name: str, stored: _Stored) -> DataSet:
    """The data set as it is kept in memory."""
    if name == "digits":
        return load_digits()
    if name in ARCHIVES:
        return load_cifar(name)
    if name in TREES:
        return load_fastai(name, stored.size, stored.skip_bad, stored.default_size)
    if name == "sine":
        return sine_data_set()
    kind, _, rest = name.partition(":")
    if "+" in name and not (kind in ("folder", "npz") and Path(rest).expanduser().exists()):
        return joined([_load(part, stored) for part in name.split("+")])
    if kind == "folder" and rest:
        return load_folder(
            rest,
            image_size=stored.size,
            skip_bad=stored.skip_bad,
            default_size=stored.default_size,
        )
    if kind == "npz" and rest:
        return load_arrays(rest)
    raise UnknownNameError("data", name, data_names(), "(a folder of images is folder:DIR)")
