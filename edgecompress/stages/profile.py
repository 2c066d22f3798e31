"""Stage `profile`: what global magnitude pruning takes from each layer, and how far the accuracy
holds.
"""

from __future__ import annotations

from torch import nn

from edgecompress.methods import sparsify
from edgecompress.pipeline import Context, State
from edgecompress.settings import ProfileStage
from edgecompress.stages.common import count, validation_accuracy, with_row


def profile(context: Context, settings: ProfileStage, state: State) -> State:
    """Write `numbers["profile"]`; the network stays as it is."""
    model = state.need_model()
    done = iter(range(len(settings.levels) + 2))

    def accuracy_of(network: nn.Module) -> float:
        context.reporter.step(next(done), len(settings.levels) + 1, "profile")
        return validation_accuracy(context, network)

    found = sparsify.profile(model, accuracy_of, settings.levels, settings.tolerance)
    model.cpu()
    numbers = {
        "levels": list(found.levels),
        "layers": {name: list(shares) for name, shares in found.layers.items()},
        "accuracy": list(found.accuracy),
        "unpruned": found.unpruned,
        "tolerance": found.tolerance,
        "holds_to": found.holds_to,
    }
    note = (
        f"accuracy holds up to {found.holds_to:.0%} of the weights at zero (within "
        f"{found.tolerance:.1%} of {found.unpruned:.2%})"
    )
    context.reporter.note(note)
    return with_row(
        state.with_numbers(profile=numbers), "profile", found.unpruned, count(model), note=note
    )
