"""merge from the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecompress import checkpoint
from edgecompress.lesson import Lesson, network
from edgecompress.measure import runtime
from tests.cli.test_cli import one_line, run
from tests.cli.test_prune import result_of


@pytest.fixture(scope="module")
def parents(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Run folders of two small networks (LeNet-5, 3 epochs) from different seeds, and of a third
    with another epoch.
    """
    folder = tmp_path_factory.mktemp("parents")
    for name, seed in (("a", 1), ("b", 2)):
        done = run("train", "lenet5", "--epochs", 3, "--seed", seed, "-o", name, cwd=folder)
        assert done.returncode == 0, done.stderr
    return [folder / "a", folder / "b"]


def test_two_networks_become_one_of_the_same_size(parents: list[Path], tmp_path: Path) -> None:
    done = run(
        "merge",
        *parents,
        "--epochs",
        4,
        "--finetune-epochs",
        2,
        "-o",
        "m",
        "--json",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["student"]["params"] == result["teacher"]["params"] == 62_006
    told = result["merge"]
    assert told["best_parent"] == max(told["parents"])
    assert {row["name"] for row in result["stages"]} >= {
        "parent 1",
        "parent 2",
        "average of 2",
        "gates",
        "cut",
        "fine-tune",
    }
    wide = next(row for row in result["stages"] if row["name"] == "average of 2")
    assert 3 * 62_006 < wide["params"] < 4 * 62_006, (
        "dense layers hold the weights between the two networks too"
    )
    assert told["validation_accuracy"] > 0.9
    assert [row["kept"] * 2 for row in told["gates"]] == [row["size"] for row in told["gates"]]
    (step,) = told["steps"]
    choices = {row["choice"]: row["accuracy"] for row in step["selection"]}
    assert [*choices] == ["gates", "random", "first parent", "l1", "taylor"], "it has no BatchNorm"
    assert choices["gates"] == step["cut"]
    assert len(step["selection"][1]["draws"]) == 5
    assert choices["gates"] > max(step["selection"][1]["draws"]), "gates select"
    assert step["gated"] - step["cut"] < 0.03
    page = (tmp_path / "m" / "report.html").read_text()
    assert "<h2>Merging</h2>" in page and "validation after the cut" in page
    assert ("The gates did not decide" in page) == (not step["decided"])
    model, _ = checkpoint.load(tmp_path / "m" / "model.safetensors")
    assert sum(p.numel() for p in model.parameters()) == 62_006


@pytest.mark.parametrize(
    "more",
    [["--draw", "sample"], ["--noise", "0.2"], ["--lambda-schedule", "cosine"], ["--width", "1.5"]],
)
def test_options(parents: list[Path], tmp_path: Path, more: list[str]) -> None:
    done = run(
        "merge",
        *parents,
        "--epochs",
        1,
        "--finetune-epochs",
        0,
        *more,
        "-o",
        "m",
        "--json",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    params = json.loads(done.stdout)["student"]["params"]
    assert params > 62_006 if "--width" in more else params == 62_006


@pytest.mark.parametrize("method", ["average", "align"])
def test_baselines(parents: list[Path], tmp_path: Path, method: str) -> None:
    done = run(
        "merge", *parents, "--method", method, "--epochs", 0, "-o", "m", "--json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["student"]["params"] == 62_006


def test_four_networks_in_pairs(parents: list[Path], tmp_path: Path) -> None:
    four = [*parents, *parents]
    done = run(
        "merge",
        *four,
        "--hierarchical",
        "--epochs",
        1,
        "--finetune-epochs",
        1,
        "-o",
        "m",
        "--json",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert len(result["merge"]["steps"]) == 3
    assert result["student"]["params"] == 62_006
    rows = {row["name"]: row["accuracy"] for row in result["stages"]}
    tuned = [name for name in rows if name.startswith("fine-tune")]
    assert tuned == ["fine-tune 1", "fine-tune 2", "fine-tune"], "and between the levels"
    cuts = [step["cut"] for step in result["merge"]["steps"]]
    assert all(rows[name] >= cut for name, cut in zip(tuned, cuts, strict=True))
    half = run(
        "merge",
        *four,
        "--hierarchical",
        "--width",
        0.5,
        "--epochs",
        1,
        "--finetune-epochs",
        0,
        "-o",
        "w",
        "--json",
        cwd=tmp_path,
    )
    rows = [
        row for row in json.loads(half.stdout)["merge"]["gates"] if row["group"] == "classifier.1"
    ]
    sizes = [(row["step"], row["size"], row["kept"]) for row in rows]
    assert sizes == [(1, 240, 120), (2, 240, 120), (3, 240, 60)], (
        "the width counts once, at the last step"
    )
    line = one_line(run("merge", *four, "--hierarchical", "--width", 3, "-o", "h", cwd=tmp_path), 2)
    assert "width 3 is more than two networks" in line
    three = [*parents, parents[0]]
    assert "2, 4, 8" in one_line(run("merge", *three, "--hierarchical", "-o", "h", cwd=tmp_path), 2)


def test_a_result_below_its_best_parent_is_a_missed_target(
    parents: list[Path], tmp_path: Path
) -> None:
    """The mean of the weights of two networks that never met is worse than both."""
    done = run(
        "merge",
        *parents,
        "--method",
        "average",
        "--epochs",
        0,
        "--require-better",
        "-o",
        "m",
        cwd=tmp_path,
    )
    assert done.returncode == 3
    assert "its best parent" in done.stdout
    assert result_of(tmp_path / "m")["missed"]
    assert (tmp_path / "m" / "model.onnx").is_file()


def test_parents_that_differ_are_listed_before_anything_is_written(
    parents: list[Path], tmp_path: Path
) -> None:
    done = run("prune", parents[0], "--amount", "30%", "--epochs", 0, "-o", "p", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    line = one_line(run("merge", parents[0], tmp_path / "p", "-o", "m", cwd=tmp_path), 2)
    assert "differ in" in line
    assert "edgecompress distill" in line
    assert not (tmp_path / "m").exists()
    done = run("train", "student1", "--epochs", 0, "-o", "s", cwd=tmp_path)
    line = one_line(run("merge", parents[0], tmp_path / "s", "-o", "m", cwd=tmp_path), 2)
    assert (
        "networks 1 and 2 differ (LeNet / Student) in 12 tensor(s): features.0.weight (6, 3, "
        "5, 5) / (8, 3, 3, 3)" in line
    )
    assert "distil one into the other instead" in line
    assert "width 3 is more than the 2 networks" in one_line(
        run("merge", *parents, "--width", 3, "-o", "m", cwd=tmp_path), 2
    )
    assert "0 epochs" in one_line(run("merge", *parents, "--epochs", 0, "-o", "m", cwd=tmp_path), 2)
    assert "method average has no such gates: width apply" in one_line(
        run("merge", *parents, "--method", "average", "--width", 0.5, "-o", "m", cwd=tmp_path), 2
    )
    assert "multiple of 6" in one_line(
        run("compare", "lenet5", "--budget", 11, "-o", "m", cwd=tmp_path), 2
    )
    assert "at least 2" in one_line(run("merge", parents[0], "-o", "m", cwd=tmp_path), 2)


def test_a_parents_own_folder_is_no_output(parents: list[Path], tmp_path: Path) -> None:
    shutil.copytree(parents[0], tmp_path / "k")
    line = one_line(
        run("merge", "k", parents[1], "--epochs", 1, "-o", "k", "--exist-ok", cwd=tmp_path), 2
    )
    assert "output 'k' holds 'k/model.safetensors', which this run reads: give another -o" in line
    assert (tmp_path / "k" / "result.json").read_bytes() == (
        parents[0] / "result.json"
    ).read_bytes()


def test_a_network_that_is_not_finite_is_named(parents: list[Path], tmp_path: Path) -> None:
    model, manifest = checkpoint.load(parents[1] / "model.safetensors")
    next(model.parameters()).data[0] = float("nan")
    checkpoint.save(tmp_path / "broken.safetensors", model, manifest.model, manifest.notes)
    line = one_line(run("merge", parents[0], "broken.safetensors", "-o", "m", cwd=tmp_path), 2)
    assert (
        "checkpoint 'broken.safetensors': tensor 'features.0.weight' holds values that are "
        "not finite" in line
    )
    assert not (tmp_path / "m").exists()
    assert "finite number" in one_line(
        run("merge", *parents, "--lambda-scale", "inf", "-o", "m", cwd=tmp_path), 2
    )


def test_a_run_goes_on_with_the_parents_that_it_began_with(
    parents: list[Path], tmp_path: Path
) -> None:
    for name, parent in zip(("a", "b"), parents, strict=True):
        shutil.copytree(parent, tmp_path / name)
    command = ("merge", "a", "b", "--method", "average", "--epochs", 0, "-o", "m")
    assert run(*command, cwd=tmp_path).returncode == 0
    (tmp_path / "m" / "04-measure" / "stage.json").unlink()
    assert run(*command, "--resume", cwd=tmp_path).returncode == 0
    (tmp_path / "m" / "04-measure" / "stage.json").unlink()
    shutil.copyfile(tmp_path / "b" / "model.safetensors", tmp_path / "a" / "model.safetensors")
    done = run(*command, "--resume", cwd=tmp_path)
    assert done.returncode == 2
    assert (
        done.stderr.splitlines()[-1]
        == "error: --resume with another 'a/model.safetensors' than the run in 'm' read: start "
        "a new run"
    )


@pytest.mark.parametrize("schedule", ["source", "constant"])
def test_greedy(parents: list[Path], tmp_path: Path, schedule: str) -> None:
    more = ("--lambda-schedule", schedule, "--epochs", 3, "--finetune-epochs", 1)
    done = run("merge", *parents, "--method", "greedy", *more, "-o", "m", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["student"]["params"] == 62_006
    rows = {row["name"]: row["accuracy"] for row in result["stages"]}
    assert rows["mimic"] > rows["cut"], "mimicking mends what the choice of channels broke"
    assert "after mimicking" in (tmp_path / "m" / "report.html").read_text()
    assert "no such gates" in one_line(
        run("merge", *parents, "--method", "greedy", "--draw", "sample", "-o", "x", cwd=tmp_path), 2
    )


def test_networks_of_different_classes_keep_their_heads(
    parents: list[Path], tmp_path: Path
) -> None:
    """A network of ten digits and one of two classes of images: the result knows both."""
    images = np.random.default_rng(0)
    for label, level in (("dark", 0), ("light", 160)):
        (tmp_path / "two" / label).mkdir(parents=True)
        for number in range(60):
            pixels = (images.integers(0, 96, (32, 32, 3)) + level).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "two" / label / f"{number}.png")
    two = f"folder:{tmp_path / 'two'}"
    for name, data in (("a", "digits"), ("b", two)):
        done = run(
            "train",
            "lenet5",
            "--data",
            data,
            "--normalize",
            "imagenet",
            "--epochs",
            3,
            "-o",
            name,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
    more = ("--heads", "separate", "--data", f"digits+{two}", "--normalize", "imagenet")
    short = ("--epochs", 4, "--finetune-epochs", 2, "--lambda-scale", 5)
    done = run("merge", "a", "b", *more, *short, "-o", "m", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert len(result["merge"]["parents"]) == 2
    counts = {row["name"]: row["n"] for row in result["stages"]}
    assert counts["parent 1"] == 269, "each parent is validated on its own data"
    assert counts["parent 2"] == 12
    assert counts["quantize fp32"] == 281
    assert result["student"]["accuracy"] > 0.85
    assert result["student"]["params"] < 0.6 * result["teacher"]["params"]
    loaded = runtime.load(tmp_path / "m" / "model.onnx")
    assert loaded.metadata.entries["heads"] == [10, 2]
    assert loaded.metadata.entries["classes"][-2:] == [f"{two}: dark", f"{two}: light"]
    told = run("predict", "m/model.onnx", tmp_path / "two" / "dark" / "0.png", cwd=tmp_path).stdout
    assert "two: dark" in told, "each head says what it sees"
    wrong = run(
        "merge", "a", "b", "--heads", "separate", "--normalize", "imagenet", "-o", "x", cwd=tmp_path
    )
    assert "--data A+B" in one_line(wrong, 2)
    assert not (tmp_path / "x").exists()


def test_three_networks_at_once(parents: list[Path], tmp_path: Path) -> None:
    assert (
        run("train", "lenet5", "--epochs", 1, "--seed", 3, "-o", "c", cwd=tmp_path).returncode == 0
    )
    done = run(
        "merge",
        *parents,
        tmp_path / "c",
        "--epochs",
        1,
        "--finetune-epochs",
        0,
        "-o",
        "m",
        "--json",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert len(result["merge"]["parents"]) == 3
    assert result["student"]["params"] == 62_006
    shares = [row["kept"] / row["size"] for row in result["merge"]["gates"]]
    assert shares == pytest.approx([1 / 3] * len(shares), abs=0.01)


@pytest.mark.parametrize("name", ["resnet20", pytest.param("mobilenet_v2", marks=pytest.mark.slow)])
def test_deeper_networks_are_merged(name: str, few: str, tmp_path: Path) -> None:
    """Residual streams, BatchNorm and depthwise layers, from two files to the one that ships."""
    data = Lesson(data=few).load(lambda _: None)
    for seed in (1, 2):
        made = network(name, data, seed)
        checkpoint.save(
            tmp_path / f"p{seed}" / "model.safetensors",
            made.model,
            made.source,
            checkpoint.notes_for(data),
        )
    done = run(
        "merge",
        "p1",
        "p2",
        "--epochs",
        1,
        "--finetune-epochs",
        0,
        "--data",
        few,
        "-o",
        "m",
        "--json",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["student"]["params"] == sum(p.numel() for p in made.model.parameters())
    assert result["parity"]["max_abs_logit_diff"] < 1e-3
