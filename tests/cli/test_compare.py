"""compare from the command line, and the problem and recipes of the second source."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_cli import one_line, run
from tests.cli.test_prune import result_of


def test_what_cannot_be_compared_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    def refused(*arguments: object) -> str:
        line = one_line(
            run("compare", *arguments, "--budget", 6, "--repeats", 2, "-o", "c", cwd=tmp_path), 2
        )
        assert not (tmp_path / "c").exists()
        return line

    assert "cannot run on an input of shape" in refused("lenet5", "--data", "sine")
    assert "precision bf16: the sine problem's networks train as the source did" in refused(
        "mlp", "--data", "sine", "--precision", "bf16"
    )


def test_strategies_are_compared_under_one_budget(tmp_path: Path) -> None:
    done = run("compare", "lenet5", "--budget", 6, "--repeats", 2, "-o", "c", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = result_of(tmp_path / "c")["compare"]
    assert set(told["results"]) == {"student", "bo3", "one", "distilled"}
    assert all(len(values) == 2 and min(values) > 0.3 for values in told["results"].values())
    assert {name: row["test"] for name, row in told["student_against"].items()} == {
        "bo3": "wilcoxon",
        "one": "mann-whitney",
        "distilled": "wilcoxon",
    }
    assert "student against one: p = " in done.stdout
    page = (tmp_path / "c" / "report.html").read_text()
    assert "Strategies under one budget" in page
    assert (tmp_path / "c" / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["lenet5", "resnet20"])
def test_the_experiments_of_the_second_source_run_at_small_scale(
    name: str, few: str, tmp_path: Path
) -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "pasen2022" / f"{name}.yaml"
    more = ["--set", "stages.0.budget=6", "--set", "stages.0.repeats=2"]
    if name == "resnet20":  # a narrow twin: the network itself takes minutes here
        (tmp_path / "narrow.py").write_text(NARROW_RESNET)
        more += ["--set", "model=narrow.py:make"]
    more += ["--set", f"data={few}"]
    done = run("run", recipe, *more, "-o", "c", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert result_of(tmp_path / "c")["compare"]["budget"] == 6


NARROW_RESNET = """
from edgecompress.models.resnet import CifarResNet

def make(num_classes):
    return CifarResNet((1, 1, 1), (4, 8, 8), num_classes)
"""


def test_a_regression_is_trained_merged_and_compared(tmp_path: Path) -> None:
    """The sine problem from the command line: `metric` and `loss` stand where an accuracy would."""
    for seed in (1, 2):
        done = run(
            "train",
            "mlp",
            "--data",
            "sine",
            "--epochs",
            2,
            "--seed",
            seed,
            "-o",
            f"p{seed}",
            "--json",
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        trained = json.loads(done.stdout)
        assert trained["metric_name"] == "r2"
        assert "accuracy" not in trained["stages"][0]
        assert trained["stages"][0]["metric"] < 1
    done = run(
        "merge",
        "p1",
        "p2",
        "--data",
        "sine",
        "--epochs",
        2,
        "--finetune-epochs",
        1,
        "-o",
        "m",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "R²" in done.stdout
    result = json.loads((tmp_path / "m" / "result.json").read_text())
    student = result["student"]
    assert student["params"] == 301
    assert "accuracy" not in student
    variance = 0.5 + 0.04
    assert student["loss"] == pytest.approx((1 - student["metric"]) * variance, rel=0.05)
    assert result["parity"]["top1_agreement"] is None
    page = (tmp_path / "m" / "report.html").read_text()
    again = run("report", "m", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "m" / "report.html").read_text() == page
    told = run("predict", "m/model.onnx", "--data", "sine", "--json", cwd=tmp_path)
    assert json.loads(told.stdout)["metric"] == pytest.approx(student["metric"])


def test_the_sine_experiment_from_the_command_line(tmp_path: Path) -> None:
    done = run(
        "compare",
        "mlp",
        "--data",
        "sine",
        "--budget",
        6,
        "--repeats",
        3,
        "-o",
        "c",
        "--json",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["compare"]
    assert told["score"] == "test loss"
    assert all(len(values) == 3 for values in told["results"].values())
