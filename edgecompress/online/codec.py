"""How logits (B, K) travel: as bytes, smaller and smaller.

fp32, fp16     the numbers
int8           a scale and an offset a sample, 8 bits a class
top-k          the k largest, fp16, with their classes
soft           soft labels, quantized, as differences to what was sent for the same samples before,
               entropy-coded; at most 2 bytes a sample
               (in batches of 8 or more, and up to 32,768 classes)

`soft` sends the logits' softmax at temperature `SOFT_T`, in steps of 1 / levels; both ends remember
what they last said of each sample. The finest of `LEVELS` whose coded form takes at most 2 bytes a
sample is used, so the limit holds whatever the teacher says. Decoded logits are the logarithms of
the soft labels times `SOFT_T`, which have the same softmax at every temperature up to the
quantization.
"""

from __future__ import annotations

import lzma
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgecompress.errors import EdgecompressError, UsageError

Array = NDArray[Any]
CODECS = ("fp32", "fp16", "int8", "top-k", "soft")
EXCHANGES = ("logits", "inputs", "features", "weights")
"""What travels: logits, features too, or weights, where both ends hold the data; or inputs, where
the student alone does.
"""
TRAINING = ("logits", "weights")
"""Exchanges whose teacher may train at the same time."""
SOFT_T = 4.0
LEVELS = (255, 127, 63, 31, 15, 7, 3, 1)
SOFT_BYTES = 2
"""Most bytes a sample that `soft` writes."""
FLOOR = 0.25
"""What a soft label of 0 steps stands for, in steps."""


class Codec:
    """One direction of one connection: `encode` at the one end, `decode` at the other, in the same
    order of messages.
    """

    def __init__(self, name: str, samples: int, classes: int, k: int = 4) -> None:
        if name not in CODECS:
            raise UsageError(f"codec '{name}' is not known: allowed are {', '.join(CODECS)}")
        self.name, self.samples, self.classes, self.k = name, samples, classes, min(k, classes)
        self.known: Array = (
            np.zeros((samples, classes), dtype=np.int16)
            if name == "soft"
            else np.zeros((0, 0), dtype=np.int16)
        )
        self.levels_known: Array = np.zeros(samples if name == "soft" else 0, dtype=np.int16)

    def state(self) -> dict[str, Array]:
        """What `restore` takes back: a copy."""
        return {"known": self.known.copy(), "levels_known": self.levels_known.copy()}

    def restore(self, state: dict[str, Array]) -> None:
        """Go back to an earlier `state`."""
        self.known, self.levels_known = state["known"].copy(), state["levels_known"].copy()

    def encode(self, logits: Array, ids: Array) -> bytes:
        """Bytes of `logits` (B, K) float32 of the samples `ids` (B,)."""
        if self.name == "fp32":
            return bytes(logits.astype("<f4").tobytes())
        if self.name == "fp16":
            return bytes(logits.astype("<f2").tobytes())
        if self.name == "int8":
            low, high = logits.min(1, keepdims=True), logits.max(1, keepdims=True)
            scale = np.maximum((high - low) / 255, 1e-8).astype("<f2").astype(np.float32)
            start = low.astype("<f2").astype(np.float32)
            steps = np.clip(np.rint((logits - start) / scale), 0, 255).astype(np.uint8)
            return b"".join(
                (start.astype("<f2").tobytes(), scale.astype("<f2").tobytes(), steps.tobytes())
            )
        if self.name == "top-k":
            places = np.argsort(-logits, axis=1, kind="stable")[:, : self.k]
            rest = logits.sum(1) - np.take_along_axis(logits, places, 1).sum(1)
            mean = rest / max(1, self.classes - self.k)
            values = np.concatenate([np.take_along_axis(logits, places, 1), mean[:, None]], 1)
            return b"".join((places.astype("<u2").tobytes(), values.astype("<f2").tobytes()))
        return self._encode_soft(logits, ids)

    def decode(self, data: bytes, ids: Array) -> Array:
        """The logits (B, K) float32 that `data` stands for. Raises `EdgecompressError` for bytes
        that are no such logits.
        """
        count = len(ids)
        try:
            if self.name in ("fp32", "fp16"):
                kind = "<f4" if self.name == "fp32" else "<f2"
                return np.frombuffer(data, kind).reshape(count, self.classes).astype(np.float32)
            if self.name == "int8":
                start, scale = (
                    np.frombuffer(data, "<f2", count, 2 * count * n).astype(np.float32)[:, None]
                    for n in (0, 1)
                )
                steps = np.frombuffer(data, np.uint8, count * self.classes, 4 * count).reshape(
                    count, self.classes
                )
                return np.asarray(start + scale * steps, dtype=np.float32)
            if self.name == "top-k":
                places = (
                    np.frombuffer(data, "<u2", count * self.k)
                    .reshape(count, self.k)
                    .astype(np.int64)
                )
                values = np.frombuffer(
                    data, "<f2", count * (self.k + 1), 2 * count * self.k
                ).reshape(count, self.k + 1)
                found = np.repeat(values[:, -1:].astype(np.float32), self.classes, 1)
                np.put_along_axis(found, places, values[:, :-1].astype(np.float32), 1)
                return found
            return self._decode_soft(data, ids)
        except (ValueError, IndexError, struct.error, lzma.LZMAError, zlib.error) as error:
            raise EdgecompressError(
                f"{len(data)} bytes are no {self.name} logits of {count} samples: the ends disagree"
            ) from error

    def _encode_soft(self, logits: Array, ids: Array) -> bytes:
        scaled = logits.astype(np.float64) / SOFT_T
        shares = np.exp(scaled - scaled.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        for levels in LEVELS:
            steps = np.rint(shares * levels).astype(np.int16)
            data = struct.pack("<B", LEVELS.index(levels)) + _packed(
                steps - self._before(ids, levels)
            )
            if len(data) <= SOFT_BYTES * len(ids):
                break
        # even one bit a class is too much (very few samples, or very many classes): the likeliest
        # class alone
        else:
            best = logits.argmax(1)
            steps = np.eye(self.classes, dtype=np.int16)[best]
            bits = (best[:, None] >> np.arange(self._width())) & 1
            data = struct.pack("<B", len(LEVELS)) + np.packbits(bits.astype(np.uint8)).tobytes()
            levels = 1
        self.known[ids], self.levels_known[ids] = steps, levels
        return data

    def _decode_soft(self, data: bytes, ids: Array) -> Array:
        kind = data[0]
        if kind == len(LEVELS):
            bits = np.unpackbits(
                np.frombuffer(data, np.uint8, -1, 1), count=len(ids) * self._width()
            ).reshape(len(ids), -1)
            best = (bits.astype(np.int64) << np.arange(self._width())).sum(1)
            steps, levels = np.eye(self.classes, dtype=np.int16)[best], 1
        else:
            levels = LEVELS[kind]
            steps = self._before(ids, levels) + _unpacked(
                data[1:], len(ids) * self.classes
            ).reshape(len(ids), self.classes)
        self.known[ids], self.levels_known[ids] = steps, levels
        shares = np.maximum(steps, FLOOR) / levels
        return np.asarray(SOFT_T * np.log(shares / shares.sum(1, keepdims=True)), dtype=np.float32)

    def _width(self) -> int:
        """Bits of the number of a class."""
        return max(1, (self.classes - 1).bit_length())

    def _before(self, ids: Array, levels: int) -> Array:
        """What was said of `ids` before, in steps of 1 / levels; zero of samples not seen yet."""
        then = np.maximum(self.levels_known[ids], 1)[:, None]
        return np.rint(self.known[ids] * (levels / then)).astype(np.int16)


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
    """`_packed`, back: `count` integers. More than those are not unpacked, whatever `data`
    holds.
    """
    flags, body, most = data[0], data[1:], count * (2 if data[0] & 2 else 1)
    if flags & 1:
        raw = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_LZMA).decompress(body, most)
    else:
        raw = zlib.decompressobj(-15).decompress(body, most)
    zigzag = np.frombuffer(raw, "<u2" if flags & 2 else "u1").astype(np.int32)
    return np.where(zigzag % 2 == 0, zigzag // 2, -(zigzag + 1) // 2).astype(np.int16)


_LZMA = [{"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 0, "lp": 0, "pb": 0, "dict_size": 4096}]
