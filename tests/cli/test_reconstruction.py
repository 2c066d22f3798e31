"""An autoencoder of the user's own, from training to the file, by `--task reconstruction`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from edgecompress.data import load_data, reconstructing
from edgecompress.data.images import Augmentation
from edgecompress.data.task import Reconstruction, Regression, Task
from edgecompress.errors import UsageError
from edgecompress.train.batches import batches
from edgecompress.train.settings import FitSettings
from tests.cli.test_cli import run

OWN = """
from torch import nn


def net():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 8, 3, 2, 1), nn.ReLU(),
        nn.ConvTranspose2d(8, 16, 2, 2), nn.ReLU(), nn.ConvTranspose2d(16, 3, 2, 2),
    )


def classifier(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), nn.ReLU(), nn.Linear(8, num_classes))
"""
RUN = ("--task", "reconstruction", "--epochs", "6", "--distill-epochs", "3", "--steps", "1")


def test_images_are_compared_with_what_the_network_read() -> None:
    images, labels = torch.randn(5, 3, 4, 4), torch.arange(5)
    assert Reconstruction().targets(images, labels) is images
    assert Task().targets(images, labels) is labels
    assert Regression().targets(images, labels) is labels


def test_the_score_is_the_share_of_the_variance_that_is_explained() -> None:
    images = torch.randn(50, 3, 4, 4, dtype=torch.float64)
    task = Reconstruction()
    assert task.score(images, images) == 1
    assert task.score(images.mean(0).expand_as(images), images) == pytest.approx(0)
    half = images.mean(0) + 0.5 * (images - images.mean(0))
    assert task.score(half, images) == pytest.approx(0.75)


def test_training_compares_with_the_augmented_image() -> None:
    data = reconstructing(load_data("digits"))
    moved = Augmentation(flip=True, shift=4)
    settings = FitSettings(epochs=1, batch_size=8, learning_rate=1e-3, augmentation=moved)
    batch = next(iter(batches(data, settings, torch.device("cpu"), seed=0, epoch=1)))
    assert torch.equal(batch.labels, batch.images)
    stored = data.normalised(data.train.pixels[batch.ids])
    assert not torch.equal(batch.images, stored), "no image was augmented"


def test_targets_of_a_split_are_its_images_as_read() -> None:
    data = reconstructing(load_data("digits", image_size=16))
    targets: Tensor = data.targets(data.test)
    assert targets.shape == (len(data.test), 3, 16, 16)
    assert torch.equal(targets[7], data.normalised(data.test.pixels[7:8])[0])
    with pytest.raises(UsageError, match="holds no images"):
        reconstructing(load_data("sine"))


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the user's code, and a run `r` of an autoencoder."""
    folder = tmp_path_factory.mktemp("reconstruction")
    (folder / "own.py").write_text(OWN)
    ended = run("compress", "own.py:net", "--target", "5KB", *RUN, "-o", "r", cwd=folder)
    assert ended.returncode == 0, ended.stderr
    return folder


def test_an_autoencoder_is_compressed_and_judged_by_r2(compressed: Path) -> None:
    result = json.loads((compressed / "r" / "result.json").read_text())
    assert result["metric_name"] == "r2"
    assert result["bytes"] <= 5000
    assert "accuracy" not in result["student"]
    predicted = run("predict", "r", "--data", "digits", "--json", cwd=compressed)
    assert predicted.returncode == 0, predicted.stderr
    score = json.loads(predicted.stdout)
    assert score["metric"] == pytest.approx(result["student"]["metric"], abs=1e-4)
    assert 0.2 < score["metric"] < 1


def test_the_score_of_a_file_compares_with_pixels_as_the_file_reads_them(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    options = ("--target", "5KB", *RUN, "--normalize", "imagenet")
    ended = run("compress", "own.py:net", *options, "-o", "r", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    result = json.loads((tmp_path / "r" / "result.json").read_text())
    score = json.loads(run("predict", "r", "--data", "digits", "--json", cwd=tmp_path).stdout)
    assert score["metric"] == pytest.approx(result["student"]["metric"], abs=1e-4)
    assert score["loss"] == pytest.approx(result["student"]["loss"], rel=1e-3)


def test_a_checkpoint_remembers_its_task(compressed: Path) -> None:
    pruned = run(
        *("prune", "r", "--model", "own.py:net", "--amount", "20%", "--epochs", "1", "-o", "p"),
        cwd=compressed,
    )
    assert pruned.returncode == 0, pruned.stderr
    result = json.loads((compressed / "p" / "result.json").read_text())
    assert result["metric_name"] == "r2"


@pytest.mark.parametrize(
    ("model", "more", "said"),
    [
        ("own.py:classifier", RUN, "data 'digits' has targets of 3x32x32"),
        ("own.py:net", (), "--task reconstruction"),
        ("lenet5", RUN, "'lenet5' classifies"),
        ("own.py:net", (*RUN, "--data", "sine"), "holds no images"),
    ],
)
def test_what_does_not_fit_the_task_is_refused_before_training(
    compressed: Path, model: str, more: tuple[str, ...], said: str
) -> None:
    ended = run("compress", model, "--target", "5KB", *more, "-o", "x", cwd=compressed)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
    assert not (compressed / "x").exists()


def test_a_picture_has_no_class(compressed: Path) -> None:
    from PIL import Image

    Image.new("RGB", (32, 32)).save(compressed / "x.png")
    ended = run("predict", "r", "x.png", cwd=compressed)
    assert ended.returncode == 2
    assert "a score for each class is needed" in ended.stderr
