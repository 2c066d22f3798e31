"""Names of data sets: `digits`, `cifar10`, `folder:DIR`, ..., and `A+B` for several with a head
each.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgecompress.data.cifar import ARCHIVES, load_cifar
from edgecompress.data.digits import load_digits
from edgecompress.data.fastai import TREES, load_fastai
from edgecompress.data.folder import load_folder
from edgecompress.data.images import DataSet
from edgecompress.data.joined import joined
from edgecompress.data.preprocess import IMAGENET, Preprocess
from edgecompress.data.sine import sine_data_set
from edgecompress.errors import UnknownNameError, UsageError


def data_names() -> dict[str, str]:
    """Name of every known data set with a line about it."""
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
        "folder:DIR": "images in a folder a class; DIR/train with DIR/test or DIR/val, or one "
        "tree that is split",
        "A+B": "several of these as one, each with a head of its own (merge --heads separate)",
    }


def load_data(
    name: str,
    *,
    image_size: int | None = None,
    resize: int | None = None,
    normalize: str = "data",
    skip_bad: bool = False,
) -> DataSet:
    """The data set called `name`. Raises `UsageError` for an unknown name or unusable files.

    With `image_size` networks read squares of that side: the shorter side of an image is resized to
    `resize` (default `image_size`) and the middle cut out. `normalize` takes the statistics of the
    training split (`data`) or ImageNet's (`imagenet`).
    """
    if resize is not None and (image_size is None or resize < image_size):
        raise UsageError(
            f"--resize {resize} is smaller than the image cut from it ({image_size}): give "
            "--image-size, at most as large"
        )
    data = _load(name, resize or image_size, skip_bad)
    if data.task.metric != "accuracy":
        if image_size is not None or normalize != "data":
            raise UsageError(
                f"data '{name}' holds no images: leave --image-size, --resize and --normalize out"
            )
        return data
    mean, std = (data.preprocess.mean, data.preprocess.std) if normalize == "data" else IMAGENET
    if len(mean) != data.native_shape[0]:
        raise UsageError(
            f"--normalize imagenet is for RGB, data '{name}' has {data.native_shape[0]} "
            "channel(s): use --normalize data"
        )
    if (
        image_size is None
        or data.native_shape[1:] == (image_size, image_size) == (resize or image_size,) * 2
    ):
        return replace(data, preprocess=Preprocess(mean, std))
    return replace(data, preprocess=Preprocess(mean, std, resize or image_size, image_size))


def _load(name: str, size: int | None, skip_bad: bool) -> DataSet:
    """Images as they are kept in memory; those of a folder are not kept larger than `size`."""
    if name == "digits":
        return load_digits()
    if name in ARCHIVES:
        return load_cifar(name)
    if name in TREES:
        return load_fastai(name, size, skip_bad)
    if name == "sine":
        return sine_data_set()
    kind, _, rest = name.partition(":")
    if "+" in name and not (kind == "folder" and Path(rest).is_dir()):
        return joined([_load(part, size, skip_bad) for part in name.split("+")])
    if kind == "folder" and rest:
        return load_folder(rest, image_size=size, skip_bad=skip_bad)
    raise UnknownNameError("data", name, data_names(), "(a folder of images is folder:DIR)")
