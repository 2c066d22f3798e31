"""The suite itself always ends: a worker that dies, and a test that hangs in native code, end it
with the test's name.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run_suite(
    folder: Path, tests: str, *options: str
) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run `tests` under this suite's own conftest and settings, with less patience; also the
    seconds that it took.
    """
    conftest = (ROOT / "tests" / "conftest.py").read_text()
    (folder / "conftest.py").write_text(conftest.replace("SPARE_S = 30", "SPARE_S = 2"))
    (folder / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    (folder / "test_it.py").write_text(tests)
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-o",
        "testpaths=.",
        *options,
    ]
    start = time.monotonic()
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return done, time.monotonic() - start


DIES = """
import os, signal, time, pytest

@pytest.mark.xdist_group("one")
def test_that_dies(): os.kill(os.getpid(), signal.SIGKILL)

@pytest.mark.xdist_group("two")
def test_that_takes_long(): time.sleep(90)

@pytest.mark.parametrize("number", range(20))
def test_more(number): pass
"""


def test_a_dead_worker_ends_the_suite(tmp_path: Path) -> None:
    done, seconds = run_suite(tmp_path, DIES, "-n", "2", "--dist", "loadgroup")
    assert done.returncode == 1
    assert "crashed while running 'test_it.py::test_that_dies" in done.stdout
    assert seconds < 60


HANGS = """
import ctypes, time, pytest

@pytest.mark.timeout(1)
def test_that_hangs():
    {call}(100)
"""


@pytest.mark.parametrize(
    "call", ["time.sleep", "ctypes.CDLL(None).sleep", "ctypes.PyDLL(None).sleep"]
)
def test_a_test_that_hangs_ends_the_suite(call: str, tmp_path: Path) -> None:
    """In Python, in native code, and in native code that never gives the interpreter's lock
    back.
    """
    done, seconds = run_suite(tmp_path, HANGS.format(call=call), "-s")
    assert done.returncode != 0
    assert "test_that_hangs" in done.stdout + done.stderr
    assert seconds < 60


GROUPED = """
import os
import pytest

@pytest.fixture(scope="module")
def found():
    with open("made", "a") as file:
        file.write(os.environ["PYTEST_XDIST_WORKER"] + "\\n")

@pytest.mark.parametrize("number", range(6))
def test_of_a_group(number, found): pass
"""


def test_a_long_fixture_is_made_by_one_worker(tmp_path: Path) -> None:
    """pytest 9.2 with pytest-xdist 3.8 takes no notice of groups."""
    done, _ = run_suite(tmp_path, GROUPED, "-n", "2", "--dist", "loadgroup")
    assert done.returncode == 0, done.stdout
    assert len((tmp_path / "made").read_text().split()) == 1
