"""The messages between teacher and student, as protobuf. They are described here and built at run
time: no generated code to fall behind.

    service edgecompress.Lesson { rpc Attend(stream Frame) returns (stream Frame); }

A frame names the run, epoch and step that it belongs to, and the digest of the ordered sample ids
of that step, which the receiver checks. One message may cover several steps, `first` to `step`. A
payload above `MAX_FRAME_PAYLOAD` bytes travels in several frames.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypedDict

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from edgecompress.errors import EdgecompressError, UsageError

SERVICE = "edgecompress.Lesson"
METHOD = "Attend"
PATH = f"/{SERVICE}/{METHOD}"

HELLO = "hello"
REQUEST = "want"
ANSWER = "give"
LOGITS = "say"
WEIGHTS = "weights"
HEARTBEAT = "busy"
DONE = "done"
ERROR = "error"
"""Kinds of messages. A heartbeat has no content: its sender is alive while the receiver waits."""

CHANNEL_OPTIONS = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.enable_http_proxy", 0),
)
"""gRPC settings of both ends: a lost peer is detected within 20 s; no proxies."""

HEARTBEAT_SECONDS = 10.0
"""Interval of heartbeats while the other end waits."""

MAX_FRAME_PAYLOAD = 1_000_000
"""Bytes of payload in one frame: well below the 4 MiB that gRPC accepts."""
MAX_REQUEST_BYTES = 256_000_000
"""Largest message that a teacher accepts."""
MAX_ANSWER_BYTES = 4_000_000_000
"""Largest message that a student accepts."""

Metadata = Mapping[str, object]
"""The JSON object of a message."""


class Hello(TypedDict):
    """The metadata of a student's first message: its `plan`, and the steps after which it can
    continue (`have`). It is what a peer claims: the teacher checks each value.
    """

    name: str
    instance: str
    plan: Mapping[str, object]
    have: list[int]


class Welcome(TypedDict):
    """The metadata of the teacher's reply: the step after which both ends continue, whether the
    teacher trains, and the shapes of the feature maps that it sends.
    """

    start: int
    training: bool
    maps: list[list[int]]


class ConnectionLostError(EdgecompressError):
    """The connection is gone, or the peer does not answer in time: rewind and connect again."""


class Stamp(TypedDict):
    """The run, the epoch, and the steps `first` to `step` that a message is about, with 8 bytes of
    digest of their samples. `first` is 0 for one step; what does not apply is 0 or empty.
    """

    run: str
    epoch: int
    step: int
    first: int
    digest: bytes


NO_STAMP: Stamp = {"run": "", "epoch": 0, "step": 0, "first": 0, "digest": b""}


class Frame(Protocol):
    """One protobuf message. `metadata` is JSON; `part` of `parts` numbers the pieces of a payload;
    `first` is 0 in a message about one step.
    """

    kind: str
    run: str
    epoch: int
    step: int
    digest: bytes
    payload: bytes
    metadata: str
    part: int
    parts: int
    first: int

    def ByteSize(self) -> int:
        """Bytes on the wire."""


@dataclass(frozen=True)
class Message:
    """A complete message, joined from its frames."""

    kind: str
    run: str
    epoch: int
    step: int
    first: int
    digest: bytes
    payload: bytes
    metadata: Metadata


_FIELDS = (
    ("kind", "string"),
    ("run", "string"),
    ("epoch", "uint32"),
    ("step", "uint32"),
    ("digest", "bytes"),
    ("payload", "bytes"),
    ("metadata", "string"),
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


_Frame = _frame_class()
make_frame: Callable[..., Frame] = _Frame
encode: Callable[[Frame], bytes] = _Frame.SerializeToString
decode: Callable[[bytes], Frame] = _Frame.FromString


def frames(
    kind: str,
    stamp: Stamp = NO_STAMP,
    *,
    payload: bytes = b"",
    metadata: Metadata | None = None,
) -> Iterator[Frame]:
    """One message as frames: several where its payload is large."""
    parts = max(1, -(-len(payload) // MAX_FRAME_PAYLOAD))
    text = json.dumps(metadata) if metadata is not None else ""

    for part in range(parts):
        yield make_frame(
            kind=kind,
            payload=payload[part * MAX_FRAME_PAYLOAD : (part + 1) * MAX_FRAME_PAYLOAD],
            metadata=text if part == 0 else "",
            part=part,
            parts=parts,
            **stamp,
        )


def messages(
    received: Iterator[Frame],
    on_frame: Callable[[int], None] | None = None,
    limit: int = MAX_ANSWER_BYTES,
) -> Iterator[Message]:
    """Messages joined from frames; heartbeats are skipped. `on_frame` is called with the bytes of
    every frame.

    Raises `ValueError` for frames that form no message, and for a message above `limit` bytes.
    """
    head: Frame | None = None
    payload = bytearray()

    for frame in received:
        if on_frame is not None:
            on_frame(frame.ByteSize())
        if frame.kind == HEARTBEAT:
            continue
        if frame.part == 0:
            head, payload = frame, bytearray()
        if head is None or not _continues(head, frame):
            raise ValueError("a part of a message came without its beginning")

        payload += frame.payload
        if len(payload) > limit:
            raise ValueError(f"a message of more than {limit} bytes")
        if frame.part + 1 == frame.parts:
            yield _message(head, bytes(payload))
            head = None


def _continues(head: Frame, frame: Frame) -> bool:
    """Is `frame` a part of the message that begins with `head`?"""
    return frame.kind == head.kind and frame.step == head.step and frame.part < frame.parts


def _message(head: Frame, payload: bytes) -> Message:
    metadata = json.loads(head.metadata) if head.metadata else {}
    if not isinstance(metadata, dict):
        raise ValueError("the metadata of a message is no JSON object")
    return Message(
        head.kind, head.run, head.epoch, head.step, head.first, head.digest, payload, metadata
    )


def error_metadata(error: Exception) -> Metadata:
    """The metadata of an ERROR message. What is no error of ours was caused by a malformed
    message.
    """
    text = (
        str(error)
        if isinstance(error, EdgecompressError)
        else f"not a student's message: {type(error).__name__}: {error}"
    )
    return {"error": text, "broken": isinstance(error, ConnectionLostError)}


def error_of(metadata: Metadata) -> EdgecompressError:
    """The error that an ERROR message stands for."""
    kind = ConnectionLostError if metadata.get("broken") else UsageError
    return kind(str(metadata.get("error", "the teacher refused")))


def join_answers(answers: Sequence[bytes]) -> bytes:
    """The answers to several steps as one payload, each behind its length (uint32)."""
    return b"".join(struct.pack("<I", len(answer)) + answer for answer in answers)


def split_answers(payload: bytes) -> list[bytes]:
    """The inverse of `join_answers`. Raises `ValueError` for a payload that ends within an
    answer.
    """
    answers = list[bytes]()
    place = 0
    while place < len(payload):
        (size,) = struct.unpack_from("<I", payload.ljust(place + 4, b"\xff"), place)
        begin, end = place + 4, place + 4 + size
        if end > len(payload):
            raise ValueError(f"{len(payload)} bytes of answers end in the middle of one")
        answers.append(payload[begin:end])
        place = end
    return answers
