"""Topology files become plain graphs, or one line that says what is wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from edgecompress.emulate.links import Built, binomial_interval, wrong
from edgecompress.emulate.session import User, invoking_user, parse_fault, read_topology
from edgecompress.emulate.topology import PROFILES, Link, described, graph_from, profile
from edgecompress.errors import UnknownNameError, UsageError

TOPOLOGIES = sorted((Path(__file__).parents[2] / "topologies").glob("*.py"))
GOOD: dict[str, Any] = {
    "name": "t",
    "hosts": {"a": {"role": "teacher"}, "b": {"role": "student"}},
    "switches": {"s": {}},
    "links": [["a", "s", {"bw": 10}], ["s", "b", {"bw": 5, "delay": "10ms", "loss": 1}]],
}


@pytest.mark.parametrize("path", TOPOLOGIES, ids=lambda path: path.stem)
def test_every_topology_of_ours_is_good(path: Path) -> None:
    graph = graph_from(described(path))
    assert graph.name == path.stem
    assert graph.of_role("teacher")
    assert graph.of_role("student")


def test_they_are_what_mininet_takes() -> None:
    """`mn --custom FILE --topo NAME` wants a Topo subclass in `topos`."""
    from mininet.topo import Topo

    for path in TOPOLOGIES:
        space: dict[str, Any] = {"__name__": "custom"}
        exec(compile(path.read_text(), str(path), "exec"), space)
        assert issubclass(space["topos"][path.stem], Topo)
    assert len(TOPOLOGIES) == 5


def test_units_and_defaults() -> None:
    graph = graph_from(GOOD)
    assert graph.links == (Link("a", "s", 10.0), Link("s", "b", 5.0, 10.0, None, 1.0))
    assert [link.filtered for link in graph.links] == [False, True]
    for name in PROFILES:
        changed = graph_from(GOOD, profile(name))
        assert all(link.delay_ms for link in changed.links)
        lossy = graph_from(
            {
                **GOOD,
                "links": [["a", "s", {"delay": "5ms", "jitter": "4ms", "loss": 9}], ["s", "b", {}]],
            },
            profile(name),
        )
        assert lossy.links == changed.links, (
            "every link is like the named one, whatever the file says"
        )
    with pytest.raises(UnknownNameError, match="satellite"):
        profile("satelite")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"hosts": {"a": {"role": "teacher"}, "b": {}}}, "no student"),
        ({"hosts": {"a": {}, "b": {"role": "student"}}}, "no teacher"),
        (
            {"hosts": {"a": {"role": "teacher", "memory": 1}, "b": {"role": "student"}}},
            "unknown key 'memory'",
        ),
        ({"hosts": {"a": {"role": "boss"}, "b": {"role": "student"}}}, "role 'boss'"),
        ({"hosts": {"a": {"role": "teacher", "cpu": 0}, "b": {"role": "student"}}}, "cpu 0"),
        (
            {"hosts": {"a": {"role": "teacher", "cpu": 0.005}, "b": {"role": "student"}}},
            "from 0.01 on",
        ),
        (
            {
                "hosts": {"a": {"role": "teacher"}, "ca": {"role": "student"}},
                "links": [["a", "s", {}], ["s", "ca", {}]],
            },
            "host 'ca'",
        ),
        (
            {
                "hosts": {
                    "a": {"role": "teacher"},
                    "b": {"role": "student"},
                    "c": {"role": "teacher"},
                },
                "links": [["a", "s", {}], ["s", "b", {}], ["s", "c", {}]],
            },
            "a teacher without a student",
        ),
        ({"links": [["a", "s", {}], ["s", "b", {"bandwidth": 5}]]}, "unknown key 'bandwidth'"),
        ({"links": [["a", "s", {}], ["s", "b", {"bw": 99_999}]]}, "outside 0.1..10000"),
        ({"links": [["a", "s", {}], ["s", "b", {"bw": "10"}]]}, "outside 0.1..10000"),
        ({"links": [["a", "s", {}], ["s", "b", {"delay": 10}]]}, "no unit"),
        ({"links": [["a", "s", {}], ["s", "b", {"delay": "10 parsec"}]]}, "10 parsec"),
        (
            {"links": [["a", "s", {}], ["s", "b", {"delay": "1ms", "jitter": "2ms"}]]},
            "jitter 2ms is more",
        ),
        ({"links": [["a", "s", {}], ["s", "b", {"loss": 70}]]}, "outside 0..50"),
        ({"links": [["a", "s", {}]]}, "has 0 links"),
        ({"links": [["a", "s", {}], ["s", "b", {}], ["a", "b", {}]]}, "has 2 links"),
        ({"switches": {"s": {}, "t": {}}}, "is not reached"),
        ({"switches": {"s": {"stp": True}}}, "unknown key 'stp'"),
        ({"links": [["a", "s", {}], ["s", "x", {}]]}, "no node 'x'"),
        ({"hosts": {"a": {"role": "teacher"}, "b c": {"role": "student"}}}, "node 'b c'"),
    ],
)
def test_what_is_wrong_is_said(change: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError) as caught:
        graph_from({**GOOD, **change})
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


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
def test_a_file_that_is_none(code: str, text: str, tmp_path: Path) -> None:
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


def test_binomial_interval() -> None:
    low, high = binomial_interval(10, 1000)
    assert 0.004 < low < 0.01 < high < 0.02
    assert binomial_interval(0, 100)[0] == 0
    assert binomial_interval(100, 100)[1] == 1


@pytest.mark.parametrize(("delay", "jitter"), [(100, 100), (10, 10), (100, None)])
def test_a_link_without_its_delay_is_refused_whatever_its_jitter(
    delay: float, jitter: float | None
) -> None:
    built = Built(Link("a", "b", None, delay, jitter), "wirefilter", ("x", "y"), (1, 2))
    for measured, right in ((0.05, False), (2 * delay, True)):
        built.measured = {
            "rtt_ms": measured,
            "bw_mbps": None,
            "loss_pct": 0.0,
            "loss_low_pct": 0.0,
            "loss_high_pct": 1.0,
        }
        assert (wrong(built) is None) == right


def test_a_baseline_is_of_the_same_network() -> None:
    from edgecompress.cli.emulate import _check_alike

    now = {"exchange": "logits", "codec": "fp16", "graph": graph_from(GOOD).as_dict()}
    _check_alike(json.loads(json.dumps(now)), now)
    with pytest.raises(UsageError, match="exchange inputs, this is logits"):
        _check_alike({**now, "exchange": "inputs"}, now)
    with pytest.raises(UsageError, match="another topology or other links"):
        _check_alike({**now, "graph": graph_from(GOOD, profile("lte")).as_dict()}, now)


def test_who_called_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_UID", "abc")
    with pytest.raises(UsageError, match="SUDO_UID"):
        invoking_user()


def test_a_sweep_is_all_combinations() -> None:
    from edgecompress.cli.emulate import _swept

    with pytest.raises(UsageError, match="link=wifi,lte"):
        _swept(["link=wifi", "link=lte"], {"link": None})

    usual = {"link": None, "codec": "fp16", "exchange": "logits"}
    assert _swept([], usual) == [{**usual, "name": "run"}]
    runs = _swept(["link=wifi,lte", "codec=fp16,soft"], usual)
    assert [run["name"] for run in runs] == ["wifi-fp16", "wifi-soft", "lte-fp16", "lte-soft"]
    assert all(run["exchange"] == "logits" for run in runs)
    for bad in ("link", "colour=red", "link=wifi,"):
        with pytest.raises(UsageError, match="link=A,B"):
            _swept([bad], usual)
