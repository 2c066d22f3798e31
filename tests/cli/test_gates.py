"""The gates of `bench` beside latency."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from edgecompress.data import load_data
from edgecompress.export import onnx as exporter
from edgecompress.report.ci import checks
from tests.cli.test_cli import one_line, run

ROW = {"name": "accuracy", "text": ""}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`good.onnx`, `same.onnx` with the same outputs times two, `poor.onnx` that always says 0."""
    torch.manual_seed(0)
    data, folder = load_data("digits"), tmp_path_factory.mktemp("gates")
    pixels, labels = data.normalised(data.train.pixels).flatten(1), data.train.labels
    target = torch.nn.functional.one_hot(labels, 10).float()
    solved = torch.linalg.lstsq(pixels[:, ::7], target, driver="gelsd").solution
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))
    weight = torch.zeros(10, 3072)
    weight[:, ::7] = solved.T
    metadata = exporter.InputSpec((3, 32, 32), data.preprocess, data.classes, "digits").metadata()
    for name, factor in (("good", 1.0), ("same", 2.0), ("poor", 0.0)):
        network[1].weight.data = factor * weight
        network[1].bias.data = torch.eye(10)[0] * (factor == 0)
        proto = exporter.to_onnx(network, torch.zeros(1, 3, 32, 32), metadata)
        exporter.save(proto, folder / f"{name}.onnx")
    return folder


FAST = ("--processes", 5, "--blocks", 5, "--threads", 1, "--max-regression", "100%", "--json")


def gate(
    files: Path, new: str, old: str, drop: str, *more: object
) -> tuple[int, dict[str, object]]:
    done = run("bench", f"{new}.onnx", "--against", f"{old}.onnx", "--data", "digits",
               "--max-drop", drop, *FAST, *more, cwd=files)  # fmt: skip
    assert done.stdout, done.stderr
    (found,) = json.loads(done.stdout)["gates"]
    return done.returncode, found


def test_what_is_lost_beyond_chance_fails(files: Path) -> None:
    code, found = gate(files, "poor", "good", "5%")
    assert (code, found["verdict"], found["passed"]) == (3, "fail", False)
    assert found["difference"]["ci95"][1] < -0.05
    assert "359 images" in str(found["text"])


def test_equal_predictions_pass_where_images_are_enough_to_say_so(files: Path) -> None:
    code, found = gate(files, "same", "good", "1%")
    assert (code, found["verdict"]) == (0, "pass")
    assert found["difference"]["difference"] == 0


def test_too_few_images_are_inconclusive_and_fail_only_when_strict(files: Path) -> None:
    code, found = gate(files, "same", "good", "0.1%")
    assert (code, found["verdict"]) == (0, "inconclusive")
    assert "more images would settle it" in str(found["text"])
    code, _ = gate(files, "same", "good", "0.1%", "--strict")
    assert code == 3


@pytest.mark.parametrize(
    ("row", "strict", "status"),
    [
        ({"passed": False, "verdict": "inconclusive"}, False, "skip"),
        ({"passed": False, "verdict": "inconclusive"}, True, "fail"),
        ({"passed": False, "verdict": "fail"}, False, "fail"),
        ({"passed": False}, False, "fail"),
        ({"passed": True}, True, "pass"),
    ],
)
def test_a_gate_of_three_verdicts_is_shown_like_latency(
    row: dict[str, object], strict: bool, status: str
) -> None:
    result: dict[str, object] = {"gates": [{**ROW, **row}]}
    assert checks(result, strict) == [("accuracy", status, "")]  # type: ignore[arg-type]


def test_other_classes_than_those_of_the_data_are_an_error(tmp_path: Path) -> None:
    """A file of 4 classes has no accuracy on data of 10."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 4))
    data = load_data("digits")
    metadata = exporter.InputSpec((3, 32, 32), data.preprocess, data.classes, "").metadata()
    proto = exporter.to_onnx(network, torch.zeros(1, 3, 32, 32), metadata)
    exporter.save(proto, tmp_path / "four.onnx")
    message = one_line(run("predict", "four.onnx", "--data", "digits", cwd=tmp_path), 2)
    assert "4 outputs" in message
    assert "10 classes" in message
