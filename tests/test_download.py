"""Downloads from a real server that breaks off, has no ranges, or has another file by now."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from edgecompress.download import fetch

CONTENT = bytes(range(256)) * 4096  # 1 MiB


@dataclass
class Place:
    """What a server on loopback does, and the ranges that it was asked for."""

    url: str = ""
    ranges: bool = True
    breaks: int = 0
    """Answers that end in the middle."""
    content: bytes = CONTENT
    asked: list[str | None] = field(default_factory=list)


@pytest.fixture
def place() -> Iterator[Place]:
    shared = Place()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            shared.asked.append(asked)
            if self.path != "/weights.pth":
                self.send_error(404)
                return
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and shared.ranges else 0
            if start >= len(shared.content):
                self.send_error(416)
                return
            body = shared.content[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if shared.breaks:
                shared.breaks -= 1
                body = body[: len(body) // 2]
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    shared.url = f"http://127.0.0.1:{server.server_port}/weights.pth"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield shared
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_download_that_breaks_off_goes_on(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place.breaks = 2
    fetch(place.url, tmp_path / "cache" / "w.pth")
    assert (tmp_path / "cache" / "w.pth").read_bytes() == CONTENT
    half = len(CONTENT) // 2
    assert place.asked == [None, f"bytes={half}-", f"bytes={half + half // 2}-"]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["w.pth"]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "downloading weights.pth (1.05 MB)"
    assert lines[1] == "downloading weights.pth (1.05 MB, 524.3 KB of it are here)"


def test_what_arrived_is_kept_for_the_next_run(place: Place, tmp_path: Path) -> None:
    place.breaks = 3
    with pytest.raises(OSError, match="broke off"):
        fetch(place.url, tmp_path / "w.pth")
    assert not (tmp_path / "w.pth").exists()
    kept = (tmp_path / "w.pth.part").stat().st_size
    assert 0 < kept < len(CONTENT)
    fetch(place.url, tmp_path / "w.pth")
    assert place.asked[-1] == f"bytes={kept}-"
    assert (tmp_path / "w.pth").read_bytes() == CONTENT


def test_a_server_without_ranges_sends_it_anew(place: Place, tmp_path: Path) -> None:
    place.breaks, place.ranges = 1, False
    fetch(place.url, tmp_path / "w.pth")
    assert (tmp_path / "w.pth").read_bytes() == CONTENT


def test_a_part_of_a_longer_file_is_given_up(place: Place, tmp_path: Path) -> None:
    (tmp_path / "w.pth.part").write_bytes(b"x" * (len(CONTENT) + 5))
    fetch(place.url, tmp_path / "w.pth")
    assert (tmp_path / "w.pth").read_bytes() == CONTENT


def test_a_file_that_is_not_there_leaves_nothing(place: Place, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="404"):
        fetch(place.url.replace("weights", "nothing"), tmp_path / "w.pth")
    assert place.asked == [None], "asking again is no use"
    assert not list(tmp_path.iterdir())
