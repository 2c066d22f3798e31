"""What cannot be cut is said once per run, stands in its result, and is refused before training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_cli import one_line, run

HEAD = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, num_classes)
"""
PARTLY = """
    def forward(self, x):
        y = torch.relu(self.a(x))
        return self.fc(torch.relu(self.b(y * y.shape[1] ** -0.5)).mean((2, 3)))
"""
ATTENTIVE = """
    def forward(self, x):
        y = torch.relu(self.a(x)).flatten(2)
        y = (y @ y.transpose(1, 2)).softmax(-1) @ y
        return self.fc(torch.relu(self.b(y.unflatten(-1, (32, 32)))).mean((2, 3)))
"""
NOWHERE = """
    def forward(self, x):
        y = torch.relu(self.a(x))
        z = torch.relu(self.b(y * y.shape[1] ** -0.5)).mean((2, 3))
        return self.fc(z * z.shape[1] ** -0.5)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, body in (("partly", PARTLY), ("attentive", ATTENTIVE), ("nowhere", NOWHERE)):
        (tmp_path / f"{name}.py").write_text(HEAD + body)
    return tmp_path


def test_the_share_that_cannot_be_cut_is_said_and_kept(folder: Path) -> None:
    done = run("compress", "partly.py:Net", "--target-macs", "700k", "--epochs", 1,
               "--distill-epochs", 1, "-o", "out", cwd=folder)  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "out" / "result.json").read_text())
    assert 0 < result["frozen"]["params"] < 1
    assert any("depends on the width" in reason for reason in result["frozen"]["reasons"])
    assert (done.stderr + done.stdout).count("of the MACs cannot be cut") == 1
    widths = result["widths"]
    assert set(widths) == {"b"}
    assert widths["b"][1] < widths["b"][0]


def test_the_lines_that_call_what_cannot_be_cut_are_shown_with_v(folder: Path) -> None:
    """The product of channels with channels, in the line of the user's file."""
    done = run("compress", "attentive.py:Net", "--target-macs", "9M", "--epochs", 1,
               "--distill-epochs", 1, "-v", "-o", "out", cwd=folder)  # fmt: skip
    assert done.returncode == 0, done.stderr
    line = (HEAD + ATTENTIVE).split("\n").index(next(
        text for text in ATTENTIVE.split("\n") if "transpose" in text
    )) + 1  # fmt: skip
    (shown,) = [text for text in done.stderr.splitlines() if f"attentive.py:{line}" in text]
    assert "channels" in shown
    result = json.loads((folder / "out" / "result.json").read_text())
    assert [f"attentive.py:{line}"] in result["frozen"]["lines"].values()


RECIPE = """
model: nowhere.py:Net
stages:
- {stage: train, epochs: 1}
- {stage: prune, amount: 30%}
"""


@pytest.mark.parametrize("line", [
    ("run", "recipe.yaml"),
    ("compress", "nowhere.py:Net", "--target-macs", "100k", "--epochs", 1),
])  # fmt: skip
def test_a_network_that_cannot_be_cut_is_refused_before_training(
    line: tuple[str, ...], folder: Path
) -> None:
    (folder / "recipe.yaml").write_text(RECIPE)
    said = one_line(run(*line, "-o", "out", cwd=folder), 2)
    assert "no channel of Net can be removed" in said
    assert "depends on the width" in said
    assert not (folder / "out").exists()
