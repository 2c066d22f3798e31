"""What the command line says of a user's own network that cannot be built, run, traced or
exported: the reason, and the line of their source.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_cli import one_line, process, run

NETWORKS = """
import torch
from torch import nn

class Network(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.fc(self.after(self.conv(x).relu().mean((2, 3))))

    def after(self, y):
        return y

class Unbuilt(Network):
    def __init__(self, num_classes=10):
        self.fc = nothing_of_that_name

class Missing(Network):
    def after(self, y):
        return y.missing

class Wide(Network):
    def after(self, y):
        return torch.cat([y, y], 1)

class Branch(Network):
    def after(self, y):
        return y if y.sum() > 0 else -y

class Bessel(Network):
    def forward(self, x):
        y = super().forward(x)
        return torch.special.bessel_j0(y)
"""


def line_of(source: str) -> str:
    number = next(n for n, line in enumerate(NETWORKS.splitlines(), 1) if source in line)
    return f"net.py:{number}: {NETWORKS.splitlines()[number - 1].strip()}"


@pytest.mark.parametrize(
    ("name", "reason", "source"),
    [
        ("Unbuilt", "NameError: name 'nothing_of_that_name' is not defined", "nothing_of"),
        ("Missing", "AttributeError: 'Tensor' object has no attribute 'missing'", "y.missing"),
        ("Wide", "RuntimeError: mat1 and mat2 shapes cannot be multiplied", "self.fc(self.after"),
        ("Branch", "without its values: RuntimeError", "y.sum() > 0"),
    ],
)
def test_before_anything_is_written(name: str, reason: str, source: str, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NETWORKS)
    text = one_line(run("compress", f"net.py:{name}", "--target", "20KB", cwd=tmp_path), 2)
    assert reason in text
    assert f"({line_of(source)})" in text
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["net.py"]


def test_the_reason_of_the_exporter_is_shown(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NETWORKS)
    run("train", "net.py:Bessel", "--epochs", 0, "-q", "-o", "t", cwd=tmp_path)
    done = run("export", "t", "--model", "net.py:Bessel", "-q", "-o", "e", cwd=tmp_path)
    text = one_line(done, 1)
    assert "No ONNX function found" in text
    assert "bessel_j0" in text
    assert f"({line_of('bessel_j0')})" in text
    assert "This is step" not in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("code", "exit_code", "part"),
    [
        ("import einops_that_is_not_here", 4, "needs the package 'einops_that_is_not_here'"),
        ("x = 1 / 0", 2, "ZeroDivisionError: division by zero (net.py:1: x = 1 / 0)"),
    ],
)
def test_a_file_that_cannot_be_run(code: str, exit_code: int, part: str, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(code)
    assert part in one_line(run("train", "net.py:make", cwd=tmp_path), exit_code)


NO_KERNEL = """
import torch
from torch import nn

lib = torch.library.Library("edgecompress_tests", "DEF")
lib.define("twice(Tensor x) -> Tensor")
lib.impl("twice", lambda x: x * 2, "CUDA")

class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.fc = nn.Linear(3072, num_classes)

    def forward(self, x):
        return self.fc(torch.ops.edgecompress_tests.twice(x.flatten(1)))
"""


def test_an_operator_without_a_kernel_is_named(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(NO_KERNEL)
    done = process("train", "own.py:Net", "--device", "cpu", "-o", "t", cwd=tmp_path)
    line = NO_KERNEL.split("\n").index(NO_KERNEL.rstrip().split("\n")[-1]) + 1
    assert "operator edgecompress_tests::twice has no kernel for CPU" in one_line(done, 2)
    assert f"own.py:{line}" in done.stderr
    assert not (tmp_path / "t").exists()


OWN = """
from torch import nn
class Mine(nn.Module):
    def __init__(self, num_classes=10, in_channels=3):
        super().__init__()
        first, second = nn.Conv2d(in_channels, 8, 3, 2), nn.Conv2d(8, 8, 3, 2)
        self.body = nn.Sequential(first, nn.ReLU(), second, nn.ReLU())
        self.last = nn.Conv2d(8, num_classes, 1)
    def forward(self, x):
        return self.last(self.body(x)).relu().mean((2, 3))
def make(num_classes=10, in_channels=3):
    return Mine(num_classes, in_channels)
"""


def test_networks_of_the_users_own_whose_last_layer_is_not_the_last_word(
    few: str, tmp_path: Path
) -> None:
    """Their outputs are averaged behind a ReLU; what is saved is one of them again, and can be
    read, exported and merged.
    """
    (tmp_path / "own.py").write_text(OWN)
    for name, seed in (("a", 1), ("b", 2)):
        done = run(
            "train",
            "own.py:make",
            "--data",
            few,
            "--epochs",
            2,
            "--seed",
            seed,
            "-o",
            name,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
    for method in ("gates", "greedy"):
        more = ["--model", "own.py:make", "--method", method, "--epochs", 1, "--finetune-epochs", 1]
        done = run("merge", "a", "b", *more, "-o", method, "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert result["student"]["params"] == result["teacher"]["params"] == 898
        assert "one head" in {row["name"] for row in result["stages"]}
        done = run("export", method, "--model", "own.py:make", "-o", f"{method}-x", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
