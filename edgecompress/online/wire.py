"""The messages between teacher and student, as protobuf. They are described here and built at run time: no generated code to fall behind.

    service edgecompress.Lesson { rpc Attend(stream Frame) returns (stream Frame); }

A frame says which step of which epoch of which run it is for, and the digest of the ordered sample ids of that step, which the other end
checks. One request may be for several steps, `first` to `step`. A payload above `PART` bytes travels in several frames.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE, METHOD = "edgecompress.Lesson", "Attend"
PATH = f"/{SERVICE}/{METHOD}"
PART = 1_000_000
"""Bytes of payload in one frame: well below the 4 MiB that gRPC takes."""
HELLO, WANT, GIVE, CHECKPOINT, WEIGHTS, DONE, ERROR = "hello", "want", "give", "checkpoint", "weights", "done", "error"

_FIELDS = (
    ("kind", "string"), ("run", "string"), ("epoch", "uint32"), ("step", "uint32"), ("digest", "bytes"), ("payload", "bytes"),
    ("said", "string"), ("part", "uint32"), ("parts", "uint32"), ("first", "uint32"),
)  # fmt: skip
_TYPES = {"string": 9, "bytes": 12, "uint32": 13}


def _frame_class() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="edgecompress/lesson.proto", package="edgecompress", syntax="proto3")
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
            kind=kind, run=run, epoch=epoch, step=step, digest=digest, payload=payload[part * PART : (part + 1) * PART],
            said=text if part == 0 else "", part=part, parts=parts, first=first,
        )  # fmt: skip


def whole(received: Iterator[Any], seen: Callable[[int], None] | None = None) -> Iterator[tuple[Any, bytes, dict[str, Any]]]:
    """Messages out of frames: (their first frame, the whole payload, what they say). `seen` is told the bytes of every frame."""
    first, payload = None, b""
    for frame in received:
        if seen is not None:
            seen(frame.ByteSize())
        if frame.part == 0:
            first, payload = frame, b""
        if first is None or frame.kind != first.kind or frame.step != first.step:
            raise ValueError("a part of a message came without its beginning")
        payload += frame.payload
        if frame.part + 1 == frame.parts:
            yield first, payload, json.loads(first.said) if first.said else {}
            first = None
