"""One capture file, read frame by frame: flows, retransmissions, round trips, handshakes.

Bulk goes through Scapy's raw reader and the fixed offsets of the headers; only the handshakes go
through its dissector. Import this only in a process of its own: Scapy is under the GPL and must not
share a process with grpc.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgecompress.emulate.schema import Handshake

BIN_S = 0.5
"""Width of a bin of the timeline, in seconds."""
MOST_HANDSHAKES = 200

_ETHERNET = 14
"""Bytes of an Ethernet header; that of IP follows."""
_IPV4 = 0x0800
_TCP = 6
_UDP = 17
_FIN, _SYN, _ACK = 1, 2, 16
_OPTIONS = ("MSS", "WScale", "SAckOK")

Flow = tuple[str, int, str, int]
"""(source address, port, destination address, port) of one direction."""


@dataclass
class FlowCount:
    """Frames of one direction: their number, their bytes, bytes of payload sent for the first time,
    and segments sent again.
    """

    packets: int = 0
    bytes: int = 0
    payload: int = 0
    retransmissions: int = 0


@dataclass(frozen=True)
class _Segment:
    """The fields of one TCP segment; `ident` is that of its IP packet."""

    flow: Flow
    time: float
    sequence: int
    acknowledged: int
    flags: int
    payload: int
    ident: int

    @property
    def end(self) -> int:
        """The sequence number that acknowledges all of it; SYN and FIN count as one byte."""
        return (self.sequence + self.payload + bool(self.flags & (_FIN | _SYN))) % 2**32


class Reading:
    """One capture at the host with `address`, read to its end. Times are in seconds."""

    def __init__(self, path: Path, address: str | None = None) -> None:
        self.address = address
        self.packets = 0
        self.bytes = 0
        self.other = 0
        """Frames that are neither TCP nor UDP over IPv4."""
        self.first = 0.0
        self.last = 0.0
        self.flows: dict[Flow, FlowCount] = defaultdict(FlowCount)
        self.timeline: dict[tuple[int, Flow], int] = defaultdict(int)
        """Bytes by bin and flow."""
        self.round_trips: list[float] = []
        """Milliseconds from a segment to the acknowledgement of its last byte."""
        self.seen: dict[tuple[Flow, int, int, int], float] = {}
        """When each segment passed: by flow, sequence number, payload and IP identification."""
        self.handshakes: list[Handshake] = []
        self._end: dict[Flow, int] = {}
        self._pending: dict[Flow, dict[int, float]] = defaultdict(dict)
        self._read(path)

    def _read(self, path: Path) -> None:
        from scapy.utils import RawPcapReader

        syns = []
        with RawPcapReader(str(path)) as reader:
            tick = 1e-9 if getattr(reader, "nano", False) else 1e-6
            for data, meta in reader:
                now = meta.sec + meta.usec * tick
                self._frame(data, int(meta.wirelen), now)
                if _is_syn(data):
                    syns.append((now, data))
        self.handshakes.extend(_handshakes(syns[:MOST_HANDSHAKES]))

    def _frame(self, data: bytes, length: int, now: float) -> None:
        self.packets += 1
        self.bytes += length
        self.first = self.first or now
        self.last = now
        if len(data) < 38 or not _is_ipv4(data) or data[23] not in (_TCP, _UDP):
            self.other += 1
            return
        flow = _flow(data)
        count = self.flows[flow]
        count.packets += 1
        count.bytes += length
        self.timeline[(int(now / BIN_S), flow)] += length
        if data[23] == _TCP and len(data) >= _transport(data) + 20:
            self._segment(_segment(data, flow, now), count)

    def _segment(self, segment: _Segment, count: FlowCount) -> None:
        """Payload, retransmissions, and round trips."""
        if segment.flags & _ACK:
            self._acknowledge(segment)
        if segment.payload <= 0 and not segment.flags & (_FIN | _SYN):
            return
        flow, end = segment.flow, segment.end
        if segment.payload > 0:
            key = (flow, segment.sequence, segment.payload, segment.ident)
            self.seen.setdefault(key, segment.time)
        known = self._end.get(flow)
        if segment.payload > 0 and known is not None and _at_or_before(end, known):
            count.retransmissions += 1
            self._pending[flow].pop(end, None)  # Karn: its acknowledgement may be of either
            return
        count.payload += max(0, segment.payload)
        self._end[flow] = end
        # what this host sends travels there and back; what it receives it acknowledges at once
        if self.address in (None, flow[0]):
            self._pending[flow][end] = segment.time

    def _acknowledge(self, segment: _Segment) -> None:
        source, port, target, target_port = segment.flow
        pending = self._pending[(target, target_port, source, port)]
        sent = pending.get(segment.acknowledged)
        if sent is not None:
            self.round_trips.append(1e3 * (segment.time - sent))
        for end in [end for end in pending if _at_or_before(end, segment.acknowledged)]:
            del pending[end]


def _at_or_before(sequence: int, end: int) -> bool:
    """True if a sequence number is at or before `end`, modulo 2**32."""
    return (end - sequence) % 2**32 < 2**31


def _is_ipv4(data: bytes) -> bool:
    return int.from_bytes(data[12:14], "big") == _IPV4


def _transport(data: bytes) -> int:
    """Offset of the TCP or UDP header of an IPv4 frame."""
    return _ETHERNET + 4 * (data[_ETHERNET] & 15)


def _is_syn(data: bytes) -> bool:
    return bool(
        len(data) > 47
        and _is_ipv4(data)
        and data[23] == _TCP
        and data[_transport(data) + 13] & _SYN
    )


def _flow(data: bytes) -> Flow:
    at = _transport(data)
    source = ".".join(map(str, data[26:30]))
    target = ".".join(map(str, data[30:34]))
    source_port, target_port = struct.unpack("!HH", data[at : at + 4])
    return source, source_port, target, target_port


def _segment(data: bytes, flow: Flow, now: float) -> _Segment:
    at = _transport(data)
    total, ident = struct.unpack("!HH", data[16:20])
    sequence, acknowledged = struct.unpack("!II", data[at + 4 : at + 12])
    headers = at - _ETHERNET + 4 * (data[at + 12] >> 4)
    return _Segment(flow, now, sequence, acknowledged, data[at + 13], total - headers, ident)


def _handshakes(syns: list[tuple[float, bytes]]) -> Iterator[Handshake]:
    """The handshakes, with the options that the ends offered, by Scapy's dissector."""
    from scapy.layers.inet import IP, TCP
    from scapy.layers.l2 import Ether

    for now, data in syns:
        packet = Ether(data)
        if IP not in packet or TCP not in packet:
            continue
        ip, tcp = packet[IP], packet[TCP]
        yield {
            "time": now,
            "from": f"{ip.src}:{tcp.sport}",
            "to": f"{ip.dst}:{tcp.dport}",
            "flags": str(tcp.flags),
            "options": {str(name): str(value) for name, value in tcp.options if name in _OPTIONS},
        }
