"""Every command line of the README, in a process of its own, as somebody types it who has just
installed the package: also beside a torchvision whose operators do not load.

Runs that train for minutes are checked completely (`--dry-run`) and not carried out; emulations
are in tests/emulate.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from edgecompress import checkpoint
from edgecompress.models import ModelSource, build
from tests.cli.test_cli import process, python
from tests.docs.test_snippets import fenced

pytestmark = pytest.mark.xdist_group("readme")
SHORTER = {"compress": ["--dry-run"], "bench": ["--time", "5s"], "predict": []}
"""What each verb gets besides, so that it ends soon."""
ELSEWHERE = ("git", "make", "sudo", "cd", "pip")
NETWORK = """
import torchvision
from torch import nn

def make(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes),
    )
"""


def lines() -> list[str]:
    """The command lines of the README that are of edgecompress."""
    bodies = [s.body for s in fenced() if s.page.name == "README.md" and s.language == "sh"]
    found = [line for body in bodies for line in body.splitlines() if line.strip()]
    return [line for line in found if shlex.split(line)[0] not in ELSEWHERE]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with what the README's lines name: photos, a network, two files, the demo's run."""
    from PIL import Image

    root = tmp_path_factory.mktemp("readme")
    for number in range(40):
        kind = root / "photos" / ("cats" if number % 2 else "dogs")
        kind.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (number, 90, 160)).save(kind / f"{number}.png")
    (root / "net.py").write_text(NETWORK)
    done = process("train", "student1", "--epochs", 1, "-q", "-o", "t", cwd=root)
    assert done.returncode == 0, done.stderr
    done = process("quantize", "t", "-q", "-o", "runs/demo", cwd=root)
    assert done.returncode == 0, done.stderr
    source = ModelSource("vgg16", 10, (3, 32, 32))
    (root / "runs/demo/01-train").mkdir()
    with torch.device("meta"):
        blank = build(source)
    checkpoint.save(
        root / "runs/demo/01-train/model.safetensors", blank.to_empty(device="cpu"), source
    )
    for name in ("new.onnx", "old.onnx"):
        shutil.copy(root / "runs/demo/model.onnx", root / name)
    shutil.copy(next((root / "photos").rglob("*.png")), root / "photo.png")
    yield root
    shutil.rmtree(root)


@pytest.mark.parametrize("line", lines())
def test_the_line_works(line: str, folder: Path) -> None:
    _, verb, *rest = shlex.split(line, comments=True)
    closed = "http://127.0.0.1:9"  # nothing is downloaded here
    environment = {"XDG_CACHE_HOME": str(folder / "cache"), "https_proxy": closed}
    anew = any(word.startswith("timm:") for word in rest) or verb != "compress"
    command = python if anew else process  # what a library imports first matters to timm alone
    done = command(verb, *rest, *SHORTER[verb], cwd=folder, **environment)
    assert "Traceback" not in done.stderr
    if "cifar10" in rest:
        assert done.returncode == 4, done.stderr
        assert "cifar-10" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        assert done.stdout


def test_a_network_of_timm_is_trained(tmp_path: Path) -> None:
    arguments = ("timm:resnet10t", "--epochs", 1, "--image-size", 32, "-q", "--json", "-o", "t")
    done = python("train", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == "timm:resnet10t"
