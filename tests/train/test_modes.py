"""Modes of a network that last as long as their context."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgecompress.data import load_data
from edgecompress.models import ModelSource, build
from edgecompress.train.batches import Batch
from edgecompress.train.fit import fit, label_loss
from edgecompress.train.modes import (
    autocast_for,
    compact,
    dropout_of,
    evaluating,
    hooked,
    outputs_of,
    set_layout_,
)
from edgecompress.train.settings import FitSettings

CPU = torch.device("cpu")


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build(ModelSource(name, 10, (3, 32, 32)))


def test_dropout_is_set_for_the_training_and_restored() -> None:
    data, model, seen = load_data("digits"), network("student1"), []
    dropout = next(m for m in model.modules() if isinstance(m, nn.Dropout))

    def loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        seen.append(dropout.p)
        return label_loss(logits, batch)

    settings = FitSettings(epochs=1, batch_size=600, dropout=0.0)
    fit(model, data, loss, settings, seed=0, device=CPU)
    assert set(seen) == {0.0}
    assert dropout.p == 0.55


def test_no_dropout_setting_leaves_each_layer_its_own() -> None:
    model = nn.Sequential(nn.Dropout(0.2), nn.Dropout2d(0.3))
    with dropout_of(model, None):
        assert [layer.p for layer in model] == [0.2, 0.3]
    with pytest.raises(RuntimeError), dropout_of(model, 0.5):
        assert [layer.p for layer in model] == [0.5, 0.5]
        raise RuntimeError
    assert [layer.p for layer in model] == [0.2, 0.3]


def test_convolutions_train_in_channels_last_and_end_contiguous() -> None:
    data, model, seen = load_data("digits"), network("resnet20"), []

    def loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        in_channels_last = [
            t.is_contiguous(memory_format=torch.channels_last)
            for t in (batch.images, model.get_submodule("conv1").weight)
        ]
        seen.append(all(in_channels_last))
        return label_loss(logits, batch)

    fit(model, data, loss, FitSettings(epochs=1, batch_size=256), seed=0, device=CPU)
    assert all(seen)
    assert all(p.is_contiguous() for p in model.parameters())


def test_a_layout_changes_no_value_and_compact_only_images() -> None:
    layer = nn.Conv2d(3, 8, 3)
    before = layer.weight.detach().clone()
    set_layout_(layer, torch.channels_last)
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(layer.weight, before)
    images, vectors = torch.randn(2, 3, 4, 4), torch.randn(2, 3)
    assert compact(images).is_contiguous(memory_format=torch.channels_last)
    assert compact(vectors) is vectors


def test_eval_mode_ends_with_its_context_even_after_an_error() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2)).train()
    with pytest.raises(RuntimeError), evaluating(model) as same:
        assert same is model
        assert not model[0].training
        raise RuntimeError
    assert model[0].training
    with evaluating(model.eval()):
        pass
    assert not model.training


def test_hooks_are_removed_with_their_context_even_after_an_error() -> None:
    layer = nn.Linear(2, 2)
    seen = []
    handles = (layer.register_forward_hook(lambda *_: seen.append(1)) for _ in range(2))
    with pytest.raises(RuntimeError), hooked(handles):
        layer(torch.zeros(1, 2))
        raise RuntimeError
    layer(torch.zeros(1, 2))
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("auto", torch.float32), ("bf16", torch.bfloat16)],
)
def test_precision_on_a_cpu(precision: str, dtype: torch.dtype) -> None:
    with autocast_for(precision, CPU)():
        assert nn.Linear(2, 2)(torch.zeros(1, 2)).dtype == dtype


class Viewing(torch.nn.Module):
    """Flattens by `view`, as many tutorials do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.head = torch.nn.Linear(4 * 16 * 16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.max_pool2d(torch.relu(self.conv(x)), 2)
        return self.head(x.view(x.size(0), -1))


def test_a_network_that_says_view_computes_the_same_in_channels_last() -> None:
    torch.manual_seed(0)
    model, images = Viewing().eval(), torch.randn(5, 3, 32, 32)
    expected = model(images)
    set_layout_(model, torch.channels_last)
    with pytest.raises(RuntimeError, match="view"):
        model(images.contiguous(memory_format=torch.channels_last))
    for _ in range(2):
        torch.testing.assert_close(outputs_of(model, images), expected)


class WritingThroughAView(Viewing):
    """Zeroes some features in place, through a view of them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.max_pool2d(torch.relu(self.conv(x)), 2)
        x.view(x.size(0), -1)[:, :500] = 0
        return self.head(x.flatten(1))


def test_what_is_written_through_a_view_is_not_lost() -> None:
    torch.manual_seed(0)
    model, images = WritingThroughAView().eval(), torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(outputs_of(model, images), expected)


def test_other_errors_of_a_network_are_its_own() -> None:
    with pytest.raises(RuntimeError, match=r"expected input.*channels"):
        outputs_of(Viewing(), torch.randn(2, 5, 32, 32))


def test_it_trains() -> None:
    data = load_data("digits")
    torch.manual_seed(0)
    settings = FitSettings(epochs=2, batch_size=64, learning_rate=3e-3)
    result = fit(Viewing(), data, label_loss, settings, seed=0, device=torch.device("cpu"))
    assert result.best.validation_accuracy > 0.8
