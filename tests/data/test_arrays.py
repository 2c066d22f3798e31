"""Data sets in one file of numpy: images, signals, features, classes and numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgecompress.data import load_data, reconstructing
from edgecompress.errors import UsageError
from tests.cli.test_cli import one_line, run

Arrays = dict[str, NDArray[Any]]
CLASSES = 3
SIGNALS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.first, self.norm = nn.Conv1d(2, 16, 5, padding=2), nn.BatchNorm1d(16)
        self.second, self.head = nn.Conv1d(16, 16, 5, padding=2), nn.Linear(16, classes)

    def forward(self, x):  # (N, 2, 1, 32)
        maps = torch.relu(self.norm(self.first(x.squeeze(2))))
        return self.head(torch.relu(self.second(maps)).mean(2))

def net(num_classes):
    return Net(num_classes)
"""


def images(count: int, shape: tuple[int, ...]) -> Arrays:
    """Images (count, *shape) uint8 whose brightness is their class."""
    labels = np.arange(count) % CLASSES
    noise = np.random.default_rng(0).integers(0, 60, (count, *shape))
    levels = (labels * 80).reshape(-1, *(1 for _ in shape))
    return {"images": (noise + levels).astype(np.uint8), "labels": labels}


def signals(count: int) -> Arrays:
    """Waves (count, 2, 32) whose frequency is their class."""
    labels = np.arange(count) % CLASSES
    random, time = np.random.default_rng(0), np.linspace(0, 6.28, 32)
    rows = [np.sin((label + 1) * time + random.uniform(0, 6)) for label in labels]
    x = np.stack([[row, row**2] for row in rows]) + 0.1 * random.standard_normal((count, 2, 32))
    return {"x": x, "y": np.array(["low", "mid", "high"])[labels]}


def saved(folder: Path, arrays: Arrays) -> str:
    np.savez(folder / "data.npz", **arrays)
    return f"npz:{folder / 'data.npz'}"


@pytest.mark.parametrize(
    ("stored", "shape"),
    [
        ((8, 9), (1, 8, 9)),
        ((8, 9, 3), (3, 8, 9)),
        ((3, 8, 9), (3, 8, 9)),
        ((8, 9, 1), (1, 8, 9)),
    ],
)
def test_images_of_every_layout(
    stored: tuple[int, ...], shape: tuple[int, int, int], tmp_path: Path
) -> None:
    arrays = images(60, stored)
    data = load_data(saved(tmp_path, arrays))
    assert data.image_shape == shape
    assert data.sizes() == {"training": 42, "validation": 6, "test": 12}
    assert data.classes == ("0", "1", "2")
    assert data.augmentation.flip is False
    known = {
        tuple(sorted(image.flatten().tolist())): label
        for image, label in zip(arrays["images"], arrays["labels"].tolist(), strict=True)
    }
    for split in (data.train, data.validation, data.test):
        assert isinstance(split.pixels, torch.Tensor)
        for image, label in zip(split.pixels, split.labels.tolist(), strict=True):
            assert known[tuple(sorted(image.flatten().tolist()))] == label


@pytest.mark.parametrize(
    ("names", "sizes", "note"),
    [
        (("train_{}", "val_{}", "test_{}"), (30, 12, 18), None),
        (("{}_train", None, "{}_test"), (27, 3, 18), "'test' is the test split"),
        (("{}_train", "{}_valid", None), (27, 3, 12), "'validation' is the test split"),
    ],
)
def test_names_of_medmnist_and_keras(
    names: tuple[str | None, ...], sizes: tuple[int, ...], note: str | None, tmp_path: Path
) -> None:
    arrays = Arrays()
    for name, count in zip(names, (30, 12, 18), strict=True):
        if name is not None:
            kinds = ("x", "y") if name.startswith("{}") else ("images", "labels")
            both = images(count, (6, 6)).values()
            arrays |= {name.format(kind): one for kind, one in zip(kinds, both, strict=True)}
    arrays |= {key: one[:, None] for key, one in arrays.items() if one.ndim == 1}  # as MedMNIST
    data = load_data(saved(tmp_path, {**arrays, "classes": np.array(["dark", "grey", "light"])}))
    assert tuple(data.sizes().values()) == sizes
    assert data.classes == ("dark", "grey", "light")
    assert data.notes == () if note is None else note in data.notes[0]


def test_signals_are_normalised_by_channel_and_classes_may_be_words(tmp_path: Path) -> None:
    data = load_data(saved(tmp_path, signals(300)))
    assert data.image_shape == (2, 1, 32)
    assert data.classes == ("high", "low", "mid")
    assert data.summary() == "210 training, 30 validation, 60 test samples of 3 classes, 32x1"
    assert isinstance(data.train.pixels, torch.Tensor)
    read = data.normalised(data.train.pixels)
    torch.testing.assert_close(read.mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(read.std((0, 2, 3)), torch.ones(2), atol=1e-3, rtol=0)
    with pytest.raises(UsageError, match="holds no images"):
        load_data(f"npz:{tmp_path}/data.npz", image_size=32)


X, Y = np.zeros((40, 8, 8), np.uint8), np.arange(40) % 2


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"a": X}, "holds a: name the arrays"),
        ({"x_train": X, "y_train": Y}, "holds x_train, y_train"),
        ({"x": X, "y": Y[:-1]}, "40 samples and 39 labels in 'all'"),
        ({"x": X.astype(np.int64), "y": Y}, "samples of int64 (40, 8, 8)"),
        ({"x": X[..., None].repeat(4, 3), "y": Y}, "images (40, 8, 8, 4) in 'all': give them 1"),
        ({"x": X, "y": np.zeros(40, int)}, "one class only ('0')"),
        ({"x": X, "y": np.arange(40)}, "no samples for the validation split"),
        ({"x": X, "y": np.stack([Y, Y], 1)}, "2 labels per sample"),
        ({"x": X, "y": Y.astype(bool)}, "labels of all bool"),
        ({"x": X, "y": Y, "classes": np.array(["a"])}, "names the classes a, and has 0, 1"),
        ({"x": X, "y": Y, "classes": np.array(["a", "a"])}, "names the classes a, a, and has"),
        ({"x": X, "y": np.array(["p", "q"])[Y], "classes": np.array(["r", "p"])}, "and has p, q"),
        ({"x": np.array(1.0), "y": Y}, "samples () and labels (40,)"),
        ({"x": X[:0], "y": Y[:0]}, "samples (0, 8, 8)"),
        ({"x": np.full((40, 3), 1e300), "y": Y}, "not finite in 'all'"),
        (
            {"x_train": X, "y_train": X[:, 0, :2] / 9, "x_test": X, "y_test": X[:, 0, :1] / 9},
            "splits that differ",
        ),
        (
            {"x_train": X, "y_train": Y, "train_images": X, "train_labels": Y, "x_test": X},
            "two arrays for the train split",
        ),
        ({"x": np.full((40, 3), np.nan), "y": Y}, "not finite in 'all'"),
        ({"x": X, "y": np.full(40, np.inf)}, "labels that are not finite"),
        ({"x": X, "y": np.array([None] * 40)}, "cannot be read (Object arrays cannot be loaded"),
        ({"x_train": X, "y_train": Y, "x_test": X[:, :4], "y_test": Y}, "splits that differ"),
    ],
)
def test_what_is_no_data_set(arrays: Arrays, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as raised:
        load_data(saved(tmp_path, arrays))
    assert reason in str(raised.value)
    assert "\n" not in str(raised.value)


def test_files_that_are_no_arrays(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "whole.npz", x=X, y=Y)
    whole = (tmp_path / "whole.npz").read_bytes()
    middle = len(whole) // 4
    for name, content in (
        ("no.npz", b""),
        ("text.npz", b"x,y\n1,2\n"),
        ("cut.npz", whole[: len(whole) // 2]),
        ("damaged.npz", whole[:middle] + bytes(40) + whole[middle + 40 :]),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match="cannot be read"):
            load_data(f"npz:{tmp_path / name}")
    with pytest.raises(UsageError, match="does not exist"):
        load_data(f"npz:{tmp_path / 'absent.npz'}")


def test_signals_from_the_array_to_the_file_that_ships(tmp_path: Path) -> None:
    """A network of the user's with 1-D convolutions: trained, cut, quantized, judged; and what
    cannot be is refused before anything is trained.
    """
    name = saved(tmp_path, signals(300))
    (tmp_path / "net.py").write_text(SIGNALS)
    options = ("--target", "5KB", "--epochs", 6, "--distill-epochs", 1, "--quantize", "int8")
    done = run("compress", "net.py:net", "--data", name, *options, "-o", "c", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "c" / "result.json").read_text())
    assert result["bytes"] == (tmp_path / "c" / "model.onnx").stat().st_size <= 5000
    assert result["student"]["accuracy"] > 0.6
    judged = run("predict", "c", "--data", name, "--json", cwd=tmp_path)
    assert json.loads(judged.stdout)["accuracy"] == result["student"]["accuracy"]
    for words, reason in (
        (("train", "lenet5", "--data", name), "cannot read the samples"),
        (
            ("export", "c", "--model", "net.py:net", "--embed-preprocess"),
            "holds no images: leave --embed-preprocess out",
        ),
    ):
        refused = run(*words, "-o", "no", cwd=tmp_path)
        assert reason in one_line(refused, 2)
        assert not (tmp_path / "no").exists()


def test_numbers_are_a_regression(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((200, 6)).astype(np.float32)
    name = saved(tmp_path, {"x": x, "y": np.stack([x[:, 0], x[:, 1] - x[:, 2]], 1)})
    data = load_data(name)
    assert data.task.metric == "r2"
    assert data.image_shape == (1, 1, 6)
    assert data.train.labels.shape == (140, 2)
    done = run(
        *("train", "mlp", "--data", name, "--epochs", 12, "--learning-rate", "1e-2", "-o", "t"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "t" / "result.json").read_text())
    assert result["stages"][0]["metric"] > 0.7


def test_the_numbers_of_a_regression_stay_where_they_are_in_an_image(tmp_path: Path) -> None:
    """No shift moves a place that the labels name; whole numbers may have been meant as classes."""
    name = saved(tmp_path, {"x": X, "y": Y.astype(float)})
    data = load_data(name, image_size=16)
    assert data.image_shape == (1, 16, 16)
    assert not data.augmentation.active
    assert "store integers for classes" in data.notes[0]


def test_words_name_themselves_and_arrays_of_other_names_are_not_read(tmp_path: Path) -> None:
    words = np.array(["q", "p"])
    arrays = {"x": X, "y": words[Y], "classes": words, "info": np.array([None])}
    data = load_data(saved(tmp_path, arrays))
    assert data.classes == ("p", "q")
    labels = torch.cat([data.train.labels, data.validation.labels, data.test.labels])
    assert int((labels == 1).sum()) == int((words[Y] == "q").sum())


def test_signals_are_not_joined_with_images(tmp_path: Path) -> None:
    name = saved(tmp_path, signals(60))
    with pytest.raises(UsageError, match="no plain classification of images"):
        load_data(f"{name}+{name}")
    with pytest.raises(UsageError, match="holds no images"):
        reconstructing(load_data(name))
