"""The reference workload."""

from __future__ import annotations

from edgecompress.measure import products


def test_the_reference_runs_on_the_requested_threads() -> None:
    assert 0 < products.reference_ms(1, 9) < 100
