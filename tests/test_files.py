from __future__ import annotations

import errno
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from edgecompress import files
from edgecompress.errors import EdgecompressError


def test_a_failing_writer_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"old": 1})
    with pytest.raises(ZeroDivisionError), files.whole(path) as temporary:
        temporary.write_text("half")
        _ = 1 / 0
    assert json.loads(path.read_text()) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_is_one_error_and_the_old_file_stays(tmp_path: Path) -> None:
    """The kernel itself refuses: a file-size limit in a child process gives a real failing
    write.
    """
    path = tmp_path / "model.bin"
    path.write_bytes(b"old")
    code = (
        "import resource, signal, sys, pathlib\n"
        "from edgecompress import files\nfrom edgecompress.errors import EdgecompressError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    files.write_bytes(pathlib.Path(sys.argv[1]), b'x' * 5000)\n"
        "except EdgecompressError as error:\n    print(error); sys.exit(error.exit_code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert str(path) in done.stdout
    assert len(done.stdout.strip().splitlines()) == 1
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["model.bin"]
    assert errno.EFBIG and resource.RLIMIT_FSIZE


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(EdgecompressError, match="cannot write"):
        files.write_bytes(blocker / "inside.txt", b"x")


def test_json_refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    files.append_line(path, {"n": 1})
    files.append_line(path, {"n": 2})
    with open(path, "a") as stream:
        stream.write('{"n": 3, "tor')
    assert [row["n"] for row in files.read_lines(path)] == [1, 2]


def test_names_are_as_short_as_they_can_be() -> None:
    assert files.distinct_names([Path("a/m.onnx"), Path("b/n.onnx")]) == ["m.onnx", "n.onnx"]
    assert files.distinct_names([Path("a/m.onnx"), Path("b/m.onnx")]) == ["a/m.onnx", "b/m.onnx"]
    assert files.distinct_names([Path("a/m.onnx"), Path("a/m.onnx")]) == ["m.onnx", "m.onnx"]
