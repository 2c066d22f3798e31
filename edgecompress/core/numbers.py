"""Numbers in the code of a network that can follow a cut: integer attributes of its modules.

`self.num_heads` in a reshape, `self.width // 2` in a split: such a size is known to come from an
attribute, and the attribute of the smaller network is set to what is left. While a network is
traced its attributes are `Number`s, which remember where they come from.

A number is an axis of its module, `"number:num_heads"`, whose positions are channels like those of
any other axis.
"""

from __future__ import annotations

from fractions import Fraction

from torch import Tensor, nn

from edgecompress.core.ledger import Ledger

_PREFIX = "number:"
_LONGEST = 8
"""Elements of a tuple or list of numbers that are looked at."""


class Number(int):
    """An integer attribute of a module, or a multiple or a whole fraction of one."""

    module: str
    attribute: str
    factor: Fraction
    """The value is the attribute's times this."""
    other: Number | None = None
    """Of a product of two attributes: the same value, as a multiple of the second."""

    def __new__(
        cls, value: int, module: str = "", attribute: str = "", factor: Fraction | int = 1
    ) -> Number:
        """A number of `value`: the attribute of the module called `module`, times `factor`."""
        made = super().__new__(cls, value)
        made.module = module
        made.attribute = attribute
        made.factor = Fraction(factor)
        return made

    def __mul__(self, other: int) -> int:
        value = super().__mul__(other)
        if isinstance(other, Number):
            made = self._made(value, int(other))
            made.other = other._made(value, int(self))
            return made
        return self._made(value, other) if type(other) is int and other > 0 else value

    __rmul__ = __mul__

    def __floordiv__(self, other: int) -> int:
        value = super().__floordiv__(other)
        exact = type(other) is int and other > 0 and value * other == int(self)
        return self._made(value, Fraction(1, other)) if exact else value

    def __deepcopy__(self, memo: object) -> Number:
        return self

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int(self),)

    def _made(self, value: int, factor: Fraction | int) -> Number:
        return Number(value, self.module, self.attribute, self.factor * factor)


def number_attributes_(module: nn.Module, name: str) -> None:
    """Make every integer above 1 among the attributes of `module`, which is called `name`, a
    `Number`; also in short tuples and lists.
    """
    for attribute, value in vars(module).items():
        if attribute.startswith("_"):
            continue
        if type(value) is int and value > 1:
            vars(module)[attribute] = Number(value, name, attribute)
        elif type(value) in (tuple, list) and len(value) <= _LONGEST:
            vars(module)[attribute] = type(value)(
                Number(part, name, f"{attribute}[{place}]")
                if type(part) is int and part > 1
                else part
                for place, part in enumerate(value)
            )


def follows(ledger: Ledger, number: Number, labels: Tensor) -> bool:
    """Enter that `number` is the count of the channels `labels` (number,), so that it follows their
    cut; False where its attribute has no whole share of each.
    """
    for one in (number, number.other):
        if one is not None and one.factor.denominator == 1:
            runs = labels.reshape(-1, one.factor.numerator)
            if bool((runs == runs[:, :1]).all()):  # each unit has neighbours, as heads have
                ledger.record(one.module, f"{_PREFIX}{one.attribute}", runs[:, 0])
                return True
    factor = number.factor
    if factor.denominator == 1:
        parts = labels.reshape(factor.numerator, -1)  # so many parts, each as wide as the attribute
        ledger.couple(parts, parts[:1])
        positions = parts[0]
    elif factor.numerator == 1:
        positions = labels.repeat(factor.denominator)  # one of so many equal parts
    else:
        return False
    ledger.record(number.module, f"{_PREFIX}{number.attribute}", positions)
    return True


# -- A number as an axis of its module


def is_number(axis: str) -> bool:
    """Is the axis a number of a module, not one of its tensors?"""
    return axis.startswith(_PREFIX)


def attribute_of(axis: str) -> str:
    """The attribute that an axis names: `num_heads`, or `sizes[1]` for the part of a tuple."""
    return axis.removeprefix(_PREFIX)


def read(module: nn.Module, attribute: str) -> int:
    """The value of a number of `module`."""
    name, _, place = attribute.partition("[")
    value = getattr(module, name)
    return int(value[int(place.rstrip("]"))] if place else value)


def write(module: nn.Module, attribute: str, value: int) -> None:
    """Set a number of `module`."""
    name, _, place = attribute.partition("[")
    if not place:
        setattr(module, name, value)
        return
    parts = list(getattr(module, name))
    parts[int(place.rstrip("]"))] = value
    setattr(module, name, type(getattr(module, name))(parts))
