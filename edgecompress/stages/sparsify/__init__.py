"""Stage `sparsify`: set the smallest weights to zero, in steps, training after each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from edgecompress.run.stage import Setup, StageResult
from edgecompress.run.values import Amount
from edgecompress.stages.fields import Distilled, Names
from edgecompress.units import parse_amount

if TYPE_CHECKING:
    from torch import nn

    from edgecompress.run.context import Context
    from edgecompress.run.state import State


class SparsifyStage(Distilled):
    """Set the smallest weights to zero and train the others, which keeps the zeros where they are;
    no layer becomes narrower. Each step leaves the same share of the weights.

    An int8 file stores many zeros as a bitmap, and computes as fast as before.
    """

    stage: Literal["sparsify"] = "sparsify"
    amount: Amount
    """Share of the weights of convolutions and linear layers that become zero: 80%."""
    scope: Literal["local", "global"] = "local"
    """What competes: the weights of each layer by themselves, or all, where a layer of small
    weights may lose them all.
    """
    layers: Names | None = None
    """Only the weights of these layers: features.0,features.3."""
    steps: Annotated[int, Field(ge=1)] = 3
    """Steps, with training after each."""

    @property
    def share(self) -> float:
        """The share of the weights that become zero, 0..1."""
        return parse_amount(self.amount)[1]

    @model_validator(mode="after")
    def _share(self) -> SparsifyStage:
        kind, value = parse_amount(self.amount)
        if kind != "share" or not 0 < value < 1:
            raise ValueError(
                f"amount {self.amount}: zeroing removes no channel, so it takes a share of the "
                "weights between 0 and 1: 80%"
            )
        return self

    def check_network(self, setup: Setup, blank: nn.Module) -> None:
        """The layers must exist."""
        from edgecompress.methods.sparsify import mixing_weights

        mixing_weights(blank, self.layers)

    def run(self, context: Context, state: State) -> StageResult:
        """The network with its zeros, trained again."""
        from edgecompress.stages.sparsify.work import sparsify

        return StageResult(sparsify(context, self, state))
