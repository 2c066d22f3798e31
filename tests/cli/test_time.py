"""`--time`: as many epochs as fit, in every training of a run."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.cli.test_cli import one_line, process, run


def epochs_of(run_directory: Path) -> dict[str, list[float]]:
    """The learning rates of the epochs of each training."""
    rates: dict[str, list[float]] = {}
    with (run_directory / "history.csv").open() as file:
        for row in csv.DictReader(file):
            rates.setdefault(row["stage"], []).append(float(row["learning_rate"]))
    return rates


def test_a_compression_divides_its_time_among_its_trainings(tmp_path: Path, few: str) -> None:
    done = process(
        *("compress", "lenet5", "--target", "25KB", "--quantize", "int4", "--time", "6s"),
        *("--data", few, "-o", "out"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "6 s for the run: train " in done.stderr
    rates = epochs_of(tmp_path / "out")
    trainings = {name.split()[0] for name in rates}
    assert trainings == {"train", "prune", "distill", "qat"}
    assert len(rates["train"]) > len(rates["prune 1of1"]), "the teacher has the largest share"
    assert all(row[-1] < 0.5 * max(row) for row in rates.values() if len(row) > 5)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    spent = result["wall_s"]
    assert spent < 60, "a busy machine may take longer, 12 epochs of each would take minutes"


def test_epochs_that_are_given_stay(tmp_path: Path, few: str) -> None:
    done = process(
        *("compress", "lenet5", "--target", "25KB", "--quantize", "int8", "--time", "3s"),
        *("--epochs", 2, "--data", few, "-o", "out"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert len(epochs_of(tmp_path / "out")["train"]) == 2
    resolved = (tmp_path / "out" / "resolved.yaml").read_text()
    assert "time: 3.0  # command line" in resolved


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("train", "lenet5", "--time", "20"), "'20' has no unit"),
        (("train", "lenet5", "--time", "0s"), "'0s' is not above zero"),
        (("train", "lenet5", "--time", "20s", "--epochs", 3), "no training whose epochs are open"),
        (
            ("compress", "lenet5", "--max-drop", "1%", "--time", "20s"),
            "stage search cannot be fitted to a time",
        ),
    ],
)
def test_a_time_that_cannot_be_kept_is_refused(
    arguments: tuple[object, ...], part: str, tmp_path: Path
) -> None:
    assert part in one_line(run(*arguments, "-o", "out", cwd=tmp_path), 2)
    assert not (tmp_path / "out").exists()


def test_a_teacher_that_is_given_takes_no_time(tmp_path: Path, few: str) -> None:
    done = run("train", "lenet5", "--epochs", 1, "--data", few, "-o", "t", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = run("distill", "t", "student1", "--time", "2s", "-o", "s", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 s for the run: distill 2 s; " in done.stderr
