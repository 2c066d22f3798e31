"""What captures say: bytes by flow and direction, retransmissions, round trips, one-way delays, a
timeline.

Read by Scapy in a process of its own (`python -m edgecompress.emulate.traffic`): it is under the
GPL and never shares a process with grpc. Bulk goes through its raw reader and the fixed places of
the headers; only the handshakes through its dissector.
"""

from __future__ import annotations

import itertools
import json
import struct
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

BIN_S = 0.5
"""Width of a bin of the timeline."""
_IP, _TCP, _UDP = 0x0800, 6, 17

Flow = tuple[str, int, str, int]
"""(source address, port, destination address, port) of one direction."""


def _percentiles(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    ordered = sorted(values)
    return {
        f"p{q}": round(ordered[min(len(ordered) - 1, int(len(ordered) * q / 100))], 4)
        for q in (50, 90, 99)
    }


class Reading:
    """One capture, read to its end."""

    def __init__(self, path: Path, address: str | None = None) -> None:
        self.address = address
        self.packets = self.bytes = self.other = 0
        self.first = self.last = 0.0
        self.flows: dict[Flow, dict[str, Any]] = defaultdict(
            lambda: {"packets": 0, "bytes": 0, "payload": 0, "retransmissions": 0}
        )
        self.timeline: dict[tuple[int, Flow], int] = defaultdict(int)
        self.round_trips: list[float] = []
        self.seen: dict[tuple[Flow, int, int, int], float] = {}
        self._end: dict[Flow, int] = {}
        self._waiting: dict[Flow, dict[int, float]] = defaultdict(dict)
        self.handshakes: list[dict[str, Any]] = []
        self._read(path)

    def _read(self, path: Path) -> None:
        from scapy.utils import RawPcapReader

        syns = []
        with RawPcapReader(str(path)) as reader:
            for data, meta in reader:
                now = meta.sec + meta.usec * (1e-9 if getattr(reader, "nano", False) else 1e-6)
                self._frame(data, int(meta.wirelen), now)
                if (
                    len(data) > 47
                    and data[12:14] == b"\x08\x00"
                    and data[23] == _TCP
                    and data[14 + 4 * (data[14] & 15) + 13] & 2
                ):
                    syns.append((now, data))
        self._dissect(syns[:200])

    def _frame(self, data: bytes, length: int, now: float) -> None:
        self.packets, self.bytes = self.packets + 1, self.bytes + length
        self.first = self.first or now
        self.last = now
        if (
            len(data) < 38
            or struct.unpack("!H", data[12:14])[0] != _IP
            or data[23] not in (_TCP, _UDP)
        ):
            self.other += 1
            return
        header = 4 * (data[14] & 15)
        total, ident = struct.unpack("!H", data[16:18])[0], struct.unpack("!H", data[18:20])[0]
        source, target = (".".join(map(str, data[at : at + 4])) for at in (26, 30))
        ports = struct.unpack("!HH", data[14 + header : 18 + header])
        flow: Flow = (source, ports[0], target, ports[1])
        row = self.flows[flow]
        row["packets"] += 1
        row["bytes"] += length
        self.timeline[(int(now / BIN_S), flow)] += length
        if data[23] == _TCP and len(data) >= 34 + header:
            self._segment(flow, row, data, 14 + header, total - header, now, ident)

    def _segment(
        self,
        flow: Flow,
        row: dict[str, Any],
        data: bytes,
        at: int,
        length: int,
        now: float,
        ident: int,
    ) -> None:
        """Payload, retransmissions, and the round trip from a segment to the acknowledgement of its
        last byte.
        """
        sequence, acknowledged = struct.unpack("!II", data[at + 4 : at + 12])
        flags, payload = data[at + 13], length - 4 * (data[at + 12] >> 4)
        back: Flow = (flow[2], flow[3], flow[0], flow[1])
        if flags & 16:
            waiting = self._waiting[back]
            if acknowledged in waiting:
                self.round_trips.append(1e3 * (now - waiting[acknowledged]))
            for end in [end for end in waiting if (acknowledged - end) % 2**32 < 2**31]:
                del waiting[end]
        if payload <= 0 and not flags & 3:
            return
        end = (sequence + payload + bool(flags & 3)) % 2**32
        if payload > 0:
            self.seen.setdefault((flow, sequence, payload, ident), now)
        known = self._end.get(flow)
        if payload > 0 and known is not None and (known - end) % 2**32 < 2**31:
            row["retransmissions"] += 1
            self._waiting[flow].pop(end, None)  # Karn: its acknowledgement may be of either
            return
        row["payload"] += max(0, payload)
        self._end[flow] = end
        # what this host sends goes the whole way and back; what it receives it acknowledges at once
        if self.address in (None, flow[0]):
            self._waiting[flow][end] = now

    def _dissect(self, syns: list[tuple[float, bytes]]) -> None:
        """The handshakes, with the options that the ends offered, by Scapy's dissector."""
        from scapy.layers.inet import IP, TCP
        from scapy.layers.l2 import Ether

        for now, data in syns:
            packet = Ether(data)
            if IP in packet and TCP in packet:
                options = {
                    str(name): str(value)
                    for name, value in packet[TCP].options
                    if name in ("MSS", "WScale", "SAckOK")
                }
                self.handshakes.append(
                    {
                        "time": now,
                        "from": f"{packet[IP].src}:{packet[TCP].sport}",
                        "to": f"{packet[IP].dst}:{packet[TCP].dport}",
                        "flags": str(packet[TCP].flags),
                        "options": options,
                    }
                )


def summary(
    captures: dict[str, Path], students: list[str], addresses: dict[str, str] | None = None
) -> dict[str, Any]:
    """Traffic from captures by host; each frame counts once, where a student sees it. One-way
    delays match both ends' captures.
    """
    readings = {host: Reading(path, (addresses or {}).get(host)) for host, path in captures.items()}
    counted = [readings[host] for host in students]
    begin = min((r.first for r in counted if r.packets), default=0.0)
    end = max((r.last for r in counted if r.packets), default=0.0)
    rows: list[dict[str, Any]] = []
    timeline: dict[float, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for host in students:
        reading = readings[host]
        for flow, row in reading.flows.items():
            sender = next(
                (r for r in readings.values() if r.address == flow[0] and flow in r.flows), None
            )
            again = (
                row["retransmissions"] if sender is None else sender.flows[flow]["retransmissions"]
            )  # of those lost, too
            rows.append(
                {
                    "at": host,
                    "from": f"{flow[0]}:{flow[1]}",
                    "to": f"{flow[2]}:{flow[3]}",
                    **row,
                    "retransmissions": again,
                }
            )
        for (number, flow), size in reading.timeline.items():
            way = (
                "down"
                if any(f[0] == flow[2] for f in reading.flows) and _is_server(flow, reading)
                else "up"
            )
            timeline[round(number * BIN_S - int(begin / BIN_S) * BIN_S, 3)][way] += size
    delays: dict[str, list[float]] = {"up": [], "down": []}
    for host in students:
        for other, reading in readings.items():
            if other in students:
                continue
            for key, at in readings[host].seen.items():
                there = reading.seen.get(key)
                if there is not None:
                    up = (
                        key[0][0] == readings[host].address
                        if readings[host].address
                        else there > at
                    )
                    delays["up" if up else "down"].append(1e3 * (there - at if up else at - there))
    payload = sum(row["payload"] for row in rows)
    seconds = max(1e-9, end - begin)
    return {
        "packets": sum(r.packets for r in counted),
        "captured_bytes": sum(r.bytes for r in counted),
        "bytes_at": {host: reading.bytes for host, reading in readings.items()},
        "captured": "behind the sender's own queue: time in it is in no round trip and no delay",
        "other_packets": sum(r.other for r in counted),
        "goodput_mbps": 8 * payload / seconds / 1e6,
        "payload_bytes": payload,
        "seconds": seconds,
        "retransmissions": sum(row["retransmissions"] for row in rows),
        "rtt_ms": _percentiles([t for r in counted for t in r.round_trips]),
        "one_way_ms": {way: _percentiles(values) for way, values in delays.items()},
        "jitter_ms": {way: _jitter(values) for way, values in delays.items()},
        "rtt_samples_ms": _thinned([t for r in counted for t in r.round_trips]),
        "timeline": [
            {
                "time_s": number * BIN_S,
                **{way: timeline.get(number * BIN_S, {}).get(way, 0) for way in ("up", "down")},
            }
            for number in range(round(max(timeline, default=-BIN_S) / BIN_S) + 1)
        ],
        "flows": sorted(rows, key=lambda row: -row["bytes"])[:40],
        "handshakes": [h for r in counted for h in r.handshakes][:40],
    }


def _is_server(flow: Flow, reading: Reading) -> bool:
    """Does `flow` come from the end that was connected to? The one whose port is the lower of the
    two, where no handshake says.
    """
    for shake in reading.handshakes:
        if shake["flags"] == "S":
            if shake["to"] == f"{flow[0]}:{flow[1]}":
                return True
            if shake["from"] == f"{flow[0]}:{flow[1]}":
                return False
    return flow[1] < flow[3]


def _jitter(delays: list[float]) -> float | None:
    """Mean change of the delay from one packet to the next, in ms."""
    if len(delays) < 2:
        return None
    return round(sum(abs(b - a) for a, b in itertools.pairwise(delays)) / (len(delays) - 1), 4)


def _thinned(values: list[float], most: int = 2000) -> list[float]:
    step = max(1, len(values) // most)
    return [round(value, 4) for value in values[::step]]


def main() -> None:
    """Reads `{"captures": {host: path}, "students": [...], "addresses": {host: address}}` from
    stdin, prints the summary.
    """
    asked = json.loads(sys.stdin.read())
    answer = summary(
        {host: Path(path) for host, path in asked["captures"].items()},
        asked["students"],
        asked["addresses"],
    )
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
