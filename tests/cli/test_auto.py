"""`compress auto`: networks of several families compete for a size."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from edgecompress import checkpoint
from edgecompress.core.proof import trace
from edgecompress.models.registry import ModelSource, build
from edgecompress.stages.auto import FAMILIES
from tests.cli.test_cli import one_line, run

QUICK = ("--models", "lenet5,resnet8,student3", "--epochs", 1, "--distill-epochs", 1)
OWN = """
from torch import nn


def net(num_classes, in_channels):
    return nn.Sequential(
        nn.Conv2d(in_channels, 12, 3), nn.BatchNorm2d(12), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, num_classes),
    )
"""
SHORT = ("--quantize", "int8", "--steps", 1)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, few: str) -> Path:
    folder = tmp_path_factory.mktemp("auto")
    done = run(
        *("compress", "auto", "--target", "40KB", *QUICK, *SHORT, "--data", few, "-o", "out"),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    assert "networks in short trainings" in done.stdout
    assert "begins: the best of short trainings" in done.stderr
    return folder / "out"


def test_the_best_of_the_field_is_compressed(found: Path) -> None:
    result = json.loads((found / "result.json").read_text())
    field = result["auto"]
    assert sorted(row["model"] for row in field["rows"]) == ["lenet5", "resnet8", "student3"]
    accuracies = [row["accuracy"] for row in field["rows"]]
    assert accuracies == sorted(accuracies, reverse=True)
    assert field["winner"] == field["rows"][0]["model"] == result["model"]
    epochs = {row["model"]: row["epochs"] for row in field["rows"]}
    assert epochs[field["winner"]] == max(epochs.values()) == 2 + 4
    assert min(epochs.values()) == 2
    _, source = checkpoint.load(found / "model.safetensors")
    assert source.model.name == field["winner"]
    assert result["bytes"] <= 40_000
    page = (found / "report.html").read_text()
    assert "Networks in short trainings" in page
    assert "<b>(won)</b>" in page


def test_a_run_that_was_stopped_goes_on_with_the_network_that_won(
    found: Path, few: str, tmp_path: Path
) -> None:
    before = json.loads((found / "result.json").read_text())
    for path in [*found.glob("0[3-9]-*"), *found.glob("1*-*")]:
        shutil.rmtree(path)
    (found / "result.json").unlink()
    done = run(
        *("compress", "auto", "--target", "40KB", *QUICK, *SHORT, "--data", few, "-o", "out"),
        *("--resume", "--json"),
        cwd=found.parent,
    )
    assert done.returncode == 0, done.stderr
    after = json.loads(done.stdout)
    for key in ("model", "bytes", "auto", "missed"):
        assert after[key] == before[key]
    assert after["student"]["accuracy"] == before["student"]["accuracy"]


def test_a_network_that_cannot_read_the_images_is_left_out(tmp_path: Path, few: str) -> None:
    """Five halvings leave nothing of 8 pixels; the user's own network competes like any other."""
    (tmp_path / "own.py").write_text(OWN)
    models = "lenet5,vgg8-cifar,resnet8,own.py:net"
    options = ("--models", models, "--image-size", 8, "--data", few)
    done = run(
        *("compress", "auto", "--target", "12KB", "--epochs", 1, "--distill-epochs", 1),
        *(*options, *SHORT, "-o", "out"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    for name in ("vgg8-cifar", "lenet5"):
        assert f"{name} cannot read images of (3, 8, 8): left out" in done.stderr
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert {row["model"] for row in result["auto"]["rows"]} == {"resnet8", "own.py:net"}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_network_of_the_field_can_be_cut(name: str) -> None:
    model = build(ModelSource(name, 10, (3, 32, 32)))
    graph = trace(model, torch.zeros(1, 3, 32, 32))
    assert graph.groups
    assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("compress", "auto", "--target-macs", "1M"), "give --target"),
        (("compress", "auto", "--target", "40KB", "--models", "resnet8,lenet"), "lenet5"),
        (("compress", "lenet5", "--target", "40KB", "--models", "resnet8"), "does not apply"),
        (("compress", "auto", "--target", "40KB", "--teacher", "x"), "name the network"),
        (("compress", "auto", "--curve", "40KB,80KB"), "chosen for one size"),
        (("compress", "auto", "--target", "40KB", "--weights", "imagenet"), "--weights with model"),
        (("compress", "auto", "--target", "40KB", "--data", "sine"), "name a network"),
        (
            (*("compress", "auto", "--target", "9KB", "--models", "lenet5"), "--image-size", 8),
            "none of lenet5 reads images",
        ),
        (("train", "auto"), "unknown model 'auto'"),
    ],
)
def test_what_cannot_be_chosen_is_refused(
    arguments: tuple[object, ...], part: str, tmp_path: Path
) -> None:
    assert part in one_line(run(*arguments, "-o", "out", cwd=tmp_path), 2)
    assert not (tmp_path / "out").exists()
