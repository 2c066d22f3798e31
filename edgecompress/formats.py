"""The number formats of a file that ships, and what its numbers take in bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

EDGE_BITS = 8
"""Bits of the first and the last layer's weights in a format of fewer bits: they are few, and what
they lose no other layer makes good.
"""


@dataclass(frozen=True)
class Format:
    """A number format: its `name` in results, the `choice` of `--quantize` that stands for it, the
    `bits` of a weight, and the bytes of a bias and of the scale of an output channel (which are
    narrow where weights have few bits, `export.narrow`).
    """

    name: str
    choice: str
    bits: int
    bias: float
    scale: float = 0.0

    @property
    def is_integer(self) -> bool:
        """Is it computed in int8?"""
        return self.bits <= 8

    @property
    def is_low(self) -> bool:
        """Has it weights of less than 8 bits, which a network must be trained for?"""
        return self.bits < 8


FORMATS = {
    form.name: form
    for form in (
        Format("fp32", "none", 32, 4.0),
        Format("fp16", "fp16", 16, 2.0),
        Format("int8-qdq", "int8", 8, 4.0, 4.0),
        Format("int4", "int4", 4, 2.0, 2.0),
        Format("int2", "int2", 2, 2.0, 2.0),
        Format("mixed", "mixed", 4, 2.0, 2.0),
    )
}
"""By name, the widest first."""
BY_CHOICE = {form.choice: form for form in FORMATS.values()}
"""By the choice of `--quantize`."""
ORDINARY = ("fp32", "fp16", "int8-qdq")
"""Formats that a network needs no training for."""
LOW = ("int4", "int2")
"""Formats that a network must be trained for, of the same bits in all layers but the edges."""
BIAS_SCALE = 4.0
"""Bytes of the scale of a bias that an integer file has where its layer is no convolution."""


def named(choice: str, default: str = "int8-qdq") -> str:
    """The name of the format that a choice of `--quantize` stands for; `default` for auto."""
    return BY_CHOICE[choice].name if choice in BY_CHOICE else default


def bits_by_layer(form: str, layers: Sequence[str]) -> dict[str, int]:
    """The bits of the weights of each of `layers`, which are in the order of the network; of mixed
    bits, before they are assigned, those of int4.
    """
    bits = FORMATS[form].bits
    edges = {0, len(layers) - 1} if FORMATS[form].is_low else set[int]()
    return {name: EDGE_BITS if n in edges else bits for n, name in enumerate(layers)}
