"""The command line as a user meets it: exit codes, one-line errors, streams, and that bad input
writes nothing.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from edgecompress import __version__
from edgecompress.cli.app import run_command
from edgecompress.cli.console import table
from tests import forked

THREADS = (
    {"EDGECOMPRESS_THREADS": "1", "OMP_NUM_THREADS": "1"}
    if os.environ.get("PYTEST_XDIST_WORKER")
    else {}
)
"""Workers of one test run share the cores: one thread for each command."""


def run(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`edgecompress ARGUMENTS`: the real command, in this process (most of a command's time is its
    imports); see `process`.
    """
    if environment:
        return process(*arguments, cwd=cwd, **environment)
    out, err, before, folder = io.StringIO(), io.StringIO(), dict(os.environ), Path.cwd()
    threads, own = torch.get_num_threads(), _environment()
    try:
        os.environ.clear()
        os.environ.update(own)
        os.chdir(cwd)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run_command([str(argument) for argument in arguments])
    finally:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(before)
        torch.set_num_threads(threads)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def process(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`edgecompress ARGUMENTS` in a process of its own; see `tests.forked`."""
    command = ["-m", "edgecompress", *map(str, arguments)]
    return forked.run(command, cwd=cwd, env=_environment() | environment)


def python(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`edgecompress ARGUMENTS` in a Python that has imported nothing yet."""
    command = [sys.executable, "-m", "edgecompress", *map(str, arguments)]
    env = _environment() | environment
    return subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=500, check=False
    )


def _environment() -> dict[str, str]:
    return (
        {k: v for k, v in os.environ.items() if not k.startswith("EDGECOMPRESS_")}
        | {"CI": "1", "COLUMNS": "200"}
        | THREADS
    )


def one_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The error of a command that failed as promised: one line on stderr, nothing on stdout."""
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["compress", "vgg16", "--target", "4"], "'4' has no unit"),
        (["compress", "vgg16", "--target", "0MB"], "'0MB' is not above zero"),
        (["compress", "vgg16", "--target=-3MB"], "'-3MB' is not above zero"),
        (["compress", "vgg61", "--target", "4MB"], "vgg16"),
        (["compress", "vgg16"], "no target"),
        (["compress", "vgg16", "--target", "4MB", "--quantize", "int3"], "quantize"),
        (["compress", "vgg16", "--target", "4MB", "--data", "digit"], "digits"),
        (["compress", "vgg16", "--target", "4MB", "--data", "folder:nowhere"], "does not exist"),
        (
            ["compress", "vgg16", "--target", "4MB", "--teacher", "nowhere.safetensors"],
            "does not exist",
        ),
        (["compress", "vgg16", "--target", "4MB", "--max-drop", "200%"], "outside 0..1"),
        (["compress", "vgg16", "--target", "4MB", "--device", "tpu"], "allowed are auto, cpu"),
        (["compress", "vgg16", "--target", "4MB", "--resume"], "without -o"),
        (["compress", "vgg16", "--target", "4MB", "--no-such-option"], "--no-such-option"),
        (["compress", "vgg16", "--target", "4MB", "--round-to", "eight"], "--round-to"),
        (["run", "nowhere.yaml"], "unknown recipe 'nowhere.yaml': did you mean"),
        (["predict", "nowhere.onnx", "--data", "digits"], "does not exist"),
        (["bench", "nowhere.onnx"], "does not exist"),
        (["prune", "nowhere.safetensors"], "does not exist"),
        (["nonsense"], "nonsense"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    arguments: list[str], part: str, tmp_path: Path
) -> None:
    assert part in one_line(run(*arguments, cwd=tmp_path), 2)
    assert not list(tmp_path.iterdir())


def test_an_output_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    text = one_line(run("compress", "student1", "--target", "60KB", "-o", "out", cwd=tmp_path), 2)
    assert "--exist-ok" in text
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_data_that_cannot_be_used_writes_nothing(digits_folder: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    bad = digits_folder / "class1" / "3.png"
    bad.write_bytes(b"no image")
    data = f"folder:{digits_folder}"
    assert "3.png" in one_line(
        run("compress", "student1", "--target", "60KB", "--data", data, cwd=work), 2
    )
    for image in (digits_folder / "class1").iterdir():
        image.unlink()
    assert "holds no image" in one_line(
        run("compress", "student1", "--target", "60KB", "--data", data, cwd=work), 2
    )
    assert not list(work.iterdir())


def test_a_teacher_of_another_shape_or_a_pickle_is_refused(tmp_path: Path) -> None:
    from edgecompress import checkpoint
    from edgecompress.models import ModelSource, build

    source = ModelSource("student1", 4, (3, 32, 32))
    checkpoint.save(tmp_path / "four.safetensors", build(source), source)
    torch.save(build(source), tmp_path / "pickle.pt")
    before = sorted(p.name for p in tmp_path.iterdir())
    arguments = ("compress", "student1", "--target", "60KB", "--teacher")
    assert "4 classes" in one_line(run(*arguments, "four.safetensors", cwd=tmp_path), 2)
    assert "pickle" in one_line(run(*arguments, "pickle.pt", cwd=tmp_path), 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_imagenet_weights_without_a_network_exit_4(tmp_path: Path) -> None:
    closed = "http://127.0.0.1:9"
    done = run(
        "compress",
        "vgg16",
        "--target",
        "4MB",
        "--weights",
        "imagenet",
        "-q",
        "-o",
        "out",
        cwd=tmp_path,
        XDG_CACHE_HOME=str(tmp_path / "cache"),
        TORCH_HOME=str(tmp_path / "torch"),
        https_proxy=closed,
        http_proxy=closed,
    )
    assert "vgg16-397923af.pth" in one_line(done, 4)
    assert not (tmp_path / "out").exists()


def test_help_is_quick_and_needs_no_torch(tmp_path: Path) -> None:
    times = []
    for _ in range(3):
        before = os.times()
        done = python("--help", cwd=tmp_path)
        after = os.times()
        used = after.children_user + after.children_system
        times.append(used - before.children_user - before.children_system)
        assert done.returncode == 0
    assert "compress" in done.stdout
    # of the processor: a second on a machine of its own, and other tests run beside this one
    assert 0.1 < min(times) < 2.0


def test_dry_run_prints_the_recipe_and_writes_nothing(tmp_path: Path) -> None:
    done = run(
        "compress",
        "lenet5",
        "--target",
        "30KB",
        "--seed",
        "5",
        "--dry-run",
        cwd=tmp_path,
        EDGECOMPRESS_DEVICE="cpu",
    )
    assert done.returncode == 0
    assert "seed: 5  # command line" in done.stdout
    assert "device: cpu  # environment" in done.stdout
    assert "bytes: 30000B  # command line" in done.stdout
    assert not list(tmp_path.iterdir())


def test_nothing_shows_the_help(tmp_path: Path) -> None:
    done = run(cwd=tmp_path)
    assert done.returncode == 2
    assert "Commands" in done.stdout


def test_lists_and_doctor(tmp_path: Path) -> None:
    assert {"vgg16", "resnet20", "student3"} <= set(
        json.loads(run("models", "--json", cwd=tmp_path).stdout)["models"]
    )
    assert "digits" in run("data", cwd=tmp_path).stdout
    assert "vgg16-4mb" in run("recipe", "ls", cwd=tmp_path).stdout
    checks = {
        c["name"]: c for c in json.loads(run("doctor", "--json", cwd=tmp_path).stdout)["checks"]
    }
    assert set(checks) >= {
        "torch",
        "onnxruntime",
        "CPU",
        "GPU",
        "root",
        "netem",
        "wirefilter",
        "mnexec",
        "cgroup",
    }
    assert checks["torch"]["ok"]
    assert all(c["ok"] or c["fix"] for c in checks.values())


def test_recipes_are_copied_and_checked(tmp_path: Path) -> None:
    assert run("recipe", "cp", "vgg16-4mb", "mine.yaml", cwd=tmp_path).returncode == 0
    assert run("recipe", "validate", "mine.yaml", cwd=tmp_path).returncode == 0
    (tmp_path / "mine.yaml").write_text((tmp_path / "mine.yaml").read_text() + "nonsense: 1\n")
    assert "nonsense: unknown key" in one_line(
        run("recipe", "validate", "mine.yaml", cwd=tmp_path), 2
    )


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = run("bench", "nowhere.onnx", "--debug", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" in done.stderr


def test_the_environment_stands_above_the_recipe_and_below_the_command_line(tmp_path: Path) -> None:
    recipe = "model: lenet5\nseed: 0\ndevice: auto\nstages:\n  - {stage: train, epochs: 1}\n"
    (tmp_path / "short.yaml").write_text(recipe)
    arguments = ["run", "short.yaml", "--dry-run", "--set", "device=cpu"]
    done = run(
        *arguments,
        cwd=tmp_path,
        EDGECOMPRESS_SEED="7",
        EDGECOMPRESS_THREADS="1",
        EDGECOMPRESS_DEVICE="cuda",
    )
    assert "seed: 7  # environment" in done.stdout
    assert "threads: 1  # environment" in done.stdout
    assert "device: cpu  # command line" in done.stdout
    assert "seed: 0  # recipe" in run(*arguments, cwd=tmp_path).stdout


def test_the_version_and_short_help(tmp_path: Path) -> None:
    done = run("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"edgecompress {__version__}\n")
    for command in ((), ("train",), ("teacher", "serve"), ("recipe",)):
        short, long = (run(*command, flag, cwd=tmp_path) for flag in ("-h", "--help"))
        assert short.returncode == 0
        assert short.stdout == long.stdout != ""


def test_an_epoch_is_a_line_in_a_log(tmp_path: Path) -> None:
    done = run("train", "lenet5", "--epochs", 2, "-o", "t", cwd=tmp_path)
    lines = [line.strip() for line in done.stderr.splitlines() if ": epoch " in line]
    assert len(lines) == 2, done.stderr
    number = r"[0-9.e+-]+"
    expected = (
        rf"train lenet5: epoch 1/2, loss {number}, validation {number}% \(95 % {number} to "
        rf"{number}, n 269\), loss {number}, rate {number}, .+ left"
    )
    assert re.fullmatch(expected, lines[0]), lines[0]
    quiet = run("train", "lenet5", "--epochs", 1, "-o", "q", "-q", cwd=tmp_path)
    assert quiet.stderr == ""


def test_tables_are_folded_and_never_cut_at_80_columns(tmp_path: Path) -> None:
    done = process("models", cwd=tmp_path, COLUMNS="80")
    assert "\u2026" not in done.stdout
    rows = [("a" * 70, "1 " * 20, "last")]
    console = Console(width=80, file=io.StringIO())
    console.print(table("wide", ["name", "numbers", "end"], rows))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("a") >= 70
    assert "last" in text and "\u2026" not in text


def test_columns_that_do_not_fit_come_below_with_whole_numbers() -> None:
    columns = ["global level", *(f"{level}%" for level in range(5, 100, 5)), "why not all"]
    numbers = [f"{1000 + level}.3%" for level in range(5, 100, 5)]
    rows = [("features.denseblock4.denselayer16.conv2", *numbers, "a reason " * 12)]
    console = Console(width=80, file=io.StringIO(), soft_wrap=True)
    console.print(table("share", columns, rows))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= 80
    words = text.split()
    assert all(word in words for word in (*columns[1:-1], *numbers))
    assert words.count("reason") == 12
    assert text.count("global level") > 1
    assert "\u2026" not in text


def test_a_result_says_how_to_repeat_it(tmp_path: Path) -> None:
    done = run("train", "lenet5", "--epochs", 1, "-o", "t", "--json", cwd=tmp_path)
    result = json.loads(done.stdout)
    assert result["images"] == {"training": 1169, "validation": 269, "test": 359}
    assert result["image_shape"] == [3, 32, 32]
    assert result["started"].endswith("+00:00")
    assert result["command_line"]
    assert result["git"] is None
