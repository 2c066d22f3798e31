"""benchmarks/structure.py on a small package whose counts are known."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "structure.py"
FILES = {
    "edgecompress/__init__.py": "",
    "edgecompress/__main__.py": "",
    "edgecompress/first.py": '''
from typing import TYPE_CHECKING, Any
from . import second

if TYPE_CHECKING:
    from edgecompress.core import third


@staticmethod
def plain(a: int) -> int:
    """Two lines
    of text.
    """
    return a


class Holder:
    def method(self, values: "dict[str, Any]") -> None:
        def inner(*rest: Any) -> None: ...
''',
    "edgecompress/second.py": """
def late(table: list[dict[str, list[int]]]) -> None:
    import edgecompress.first


value = {1:2}  # fmt: skip
text = "# fmt: skip"
""",
    "edgecompress/core/__init__.py": "from edgecompress.core.third import x",
    "edgecompress/core/third.py": """
import typing
from collections.abc import Mapping
x: typing.Any = 1


async def go(m: list[Mapping[str, typing.Any]], *, k: tuple[str, typing.Any]) -> None: ...
""",
    "tests/core/test_third.py": "",
    "README.md": "four words\n\nof text",
}


def counted(root: Path, *options: str) -> tuple[int, str, dict[str, Any]]:
    """Exit code, messages and JSON of a run on FILES."""
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    command = [sys.executable, str(SCRIPT), "--root", str(root), "--output", str(root), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    return done.returncode, done.stderr, json.loads((root / "structure.json").read_text())


def test_functions_signatures_and_files(tmp_path: Path) -> None:
    _, _, counts = counted(tmp_path)
    lines = {row["name"]: row["lines"] for row in counts["functions"]["longest"]}
    assert lines == {
        "first.py:plain": 5,
        "first.py:Holder.method": 2,
        "first.py:Holder.method.inner": 1,
        "second.py:late": 2,
        "core/third.py:go": 1,
    }
    assert (counts["functions"]["median"], counts["functions"]["p95"]) == (2, 5)
    assert counts["signatures"] == {"any": 3, "any_mapping": 2}
    assert counts["fmt_skips"] == 1
    assert counts["files"]["max"] == 19
    assert counts["readme_words"] == 4


def test_cycles_leave_out_what_only_a_type_checker_reads(tmp_path: Path) -> None:
    _, _, counts = counted(tmp_path)
    assert counts["import_cycles"] == [["edgecompress.first", "edgecompress.second"]]


def test_modules_with_tests_of_their_own(tmp_path: Path) -> None:
    _, _, counts = counted(tmp_path)
    assert counts["tests"] == {"modules": 3, "share": 1 / 3, "without": ["first.py", "second.py"]}
    (tmp_path / "tests" / "test_mirror.py").write_text('TABLE = {"second.py": "x", "first": "x"}')
    _, _, counts = counted(tmp_path)
    assert counts["tests"]["without"] == []


def test_check_names_the_bars_that_are_missed(tmp_path: Path) -> None:
    code, message, _ = counted(tmp_path, "--check")
    assert code == 1
    assert message.strip() == "1 bars missed: import cycles"
    (tmp_path / "edgecompress" / "second.py").write_text("")
    command = [sys.executable, str(SCRIPT), "--root", str(tmp_path), "--output", str(tmp_path)]
    assert subprocess.run([*command, "--check"], check=False, timeout=100).returncode == 0


def test_the_package_meets_every_bar(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--output", str(tmp_path), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
