"""Hard-concrete gates: the distribution, and that closed gates are masks."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgecompress.core import masked, trace
from edgecompress.core.stack import stack
from edgecompress.methods.gates import (
    BETA,
    SOURCE_RATE,
    TRAVEL,
    Gated,
    fitted_rate,
    hard_concrete,
    lambdas,
    most_open,
    open_probability,
    settled,
    statistics,
)
from tests.networks import EXAMPLE, NARROW, narrow, random_keep


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(
        count, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(5)
    )


@given(st.floats(-4, 4))
def test_the_probability_to_be_open_is_the_share_of_draws_above_zero(log_alpha: float) -> None:
    u = torch.linspace(1e-6, 1 - 1e-6, 200_001, dtype=torch.float64)
    drawn = hard_concrete(torch.tensor(log_alpha, dtype=torch.float64), u)
    assert float((drawn > 0).double().mean()) == pytest.approx(
        float(open_probability(torch.tensor(log_alpha).double())), abs=1e-4
    )
    assert 0 <= float(drawn.min()) <= float(drawn.max()) <= 1


def test_the_logarithm_that_the_source_misprints() -> None:
    assert float(open_probability(torch.tensor(0.0))) == pytest.approx(
        1 / (1 + math.exp(BETA * math.log(0.1 / 1.1)))
    )
    assert float(open_probability(torch.tensor(0.0))) == pytest.approx(0.832, abs=1e-3)
    assert float(settled(torch.tensor(0.0))) == pytest.approx(0.5)
    assert float(settled(torch.tensor(-3.0))) == 0.0
    assert float(settled(torch.tensor(3.0))) == 1.0


@pytest.mark.parametrize("name", sorted(NARROW))
def test_deterministic_gates_at_zero_and_one_are_a_mask(name: str) -> None:
    model = narrow(name, 0)
    graph = trace(model, EXAMPLE)
    gated = Gated(model, graph).eval()
    keep = random_keep(graph.groups, 1, 0.6)
    with torch.no_grad():
        for group, mask in keep.items():
            gated.of_group(group.name).copy_(torch.where(mask, 50.0, -50.0))
        x = images()
        torch.testing.assert_close(gated(x), masked(model, keep)(x), atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(gated.folded()(x), gated(x), atol=1e-9, rtol=1e-9)
        torch.testing.assert_close(gated.cut(keep)(x), gated(x), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v2", "lenet5"])
def test_a_draw_per_batch_is_a_draw_per_sample_that_all_samples_share(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = narrow(name, 0)
    gated = Gated(model, trace(model, EXAMPLE))
    u = torch.rand(
        len(gated.log_alpha), dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    monkeypatch.setattr(
        gated, "_draw", lambda shape: hard_concrete(gated.log_alpha, u.expand(shape))
    )
    gated.train()
    gated.model.eval()
    x = images()
    by_batch = gated(x)
    gated.per = "sample"
    torch.testing.assert_close(gated(x), by_batch, atol=1e-9, rtol=1e-9)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_samples_differ_in_their_gates_and_low_noise_draws_less_widely() -> None:
    model = narrow("lenet5", 0)
    graph = trace(model, EXAMPLE)
    same = images(1).expand(64, -1, -1, -1)
    spreads = {}
    for noise in (1.0, 0.3, 0.0):
        torch.manual_seed(0)
        gated = Gated(model, graph, per="sample", noise=noise).train()
        with torch.no_grad():
            gated.log_alpha.fill_(0.0)
            spreads[noise] = float(gated(same).std(0).mean())
    assert spreads[1.0] > spreads[0.3] > spreads[0.0] == pytest.approx(0.0, abs=1e-12)


def test_the_l0_loss_pulls_the_gates_to_the_share() -> None:
    model = narrow("resnet20", 0)
    gated = Gated(model, trace(model, EXAMPLE))
    optimizer = torch.optim.Adam([gated.log_alpha], lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        gated.distance(0.5).backward()
        optimizer.step()
    assert float(gated.distance(0.5).detach()) < 1e-6
    for group in gated.graph.groups:
        assert float(open_probability(gated.of_group(group.name)).mean().detach()) == pytest.approx(
            0.5, abs=5e-3
        )


def test_gates_and_weights_get_gradients_that_finite_differences_confirm() -> None:
    model = narrow("lenet5", 0)
    gated = Gated(model, trace(model, EXAMPLE)).eval()
    with torch.no_grad():
        gated.log_alpha.normal_(0, 0.5)
    x = images(2)
    gated(x).square().sum().backward()
    grad = gated.log_alpha.grad
    assert grad is not None
    for place in (0, 7, len(grad) - 1):
        values = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                gated.log_alpha[place] += step
                values.append(float(gated(x).square().sum()))
                gated.log_alpha[place] -= step
        assert (values[0] - values[1]) / 2e-6 == pytest.approx(
            float(grad[place]), rel=1e-4, abs=1e-7
        )
    assert all(p.grad is not None for p in model.parameters())


def test_the_most_open_channels_of_a_stack_make_a_network_of_the_first_size() -> None:
    parts = [narrow("vgg16_bn", seed) for seed in (0, 1)]
    wide = stack(parts, EXAMPLE)
    gated = Gated(wide, trace(wide, EXAMPLE), seed=3)
    keep = most_open(gated.scores(), 0.5)
    small = gated.cut(keep)
    assert {k: v.shape for k, v in small.state_dict().items()} == {
        k: v.shape for k, v in parts[0].state_dict().items()
    }
    rows = statistics(gated.scores(), keep)
    assert [row.kept for row in rows] == [row.size // 2 for row in rows]
    assert all(0 <= row.agreement <= 1 and 0 <= row.entropy <= 1 for row in rows)
    assert all(row.likely_open == 1.0 for row in rows), "log_alpha begins near 1: open"


def test_the_fitted_schedule_is_the_same_by_progress() -> None:
    for epochs in (2, 12, 300):
        values = lambdas("fitted", epochs, 0.01)
        assert (values[0], values[-1]) == (pytest.approx(0.01), pytest.approx(100.0))
        assert values[len(values) // 2] == pytest.approx(50.0, rel=1.01 * 2 / epochs)
    assert lambdas("fitted", 1, 0.01) == [0.01]


def test_gates_can_travel_as_far_in_a_short_run_as_in_a_long_one() -> None:
    for steps, rate in ((100, 1e-3), (440, 1e-3), (440, 5e-3)):
        assert fitted_rate(steps, rate) * rate * steps == pytest.approx(2 * TRAVEL)
    assert fitted_rate(10**6, 1e-3) == SOURCE_RATE


def test_schedules_of_lambda() -> None:
    source = lambdas("source", 30, 0.01)
    assert source[1] == pytest.approx(0.01 + 0.05 * 0.1)
    for name in ("linear", "cosine"):
        values = lambdas(name, 30, 0.01)
        assert (values[0], values[-1]) == (pytest.approx(0.01), pytest.approx(source[-1]))
        assert values == sorted(values)
    assert set(lambdas("constant", 30, 0.01)) == {source[-1]}
    with pytest.raises(ValueError, match="above 0"):
        lambdas("source", 3, 0.0)


@pytest.mark.parametrize("name", ["vgg16", "resnet20", "mobilenet_v2", "densenet121"])
def test_scaling_inputs_is_scaling_weights(name: str) -> None:
    """The first pass scales weights, later ones weights or inputs, whichever are smaller."""
    model = narrow(name, 0)
    gated = Gated(model, trace(model, EXAMPLE)).train()
    gated.model.eval()
    outputs = []
    for _ in range(2):
        torch.manual_seed(1)
        outputs.append(gated(images(1)))
    assert any(gated._input_is_smaller(layer, 1) for layer in gated.sources)
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-9, rtol=1e-9)
