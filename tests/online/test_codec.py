"""Codecs: decoded logits are as close as each codec promises, and `soft` keeps its limit for any
logits.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecompress.errors import EdgecompressError, UsageError
from edgecompress.online.codec import CODECS, SOFT_BYTES, SOFT_T, Codec


def softmax(logits: np.ndarray, temperature: float = SOFT_T) -> np.ndarray:
    shares = np.exp((logits - logits.max(1, keepdims=True)) / temperature)
    return shares / shares.sum(1, keepdims=True)


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(2, 40), st.integers(1, 64), st.floats(0.1, 30))
def test_decoded_logits_are_close(seed: int, classes: int, count: int, size: float) -> None:
    generator = np.random.default_rng(seed)
    logits = (size * generator.standard_normal((count, classes))).astype(np.float32)
    ids = generator.permutation(100)[:count]
    for name, error in (("fp32", 0.0), ("fp16", 1e-3), ("int8", 1 / 250)):
        sender, receiver = (Codec(name, 100, classes) for _ in range(2))
        decoded = receiver.decode(sender.encode(logits, ids), ids)
        assert decoded.dtype == np.float32
        assert (
            np.abs(decoded - logits).max() <= error * (np.ptp(logits) + np.abs(logits).max()) + 1e-6
        )
    sender, receiver = (Codec("top-k", 100, classes, 3) for _ in range(2))
    decoded = receiver.decode(sender.encode(logits, ids), ids)
    assert (decoded.argmax(1) == logits.argmax(1)).mean() > 0.9, (
        "only ties in fp16 may change places"
    )


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 1000),
    st.integers(2, 100) | st.sampled_from([300, 1000]),
    st.sampled_from([8, 32, 64]),
    st.floats(0.01, 40),
)
def test_soft_takes_at_most_two_bytes_per_sample(
    seed: int, classes: int, count: int, size: float
) -> None:
    """Noise and confident logits, samples seen before and new ones; both ends remember the same."""
    generator = np.random.default_rng(seed)
    sender, receiver = (Codec("soft", 128, classes) for _ in range(2))
    for _ in range(4):
        ids = generator.permutation(128)[:count]
        logits = (size * generator.standard_normal((count, classes))).astype(np.float32)
        data = sender.encode(logits, ids)
        assert len(data) <= SOFT_BYTES * count
        decoded = receiver.decode(data, ids)
        assert np.isfinite(decoded).all()
        assert np.array_equal(sender.known, receiver.known)
        assert np.array_equal(sender.levels_known, receiver.levels_known)


def test_soft_labels_that_hardly_change_are_nearly_free() -> None:
    generator = np.random.default_rng(0)
    sender, receiver = (Codec("soft", 1000, 10) for _ in range(2))
    logits = 2 * generator.standard_normal((1000, 10)).astype(np.float32)
    logits[np.arange(1000), generator.integers(0, 10, 1000)] += 30
    sizes = []
    for _ in range(5):
        total = 0
        for ids in np.split(generator.permutation(1000), 20):
            data = sender.encode(
                logits[ids] + 0.05 * generator.standard_normal((50, 10)).astype(np.float32), ids
            )
            decoded = receiver.decode(data, ids)
            assert (decoded.argmax(1) == logits[ids].argmax(1)).all()
            assert np.abs(softmax(decoded) - softmax(logits[ids])).max() < 0.3
            total += len(data)
        sizes.append(total / 1000)
    assert max(sizes) <= 2
    assert sizes[-1] < sizes[0], "differences to what was sent before cost less"


def test_restored_state_encodes_the_same() -> None:
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
def test_damaged_bytes_are_an_error(name: str) -> None:
    with pytest.raises(EdgecompressError, match="the ends disagree"):
        Codec(name, 10, 10).decode(b"\x00\x01\x02", np.arange(5))


def test_unknown_codec_names_the_allowed_ones() -> None:
    with pytest.raises(UsageError, match="allowed are fp32"):
        Codec("zip", 1, 1)
