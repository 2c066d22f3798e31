"""Descriptions become checked graphs, or one line that names the mistake."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edgecompress.emulate.topology import PROFILES, Link, graph_from, profile
from edgecompress.errors import UnknownNameError, UsageError

GOOD: dict[str, Any] = {
    "name": "t",
    "hosts": {"a": {"role": "teacher"}, "b": {"role": "student"}},
    "switches": {"s": {}},
    "links": [["a", "s", {"bw": 10}], ["s", "b", {"bw": 5, "delay": "10ms", "loss": 1}]],
}


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
def test_mistakes_are_named_in_one_line(change: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError) as caught:
        graph_from({**GOOD, **change})
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_baseline_is_of_the_same_network() -> None:
    from edgecompress.cli.emulate import _check_alike

    now = {"exchange": "logits", "codec": "fp16", "graph": graph_from(GOOD).as_dict()}
    _check_alike(json.loads(json.dumps(now)), now)
    with pytest.raises(UsageError, match="exchange inputs, this is logits"):
        _check_alike({**now, "exchange": "inputs"}, now)
    with pytest.raises(UsageError, match="another topology or other links"):
        _check_alike({**now, "graph": graph_from(GOOD, profile("lte")).as_dict()}, now)


def test_a_sweep_is_all_combinations() -> None:
    from edgecompress.cli.emulate import Variant, _swept

    usual = Variant(link=None, exchange="logits", codec="fp16")

    with pytest.raises(UsageError, match="link=wifi,lte"):
        _swept(["link=wifi", "link=lte"], usual)
    assert _swept([], usual) == [usual]
    runs = _swept(["link=wifi,lte", "codec=fp16,soft"], usual)
    assert [run.name for run in runs] == ["wifi-fp16", "wifi-soft", "lte-fp16", "lte-soft"]
    assert all(run.exchange == "logits" for run in runs)
    for bad in ("link", "colour=red", "link=wifi,"):
        with pytest.raises(UsageError, match="link=A,B"):
            _swept([bad], usual)
