"""Downloads that go on where they broke off, and say on stderr how far they are."""

from __future__ import annotations

import sys
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import IO

from edgecompress.units import format_size

ATTEMPTS = 3
"""Connections that break one after the other before a download is given up for now."""
BLOCK = 2**18
TIMEOUT_S = 30
"""Seconds of silence after which a connection has broken."""
PARTIAL, OUT_OF_RANGE = 206, 416
"""HTTP: what follows is the part that was asked for; there is no such part."""


def fetch(url: str, path: Path) -> None:
    """Download `url` to `path`, complete or not there.

    What has arrived is kept beside it as NAME.part: the next attempt, also of another process,
    asks for the rest, where the server has it. A connection that broke off is tried again, up to
    `ATTEMPTS` times; raises `OSError` then, and at once where nothing arrives.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    for attempt in range(1, ATTEMPTS + 1):
        before = _bytes(part)
        try:
            _receive(url, part)
            break
        except (OSError, HTTPException) as error:
            if attempt == ATTEMPTS or _bytes(part) == before:
                if _bytes(part) == 0:
                    part.unlink(missing_ok=True)
                raise error if isinstance(error, OSError) else OSError(str(error)) from error
    part.replace(path)


def _bytes(part: Path) -> int:
    """Bytes that have arrived."""
    return part.stat().st_size if part.exists() else 0


def _receive(url: str, part: Path) -> None:
    """Append to `part` what is missing. Raises `OSError` when the connection ends too early."""
    have = _bytes(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code != OUT_OF_RANGE or not have:
            raise
        part.unlink()  # of another file than the server has now
        return _receive(url, part)
    with response:
        goes_on = getattr(response, "status", None) == PARTIAL
        have = have if goes_on else 0
        total = have + int(response.headers.get("Content-Length") or 0)
        with part.open("ab" if goes_on else "wb") as file:
            got = _copy(response, file, _Shown(url.rpartition("/")[2], have, total))
        if total > have and have + got < total:
            raise ConnectionError(f"{url} broke off after {have + got} of {total} bytes")
    return None


def _copy(response: IO[bytes], file: IO[bytes], shown: _Shown) -> int:
    """Bytes that were copied."""
    got = 0
    while block := response.read(BLOCK):
        file.write(block)
        got += len(block)
        shown(got)
    shown.close()
    return got


class _Shown:
    """A line on stderr: on a terminal it counts, elsewhere it comes once."""

    EVERY_S = 0.2

    def __init__(self, name: str, have: int, total: int) -> None:
        self.name = name
        self.have = have
        self.total = total
        self.live = sys.stderr.isatty()
        self.last_s = 0.0
        if not self.live and total:
            rest = f", {format_size(have)} of it are here" if have else ""
            self._write(f"downloading {name} ({format_size(total)}{rest})\n")

    def __call__(self, got: int) -> None:
        """So many bytes have arrived."""
        if self.live and time.monotonic() - self.last_s > self.EVERY_S:
            self.last_s = time.monotonic()
            of = f" of {format_size(self.total)}" if self.total else ""
            self._write(f"\r\x1b[Kdownloading {self.name}: {format_size(self.have + got)}{of}")

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self.live:
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()
