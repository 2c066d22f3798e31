"""Encodings of logits (B, K) on the wire, from largest to smallest.

fp32, fp16     the numbers
int8           a scale and an offset per sample, 8 bits per class
top-k          the k largest, fp16, with their classes
soft           soft labels, quantized, as differences to what was sent for the same samples before,
               entropy-coded; at most 2 bytes per sample
               (in batches of 8 or more, and up to 32,768 classes)

`soft` sends the softmax of the logits at temperature `SOFT_T`, in steps of 1 / levels; both ends
remember the last soft labels of each sample. It uses the finest of `LEVELS` whose coded form takes
at most 2 bytes per sample, so the limit holds for any logits. Decoded logits are the logarithms of
the soft labels times `SOFT_T`, which have the same softmax at every temperature up to the
quantization.
"""

from __future__ import annotations

import lzma
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecompress.errors import EdgecompressError, UnknownChoiceError
from edgecompress.online.exchanges import EXCHANGES as EXCHANGES
from edgecompress.online.exchanges import TRAINING as TRAINING

Array = NDArray[Any]
CodecState = Mapping[str, Array]
"""What a codec remembers of the samples that it has sent or received: `known` (samples, classes)
and `levels_known` (samples,), int16; both empty but for `soft`.
"""

CODECS = ("fp32", "fp16", "int8", "top-k", "soft")
SOFT_T = 4.0
LEVELS = (255, 127, 63, 31, 15, 7, 3, 1)
SOFT_BYTES = 2
"""Most bytes per sample that `soft` writes."""
FLOOR = 0.25
"""The value, in steps, that a soft label of 0 steps is decoded to."""


class Codec:
    """One direction of one connection: `encode` at one end, `decode` at the other, in the same
    order of messages.
    """

    def __init__(self, name: str, samples: int, classes: int, k: int = 4) -> None:
        if name not in CODECS:
            raise UnknownChoiceError("--codec", name, CODECS)
        self.name = name
        self.samples = samples
        self.classes = classes
        self.k = min(k, classes)

        remembered = samples if name == "soft" else 0
        self.known: Array = np.zeros((remembered, classes if remembered else 0), dtype=np.int16)
        self.levels_known: Array = np.zeros(remembered, dtype=np.int16)

    def state(self) -> CodecState:
        """A copy of what the codec remembers, for `restore`."""
        return {"known": self.known.copy(), "levels_known": self.levels_known.copy()}

    def restore(self, state: CodecState) -> None:
        """Return to an earlier `state`."""
        self.known = state["known"].copy()
        self.levels_known = state["levels_known"].copy()

    def encode(self, logits: Array, ids: Array) -> bytes:
        """Bytes of `logits` (B, K) float32 of the samples `ids` (B,)."""
        if self.name == "fp32":
            return bytes(logits.astype("<f4").tobytes())
        if self.name == "fp16":
            return bytes(logits.astype("<f2").tobytes())
        if self.name == "int8":
            return _encode_int8(logits)
        if self.name == "top-k":
            return self._encode_top_k(logits)
        return self._encode_soft(logits, ids)

    def decode(self, data: bytes, ids: Array) -> Array:
        """The logits (B, K) float32 that `data` encodes for the samples `ids` (B,).

        Raises `EdgecompressError` for bytes that encode no such logits.
        """
        try:
            return self._decode(data, ids)
        except (ValueError, IndexError, struct.error, lzma.LZMAError, zlib.error) as error:
            raise EdgecompressError(
                f"{len(data)} bytes are no {self.name} logits of {len(ids)} samples: the ends "
                "disagree"
            ) from error

    def _decode(self, data: bytes, ids: Array) -> Array:
        if self.name in ("fp32", "fp16"):
            kind = "<f4" if self.name == "fp32" else "<f2"
            return np.frombuffer(data, kind).reshape(len(ids), self.classes).astype(np.float32)
        if self.name == "int8":
            return _decode_int8(data, len(ids), self.classes)
        if self.name == "top-k":
            return self._decode_top_k(data, len(ids))
        return self._decode_soft(data, ids)

    def _encode_top_k(self, logits: Array) -> bytes:
        """The k largest, and the mean of all others."""
        places = np.argsort(-logits, axis=1, kind="stable")[:, : self.k]
        largest = np.take_along_axis(logits, places, 1)
        rest = logits.sum(1) - largest.sum(1)
        mean = rest / max(1, self.classes - self.k)
        values = np.concatenate([largest, mean[:, None]], 1)
        return b"".join((places.astype("<u2").tobytes(), values.astype("<f2").tobytes()))

    def _decode_top_k(self, data: bytes, count: int) -> Array:
        places = np.frombuffer(data, "<u2", count * self.k).reshape(count, self.k)
        values = np.frombuffer(data, "<f2", count * (self.k + 1), 2 * count * self.k)
        values = values.reshape(count, self.k + 1).astype(np.float32)

        logits = np.repeat(values[:, -1:], self.classes, 1)
        np.put_along_axis(logits, places.astype(np.int64), values[:, :-1], 1)
        return logits

    def _encode_soft(self, logits: Array, ids: Array) -> bytes:
        scaled = logits.astype(np.float64) / SOFT_T
        shares = np.exp(scaled - scaled.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)

        for levels in LEVELS:
            steps = np.rint(shares * levels).astype(np.int16)
            differences = steps - self._last_steps(ids, levels)
            data = struct.pack("<B", LEVELS.index(levels)) + _packed(differences)
            if len(data) <= SOFT_BYTES * len(ids):
                break
        else:
            # Even one bit per class is too much (very few samples, or very many classes): send the
            # most probable class alone.
            best = logits.argmax(1)
            steps = np.eye(self.classes, dtype=np.int16)[best]
            bits = (best[:, None] >> np.arange(self._class_bits())) & 1
            data = struct.pack("<B", len(LEVELS)) + np.packbits(bits.astype(np.uint8)).tobytes()
            levels = 1

        self._remember(ids, steps, levels)
        return data

    def _decode_soft(self, data: bytes, ids: Array) -> Array:
        kind = data[0]
        if kind == len(LEVELS):
            levels = 1
            steps = self._decode_best_class(data, len(ids))
        else:
            levels = LEVELS[kind]
            differences = _unpacked(data[1:], len(ids) * self.classes)
            steps = self._last_steps(ids, levels) + differences.reshape(len(ids), self.classes)

        self._remember(ids, steps, levels)
        shares = np.maximum(steps, FLOOR) / levels
        return np.asarray(SOFT_T * np.log(shares / shares.sum(1, keepdims=True)), dtype=np.float32)

    def _decode_best_class(self, data: bytes, count: int) -> Array:
        """The most probable class of each sample as soft labels (count, K) in steps of 1."""
        coded = np.frombuffer(data, np.uint8, -1, 1)
        bits = np.unpackbits(coded, count=count * self._class_bits()).reshape(count, -1)
        best = (bits.astype(np.int64) << np.arange(self._class_bits())).sum(1)
        return np.asarray(np.eye(self.classes, dtype=np.int16)[best])

    def _remember(self, ids: Array, steps: Array, levels: int) -> None:
        self.known[ids] = steps
        self.levels_known[ids] = levels

    def _class_bits(self) -> int:
        """Bits of the index of a class."""
        return max(1, (self.classes - 1).bit_length())

    def _last_steps(self, ids: Array, levels: int) -> Array:
        """The last soft labels of `ids`, in steps of 1 / levels; zero for samples not seen yet."""
        then = np.maximum(self.levels_known[ids], 1)[:, None]
        return np.rint(self.known[ids] * (levels / then)).astype(np.int16)


def _encode_int8(logits: Array) -> bytes:
    low = logits.min(1, keepdims=True)
    high = logits.max(1, keepdims=True)
    scale = np.maximum((high - low) / 255, 1e-8).astype("<f2").astype(np.float32)
    start = low.astype("<f2").astype(np.float32)
    steps = np.clip(np.rint((logits - start) / scale), 0, 255).astype(np.uint8)
    return b"".join((start.astype("<f2").tobytes(), scale.astype("<f2").tobytes(), steps.tobytes()))


def _decode_int8(data: bytes, count: int, classes: int) -> Array:
    start, scale = (
        np.frombuffer(data, "<f2", count, 2 * count * n).astype(np.float32)[:, None] for n in (0, 1)
    )
    steps = np.frombuffer(data, np.uint8, count * classes, 4 * count).reshape(count, classes)
    return np.asarray(start + scale * steps, dtype=np.float32)


def _packed(differences: Array) -> bytes:
    """Small integers, entropy-coded: the shorter of raw deflate and raw LZMA over their bytes
    (zigzag, 8 or 16 bits).
    """
    zigzag = np.where(differences >= 0, 2 * differences, -2 * differences - 1).astype(np.uint16)
    wide = bool(zigzag.size) and int(zigzag.max()) > 255
    raw = zigzag.astype("<u2" if wide else "u1").tobytes()

    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_FILTERED)
    forms = [
        deflate.compress(raw) + deflate.flush(),
        lzma.compress(raw, lzma.FORMAT_RAW, filters=_LZMA),
    ]
    best = min((0, 1), key=lambda n: len(forms[n]))
    return struct.pack("<B", best | 2 * wide) + forms[best]


def _unpacked(data: bytes, count: int) -> Array:
    """The inverse of `_packed`: `count` integers. No more are decompressed, whatever `data`
    holds.
    """
    flags = data[0]
    body = data[1:]
    most = count * (2 if flags & 2 else 1)
    if flags & 1:
        raw = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_LZMA).decompress(body, most)
    else:
        raw = zlib.decompressobj(-15).decompress(body, most)

    zigzag = np.frombuffer(raw, "<u2" if flags & 2 else "u1").astype(np.int32)
    return np.where(zigzag % 2 == 0, zigzag // 2, -(zigzag + 1) // 2).astype(np.int16)


_LZMA = [{"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 0, "lp": 0, "pb": 0, "dict_size": 4096}]
