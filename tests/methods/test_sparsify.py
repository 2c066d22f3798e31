"""Unstructured pruning: exactly the requested share, the same weights as the reference for every
chunk size, and no other weights.
"""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from edgecompress.errors import EdgecompressError, UnknownNameError, UsageError
from edgecompress.methods import sparsify
from edgecompress.methods.sparsify import mixing_weights, profile, zero_shares, zero_smallest_
from tests.networks import narrow

NETWORKS = ["vgg16", "resnet20", "densenet121", "student3"]
SHARES = st.floats(0, 1)


def magnitudes(model: nn.Module) -> torch.Tensor:
    return torch.cat([w.reshape(-1).abs() for w in mixing_weights(model).values()])


@pytest.mark.parametrize("name", NETWORKS)
@given(share=SHARES, seed=st.integers(0, 1000))
def test_global_equals_the_reference(name: str, share: float, seed: int) -> None:
    model = narrow(name, seed)
    reference = copy.deepcopy(model)
    targets = [(reference.get_submodule(layer), "weight") for layer in mixing_weights(reference)]
    prune.global_unstructured(targets, prune.L1Unstructured, amount=share)
    zeroed = zero_smallest_(model, share)
    for layer, weight in mixing_weights(model).items():
        assert torch.equal(weight, reference.get_submodule(layer).weight), layer
    assert zeroed.total == pytest.approx(
        round(share * magnitudes(model).numel()) / magnitudes(model).numel()
    )


@given(
    share=SHARES,
    seed=st.integers(0, 1000),
    values=st.integers(1, 4),
    chunk=st.integers(1, 50),
    sample=st.integers(1, 30),
)
def test_the_share_is_exact_with_ties_and_any_chunks(
    share: float, seed: int, values: int, chunk: int, sample: int
) -> None:
    """Weights of a few values only: ties are zeroed in order, for all chunk and sample sizes."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Linear(7, 5), nn.Linear(5, 2))
    for weight in mixing_weights(model).values():
        weight.copy_(
            torch.randint(1, values + 1, weight.shape)
            * torch.sign(torch.randn(weight.shape) + 1e-9)
        )
    flat = magnitudes(model)
    rank = round(share * flat.numel())
    expected = flat.argsort(stable=True)[:rank]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparsify, "CHUNK", chunk)
        patch.setattr(sparsify, "SAMPLE", sample)
        zero_smallest_(model, share)
    after = magnitudes(model)
    assert int((after == 0).sum()) == rank
    assert bool((after[expected] == 0).all())


@given(share=SHARES, seed=st.integers(0, 1000))
def test_local_zeroes_the_same_share_of_each_layer(share: float, seed: int) -> None:
    model = narrow("vgg16", seed)
    zeroed = zero_smallest_(model, share, scope="local")
    assert zeroed.zeros == {name: round(share * size) for name, size in zeroed.size.items()}


def test_only_weights_of_the_named_layers_change() -> None:
    model = narrow("vgg16_bn", 0)
    before = copy.deepcopy(model.state_dict())
    zero_smallest_(model, 0.5, layer_names=["features.3", "classifier.0"])
    changed = {
        key for key, value in model.state_dict().items() if not torch.equal(value, before[key])
    }
    assert changed == {"features.3.weight", "classifier.0.weight"}


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_and_memory_formats(kind: torch.dtype) -> None:
    model = narrow("vgg16", 3).to(kind).to(memory_format=torch.channels_last)
    zeroed = zero_smallest_(model, 0.37)
    assert sum(zeroed.zeros.values()) == round(0.37 * sum(zeroed.size.values()))
    kept = magnitudes(model)
    assert zeroed.threshold is not None
    assert float(kept[kept > 0].min()) >= zeroed.threshold


def test_the_bracket_of_a_misleading_sample_is_widened() -> None:
    """A stride that only ever meets large weights: the bracket is wrong at first, the result is
    not.
    """
    model = nn.Sequential(nn.Linear(1000, 1, bias=False))
    weight = mixing_weights(model)["0"]
    weight.copy_(torch.linspace(0.1, 0.2, 1000))
    weight[0, 5::10] = torch.linspace(100, 200, 100)
    expected = weight.reshape(-1).clone()
    expected[expected.abs().argsort(stable=True)[:500]] = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparsify, "SAMPLE", 100)
        zero_smallest_(model, 0.5)
    assert torch.equal(weight.reshape(-1), expected)


def test_bad_input_is_refused_and_changes_nothing() -> None:
    model = narrow("vgg16", 0)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UsageError, match=r"share 1\.5 is outside 0\.\.1"):
        zero_smallest_(model, 1.5)
    with pytest.raises(UnknownNameError, match=r"did you mean .*features\.0"):
        zero_smallest_(model, 0.5, layer_names=["feature.0"])
    with pytest.raises(UsageError, match="allowed are global, local"):
        zero_smallest_(model, 0.5, scope="all")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with torch.no_grad():
        model.features[0].weight.fill_(torch.nan)
    with pytest.raises(EdgecompressError, match="not a number"):
        zero_smallest_(model, 0.99)


def test_a_shared_weight_counts_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert sum(zero_smallest_(model, 0.5).size.values()) == 16


def test_the_profile_is_that_of_pruning_the_original_at_each_level() -> None:
    model = narrow("student3", 1)
    before = copy.deepcopy(model.state_dict())
    seen = []
    result = profile(
        model,
        lambda m: (
            float(seen.append(mixing_weights(m)["features.0"].count_nonzero()) or len(seen)) / -10
        ),
        (0.5, 0.1),
    )
    assert result.levels == (0.1, 0.5)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    for place, level in enumerate(result.levels):
        zeroed = zero_smallest_(copy.deepcopy(model), level)
        assert {name: shares[place] for name, shares in result.layers.items()} == {
            name: zeroed.share(name) for name in zeroed.size
        }
        assert zero_shares(model, level) == {name: zeroed.share(name) for name in zeroed.size}


@pytest.mark.parametrize(
    ("accuracy", "holds"),
    [((0.9, 0.895, 0.5), 0.2), ((0.5, 0.9, 0.9), 0.0), ((0.9, 0.9, 0.9), 0.3)],
)
def test_holding_ends_at_the_first_level_that_falls(
    accuracy: tuple[float, ...], holds: float
) -> None:
    assert sparsify.Profile((0.1, 0.2, 0.3), {}, accuracy, 0.9, 0.01).holds_to == holds
