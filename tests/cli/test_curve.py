"""`compress --curve`: a file for each size, from one teacher."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edgecompress.cli.curve import sizes
from edgecompress.errors import UsageError
from edgecompress.files import digest
from tests.cli.test_cli import one_line, process, run

QUICK = ("--epochs", 2, "--distill-epochs", 1, "--qat-epochs", 1, "--quantize", "int8")
SIZES = "22KB,2KB,45KB"
"""The smallest is out of reach."""


def test_sizes_are_sorted_and_each_stands_once() -> None:
    assert sizes("32KB, 1MB,96KB") == ["1MB", "96KB", "32KB"]
    for text, part in (
        ("32KB", "two sizes or more"),
        ("32KB,32000B", "each once"),
        ("", "two sizes"),
        ("32KB,96", "has no unit"),
    ):
        with pytest.raises(UsageError, match=part):
            sizes(text)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory, few: str) -> Path:
    folder = tmp_path_factory.mktemp("curve")
    done = run(
        *("compress", "lenet5", "--curve", SIZES, *QUICK, "--data", few, "-o", "out"),
        cwd=folder,
    )
    assert done.returncode == 3, done.stderr
    assert "teacher (1 of 4)" in done.stderr
    assert "[1/1] train" in done.stderr
    assert "[3/10] plan" in done.stderr, "each run counts its own stages"
    assert "against the teacher" in done.stdout
    assert "target missed at 2KB: " in done.stdout
    return folder / "out"


def test_every_size_has_a_file_and_all_have_one_teacher(drawn: Path) -> None:
    curve = json.loads((drawn / "curve.json").read_text())
    assert [point["target"] for point in curve["points"]] == ["45KB", "22KB", "2KB"]
    assert [bool(point["missed"]) for point in curve["points"]] == [False, False, True]
    for point in curve["points"][:2]:
        assert (drawn / point["file"]).stat().st_size == point["bytes"] <= point["target_bytes"]
        low, high = point["ci95"]
        assert low <= point["score"] <= high
        own = json.loads((drawn / point["folder"] / "result.json").read_text())
        assert own["teacher"]["accuracy"] == curve["teacher"]["score"]
        assert own["stages"][0]["name"] == "load"
    params = [point["params"] for point in curve["points"]]
    assert params == sorted(params, reverse=True)
    page = (drawn / "report.html").read_text()
    assert "<svg" in page
    assert 'href="22KB/report.html"' in page
    assert 'class="missed"' in page


def test_a_curve_that_was_stopped_goes_on(drawn: Path, few: str, tmp_path: Path) -> None:
    shutil.copytree(drawn, tmp_path / "out")
    again = tmp_path / "out"
    before = json.loads((again / "curve.json").read_text())
    for name in ("curve.json", "report.html"):
        (again / name).unlink()
    shutil.rmtree(again / "2KB")
    trained = "teacher/01-train/stage.json"
    taught = (again / trained).stat().st_mtime_ns, digest(again / "teacher/model.safetensors")
    # the teacher is named by its path: the run that goes on is that of the first folder
    shutil.rmtree(drawn)
    again.rename(drawn)
    done = run(
        *("compress", "lenet5", "--curve", SIZES, *QUICK, "--data", few, "-o", "out"),
        *("--resume", "--json"),
        cwd=drawn.parent,
    )
    assert done.returncode == 3, done.stderr
    after = json.loads(done.stdout)
    assert (drawn / trained).stat().st_mtime_ns == taught[0], "nothing was trained again"
    assert digest(drawn / "teacher/model.safetensors") == taught[1]

    other = run(
        *("compress", "lenet5", "--curve", SIZES, *QUICK, "--data", few, "-o", "out"),
        *("--seed", 5, "--resume", "-q"),
        cwd=drawn.parent,
    )
    assert "other settings" in one_line(other, 2), "runs of another seed are no part of this curve"
    for old, new in zip(before["points"], after["points"], strict=True):
        assert (old["bytes"], old["score"]) == (new["bytes"], new["score"])


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--curve", "32KB"), "two sizes or more"),
        (("--curve", "32KB,64KB", "--target", "4MB"), "--target with --curve"),
        (("--curve", "32KB,64KB", "--time", "9s", "--epochs", 1), "the time decides"),
        (("--curve", "32KB,64KB", "--teacher", "t", "--epochs", 3), "--epochs is about training"),
        (("--curve", "32KB,64KB", "--resume"), "--resume without -o"),
        (("--curve", "32KB,64KB", "--resume", "-o", "nowhere"), "nothing to resume"),
    ],
)
def test_wrong_curves_are_refused(options: tuple[object, ...], part: str, tmp_path: Path) -> None:
    assert part in one_line(run("compress", "lenet5", *options, cwd=tmp_path), 2)
    assert list(tmp_path.iterdir()) == []


def test_a_curve_is_drawn_in_one_process(tmp_path: Path) -> None:
    arguments = ("compress", "lenet5", "--curve", "32KB,64KB", "-o", "out")
    done = process(*arguments, cwd=tmp_path, WORLD_SIZE="2", RANK="0")
    assert "leave torchrun out" in one_line(done, 2)


def test_a_given_teacher_brings_its_data(tmp_path: Path, few: str) -> None:
    done = run("train", "lenet5", "--epochs", 1, "--data", few, "-o", "t", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    given = ("compress", "lenet5", "--curve", "45KB,50KB", "--teacher", "t", "--dry-run")
    asked = run(*given, cwd=tmp_path)
    assert asked.returncode == 0, asked.stderr
    assert f"data: {few}" in asked.stdout
