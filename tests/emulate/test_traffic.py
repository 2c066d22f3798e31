"""The traffic in captures of known content."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether

START = 1_700_000_000.0
STUDENT, TEACHER = ("10.123.0.2", 40000), ("10.123.0.1", 50051)


def segment(way: str, seq: int, ack: int, size: int, flags: str, at: float, ident: int = 0) -> Any:
    (source, sport), (target, dport) = (STUDENT, TEACHER) if way == "up" else (TEACHER, STUDENT)
    packet = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / IP(
        src=source, dst=target, id=ident
    )
    packet = packet / TCP(sport=sport, dport=dport, seq=seq, ack=ack, flags=flags) / (b"x" * size)
    packet.time = START + at
    return packet


def lesson(shift: float = 0.0) -> list[Any]:
    """A handshake, 100 bytes up that are acknowledged after 20 ms, 1,000 down of which one segment
    is sent twice, a stray datagram.
    """
    rows = [
        segment("up", 999, 0, 0, "S", 0.0),
        segment("down", 4999, 1000, 0, "SA", 0.02),
        segment("up", 1000, 5000, 0, "A", 0.0201),
        segment("up", 1000, 5000, 100, "PA", 0.1),
        segment("down", 5000, 1100, 500, "PA", 0.12),
        segment("down", 5500, 1100, 500, "PA", 0.121),
        segment("down", 5500, 1100, 500, "PA", 0.5),
        segment("up", 1100, 6000, 0, "A", 0.501),
    ]
    stray = Ether() / IP(src="10.123.0.2", dst="10.123.0.1") / UDP(sport=1, dport=2) / b"?"
    stray.time = START + 0.6
    rows.append(stray)
    for row in rows:
        row.time += shift * (1 if row[IP].src == STUDENT[0] else -1)
    return rows


def read(folder: Path, captures: dict[str, list[Any]], nano: bool) -> dict[str, Any]:
    paths = {}
    for host, packets in captures.items():
        paths[host] = str(folder / f"{host}.pcap")
        with open(paths[host], "wb") as file:  # the format of libpcap
            file.write(
                struct.pack("<IHHiIII", 0xA1B23C4D if nano else 0xA1B2C3D4, 2, 4, 0, 0, 128, 1)
            )
            for packet in packets:
                data = bytes(packet)
                part = round(float(packet.time % 1) * (1e9 if nano else 1e6))
                file.write(
                    struct.pack("<IIII", int(packet.time), part, min(128, len(data)), len(data))
                    + data[:128]
                )
    asked = json.dumps(
        {
            "captures": paths,
            "students": ["student"],
            "addresses": {"student": STUDENT[0], "teacher": TEACHER[0]},
        }
    )
    command = [sys.executable, "-m", "edgecompress.emulate.traffic"]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("nano", [True, False])
def test_bytes_round_trips_and_retransmissions(nano: bool, tmp_path: Path) -> None:
    packets = lesson()
    traffic = read(tmp_path, {"student": packets}, nano)
    assert traffic["packets"] == 9
    assert traffic["captured_bytes"] == sum(len(bytes(p)) for p in packets), (
        "by the original length, though only 128 bytes were kept"
    )
    assert traffic["retransmissions"] == 1
    assert traffic["payload_bytes"] == 1100, "retransmitted bytes count once"
    assert traffic["rtt_ms"]["p50"] == pytest.approx(20, abs=0.2)
    assert max(traffic["rtt_samples_ms"]) < 400, (
        "the acknowledgement of a retransmitted segment is no round trip (Karn)"
    )
    assert [shake["flags"] for shake in traffic["handshakes"]] == ["S", "SA"]
    assert sum(row["up"] + row["down"] for row in traffic["timeline"]) == traffic["captured_bytes"]
    down = next(row for row in traffic["flows"] if row["from"] == "10.123.0.1:50051")
    assert (down["payload"], down["retransmissions"]) == (1000, 1)


def test_one_way_delays_need_both_ends(tmp_path: Path) -> None:
    """The same packets 4 ms earlier at the sender and 4 ms later at the receiver, on one clock."""
    traffic = read(tmp_path, {"student": lesson(0.0), "teacher": lesson(0.004)}, True)
    assert traffic["one_way_ms"]["up"]["p50"] == pytest.approx(4, abs=0.01)
    assert traffic["one_way_ms"]["down"]["p50"] == pytest.approx(4, abs=0.01)
    assert traffic["packets"] == 9, "each frame counts once, where a student sees it"


def opened(rows: list[Any]) -> list[Any]:
    return [
        segment("up", 999, 0, 0, "S", 0.0),
        segment("down", 4999, 1000, 0, "SA", 0.02),
        segment("up", 1000, 5000, 0, "A", 0.03),
        *rows,
    ]


def test_retransmissions_of_lost_segments_are_seen_at_the_sender(tmp_path: Path) -> None:
    """The receiver sees no retransmission, and the delay is that of the packet that arrived, not of
    the lost one.
    """
    lost, repeated = (
        segment("down", 5000, 1000, 500, "PA", at, ident) for at, ident in ((0.1, 7), (0.4, 9))
    )
    arrived = segment("down", 5000, 1000, 500, "PA", 0.41, 9)
    traffic = read(
        tmp_path, {"student": opened([arrived]), "teacher": opened([lost, repeated])}, True
    )
    assert traffic["retransmissions"] == 1
    assert traffic["one_way_ms"]["down"]["p99"] == pytest.approx(10, abs=0.01)
    assert traffic["payload_bytes"] == 500


def test_reordered_segments_are_no_retransmissions(tmp_path: Path) -> None:
    one, two = (
        segment("down", 5000 + 500 * n, 1000, 500, "PA", 0.1 + 0.001 * n, n + 1) for n in (0, 1)
    )
    late = segment("down", 5000, 1000, 500, "PA", 0.2, 1)
    traffic = read(tmp_path, {"student": opened([two, late]), "teacher": opened([one, two])}, True)
    assert traffic["retransmissions"] == 0


def test_the_timeline_has_no_gaps(tmp_path: Path) -> None:
    traffic = read(tmp_path, {"student": opened([segment("up", 1000, 5000, 100, "PA", 3.2)])}, True)
    assert [row["time_s"] for row in traffic["timeline"]] == [0.5 * n for n in range(7)]
    assert [row["up"] > 0 for row in traffic["timeline"]] == [
        True,
        False,
        False,
        False,
        False,
        False,
        True,
    ]


def test_an_empty_capture(tmp_path: Path) -> None:
    assert read(tmp_path, {"student": []}, True)["packets"] == 0
