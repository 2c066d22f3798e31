"""The messages between teacher and student, as protobuf. They are described here and built at run
time: no generated code to fall behind.

    service edgecompress.Lesson { rpc Attend(stream Frame) returns (stream Frame); }

A frame says which step of which epoch of which run it is for, and the digest of the ordered sample
ids of that step, which the other end checks. One message may be for several steps, `first` to
`step`. A payload above `PART` bytes travels in several frames.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE, METHOD = "edgecompress.Lesson", "Attend"
PATH = f"/{SERVICE}/{METHOD}"
PART = 1_000_000
"""Bytes of payload in one frame: well below the 4 MiB that gRPC takes."""
HELLO, WANT, GIVE, SAY, WEIGHTS, BUSY, DONE, ERROR = (
    "hello",
    "want",
    "give",
    "say",
    "weights",
    "busy",
    "done",
    "error",
)
"""Kinds of messages. BUSY says nothing but that its sender is there, while the other end waits."""
CHANNEL = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.enable_http_proxy", 0),
)
"""Both ends' settings of gRPC: who is gone is found within 20 s; no proxies."""
MOST_ASKED, MOST_ANSWERED = 256_000_000, 4_000_000_000
"""Bytes of the largest message that a teacher, and a student, take."""

_FIELDS = (
    ("kind", "string"),
    ("run", "string"),
    ("epoch", "uint32"),
    ("step", "uint32"),
    ("digest", "bytes"),
    ("payload", "bytes"),
    ("said", "string"),
    ("part", "uint32"),
    ("parts", "uint32"),
    ("first", "uint32"),
)
_TYPES = {"string": 9, "bytes": 12, "uint32": 13}


def _frame_class() -> Any:
    file = descriptor_pb2.FileDescriptorProto(
        name="edgecompress/lesson.proto", package="edgecompress", syntax="proto3"
    )
    message = file.message_type.add(name="Frame")
    for number, (name, kind) in enumerate(_FIELDS, start=1):
        message.field.add(name=name, number=number, type=_TYPES[kind], label=1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("edgecompress.Frame"))


Frame: Any = _frame_class()
encode: Callable[[Any], bytes] = Frame.SerializeToString
decode: Callable[[bytes], Any] = Frame.FromString


def frames(
    kind: str,
    *,
    run: str = "",
    epoch: int = 0,
    step: int = 0,
    digest: bytes = b"",
    payload: bytes = b"",
    said: dict[str, Any] | None = None,
    first: int = 0,
) -> Iterator[Any]:
    """One message as frames: several where its payload is large."""
    parts = max(1, -(-len(payload) // PART))
    text = json.dumps(said) if said is not None else ""
    for part in range(parts):
        yield Frame(
            kind=kind,
            run=run,
            epoch=epoch,
            step=step,
            digest=digest,
            payload=payload[part * PART : (part + 1) * PART],
            said=text if part == 0 else "",
            part=part,
            parts=parts,
            first=first,
        )


def whole(
    received: Iterator[Any], seen: Callable[[int], None] | None = None, most: int = MOST_ANSWERED
) -> Iterator[tuple[Any, bytes, dict[str, Any]]]:
    """Messages out of frames: (their first frame, the whole payload, what they say). `seen` is told
    the bytes of every frame.

    Raises `ValueError` for frames that are no messages, and for one of more than `most` bytes.
    """
    first, payload = None, bytearray()
    for frame in received:
        if seen is not None:
            seen(frame.ByteSize())
        if frame.kind == BUSY:
            continue
        if frame.part == 0:
            first, payload = frame, bytearray()
        if (
            first is None
            or frame.kind != first.kind
            or frame.step != first.step
            or not frame.part < frame.parts
        ):
            raise ValueError("a part of a message came without its beginning")
        payload += frame.payload
        if len(payload) > most:
            raise ValueError(f"a message of more than {most} bytes")
        if frame.part + 1 == frame.parts:
            said = json.loads(first.said) if first.said else {}
            if not isinstance(said, dict):
                raise ValueError("a message that says no object")
            yield first, bytes(payload), said
            first = None


def joined(answers: Sequence[bytes]) -> bytes:
    """Answers to several steps as one payload."""
    return b"".join(struct.pack("<I", len(one)) + one for one in answers)


def parted(payload: bytes) -> list[bytes]:
    """`joined`, back. Raises `ValueError` for bytes that are none."""
    found, place = list[bytes](), 0
    while place < len(payload):
        (size,) = struct.unpack_from("<I", payload.ljust(place + 4, b"\xff"), place)
        if place + 4 + size > len(payload):
            raise ValueError(f"{len(payload)} bytes of answers end in the middle of one")
        found.append(payload[place + 4 : place + 4 + size])
        place += 4 + size
    return found


def with_maps(logits: bytes, maps: Sequence[Any], codec: str) -> bytes:
    """The payload of exchange features: logits as a codec wrote them, then maps (B, C, H, W), fp32
    beside codec fp32, else fp16.
    """
    kind = "<f4" if codec == "fp32" else "<f2"
    return (
        struct.pack("<I", len(logits))
        + logits
        + b"".join(np.ascontiguousarray(one, kind).tobytes() for one in maps)
    )


def without_maps(
    payload: bytes, shapes: Sequence[Sequence[int]], count: int, codec: str
) -> tuple[bytes, list[Any]]:
    """(the logits' bytes, maps (count, C, H, W) float32 of the `shapes` (C, H, W)). Raises
    `ValueError` for a payload of another size.
    """
    kind = np.dtype("<f4" if codec == "fp32" else "<f2")
    (size,) = struct.unpack_from("<I", payload) if len(payload) >= 4 else (0,)
    place, maps = 4 + size, []
    for shape in shapes:
        number = count * int(np.prod(shape))
        maps.append(
            np.frombuffer(payload, kind, number, place).reshape(count, *shape).astype(np.float32)
        )
        place += number * kind.itemsize
    if place != len(payload):
        raise ValueError(f"{len(payload)} bytes of logits and maps, expected {place}")
    return payload[4 : 4 + size], maps
