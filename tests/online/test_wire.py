"""Messages and frames."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecompress.errors import UsageError
from edgecompress.online import wire


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=6))
def test_answers_are_joined_and_split(answers: list[bytes]) -> None:
    assert wire.split_answers(wire.join_answers(answers)) == answers
    with pytest.raises(ValueError, match="end in the middle of one"):
        wire.split_answers(wire.join_answers(answers) + b"\x01")


def test_large_payload_travels_in_several_frames() -> None:
    payload = bytes(range(256)) * 10_000
    frames = list(wire.frames(wire.WEIGHTS, payload=payload, metadata={"a": 1}))
    assert [frame.part for frame in frames] == [0, 1, 2]
    sizes = list[int]()
    heartbeat = next(wire.frames(wire.HEARTBEAT))
    (message,) = wire.messages(iter([frames[0], heartbeat, *frames[1:]]), sizes.append)
    assert (message.payload, message.metadata) == (payload, {"a": 1})
    assert sum(sizes) == sum(frame.ByteSize() for frame in [*frames, heartbeat])
    with pytest.raises(ValueError, match="more than 2000000 bytes"):
        list(wire.messages(iter(frames), limit=2_000_000))
    with pytest.raises(ValueError, match="without its beginning"):
        list(wire.messages(iter(frames[1:])))


def test_frame_bytes_are_fixed() -> None:
    """The wire format: field numbers and the names of the kinds."""
    (frame,) = wire.frames(
        wire.REQUEST,
        {"run": "r", "epoch": 1, "step": 3, "first": 2, "digest": b"\x07"},
        payload=b"p",
        metadata={},
    )
    assert wire.encode(frame).hex(" ") == (
        "0a 04 77 61 6e 74 12 01 72 18 01 20 03 2a 01 07 32 01 70 3a 02 7b 7d 48 01 50 02"
    )


def test_errors_travel_as_metadata() -> None:
    for error in (UsageError("give --data"), wire.ConnectionLostError("gone")):
        restored = wire.error_of(wire.error_metadata(error))
        assert (type(restored), str(restored)) == (type(error), str(error))
    text = str(wire.error_of(wire.error_metadata(KeyError("name"))))
    assert text == "not a student's message: KeyError: 'name'"
