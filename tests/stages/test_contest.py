"""Formats that compete for the bytes of a target."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from edgecompress.data import load_data
from edgecompress.models import ModelSource
from edgecompress.run.state import Network, SizePlan, State
from edgecompress.stages.contest.work import Contender, _loses, _outcome
from tests.cli.test_cli import one_line, run
from tests.stages.test_training import OURS, context

SOURCE = ModelSource("lenet5", 10, (3, 32, 32))


def _contender(form: str, accuracy: float) -> Contender:
    return Contender(SizePlan(True, (form,)), nn.Identity(), 1, accuracy=accuracy)


def test_the_wider_format_wins_a_tie() -> None:
    tied = [_contender("int2", 0.9), _contender("int4", 0.9), _contender("int8-qdq", 0.2)]
    assert [one.form for one in sorted(tied, key=Contender.rank)] == ["int4", "int2", "int8-qdq"]


def test_a_format_that_was_alone_is_not_called_the_best() -> None:
    alone, other = _contender("int8-qdq", 0.98), _contender("int4", 0.97)
    data = load_data("digits")
    assert "so no fewer bits were tried" in _outcome(data, [alone], alone)
    assert "int8-qdq is the most accurate" in _outcome(data, [alone, other], alone)


class Wrong(nn.Module):
    """A network that is right of all images but `count` of the validation split."""

    def __init__(self, count: int) -> None:
        super().__init__()
        data = load_data("digits")
        split = data.validation
        self.register_buffer("seen", data.normalised(split.pixels))
        answers = split.labels.clone()
        answers[:count] = (answers[:count] + 1) % 10
        self.register_buffer("answers", nn.functional.one_hot(answers, 10).float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert isinstance(self.seen, torch.Tensor) and isinstance(self.answers, torch.Tensor)
        first = next(n for n in range(len(self.seen)) if torch.equal(self.seen[n], x[0]))
        return self.answers[first : first + len(x)]


def test_one_image_does_not_decide_whether_others_are_tried() -> None:
    """A point at which the difference could be chance is no reason to try fewer bits."""
    known = context(load_data("digits"), OURS)
    state = State(SOURCE, teacher=Network(Wrong(0), SOURCE))
    for count, loses in ((0, False), (1, False), (2, False), (12, True)):
        one = Contender(SizePlan(True, ("int8-qdq",)), Wrong(count), 1)
        assert _loses(known, state, one) == loses


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LeNet-5 in 9 KB, which int8 holds few channels of."""
    folder = tmp_path_factory.mktemp("contest")
    options = ("--epochs", 4, "--distill-epochs", 2, "--qat-epochs", 4)
    done = run("compress", "lenet5", "--target", "9KB", *options, "-o", "out", "-v", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "short trainings in the formats that fit" in done.stdout
    return folder / "out"


def test_fewer_bits_win_where_int8_loses(small: Path) -> None:
    result = json.loads((small / "result.json").read_text())
    contest = result["contest"]
    forms = [row["format"] for row in contest["rows"]]
    assert forms == ["int8-qdq", "int4", "int2"]
    accuracy = {row["format"]: row["accuracy"] for row in contest["rows"]}
    assert contest["winner"] == max(accuracy, key=lambda form: accuracy[form]) != "int8-qdq"
    params = [row["params"] for row in contest["rows"]]
    assert params[0] < 0.7 * params[1]
    assert result["format"] == contest["winner"]
    size = (small / "model.onnx").stat().st_size
    assert 0.9 * 9_000 <= size == result["bytes"] <= 9_000
    assert result["teacher"]["accuracy"] - result["student"]["accuracy"] < 0.1
    report = (small / "report.html").read_text()
    assert "Formats in short trainings" in report and "Weights in the file" in report


def test_the_result_says_how_each_weight_is_stored(small: Path) -> None:
    result = json.loads((small / "result.json").read_text())
    (shipped,) = [row for row in result["formats"] if row["format"] == result["format"]]
    weights = shipped["weights"]
    assert {row["layer"] for row in weights} == {row["layer"] for row in result["layers"]}
    bits = int(result["format"].removeprefix("int"))
    assert bits in {row["bits"] for row in weights}
    assert weights[0]["bits"] == weights[-1]["bits"] == 8, "the first and the last layer"
    assert sum(row["bytes"] for row in weights) < result["bytes"]
    assert result["qat"]["bits"] == {row["layer"]: bits for row in weights[1:-1]}


def test_predict_and_bench_read_the_file(small: Path) -> None:
    result = json.loads((small / "result.json").read_text())
    done = run("predict", small, "--data", "digits", "--json", cwd=small)
    assert json.loads(done.stdout)["accuracy"] == result["student"]["accuracy"]
    done = run("bench", small, "--json", cwd=small)
    assert done.returncode == 0, done.stderr


def test_a_search_alone_does_not_take_few_bits(tmp_path: Path) -> None:
    done = run("compress", "lenet5", "--max-drop", "1%", "--quantize", "int4", cwd=tmp_path)
    assert "give --target too" in one_line(done, 2)


def test_a_format_of_few_bits_needs_a_layer_for_them(tmp_path: Path) -> None:
    """Else the result would say int2 of a file whose weights all have 8 bits."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\n"
        "def make(num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(3072, num_classes))\n"
    )
    options = ("--target", "20KB", "--quantize", "int2", "-o", "out")
    done = run("compress", "net.py:make", *options, cwd=tmp_path)
    assert "net.py:make has 1 layer(s), and the first and the last keep 8 bits" in one_line(done, 2)
    assert not (tmp_path / "out").exists()
