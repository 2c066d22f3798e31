"""Atomic writes: a file is complete or not there (temporary name, fsync, rename). The only JSON
writer.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from edgecompress.errors import EdgecompressError


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path in the folder of `path`: renamed to `path` when the block succeeds, removed
    when it fails.

    Raises `EdgecompressError` naming `path` when the file system refuses (disk full, no
    permission); an older file at `path` then remains.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> EdgecompressError:
    return EdgecompressError(
        f"cannot write '{path}': {error.strerror or error}; free the space or choose another -o"
    )


def _umask() -> int:
    """The umask of this process, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path`, completely or not at all."""
    with whole(path) as temporary:
        temporary.write_bytes(content)


def digest(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    hashed = hashlib.sha256()
    with open(path, "rb") as stream:
        while part := stream.read(1 << 20):
            hashed.update(part)
    return hashed.hexdigest()


def to_json(value: object) -> str:
    """`value` as JSON with an indent of two spaces.

    Raises `ValueError` for NaN and infinities, which are not JSON.
    """
    return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False, default=str)


def write_json(path: Path, value: object) -> None:
    """Write `value` as JSON to `path`, completely or not at all."""
    write_bytes(path, (to_json(value) + "\n").encode())


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write `rows` (all with the keys of the first) as CSV to `path`, completely or not at all."""
    buffer = io.StringIO()
    if rows:
        writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_bytes(path, buffer.getvalue().encode())


def append_line(path: Path, value: Mapping[str, object]) -> None:
    """Append `value` as one line of JSON. The only write that is not atomic: readers drop an
    incomplete last line.
    """
    try:
        with open(path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(value, allow_nan=False, default=str) + "\n")
    except OSError as error:
        raise _unwritable(path, error) from error


def read_lines(path: Path) -> list[dict[str, object]]:
    """The objects of a file that `append_line` wrote, without an incomplete last line; none when
    there is no file.
    """
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(value, dict):
            rows.append(value)
    return rows


def cache_dir() -> Path:
    """Where this platform keeps caches; on Linux `$XDG_CACHE_HOME/edgecompress`, by default
    `~/.cache/edgecompress`.
    """
    import platformdirs  # it reads at import what only this platform has

    return platformdirs.user_cache_path("edgecompress", appauthor=False)


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of `paths` that tell them apart: `model.onnx`, or `old/model.onnx` and
    `new/model.onnx`. Equal paths have equal names.
    """
    absolute = [path.absolute().parts for path in paths]
    longest = max((len(parts) for parts in absolute), default=1)
    for count in range(1, longest + 1):
        ends = [parts[-count:] for parts in absolute]
        if len(set(ends)) == len(set(absolute)):
            return [str(Path(*end)) for end in ends]
    return [str(path) for path in paths]
