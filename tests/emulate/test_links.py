"""Measured links against the requested ones."""

from __future__ import annotations

import pytest

from edgecompress.emulate.links import Built, binomial_interval, wrong
from edgecompress.emulate.schema import Measurement
from edgecompress.emulate.topology import Link


def test_binomial_interval() -> None:
    low, high = binomial_interval(10, 1000)
    assert 0.004 < low < 0.01 < high < 0.02
    assert binomial_interval(0, 100)[0] == 0
    assert binomial_interval(100, 100)[1] == 1


@pytest.mark.parametrize(("delay", "jitter"), [(100, 100), (10, 10), (100, None)])
def test_a_link_without_its_delay_is_refused_whatever_its_jitter(
    delay: float, jitter: float | None
) -> None:
    link = Link("a", "b", None, delay, jitter)
    for rtt_ms, is_right in ((0.05, False), (2 * delay, True)):
        measured: Measurement = {
            "rtt_ms": rtt_ms,
            "bw_mbps": None,
            "loss_pct": 0.0,
            "loss_low_pct": 0.0,
            "loss_high_pct": 1.0,
        }
        built = Built(link, "wirefilter", ("x", "y"), (1, 2), measured=measured)
        assert (wrong(built) is None) == is_right
