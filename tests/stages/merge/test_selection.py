"""Whether gates select: the same wide network cut by other choices."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgecompress.core import shrink, trace
from edgecompress.core.stack import stack
from edgecompress.methods.gates import GroupStatistics, most_open
from edgecompress.models import ModelSource, build
from edgecompress.proportions import Paired
from edgecompress.run.sections import MergeStep
from edgecompress.stages.merge.selection import decision, in_order, remarks

EXAMPLE = torch.zeros(1, 3, 32, 32)


@pytest.mark.parametrize("name", ["lenet5", "resnet20", "mlp"])
def test_the_first_channels_are_those_of_the_first_parent(name: str) -> None:
    """The cut answers with the first parent's logits, halved, and the mean of both biases."""
    parents: list[nn.Module] = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        parents.append(build(ModelSource(name, 10, (3, 32, 32))).eval())
    wide = stack(parents, EXAMPLE)
    small = shrink(wide, most_open(in_order(trace(wide, EXAMPLE)), 0.5))
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        first, zero = parents[0](x), parents[0](torch.zeros_like(x))
        cut, cut_zero = small(x), small(torch.zeros_like(x))
    torch.testing.assert_close(cut - cut_zero, (first - zero) / 2, atol=1e-5, rtol=1e-4)


def group(size: int, entropy: float, agreement: float) -> GroupStatistics:
    return GroupStatistics("g", size, size // 2, 0.5, 0.5, entropy, agreement)


@pytest.mark.parametrize(
    ("rows", "decided"),
    [
        ([group(10, 0.01, 1.0)], True),
        ([group(10, 0.3, 1.0)], False),
        ([group(10, 0.01, 0.5)], False),
        ([group(1, 0.9, 0.0), group(999, 0.0, 1.0)], True),
        ([group(999, 0.9, 0.5), group(1, 0.0, 1.0)], False),
    ],
)
def test_gates_have_decided_where_they_are_sure_and_the_cut_follows_them(
    rows: list[GroupStatistics], decided: bool
) -> None:
    step = decision(rows)
    assert step["decided"] == decided
    shown: MergeStep = {**step, "selection": [{"choice": "gates", "accuracy": 0.5}]}
    assert ["did not decide" in line for line in remarks(shown)] == [
        False,
        *([] if decided else [True]),
    ]


def test_each_choice_is_shown_against_the_gates_on_the_same_images() -> None:
    pair = Paired(100, only_first=3, only_second=5).as_dict()
    step: MergeStep = {
        **decision([group(10, 0.01, 1.0)]),
        "selection": [
            {"choice": "gates", "accuracy": 0.9},
            {"choice": "random", "accuracy": 0.8, "draws": [0.75, 0.85]},
            {"choice": "l1", "accuracy": 0.92, "against_gates": pair},
        ],
    }
    low, high = (100 * bound for bound in pair["ci95"])
    (line,) = remarks(step)
    assert line.endswith(
        "gates 90.00%; random 80.00%, mean of 2 (75.00 to 85.00); "
        f"l1 92.00%, +2.00 points ({low:+.2f} to {high:+.2f})"
    )
