"""`npz:FILE.npz`: arrays of images, signals or features with their labels, in one file of numpy.

Names of the arrays are those of MedMNIST (`train_images`, `train_labels`, `val_images`, ...) or of
Keras (`x_train`, `y_train`, ...). `images` and `labels` (or `x` and `y`) alone are split here into
70 / 10 / 20 %, always in the same way. `classes` may name the classes.

    (N, H, W) or (N, H, W, C) or (N, C, H, W), C of 1 or 3    uint8    images
    (N, C, L)                                                 float    signals, read as (C, 1, L)
    (N, F)                                                    float    features, read as (1, 1, F)

Labels are integers or strings (N,) or (N, 1), the classes; or floats (N,) or (N, K): a regression.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgecompress.data.images import Augmentation, DataSet, Images, pixel_statistics, stratified
from edgecompress.data.preprocess import Preprocess
from edgecompress.data.task import Regression, Task
from edgecompress.errors import UsageError

Array = NDArray[Any]
VALIDATION = ("val", "valid", "validation")
CHANNELS = (1, 3)
SHARE_OF_MEMORY = 0.25
"""Largest share of the machine's memory that the arrays may take; splitting them takes as much
again.
"""
SAMPLE = 2_000
"""Images whose pixels give mean and deviation, evenly spread, where there are more."""
_DAMAGED = (
    *(OSError, ValueError, KeyError, EOFError, RuntimeError, MemoryError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error),
)
"""What reading a damaged file raises."""
NAMES = "train_images, train_labels, test_images, ... or x_train, y_train, ... or images, labels"


def load_arrays(path: str) -> DataSet:
    """The data set in a .npz file. Raises `UsageError`, naming the array, for a missing or damaged
    file, and for arrays that are no data set.
    """
    file = _File(Path(path).expanduser())
    arrays = file.read()
    pairs = _pairs(file, arrays)
    parts = {name: file.samples(name, *pair) for name, pair in pairs.items()}
    kinds = {
        (samples.dtype, samples.shape[1:], labels.shape[1:]) for samples, labels in parts.values()
    }
    if len(kinds) > 1:
        shapes = ", ".join(
            f"{name} {tuple(samples.shape)} with labels {labels.shape}"
            for name, (samples, labels) in parts.items()
        )
        raise file.error(f"has splits that differ: {shapes}", "give all the same shape and type")
    named = arrays.get("classes")
    labels, classes = _labels(file, {name: pair[1] for name, pair in parts.items()}, named)
    task: Task = Regression() if classes is None else Task()
    images = {name: Images(samples, labels[name]) for name, (samples, _) in parts.items()}
    train, validation, test, notes = _splits(images, classifies=classes is not None)
    # whether mirrored images are of the same class is not known here, and the numbers of a
    # regression may be places in the image
    moves = classes is not None and train.pixels.dtype == torch.uint8
    shift = max(1, train.pixels.shape[-1] // 8) if moves else 0
    data = DataSet(
        name=f"npz:{path}",
        label=f"npz:{file.path.name}",
        classes=classes or tuple(f"y{number}" for number in range(train.labels.shape[1])),
        train=train,
        validation=validation,
        test=test,
        preprocess=_preprocess(train.pixels),  # type: ignore[arg-type]
        augmentation=Augmentation(shift=shift),
        task=task,
        notes=(*notes, *_whole_numbers(labels)) if classes is None else notes,
    )
    _check(file, data)
    return data


@dataclass(frozen=True)
class _File:
    path: Path

    def error(self, what: str, fix: str) -> UsageError:
        return UsageError(f"data 'npz:{self.path}' {what}: {fix}")

    def read(self) -> dict[str, Array]:
        """All arrays by name."""
        if not self.path.is_file():
            raise self.error("does not exist", "give a .npz file")
        try:
            with zipfile.ZipFile(self.path) as archive:
                size = sum(entry.file_size for entry in archive.infolist())
            if size > SHARE_OF_MEMORY * psutil.virtual_memory().total:
                raise self.error(
                    f"takes {size:,} bytes of memory", "give a part of it, or a folder of images"
                )
            with np.load(self.path, allow_pickle=False) as stored:
                there = {name: name in _READ for name in stored.files}
                return {
                    name: stored[name] if is_read else _UNREAD for name, is_read in there.items()
                }
        except _DAMAGED as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise self.error(
                f"cannot be read ({reason})", "save plain arrays with numpy.savez"
            ) from error

    def samples(self, name: str, samples: Array, labels: Array) -> tuple[Tensor, Array]:
        """The samples of a split as a tensor (N, C, H, W), and its labels (N,) or (N, K)."""
        if samples.ndim == 0 or labels.ndim == 0 or 0 in samples.shape:
            raise self.error(
                f"has samples {samples.shape} and labels {labels.shape} in '{name}'",
                "give at least one sample, and one label each",
            )
        if len(samples) != len(labels):
            raise self.error(
                f"has {len(samples)} samples and {len(labels)} labels in '{name}'",
                "give one label per sample",
            )
        if samples.dtype == np.uint8 and samples.ndim in (3, 4):
            return torch.from_numpy(np.ascontiguousarray(self._images(name, samples))), labels
        if np.issubdtype(samples.dtype, np.floating) and samples.ndim in (2, 3):
            with np.errstate(over="ignore"):
                samples = samples.astype(np.float32)
            if not np.isfinite(samples).all():
                raise self.error(f"has values that are not finite in '{name}'", "replace them")
            shape = (
                (len(samples), 1, 1, samples.shape[1])
                if samples.ndim == 2
                else (len(samples), samples.shape[1], 1, samples.shape[2])
            )
            return torch.from_numpy(samples.reshape(shape)), labels
        raise self.error(
            f"has samples of {samples.dtype} {samples.shape} in '{name}'",
            "give images as uint8 (N, H, W), (N, H, W, C) or (N, C, H, W), signals as float "
            "(N, C, L), or features as float (N, F)",
        )

    def _images(self, name: str, samples: Array) -> Array:
        """(N, C, H, W)."""
        if samples.ndim == 3:
            return samples[:, None]
        if samples.shape[3] in CHANNELS:
            return samples.transpose(0, 3, 1, 2)
        if samples.shape[1] in CHANNELS:
            return samples
        raise self.error(f"has images {samples.shape} in '{name}'", "give them 1 or 3 channels")


def _pairs(file: _File, arrays: Mapping[str, Array]) -> dict[str, tuple[Array, Array]]:
    """The samples and labels of each split: `all`, or `train` with others."""
    pairs: dict[str, tuple[Array, Array]] = {}
    wanted = {"train": ("train",), "validation": VALIDATION, "test": ("test",)}
    for split, names in wanted.items():
        for name in names:
            for first, second in ((f"{name}_images", f"{name}_labels"), (f"x_{name}", f"y_{name}")):
                if first in arrays and second in arrays:
                    if split in pairs:
                        raise file.error(f"holds two arrays for the {split} split", "drop one")
                    pairs[split] = (arrays[first], arrays[second])
    for first, second in (("images", "labels"), ("x", "y")):
        if not pairs and first in arrays and second in arrays:
            pairs["all"] = (arrays[first], arrays[second])
    if "all" in pairs or ("train" in pairs and len(pairs) > 1):
        return pairs
    there = ", ".join(arrays) or "nothing"
    raise file.error(f"holds {there}", f"name the arrays {NAMES}")


def _labels(
    file: _File, labels: Mapping[str, Array], named: Array | None
) -> tuple[dict[str, Tensor], tuple[str, ...] | None]:
    """The labels of each split, (N,) int64 with the names of the classes, or (N, K) float32 with
    None.
    """
    kinds = {array.dtype.kind for array in labels.values()}
    if kinds <= {"f"}:
        numbers = {
            name: torch.from_numpy(array.astype(np.float32).reshape(len(array), -1))
            for name, array in labels.items()
        }
        if not all(bool(values.isfinite().all()) for values in numbers.values()):
            raise file.error("has labels that are not finite", "replace them")
        return numbers, None
    if not (kinds <= {"i", "u"} or kinds <= {"U"}):
        given = ", ".join(f"{name} {array.dtype}" for name, array in labels.items())
        raise file.error(f"has labels of {given}", "give integers, strings or floats")
    plain = {name: array.reshape(len(array), -1) for name, array in labels.items()}
    wide = next((array for array in plain.values() if array.shape[1] != 1), None)
    if wide is not None:
        raise file.error(f"has {wide.shape[1]} labels per sample", "give one class per sample")
    if kinds <= {"i", "u"}:
        plain = {name: array.astype(np.int64) for name, array in plain.items()}
    values = np.unique(np.concatenate([array[:, 0] for array in plain.values()]))
    if kinds <= {"U"} and named is not None and sorted(named.flatten()) == values.tolist():
        named = None  # words name themselves
    places = {
        name: torch.from_numpy(np.searchsorted(values, array[:, 0])).long()
        for name, array in plain.items()
    }
    if named is None:
        return places, tuple(map(str, values.tolist()))
    names = tuple(map(str, named.flatten().tolist()))
    if len(names) != len(values) or len(set(names)) != len(names) or kinds <= {"U"}:
        raise file.error(
            f"names the classes {', '.join(names)[:60]}, and has "
            f"{', '.join(map(str, values))[:60]}",
            "name each class of the labels once",
        )
    return places, names


def _whole_numbers(labels: Mapping[str, Tensor]) -> Iterator[str]:
    """A line for floats that may be meant as classes."""
    if all(bool((values == values.round()).all()) for values in labels.values()):
        yield (
            "the labels are whole numbers stored as floats: this is a regression; store integers "
            "for classes"
        )


def _splits(
    images: Mapping[str, Images], *, classifies: bool
) -> tuple[Images, Images, Images, tuple[str, ...]]:
    """Training, validation and test split, and a line on where they come from."""

    def parts(whole: Images, *shares: float) -> list[Images]:
        # every sample of a regression is of one class
        by = whole.labels if classifies else torch.zeros(len(whole), dtype=torch.long)
        return [whole.rows(index) for index in stratified(by, shares)]

    if "all" in images:
        train, validation, test = parts(images["all"], 0.1, 0.2)
        return train, validation, test, ()
    if len(images) == 3:
        return images["train"], images["validation"], images["test"], ()
    held = "test" if "test" in images else "validation"
    fitted, kept = parts(images["train"], 0.1)
    note = f"'{held}' is the test split; a tenth of 'train' is for validation"
    return fitted, kept, images[held], (note,)


def _preprocess(samples: Tensor) -> Preprocess:
    """Mean and deviation of each channel: of pixels in 0..1, of other values as they are."""
    if samples.dtype == torch.uint8:
        some = torch.linspace(0, len(samples) - 1, min(len(samples), SAMPLE)).long()
        return Preprocess(*pixel_statistics(samples[some]))
    channels = samples.transpose(0, 1).flatten(1)
    deviations = tuple(max(value, 1e-6) for value in channels.std(1).tolist())
    return Preprocess(tuple(channels.mean(1).tolist()), deviations, scale=1)


_SPLITS = ("train", *VALIDATION, "test")
_READ = frozenset(
    [
        *("images", "labels", "x", "y", "classes"),
        *(f"{split}_{kind}" for split in _SPLITS for kind in ("images", "labels")),
        *(f"{kind}_{split}" for split in _SPLITS for kind in ("x", "y")),
    ]
)
"""Arrays that are read; others stay where they are."""
_UNREAD: Array = np.zeros(0)


def _check(file: _File, data: DataSet) -> None:
    """Every split must hold samples, of every class."""
    if data.task.metric == "accuracy" and len(data.classes) < 2:
        raise file.error(f"has one class only ('{data.classes[0]}')", "at least 2 are needed")
    splits = {"training": data.train, "validation": data.validation, "test": data.test}
    for name, split in splits.items():
        if len(split) == 0:
            raise file.error(f"has no samples for the {name} split", "add some")
        if data.task.metric == "accuracy":
            there = set(split.labels.tolist())
            absent = [one for number, one in enumerate(data.classes) if number not in there]
            if absent:
                raise file.error(
                    f"has no sample of class '{absent[0]}' in the {name} split",
                    "add some (at least 10 per class)",
                )
