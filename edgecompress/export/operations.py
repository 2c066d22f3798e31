"""The exporter's table of operations, built once per process.

`torch.onnx.export` builds it anew for each export, by parsing the source of a thousand functions:
half the time of exporting a small network, and a run exports several times.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def operations_kept() -> Iterator[None]:
    """Inside the context each export gets a copy of the first table. The table is private to torch:
    a version that keeps it elsewhere loses nothing but time.
    """
    try:
        from torch.onnx._internal.exporter import _registration

        kind: Any = _registration.ONNXRegistry
        original = kind.__dict__["from_torchlib"]
        build = functools.partial(original.__func__, kind)
    except (ImportError, AttributeError, KeyError):
        yield
        return
    kind.from_torchlib = staticmethod(functools.partial(_copied, build))
    try:
        yield
    finally:
        kind.from_torchlib = original


_TABLES: dict[object, Any] = {}
"""Tables by the arguments that they were built for: an opset, or none."""


def _copied(build: Callable[..., Any], *opset: int, **named: int) -> Any:
    """A table whose owner may add to it."""
    key = (*opset, *sorted(named.items()))
    if key not in _TABLES:
        _TABLES[key] = build(*opset, **named)
    table = copy.copy(_TABLES[key])
    table.functions = {name: [*made] for name, made in table.functions.items()}
    return table
