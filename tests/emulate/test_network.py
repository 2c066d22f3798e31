"""Real networks: links that are measured, and shares of the processor."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import pytest

from edgecompress.emulate import backends, shell
from edgecompress.emulate.network import network
from edgecompress.emulate.topology import graph_from
from tests.emulate.running import MARKS, graph, left_behind

pytestmark = MARKS


@pytest.mark.parametrize(
    ("link", "rtt"),
    [({"bw": 10, "delay": "20ms"}, 40), ({"bw": 1}, 0), ({"bw": 50, "delay": "2ms", "loss": 5}, 4)],
)
def test_a_link_is_as_requested(link: dict[str, Any], rtt: float) -> None:
    with network(graph(**link), "auto", lambda _: None) as net:
        (row,) = [built.row() for built in net.built]
        measured = row["measured"]
        assert measured["rtt_ms"] == pytest.approx(rtt, abs=max(1.0, 0.1 * rtt))
        assert measured["bw_mbps"] == pytest.approx(link["bw"], rel=0.1)
        assert measured["loss_low_pct"] <= link.get("loss", 0) <= measured["loss_high_pct"]
        assert net.addresses["a"].startswith("10.123.0.")
        assert "10.123.0." not in shell.run("ip", "addr"), "addresses stay inside the namespaces"
    assert left_behind(os.getpid()) == []


def test_the_netem_back_end() -> None:
    if not backends.kernel_has_netem():
        pytest.skip("this kernel has no sch_netem: the netem path cannot be tested here")
    with network(graph(bw=10, delay="10ms", loss=2), "netem", lambda _: None) as net:
        assert net.built[0].backend == "netem"


def test_a_share_of_the_processor() -> None:
    values = {
        "name": "t",
        "hosts": {"a": {"role": "teacher", "cpu": 0.2}, "b": {"role": "student"}},
        "switches": {},
        "links": [["a", "b", {"bw": 100}]],
    }
    work = (
        "import time; t = time.process_time(); x = 0\nwhile time.process_time() - t < 0.2: x += 1"
    )
    with network(graph_from(values), "auto", lambda _: None) as net:
        taken = {}
        for host in ("a", "b"):
            start = time.monotonic()
            subprocess.run(net.command(host, sys.executable, "-I", "-S", "-c", work), check=True)
            taken[host] = time.monotonic() - start
        assert taken["a"] > 0.8, "0.2 s of work at a fifth of a core take a second"
        assert taken["b"] < taken["a"]
    assert left_behind(os.getpid()) == []
