"""A student's stream: whatever arrives, the error goes back in words and the lesson continues."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

import grpc
import numpy as np
import pytest

from edgecompress.data import DataSet
from edgecompress.errors import UsageError
from edgecompress.online import wire
from tests.online.support import (
    SETTINGS,
    Serve,
    assert_same,
    attend,
    feature_plan,
    network,
    new_student,
    plan_for,
    student_network,
    train_in_one_process,
)


def error_for(port: int, frames: Sequence[wire.Frame]) -> str:
    """The error that the teacher answers to raw frames."""
    channel = grpc.insecure_channel(f"127.0.0.1:{port}")
    stub = channel.stream_stream(
        wire.PATH, request_serializer=wire.encode, response_deserializer=wire.decode
    )
    try:
        last = list(stub(iter(frames), timeout=20))[-1]
        return str(json.loads(last.metadata).get("error", ""))
    finally:
        channel.close()


def hello(plan: dict[str, object], **changes: object) -> list[wire.Frame]:
    metadata = {"name": "x", "instance": "i", "plan": plan, "have": [], **changes}
    return list(wire.frames(wire.HELLO, metadata=metadata))


def test_malformed_messages_end_their_own_stream_only(data: DataSet, serve_lesson: Serve) -> None:
    served = serve_lesson()
    plan, inputs = plan_for(data), plan_for(data, exchange="inputs")
    good = plan.as_dict()
    pixels = wire.frames(wire.REQUEST, inputs.stamp(1), payload=b"12345")
    other_samples = wire.frames(wire.REQUEST, {**plan.stamp(1), "digest": b"12345678"})
    beyond_the_end = wire.frames(wire.REQUEST, {**plan.run_stamp(), "step": 10**6})
    shown = {"flip": True, "shift": 2, "cutout": 0}
    for frames, words in (
        (hello({**good, "seed": "x"}), "plan: seed"),
        (hello({**good, "seed": 2**70}), "plan: seed"),
        (hello({**good, "samples": 10**9}), "plan: samples"),
        (hello({**good, "maps": [[1]]}), "plan: maps"),
        (hello({**good, "colour": 1}), "plan: colour"),
        (hello({**good, "augmentation": {"tilt": 3}}), "plan: augmentation"),
        (hello({**good, "augmentation": {**shown, "flip": "sideways"}}), "plan: augmentation.flip"),
        (hello({**good, "augmentation": {**shown, "shift": "alternate"}}), "augmentation.shift"),
        (hello({**good, "samples": 100}), "are not the teacher's"),
        (hello(good, have=["a"]), "not a student's message"),
        (hello({**inputs.as_dict(), "native": [1, 8, 8]}), "are none that this teacher reads"),
        ([*hello(inputs.as_dict()), *pixels], "5 bytes of pixels"),
        ([*hello(good), *other_samples], "other samples"),
        ([*hello(good), *beyond_the_end], "start both ends again"),
        (
            [*hello(good), *wire.frames(wire.WEIGHTS, plan.run_stamp(epoch=1))],
            "not one of exchange logits",
        ),
        ([wire.make_frame(kind="hello", part=0, parts=0)], "without its beginning"),
        (list(wire.frames(wire.REQUEST)), "says hello first"),
    ):
        assert words in error_for(served.port, frames), words
        served.teacher.sessions.clear()  # its place, where it had one
    result = attend(served, new_student(data))
    assert_same(result.model, train_in_one_process(data).model)


def test_logits_that_are_not_finite_end_one_stream(data: DataSet, serve_lesson: Serve) -> None:
    served = serve_lesson(train=SETTINGS)
    plan = plan_for(data, mutual=True)
    payload = np.full((32, 10), np.nan, dtype="<f4").tobytes()
    logits = wire.frames(wire.LOGITS, plan.stamp(1), payload=payload)
    assert "not finite" in error_for(served.port, [*hello(plan.as_dict()), *logits])
    assert served.error is None


def test_refused_student_may_connect_again(data: DataSet, serve_lesson: Serve) -> None:
    """A teacher without maps refuses features; the same student then learns from logits."""
    served = serve_lesson(model=network("mlp", data, 1))
    student = new_student(data, feature_plan(data, "hint"), model=student_network(data, "lenet5"))
    with pytest.raises(UsageError, match="features need convolutions"):
        attend(served, student, patience=5)
    time.sleep(0.5)
    assert served.thread.is_alive(), "a refused student does not count as taught"
    attend(served, new_student(data))
    served.assert_ended_well(10)
