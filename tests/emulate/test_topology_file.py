"""Topology files: their code runs in a process of its own, and only a plain graph comes out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from edgecompress.emulate.topology import graph_from
from edgecompress.emulate.topology_file import described, read_topology
from edgecompress.emulate.user import User
from edgecompress.errors import UsageError

TOPOLOGIES = sorted((Path(__file__).parents[2] / "topologies").glob("*.py"))


@pytest.mark.parametrize("path", TOPOLOGIES, ids=lambda path: path.stem)
def test_shipped_topologies_are_valid(path: Path) -> None:
    graph = graph_from(described(path))
    assert graph.name == path.stem
    assert graph.of_role("teacher")
    assert graph.of_role("student")


def test_shipped_topologies_are_mininet_topologies() -> None:
    """`mn --custom FILE --topo NAME` needs a Topo subclass in `topos`."""
    from mininet.topo import Topo

    for path in TOPOLOGIES:
        space: dict[str, Any] = {"__name__": "custom"}
        exec(compile(path.read_text(), str(path), "exec"), space)
        assert issubclass(space["topos"][path.stem], Topo)
    assert len(TOPOLOGIES) == 5


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("x = 1", "has no topos"),
        ("1 / 0", "ZeroDivisionError"),
        ("import sys; sys.exit(3)", "cannot be read"),
        ("class T:\n    pass\ntopos = {'t': T}", "AttributeError"),
        ("import atexit; atexit.register(print, '\\n5'); topos = {}", "at its end"),
    ],
)
def test_files_that_are_not_topologies(code: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "t.py").write_text(code)
    with pytest.raises(UsageError, match=text):
        read_topology(tmp_path / "t.py", User(0, 0, "root", False), {})
    with pytest.raises(UsageError, match="does not exist"):
        read_topology(tmp_path / "none.py", User(0, 0, "root", False), {})


def test_the_files_code_does_not_run_in_our_process(tmp_path: Path) -> None:
    source = next(path for path in TOPOLOGIES if path.stem == "two_host").read_text()
    (tmp_path / "t.py").write_text(
        "import sys\nsys.stdout.write('noise')\nsys.modules['edgecompress_was_here'] = "
        f"sys\n{source}"
    )
    assert read_topology(tmp_path / "t.py", User(0, 0, "root", False), {}).name == "two_host"
    assert "edgecompress_was_here" not in sys.modules
