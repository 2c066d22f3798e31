"""merge from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgecompress import checkpoint
from tests.cli.test_cli import one_line, run
from tests.cli.test_prune import result_of


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Run folders of two small networks (LeNet-5, 3 epochs) from different seeds, and of a third with another epoch."""
    folder = tmp_path_factory.mktemp("parents")
    for name, seed in (("a", 1), ("b", 2)):
        done = run("train", "lenet5", "--epochs", 3, "--seed", seed, "-o", name, cwd=folder)
        assert done.returncode == 0, done.stderr
    return [folder / "a", folder / "b"]


def test_two_networks_become_one_of_the_same_size(parents: list[Path], tmp_path: Path) -> None:
    done = run("merge", *parents, "--epochs", 4, "--finetune-epochs", 2, "--lambda-scale", 5, "-o", "m", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["student"]["params"] == result["teacher"]["params"] == 62_006
    told = result["merge"]
    assert told["best_parent"] == max(told["parents"])
    assert {row["name"] for row in result["stages"]} >= {"parent 1", "parent 2", "average of 2", "gates", "cut", "fine-tune"}
    wide = next(row for row in result["stages"] if row["name"] == "average of 2")
    assert 3 * 62_006 < wide["params"] < 4 * 62_006, "dense layers hold the weights between the two networks too"
    assert told["validation_accuracy"] > 0.9
    assert [row["kept"] * 2 for row in told["gates"]] == [row["size"] for row in told["gates"]]
    page = (tmp_path / "m" / "report.html").read_text()
    assert "<h2>Merging</h2>" in page
    model, _ = checkpoint.load(tmp_path / "m" / "model.safetensors")
    assert sum(p.numel() for p in model.parameters()) == 62_006


@pytest.mark.parametrize("more", [["--draw", "sample"], ["--noise", "0.2"], ["--lambda-schedule", "cosine"], ["--width", "1.5"]])
def test_options(parents: list[Path], tmp_path: Path, more: list[str]) -> None:
    done = run("merge", *parents, "--epochs", 1, "--finetune-epochs", 0, *more, "-o", "m", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    params = json.loads(done.stdout)["student"]["params"]
    assert params > 62_006 if "--width" in more else params == 62_006


@pytest.mark.parametrize("method", ["average", "align"])
def test_baselines(parents: list[Path], tmp_path: Path, method: str) -> None:
    done = run("merge", *parents, "--method", method, "--epochs", 0, "-o", "m", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["student"]["params"] == 62_006


def test_four_networks_in_pairs(parents: list[Path], tmp_path: Path) -> None:
    four = [*parents, *parents]
    done = run("merge", *four, "--hierarchical", "--epochs", 1, "--finetune-epochs", 0, "-o", "m", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert len(result["merge"]["steps"]) == 3
    assert result["student"]["params"] == 62_006
    half = run("merge", *four, "--hierarchical", "--width", 0.5, "--epochs", 1, "--finetune-epochs", 0, "-o", "w", "--json", cwd=tmp_path)
    rows = [row for row in json.loads(half.stdout)["merge"]["gates"] if row["group"] == "classifier.1"]
    assert [(row["size"], row["kept"]) for row in rows] == [(240, 60)], "the width counts once, at the last step"
    three = [*parents, parents[0]]
    assert "2, 4, 8" in one_line(run("merge", *three, "--hierarchical", "-o", "h", cwd=tmp_path), 2)


def test_a_result_below_its_best_parent_is_a_missed_target(parents: list[Path], tmp_path: Path) -> None:
    """The mean of the weights of two networks that never met is worse than both."""
    done = run("merge", *parents, "--method", "average", "--epochs", 0, "--require-better", "-o", "m", cwd=tmp_path)
    assert done.returncode == 3
    assert "its best parent" in done.stdout
    assert result_of(tmp_path / "m")["missed"]
    assert (tmp_path / "m" / "model.onnx").is_file()


def test_parents_that_differ_are_listed_before_anything_is_written(parents: list[Path], tmp_path: Path) -> None:
    done = run("prune", parents[0], "--amount", "30%", "--epochs", 0, "-o", "p", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    line = one_line(run("merge", parents[0], tmp_path / "p", "-o", "m", cwd=tmp_path), 2)
    assert "differ in" in line
    assert "edgecompress distill" in line
    assert not (tmp_path / "m").exists()
    done = run("train", "student1", "--epochs", 0, "-o", "s", cwd=tmp_path)
    assert "holds a student1, not a lenet5" in one_line(run("merge", parents[0], tmp_path / "s", "-o", "m", cwd=tmp_path), 2)
    assert "width 3 is more than the 2 networks" in one_line(run("merge", *parents, "--width", 3, "-o", "m", cwd=tmp_path), 2)
    assert "0 epochs" in one_line(run("merge", *parents, "--epochs", 0, "-o", "m", cwd=tmp_path), 2)
    assert "method average has no gates" in one_line(
        run("merge", *parents, "--method", "average", "--width", 0.5, "-o", "m", cwd=tmp_path), 2
    )
    assert "multiple of 6" in one_line(run("compare", "lenet5", "--budget", 11, "-o", "m", cwd=tmp_path), 2)
    assert "at least 2" in one_line(run("merge", parents[0], "-o", "m", cwd=tmp_path), 2)


def test_strategies_are_compared_under_one_budget(tmp_path: Path) -> None:
    done = run("compare", "lenet5", "--budget", 6, "--repeats", 2, "-o", "c", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = result_of(tmp_path / "c")["compare"]
    assert set(told["results"]) == {"student", "bo3", "one", "distilled"}
    assert all(len(values) == 2 and min(values) > 0.3 for values in told["results"].values())
    assert {name: row["test"] for name, row in told["student_against"].items()} == {
        "bo3": "wilcoxon", "one": "mann-whitney", "distilled": "wilcoxon",
    }  # fmt: skip
    assert "student against one: p = " in done.stdout
    page = (tmp_path / "c" / "report.html").read_text()
    assert "Strategies under one budget" in page
    assert (tmp_path / "c" / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["lenet5", "resnet20"])
def test_the_experiments_of_the_second_source_run_at_small_scale(name: str, tmp_path: Path) -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "pasen2022" / f"{name}.yaml"
    more = ["--set", "stages.0.budget=6", "--set", "stages.0.repeats=2"]
    if name == "resnet20":  # a narrow twin: the network itself takes minutes here
        (tmp_path / "narrow.py").write_text(NARROW_RESNET)
        more += ["--set", "model=narrow.py:make"]
    done = run("run", recipe, *more, "-o", "c", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert result_of(tmp_path / "c")["compare"]["budget"] == 6


NARROW_RESNET = """
from edgecompress.models.resnet import CifarResNet

def make(num_classes):
    return CifarResNet((1, 1, 1), (4, 8, 8), num_classes)
"""
