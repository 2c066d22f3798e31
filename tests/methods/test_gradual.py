"""Shares, schedules and cuts: the formulas of the design, and plans that list what they leave
alone.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgecompress.core.select import Widths
from edgecompress.errors import UnknownNameError, UsageError
from edgecompress.methods.gradual import (
    DynamicShares,
    cuts_needed,
    groups_of,
    layer_shares,
    plan_cuts,
    solve_shares,
    spread,
    static_shares,
    strength_for,
)
from tests.networks import graph_of, narrow


@pytest.mark.parametrize(
    ("kept", "cuts"), [(0.98, 1), (0.96, 2), (0.94, 3), (0.92, 4), (0.90, 5), (1.0, 0)]
)
def test_the_number_of_cuts_is_that_of_the_source(kept: float, cuts: int) -> None:
    """García González 2022, Table 3.3, steps of 2 % (its last row, 20 cuts for 68 %, leaves 66.7 %;
    19 leave 68.1 %).
    """
    assert cuts_needed(kept, 0.02) == cuts
    assert abs((1 - 0.02) ** cuts_needed(0.68, 0.02) - 0.68) <= abs(0.98**20 - 0.68)


@given(kept=st.floats(0.01, 0.999), step=st.floats(0.01, 0.9))
def test_cuts_of_a_share_leave_about_the_requested_share(kept: float, step: float) -> None:
    left = (1 - step) ** cuts_needed(kept, step)
    assert (
        left * (1 - step) ** 0.5 <= kept <= left / (1 - step) ** 0.5 or cuts_needed(kept, step) == 1
    )


@given(
    count=st.integers(1, 40),
    epochs=st.integers(1, 300),
    schedule=st.sampled_from(["early", "middle", "late"]),
)
def test_epochs_lie_in_their_part_of_the_training(count: int, epochs: int, schedule: str) -> None:
    when = spread(count, schedule, epochs)
    assert len(when) == count and when == sorted(when)
    assert all(1 <= epoch <= max(1, epochs - 1) for epoch in when)
    if epochs >= 3:
        assert when[0] > epochs * {"early": 0, "middle": 1 / 3, "late": 2 / 3}[schedule] - 1


@given(
    strength=st.floats(0.0, 0.99),
    epochs=st.integers(2, 30),
    step=st.floats(0.02, 0.5),
    floor=st.floats(0.0, 0.5),
)
def test_plans_end_at_the_share_and_never_below_the_floor(
    strength: float, epochs: int, step: float, floor: float
) -> None:
    groups = graph_of("vgg16").groups
    plan = plan_cuts(
        groups, static_shares(groups, strength), "early", epochs, step=step, floor=floor
    )
    final: dict[str, int] = {}
    for cut in plan.cuts:
        assert all(width <= final.get(name, 10**9) for name, width in cut.widths.items()), (
            "a group grew again"
        )
        final |= cut.widths
    for group in groups:
        lowest = min(group.size, max(1, round(group.size * floor)))
        requested = round(group.size * (1 - strength))
        assert final.get(group.name, group.size) == min(group.size, max(lowest, requested))
        if group.name not in final and 1 - strength < 1:
            assert group.name in plan.left_alone


def test_a_layer_too_narrow_is_left_alone_and_listed() -> None:
    graph = graph_of("student3")
    plan = plan_cuts(
        graph.groups,
        layer_shares(graph, {"features.0": 0.06, "features.14": 0.06}),
        "early",
        10,
        step=0.02,
        floor=0.02,
    )
    assert list(plan.left_alone) == ["features.0"]
    assert "of 8 channels is less than one" in plan.left_alone["features.0"]
    assert plan.cuts[-1].widths == {"features.14": 120}


def test_explicit_epochs_and_bad_input() -> None:
    graph = graph_of("vgg16")
    plan = plan_cuts(
        graph.groups, static_shares(graph.groups, 0.5), [2, 5], 6, step=0.1, floor=0.02
    )
    assert [cut.epoch for cut in plan.cuts] == [2, 5]
    with pytest.raises(UsageError, match=r"epoch 7: allowed are 1\.\.6"):
        plan_cuts(graph.groups, {}, [7], 6, step=0.1, floor=0.02)
    with pytest.raises(UsageError, match="allowed are early, middle, late"):
        spread(1, "soon", 5)
    with pytest.raises(UsageError, match="step 1 is outside"):
        cuts_needed(0.5, 1.0)
    with pytest.raises(UnknownNameError, match=r"did you mean features\."):
        groups_of(graph, "features.00")
    with pytest.raises(UsageError, match="is frozen"):
        groups_of(graph, "classifier.5")


@given(seed=st.integers(0, 200))
def test_solving_recovers_shares_on_a_chain(seed: int) -> None:
    """VGG16 is a chain: from the products of random shares the shares come back, the fixed input
    and output included.
    """
    graph, model = graph_of("vgg16"), narrow("vgg16", 0)
    widths = Widths(model, graph)
    generator = torch.Generator().manual_seed(seed)
    shares = torch.rand(len(graph.groups), generator=generator, dtype=torch.float64) * 0.7 + 0.2
    sizes = torch.tensor([g.size for g in graph.groups], dtype=torch.float64)
    inputs, outputs = widths.at(shares * sizes)
    kept = (inputs / widths.full["in"]) * (outputs / widths.full["out"])
    solved = solve_shares(graph, widths, torch.arange(len(widths.layers)), kept)
    torch.testing.assert_close(
        torch.tensor(list(solved.values()), dtype=torch.float64), shares, atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("name", ["vgg16", "resnet18", "densenet121", "student3"])
def test_dynamic_shares_follow_the_profile(name: str) -> None:
    model, graph = narrow(name, 0), graph_of(name)
    shares_at = DynamicShares(model, graph)
    weak, strong = shares_at(0.1), shares_at(0.8)
    assert all(0 < strong[g] <= 1 and weak[g] >= strong[g] - 0.05 for g in weak)
    assert len({round(share, 3) for share in strong.values()}) > 1, (
        "dynamic shares differ from layer to layer"
    )


def test_strength_meets_the_limit_and_is_the_least() -> None:
    groups = graph_of("vgg16").groups

    def at(s: float) -> dict[str, float]:
        return static_shares(groups, s)

    strength = strength_for(at, lambda shares: next(iter(shares.values())), 0.3)
    assert strength == pytest.approx(0.7, abs=1e-5)
    assert 1 - strength <= 0.3
