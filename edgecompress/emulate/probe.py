"""Paced UDP in one direction: `probe.py receive PORT SECONDS` and `probe.py send HOST PORT PACKETS
INTERVAL_US SIZE`. Standard library only.

Every datagram begins with its number. The receiver prints `{"received", "duplicates",
"steady_bytes", "steady_packets", "steady_s"}`: the steady part leaves out the first third, in which
a token bucket passes more than its rate.
"""

import json
import socket
import struct
import sys
import time

LAST = 0xFFFFFFFF
"""The number of the datagrams that end a measurement."""


def receive(port: int, seconds: float) -> None:
    """Count datagrams until the last one, or until none has arrived for 1.5 s, or `seconds` are
    over.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 23)
    listener.bind(("0.0.0.0", port))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    deadline = time.monotonic() + seconds
    times: list[float] = []
    sizes: list[int] = []
    numbers: set[int] = set()
    listener.settimeout(seconds)
    while time.monotonic() < deadline:
        try:
            data = listener.recv(65535)
        except socket.timeout:  # noqa: UP041 (its name before Python 3.10)
            break
        times.append(time.monotonic())
        sizes.append(len(data))
        number = struct.unpack("!I", data[:4])[0]
        numbers.add(number)
        listener.settimeout(max(0.05, min(1.5, deadline - time.monotonic())))
        if number == LAST:
            break
    numbers.discard(LAST)
    sys.stdout.write(json.dumps(_summary(times, sizes, numbers)) + "\n")


def _summary(times: list[float], sizes: list[int], numbers: set[int]) -> dict[str, float]:
    start = len(times) // 3
    steady = times[start:-1]
    return {
        "received": len(numbers),
        "duplicates": len(times) - len(numbers) - 1,
        "steady_bytes": sum(sizes[start + 1 : -1]),
        "steady_packets": max(0, len(steady) - 1),
        "steady_s": steady[-1] - steady[0] if len(steady) > 1 else 0.0,
    }


def send(host: str, port: int, packets: int, interval_us: float, size: int) -> None:
    """Send `packets` datagrams of `size` bytes, one every `interval_us`, then a few that end the
    receiver.
    """
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    filler = b"\0" * (size - 4)
    begin = time.monotonic()
    for number in range(packets):
        due = begin + number * interval_us / 1e6
        while (left := due - time.monotonic()) > 0:
            if left > 2e-4:
                time.sleep(left - 1e-4)
        try:
            sender.sendto(struct.pack("!I", number) + filler, (host, port))
        except OSError:  # the queue is full: lost here, as on the way
            continue
    time.sleep(0.3)
    for _ in range(20):
        sender.sendto(struct.pack("!I", LAST) + b"\0" * 28, (host, port))
        time.sleep(0.02)


if __name__ == "__main__":
    if sys.argv[1] == "receive":
        receive(int(sys.argv[2]), float(sys.argv[3]))
    else:
        send(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]), int(sys.argv[6]))
