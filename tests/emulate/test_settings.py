"""Faults as text: what goes wrong, and when."""

from __future__ import annotations

import pytest

from edgecompress.emulate.settings import parse_fault
from edgecompress.errors import UsageError


def test_faults() -> None:
    down, _ = parse_fault("link-down@10s:5s")
    assert down is not None
    assert (down.kind, down.at_s, down.for_s) == ("link-down", 10.0, 5.0)
    kill, _ = parse_fault("kill-student@500ms")
    assert kill is not None
    assert kill.at_s == 0.5
    assert parse_fault("loss=5%") == (None, {"loss": 5.0})
    for bad in (
        "loss=5.5.5%",
        "kill-student",
        "link-down@10s",
        "explode@1s",
        "loss=5",
        "kill-student@1s:2s",
    ):
        with pytest.raises(UsageError, match="link-down@10s:5s"):
            parse_fault(bad)
