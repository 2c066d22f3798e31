"""Feature losses: what they measure, and that nothing of them remains in the student."""

from __future__ import annotations

import pytest
import torch

from edgecompress.core import shrink, trace
from edgecompress.data import load_data
from edgecompress.errors import UnknownNameError
from edgecompress.methods.features import FeatureLoss, Taps, attention, default_pairs, reduced
from edgecompress.models import ModelSource, build
from edgecompress.train.batches import batches
from edgecompress.train.fit import Hooks, fit, label_loss, make_optimizer
from edgecompress.train.reshape import carry_picked
from edgecompress.train.settings import FitSettings

CPU = torch.device("cpu")
EXAMPLE = torch.zeros(1, 3, 32, 32)


def network(name: str, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build(ModelSource(name, 10, (3, 32, 32)))


def zero(logits: torch.Tensor, batch: object) -> torch.Tensor:
    return logits.sum() * 0


def test_layers_are_paired_from_the_output_back() -> None:
    pairs = default_pairs(network("student3"), network("resnet20"), EXAMPLE, EXAMPLE)
    assert (
        pairs
        == {
            "features.6": "layers.2.conv2",
            "features.11": "layers.5.conv2",
            "features.16": "layers.8.conv2",
        }
        or len(pairs) == 3
    )
    sizes = trace(network("resnet20"), EXAMPLE).output_shapes
    assert [sizes[name][2] for name in pairs.values()] == [32, 16, 8]


def test_the_attention_loss_of_a_copy_is_zero_and_of_another_network_is_not() -> None:
    data, teacher = load_data("digits"), network("resnet20").eval()
    batch = next(batches(data, FitSettings(1, 16), CPU, 0, 1))
    values = {}
    for seed in (0, 1):
        student = network("resnet20", seed).eval()
        pairs = default_pairs(student, teacher, EXAMPLE, EXAMPLE)
        loss = FeatureLoss.of_pairs("attention", pairs, student, teacher, data.preprocess, zero)
        loss.attach(student)
        values[seed] = float(loss(student(batch.images), batch).detach())
        loss.detach()
    assert values[0] == pytest.approx(0, abs=1e-12)
    assert values[1] > 1e-5


def test_attention_has_unit_length() -> None:
    torch.testing.assert_close(attention(torch.randn(5, 4, 3, 3)).norm(dim=1), torch.ones(5))


@pytest.mark.parametrize("kind", ["hint", "attention"])
def test_it_is_learned_and_nothing_of_it_remains(kind: str) -> None:
    data, teacher, student = load_data("digits"), network("resnet20", 1).eval(), network("student1")
    before = {k: tuple(v.shape) for k, v in student.state_dict().items()}
    pairs = default_pairs(student, teacher, EXAMPLE, EXAMPLE)
    loss = FeatureLoss.of_pairs(kind, pairs, student, teacher, data.preprocess, zero)
    result = fit(
        student,
        data,
        loss,
        FitSettings(2, 64, 2e-3),
        seed=0,
        device=CPU,
        hooks=Hooks(companion=loss),
    )
    assert result.history[1].train_loss < 0.9 * result.history[0].train_loss
    assert {k: tuple(v.shape) for k, v in student.state_dict().items()} == before
    for model in (student, teacher):
        assert not any(m._forward_hooks for m in model.modules())
    assert not teacher.training


def test_the_adapter_follows_a_cut_and_keeps_its_moments() -> None:
    data, teacher, student = load_data("digits"), network("resnet20", 1).eval(), network("student1")
    loss = FeatureLoss.of_pairs(
        "hint", {"features.6": "layers.5.conv2"}, student, teacher, data.preprocess, label_loss
    )
    (adapter,) = loss.parameters()
    assert tuple(adapter.shape) == (32, 128, 1, 1)
    optimizer = make_optimizer(student, FitSettings(1), loss.parameters())
    batch = next(batches(data, FitSettings(1, 16), CPU, 0, 1))
    loss.attach(student)
    loss(student(batch.images), batch).backward()
    loss.detach()
    optimizer.step()
    optimizer.state[adapter]["exp_avg"] = adapter.detach().clone()
    graph = trace(student, EXAMPLE)
    group = next(
        g
        for g in graph.groups
        if any(m.layer == "features.6" and m.axis == "out" for m in g.members)
    )
    keep = {group: torch.arange(group.size) % 2 == 0}
    small = shrink(student, keep)
    moved = loss.follow(student, small, keep)
    fresh = make_optimizer(small, FitSettings(1), loss.parameters())
    carry_picked(optimizer, fresh, moved)
    (cut,) = loss.parameters()
    assert tuple(cut.shape) == (32, 64, 1, 1)
    torch.testing.assert_close(fresh.state[cut]["exp_avg"], cut.detach())
    loss.attach(small)
    assert torch.isfinite(loss(small(batch.images), batch))
    loss.detach()


def test_an_unknown_layer_is_named_with_the_nearest_names() -> None:
    with pytest.raises(
        UnknownNameError, match=r"unknown student convolution 'features\.1'.*features\.0"
    ):
        FeatureLoss.of_pairs(
            "hint",
            {"features.1": "conv1"},
            network("student1"),
            network("resnet20"),
            load_data("digits").preprocess,
            label_loss,
        )


def test_a_teachers_maps_are_reduced_to_the_smaller_size() -> None:
    maps = torch.randn(2, 4, 8, 6)
    hint = reduced("hint", maps, (4, 12))
    assert hint.shape == (2, 4, 4, 6)
    torch.testing.assert_close(hint, (maps[:, :, ::2] + maps[:, :, 1::2]) / 2)
    map_ = reduced("attention", maps, (4, 12))
    assert map_.shape == (2, 1, 4, 6)
    torch.testing.assert_close(map_.flatten(1), attention(hint))


def test_taps_record_the_last_output_while_attached() -> None:
    model, taps = network("student1"), Taps(["features.0"], "student")
    taps.attach(model)
    with pytest.raises(ValueError, match=r"student layer features\.0 has not run"):
        taps.outputs()
    x = torch.randn(1, 3, 32, 32)
    model(x)
    torch.testing.assert_close(taps.outputs()[0], model.get_submodule("features.0")(x))
    taps.detach()
    assert not any(module._forward_hooks for module in model.modules())
