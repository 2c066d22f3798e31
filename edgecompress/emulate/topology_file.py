"""A topology file becomes a plain graph.

The file is code (a `mininet.topo.Topo` subclass, with `topos`, so that `mn --custom` takes it too).
It runs in a process of its own, as the invoking user: `python -m
edgecompress.emulate.topology_file FILE` prints the description as JSON, and only that JSON reaches
root.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Protocol, cast

from edgecompress.emulate import shell
from edgecompress.emulate.topology import Description, Graph, Params, graph_from
from edgecompress.emulate.user import User, environment
from edgecompress.errors import UsageError
from edgecompress.measure.processes import command_of

_OF_MININET = ("node1", "node2", "port1", "port2", "isSwitch")
"""Parameters that Mininet adds."""
_KEYS = {"name", "hosts", "switches", "links"}


class _Topo(Protocol):
    """What is read of a `mininet.topo.Topo`."""

    def hosts(self) -> list[str]: ...

    def switches(self) -> list[str]: ...

    def nodeInfo(self, name: str) -> Mapping[str, object]: ...

    def links(self, *, withInfo: bool) -> list[tuple[str, str, Mapping[str, object]]]: ...


def read_topology(path: Path, user: User, link: Params) -> Graph:
    """The checked graph of a topology file, whose code runs as `user` in a process of its own.

    `link` are properties that override those of every link. Raises `UsageError` for a file that is
    not a topology.
    """
    command = shell.as_user(user.uid, user.gid, *command_of(__name__), str(path))
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, env=environment(user)
    )
    lines = done.stdout.strip().splitlines()
    try:
        answer = json.loads(lines[-1])
    except (IndexError, ValueError) as error:
        message = " ".join((done.stderr or "it printed nothing").split())[-300:]
        raise UsageError(f"topology '{path}' cannot be read: {message}") from error
    if isinstance(answer, dict) and "error" in answer:
        raise UsageError(str(answer["error"]))
    if not isinstance(answer, dict) or not answer.keys() >= _KEYS:
        raise UsageError(
            f"topology '{path}' prints after its graph: {' '.join(lines[-1].split())[:100]}; "
            "let it print nothing at its end"
        )
    return graph_from(cast(Description, answer), link)


def described(path: Path, name: str | None = None) -> Description:
    """The topology `name` (default: the first one) of the file at `path` as plain values.

    The code of the file runs in this process. Raises `UsageError` for a file that is not a
    topology.
    """
    if not path.is_file():
        raise UsageError(
            f"topology '{path}' does not exist: give a .py file, e.g. topologies/two_host.py"
        )
    try:
        topos = _topos(path)
        if name is not None and name not in topos:
            raise UsageError(f"topology '{path}' has no '{name}': it has {', '.join(topos)}")
        chosen = name or next(iter(topos))
        topo = topos[chosen]()
    except UsageError:
        raise
    except Exception as error:  # the user's code raises anything
        raise UsageError(
            f"topology '{path}': {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    return {
        "name": chosen,
        "hosts": {node: _own_params(topo.nodeInfo(node)) for node in topo.hosts()},
        "switches": {node: _own_params(topo.nodeInfo(node)) for node in topo.switches()},
        "links": [(a, b, _own_params(params)) for a, b, params in topo.links(withInfo=True)],
    }


def _topos(path: Path) -> dict[str, Callable[[], _Topo]]:
    """The classes of the file's `topos`, by name. Raises `UsageError` without it."""
    topos = getattr(_module(path), "topos", None)
    if not isinstance(topos, dict) or not topos:
        raise UsageError(
            f"topology '{path}' has no topos: end it with topos = {{'name': YourTopo}}"
        )
    return topos


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("edgecompress_topology", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"topology '{path}' is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _own_params(params: Mapping[str, object]) -> dict[str, object]:
    """Parameters without those that Mininet adds."""
    return {key: value for key, value in params.items() if key not in _OF_MININET}


def main() -> None:
    """`python -m edgecompress.emulate.topology_file FILE [NAME]`: the description as JSON, or
    `{"error"}`.
    """
    path = sys.argv[1]
    try:
        text = json.dumps(described(Path(path), sys.argv[2] if len(sys.argv) > 2 else None))
    except UsageError as error:
        text = json.dumps({"error": str(error)})
    except TypeError as error:
        message = f"topology '{path}' holds values that are not plain numbers and texts: {error}"
        text = json.dumps({"error": message})
    sys.stdout.write("\n" + text)


if __name__ == "__main__":
    main()
