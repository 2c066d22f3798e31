"""The emulation for real: namespaces, links, traffic, kills. As root only; the netem path where the
kernel has it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgecompress.cli.emulate import _regressions
from edgecompress.emulate import shell
from edgecompress.units import format_count
from tests.emulate.running import MARKS, SMALL, TWO_HOST, emulate, left_behind, readable_by

pytestmark = MARKS


def test_two_hosts(tmp_path: Path) -> None:
    """The command of the README, through sudo, in whose secure path `make install` links it."""
    command = shutil.which(
        "edgecompress", path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    )
    if shutil.which("sudo") is None or command is None:
        pytest.skip("sudo, or the command in /usr/local/bin, is not here: make install")
    line = [
        "sudo",
        "edgecompress",
        "emulate",
        str(TWO_HOST),
        *SMALL,
        "-o",
        "run",
        "--pcap",
        "--json",
    ]
    done = subprocess.run(
        line, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["valid"] is True
    assert result["reasons"] == []
    assert [link["backend"] for link in result["links"]] == [
        "none",
        "netem" if result["links"][1]["backend"] == "netem" else "wirefilter",
    ]
    far = result["links"][1]
    assert far["configured"] == {
        "bw_mbps": 20.0,
        "delay_ms": 5.0,
        "jitter_ms": None,
        "loss_pct": None,
    }
    assert far["measured"]["rtt_ms"] == pytest.approx(10, abs=1)
    assert far["measured"]["bw_mbps"] == pytest.approx(20, rel=0.1)
    traffic, lesson = result["traffic"], result["distill"]
    assert traffic["kernel_dropped"] == 0
    assert traffic["captured_bytes"] == pytest.approx(traffic["counter_bytes"], rel=0.01)
    assert traffic["rtt_ms"]["p50"] > 9
    assert {shake["flags"] for shake in traffic["handshakes"]} == {"S", "SA"}, (
        "the first SYN is in the capture"
    )
    assert lesson["samples"] == 1169
    assert lesson["bytes_per_sample"] == pytest.approx(20), "fp16 logits of ten classes"
    assert lesson["payload_bytes"] < lesson["wire_bytes"]
    assert set(lesson["students"]) == {"student"}
    assert lesson["students"]["student"]["accuracy"] > 0.3
    assert result["tls"] is True
    assert not (tmp_path / "run" / "tls").exists(), "the run's keys are gone"
    assert (tmp_path / "run" / "student.pcap").stat().st_size > 1000
    page = (tmp_path / "run" / "report.html").read_text()
    assert "two_host" in page
    assert _regressions(result, result, 0.0) == []
    better = json.loads((tmp_path / "run" / "result.json").read_text())
    better["distill"]["bytes_per_sample"] /= 3
    (tmp_path / "better.json").write_text(json.dumps(better))
    again = emulate(
        TWO_HOST,
        *SMALL,
        "-o",
        "again",
        "--baseline",
        "better.json",
        "--max-regression",
        "100%",
        "--insecure",
        cwd=tmp_path,
    )
    assert again.returncode == 3, again.stderr + again.stdout
    assert "regression: bytes per sample" in again.stdout
    assert (tmp_path / "again" / "result.json").is_file()


def test_the_lesson_survives_a_killed_student_and_a_cut_link(tmp_path: Path) -> None:
    faults = ["--fault", "kill-student@5s", "--fault", "link-down@12s:2s"]
    options = [
        "--teacher",
        "lenet5",
        "--student",
        "lenet5",
        "--epochs",
        "12",
        "--batch-size",
        "16",
        "--keep-every",
        "10",
        "--codec",
        "soft",
    ]
    done = emulate(TWO_HOST, *options, *faults, "-o", "run", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [fault["kind"] for fault in result["faults"]] == ["kill-student", "link-down"]
    assert result["faults"][0]["at_s"] is not None
    assert result["distill"]["samples"] == 12 * 1168, (
        "every sample counts once in the history that survived"
    )


def test_pruning_in_mutual_learning_survives_a_killed_teacher(tmp_path: Path) -> None:
    options = [
        "--teacher",
        "lenet5",
        "--student",
        "lenet5",
        "--epochs",
        24,
        "--batch-size",
        16,
        "--keep-every",
        10,
        "--mutual",
        "--staleness",
        4,
        "--prune-teacher",
        "30%",
        "--prune-student",
        "40%",
        "--step",
        "30%",
    ]
    done = emulate(
        TWO_HOST, *options, "--fault", "kill-teacher@12s", "-o", "run", "--json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    lesson = result["distill"]
    assert [(fault["kind"], fault["at_s"] is not None) for fault in result["faults"]] == [
        ("kill-teacher", True)
    ]
    assert lesson["samples"] == 24 * 1168, "every sample counts once in the history that survived"
    assert (lesson["mutual"], lesson["staleness"]) == (True, 4)
    assert lesson["students"]["student"]["breaks"] == 1
    for row, share in ((lesson["teachers"]["teacher"], 0.7), (lesson["students"]["student"], 0.6)):
        assert row["params"] <= share * row["params_before"]
    assert lesson["bytes_per_sample"] >= 2 * 20, "fp16 logits of ten classes travel both ways"
    page = (tmp_path / "run" / "report.html").read_text()
    assert "mutual learning from logits 4 steps old" in page
    assert f"of {format_count(lesson['students']['student']['params_before'])}" in page


def test_feature_maps_are_exchanged(tmp_path: Path) -> None:
    options = [
        "--teacher",
        "lenet5",
        "--student",
        "lenet5",
        "--epochs",
        1,
        "--exchange",
        "features",
        "--insecure",
    ]
    done = emulate(TWO_HOST, *options, "-o", "run", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lesson = json.loads(done.stdout)["distill"]
    assert lesson["features"] == "attention"
    assert lesson["bytes_per_sample"] > 20 + 2 * 100, "attention of a map of 10 x 10 pixels or more"
    assert lesson["teachers"]["teacher"]["trained"] is False


def test_pruning_that_misses_its_amount_gives_a_result(tmp_path: Path) -> None:
    done = emulate(
        TWO_HOST, *SMALL, "--prune-teacher", "10params", "--step", "50%", "-o", "run", cwd=tmp_path
    )
    assert done.returncode == 3, done.stderr
    assert "no epoch met the amount" in done.stdout
    assert json.loads((tmp_path / "run" / "result.json").read_text())["valid"] is True


@pytest.mark.parametrize(
    "options",
    [
        ("--mutual", "--fixed-teacher"),
        ("--mutual", "--exchange", "inputs"),
        ("--staleness", "2"),
        ("--prune-teacher", "50%", "--exchange", "weights"),
        ("--prune-student", "much"),
        ("--features", "depth"),
    ],
)
def test_options_that_exclude_each_other_are_refused(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    done = emulate(TWO_HOST, *options, "-o", "run", cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


ATTACK = """
import os, pathlib
for name in ("scapy", "dpkt", "cryptography", "grpc", "jinja2", "matplotlib", "numpy", "psutil"):
    pathlib.Path(name).mkdir(exist_ok=True)
    line = f"import os; open('{os.getcwd()}/ran', 'a').write(f'{name} as {{os.getuid()}}; ')"
    pathlib.Path(name, "__init__.py").write_text(line)
"""
"""A topology runs with the user's rights; what it leaves in the working folder must not run with
root's.
"""


def test_roles_run_as_the_invoking_user_and_root_imports_nothing_of_that_user(
    tmp_path: Path,
) -> None:
    """As under sudo from an ordinary user: the roles have that user's rights, and every file is
    that user's.
    """
    nobody = 65534
    reads = subprocess.run(
        shell.as_user(nobody, nobody, sys.executable, "-c", "import edgecompress.lesson"),
        capture_output=True,
        check=False,
    )
    if reads.returncode:
        pytest.skip("another user cannot read this virtual environment: put it outside root's home")
    folder = Path("/tmp") / f"edgecompress-test-{os.getpid()}"
    folder.mkdir()
    try:
        os.chown(folder, nobody, nobody)
        (folder / "topology.py").write_text(ATTACK + TWO_HOST.read_text())
        done = emulate(
            folder / "topology.py",
            *SMALL,
            "-o",
            folder / "run",
            "--json",
            cwd=folder,
            env={"SUDO_UID": "65534", "SUDO_GID": "65534"},
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["user"] == {
            "uid": nobody,
            "name": "nobody",
            "invoked_by_sudo": True,
        }
        owners = {path.stat().st_uid for path in (folder / "run").rglob("*")}
        assert owners == {nobody}
        assert (folder / "scapy" / "__init__.py").is_file()
        ran = folder / "ran"
        assert "as 0;" not in (ran.read_text() if ran.is_file() else "")
    finally:
        shutil.rmtree(folder)


def test_without_root_the_error_has_the_sudo_command(tmp_path: Path) -> None:
    if not readable_by(65534):
        pytest.skip("another user cannot read this virtual environment: put it outside root's home")
    command = shell.as_user(
        65534, 65534, sys.executable, "-m", "edgecompress", "emulate", str(TWO_HOST)
    )
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 4, done.stderr
    assert "run sudo /" in done.stderr
    assert "emulate" in done.stderr


def test_a_link_that_cannot_be_as_requested_is_refused(tmp_path: Path) -> None:
    """No virtual switch in user space carries 9 Gbit/s here: the run does not start."""
    (tmp_path / "fast.py").write_text(TWO_HOST.read_text().replace("bw=20, ", "bw=9000, "))
    done = emulate(tmp_path / "fast.py", *SMALL, "-o", "run", cwd=tmp_path)
    assert done.returncode == 4, done.stdout
    assert "requested 9000" in done.stderr
    assert not (tmp_path / "run" / "result.json").exists()


def test_bad_input_keeps_an_earlier_run_and_leaves_no_partial_one(tmp_path: Path) -> None:
    earlier = tmp_path / "run"
    (earlier / "mine").mkdir(parents=True)
    for path in (".edgecompress-emulate", "result.json", "mine/result.json"):
        (earlier / path).write_text("{}")
    for wrong, text in (
        ([TWO_HOST, "--timeout", "5"], "5"),
        ([tmp_path / "nope.py"], "does not exist"),
    ):
        done = emulate(*wrong, *SMALL, "--exist-ok", "-o", "run", cwd=tmp_path)
        assert done.returncode == 2
        assert text in done.stderr
        assert sorted(path.name for path in earlier.iterdir()) == [
            ".edgecompress-emulate",
            "mine",
            "result.json",
        ]
    done = emulate(TWO_HOST, *SMALL, "--data", "nosuch", "-o", "new", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "nosuch" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "new").exists()


def test_a_foreign_folder_is_left_unchanged(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "result.json").write_text("{}")
    done = emulate(TWO_HOST, *SMALL, "--exist-ok", "-o", "mine", cwd=tmp_path)
    assert done.returncode == 2
    assert "not one of an emulation" in done.stderr
    assert (tmp_path / "mine" / "result.json").read_text() == "{}"


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, and write to."""
    folder = Path(tempfile.mkdtemp(prefix="edgecompress-test-", dir="/tmp"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("uid", "signals"),
    [(0, (signal.SIGKILL, signal.SIGINT)), (65534, (signal.SIGKILL,))],
    ids=["root", "another user"],
)
def test_a_killed_emulation_leaves_nothing(
    uid: int, signals: tuple[signal.Signals, ...], open_folder: Path
) -> None:
    """SIGKILL: namespaces, interfaces, switches and roles go with it, those of another user too;
    SIGINT: it cleans up and says so.
    """
    if uid and not readable_by(uid):
        pytest.skip(f"user {uid} cannot read this virtual environment")
    left, env = (
        list[Path](),
        {**os.environ, **({"SUDO_UID": str(uid), "SUDO_GID": str(uid)} if uid else {})},
    )
    for how in signals:
        reset = [
            "env",
            "--default-signal=INT",
        ]  # a script's background jobs ignore SIGINT, and so would their children
        command = [
            *reset,
            sys.executable,
            "-m",
            "edgecompress",
            "emulate",
            str(TWO_HOST),
            *SMALL,
            "-o",
            f"run-{how}",
        ]
        with open(open_folder / "log", "w") as log:
            child = subprocess.Popen(command, cwd=open_folder, stdout=log, stderr=log, env=env)
        deadline = time.monotonic() + 120
        while "capturing" not in (open_folder / "log").read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.5)
        # looked for while it lives: an emulation beside this test removes what a killed one left
        left += Path(tempfile.gettempdir()).glob(f"edgecompress-*-{child.pid}-*")
        child.send_signal(how)
        assert child.wait(30) == (-how if how == signal.SIGKILL else 130)
        time.sleep(1.5)
        assert left_behind(child.pid) == []
        assert f"run-{how}" not in shell.run("ps", "-eo", "args"), "no role lives on"
    assert len(left) >= 2 * len(signals), "captures and keys of all runs were there"
    if signals[-1] != signal.SIGKILL:
        assert not any(folder.exists() for folder in left), "the next run removed them"
