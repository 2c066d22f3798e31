"""Codecs: what comes out is what went in, as closely as each promises, and `soft` keeps its limit
whatever goes in.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecompress.errors import EdgecompressError, UsageError
from edgecompress.online import wire
from edgecompress.online.codec import CODECS, SOFT_BYTES, SOFT_T, Codec


def softmax(logits: np.ndarray, temperature: float = SOFT_T) -> np.ndarray:
    shares = np.exp((logits - logits.max(1, keepdims=True)) / temperature)
    return shares / shares.sum(1, keepdims=True)


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(2, 40), st.integers(1, 64), st.floats(0.1, 30))
def test_numbers_come_back(seed: int, classes: int, count: int, size: float) -> None:
    generator = np.random.default_rng(seed)
    logits = (size * generator.standard_normal((count, classes))).astype(np.float32)
    ids = generator.permutation(100)[:count]
    for name, error in (("fp32", 0.0), ("fp16", 1e-3), ("int8", 1 / 250)):
        sender, receiver = (Codec(name, 100, classes) for _ in range(2))
        found = receiver.decode(sender.encode(logits, ids), ids)
        assert found.dtype == np.float32
        assert (
            np.abs(found - logits).max() <= error * (np.ptp(logits) + np.abs(logits).max()) + 1e-6
        )
    sender, receiver = (Codec("top-k", 100, classes, 3) for _ in range(2))
    found = receiver.decode(sender.encode(logits, ids), ids)
    assert (found.argmax(1) == logits.argmax(1)).mean() > 0.9, "only ties in fp16 may change places"


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 1000),
    st.integers(2, 100) | st.sampled_from([300, 1000]),
    st.sampled_from([8, 32, 64]),
    st.floats(0.01, 40),
)
def test_soft_labels_take_at_most_two_bytes_a_sample(
    seed: int, classes: int, count: int, size: float
) -> None:
    """Noise as much as a teacher that is sure, samples seen before as much as new ones; both ends
    stay in step.
    """
    generator = np.random.default_rng(seed)
    sender, receiver = (Codec("soft", 128, classes) for _ in range(2))
    for _ in range(4):
        ids = generator.permutation(128)[:count]
        logits = (size * generator.standard_normal((count, classes))).astype(np.float32)
        data = sender.encode(logits, ids)
        assert len(data) <= SOFT_BYTES * count
        found = receiver.decode(data, ids)
        assert np.isfinite(found).all()
        assert np.array_equal(sender.known, receiver.known)
        assert np.array_equal(sender.levels_known, receiver.levels_known)


def test_a_sure_teacher_that_hardly_changes_is_nearly_free() -> None:
    generator = np.random.default_rng(0)
    sender, receiver = (Codec("soft", 1000, 10) for _ in range(2))
    logits = 2 * generator.standard_normal((1000, 10)).astype(np.float32)
    logits[np.arange(1000), generator.integers(0, 10, 1000)] += 30
    taken = []
    for _ in range(5):
        total = 0
        for ids in np.split(generator.permutation(1000), 20):
            data = sender.encode(
                logits[ids] + 0.05 * generator.standard_normal((50, 10)).astype(np.float32), ids
            )
            found = receiver.decode(data, ids)
            assert (found.argmax(1) == logits[ids].argmax(1)).all()
            assert np.abs(softmax(found) - softmax(logits[ids])).max() < 0.3
            total += len(data)
        taken.append(total / 1000)
    assert max(taken) <= 2
    assert taken[-1] < taken[0], "differences to what was said before cost less"


def test_going_back_to_an_earlier_state() -> None:
    generator = np.random.default_rng(0)
    sender, receiver = (Codec("soft", 64, 10) for _ in range(2))
    ids = np.arange(32)
    first, second = (generator.standard_normal((32, 10)).astype(np.float32) for _ in range(2))
    receiver.decode(sender.encode(first, ids), ids)
    kept = sender.state(), receiver.state()
    data = sender.encode(second, ids)
    receiver.decode(data, ids)
    sender.restore(kept[0])
    receiver.restore(kept[1])
    assert sender.encode(second, ids) == data


@pytest.mark.parametrize("name", CODECS)
def test_damaged_bytes_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(EdgecompressError, match="the ends disagree"):
        Codec(name, 10, 10).decode(b"\x00\x01\x02", np.arange(5))


def test_an_unknown_codec() -> None:
    with pytest.raises(UsageError, match="allowed are fp32"):
        Codec("zip", 1, 1)


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=6))
def test_answers_travel_together_and_come_apart(answers: list[bytes]) -> None:
    assert wire.parted(wire.joined(answers)) == answers
    with pytest.raises(ValueError, match="end in the middle of one"):
        wire.parted(wire.joined(answers) + b"\x01")


@pytest.mark.parametrize("codec", ["fp32", "fp16"])
def test_maps_travel_behind_logits(codec: str) -> None:
    rng = np.random.default_rng(0)
    maps = [rng.standard_normal((5, *shape), dtype=np.float32) for shape in ((3, 4, 4), (1, 2, 2))]
    payload = wire.with_maps(b"logits", maps, codec)
    logits, found = wire.without_maps(payload, [(3, 4, 4), (1, 2, 2)], 5, codec)
    assert logits == b"logits"
    for one, other in zip(maps, found, strict=True):
        np.testing.assert_allclose(
            other, one, rtol=0 if codec == "fp32" else 1e-3, atol=0 if codec == "fp32" else 1e-3
        )
    for wrong in (payload[:-1], payload + b"x", b""):
        with pytest.raises(ValueError):
            wire.without_maps(wrong, [(3, 4, 4), (1, 2, 2)], 5, codec)
