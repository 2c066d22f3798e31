"""The traffic in captures: bytes by flow and direction, retransmissions, round trips, one-way
delays, a timeline.

Runs in a process of its own (`python -m edgecompress.emulate.traffic`), since it reads the captures
with Scapy.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from edgecompress.emulate.reading import BIN_S, Flow, Reading
from edgecompress.emulate.schema import FlowRow, Percentiles, TimelineRow, TrafficSummary

MOST_ROWS = 40
"""Flows and handshakes in a summary, at most."""
MOST_ROUND_TRIPS = 2000
CAPTURED = "behind the sender's own queue: time in it is in no round trip and no delay"
UP, DOWN = "up", "down"
"""Directions: from the student to its teacher, and back."""


def summary(
    captures: Mapping[str, Path],
    students: Sequence[str],
    addresses: Mapping[str, str] | None = None,
) -> TrafficSummary:
    """The traffic in captures by host. Each frame counts once, where a student sees it; one-way
    delays match the captures of both ends.
    """
    readings = {host: Reading(path, (addresses or {}).get(host)) for host, path in captures.items()}
    counted = [readings[host] for host in students]
    flows = [row for host in students for row in _flow_rows(host, readings)]
    delays = _one_way_ms(readings, students)
    round_trips = [time for reading in counted for time in reading.round_trips]
    payload = sum(row["payload"] for row in flows)
    begin, end = _span(counted)
    seconds = max(1e-9, end - begin)
    return {
        "packets": sum(reading.packets for reading in counted),
        "captured_bytes": sum(reading.bytes for reading in counted),
        "bytes_at": {host: reading.bytes for host, reading in readings.items()},
        "captured": CAPTURED,
        "other_packets": sum(reading.other for reading in counted),
        "goodput_mbps": 8 * payload / seconds / 1e6,
        "payload_bytes": payload,
        "seconds": seconds,
        "retransmissions": sum(row["retransmissions"] for row in flows),
        "rtt_ms": _percentiles(round_trips),
        "one_way_ms": {way: _percentiles(values) for way, values in delays.items()},
        "jitter_ms": {way: _jitter(values) for way, values in delays.items()},
        "rtt_samples_ms": _thinned(round_trips),
        "timeline": _timeline(counted, begin),
        "flows": sorted(flows, key=lambda row: -row["bytes"])[:MOST_ROWS],
        "handshakes": [shake for reading in counted for shake in reading.handshakes][:MOST_ROWS],
    }


def _span(counted: Sequence[Reading]) -> tuple[float, float]:
    """Times of the first and of the last frame, in seconds; 0 where there is none."""
    begin = min((reading.first for reading in counted if reading.packets), default=0.0)
    end = max((reading.last for reading in counted if reading.packets), default=0.0)
    return begin, end


def _flow_rows(host: str, readings: Mapping[str, Reading]) -> Iterator[FlowRow]:
    """The flows at a host; retransmissions are those of the sender, lost ones included."""
    for flow, count in readings[host].flows.items():
        senders = (
            reading
            for reading in readings.values()
            if reading.address == flow[0] and flow in reading.flows
        )
        sender = next(senders, readings[host])
        yield {
            "at": host,
            "from": f"{flow[0]}:{flow[1]}",
            "to": f"{flow[2]}:{flow[3]}",
            "packets": count.packets,
            "bytes": count.bytes,
            "payload": count.payload,
            "retransmissions": sender.flows[flow].retransmissions,
        }


def _timeline(counted: Sequence[Reading], begin: float) -> list[TimelineRow]:
    """Bytes in each direction by time since `begin`, without gaps."""
    bins: dict[float, dict[str, int]] = defaultdict(lambda: {UP: 0, DOWN: 0})
    first = int(begin / BIN_S) * BIN_S
    for reading in counted:
        sources = {flow[0] for flow in reading.flows}
        for (number, flow), size in reading.timeline.items():
            way = DOWN if flow[2] in sources and _from_server(flow, reading) else UP
            bins[round(number * BIN_S - first, 3)][way] += size
    count = round(max(bins, default=-BIN_S) / BIN_S) + 1
    empty = {UP: 0, DOWN: 0}
    rows = [(number * BIN_S, bins.get(number * BIN_S, empty)) for number in range(count)]
    return [{"time_s": time, "up": row[UP], "down": row[DOWN]} for time, row in rows]


def _one_way_ms(readings: Mapping[str, Reading], students: Sequence[str]) -> dict[str, list[float]]:
    """Milliseconds from one end to the other, of every segment that both a student and another host
    have captured.
    """
    delays: dict[str, list[float]] = {UP: [], DOWN: []}
    peers = [reading for host, reading in readings.items() if host not in students]
    for student, peer in itertools.product((readings[host] for host in students), peers):
        for key, here in student.seen.items():
            there = peer.seen.get(key)
            if there is None:
                continue
            is_up = key[0][0] == student.address if student.address else there > here
            delay = there - here if is_up else here - there
            delays[UP if is_up else DOWN].append(1e3 * delay)
    return delays


def _from_server(flow: Flow, reading: Reading) -> bool:
    """True if `flow` comes from the end that accepted the connection; without a handshake, the end
    with the lower port.
    """
    source = f"{flow[0]}:{flow[1]}"
    for shake in reading.handshakes:
        if shake["flags"] == "S":
            if shake["to"] == source:
                return True
            if shake["from"] == source:
                return False
    return flow[1] < flow[3]


def _percentiles(values: Sequence[float]) -> Percentiles | None:
    if not values:
        return None
    ordered = sorted(values)

    def percentile(q: int) -> float:
        return round(ordered[min(len(ordered) - 1, int(len(ordered) * q / 100))], 4)

    return {"p50": percentile(50), "p90": percentile(90), "p99": percentile(99)}


def _jitter(delays: Sequence[float]) -> float | None:
    """Mean change of the delay from one packet to the next, in milliseconds."""
    if len(delays) < 2:
        return None
    return round(sum(abs(b - a) for a, b in itertools.pairwise(delays)) / (len(delays) - 1), 4)


def _thinned(values: Sequence[float]) -> list[float]:
    """Every n-th of `values`, so that about `MOST_ROUND_TRIPS` are left."""
    step = max(1, len(values) // MOST_ROUND_TRIPS)
    return [round(value, 4) for value in values[::step]]


def main() -> None:
    """Reads `{"captures": {host: path}, "students": [...], "addresses": {host: address}}` from
    stdin, prints the summary.
    """
    request = json.loads(sys.stdin.read())
    captures = {host: Path(path) for host, path in request["captures"].items()}
    answer = summary(captures, request["students"], request["addresses"])
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
