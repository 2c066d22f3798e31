from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.utils import parametrizations, prune

from edgecompress.models import ModelSource, build
from edgecompress.models.own import resolve_reparametrizations_, structure
from edgecompress.models.registry import blank, remarks
from tests.cli.test_cli import process

PRETRAINED = """
import pathlib
import torch
from torch import nn


def net(num_classes):
    where = pathlib.Path(__file__).parent
    with open(where / "calls", "a") as calls:
        calls.write("meta " if torch.empty(0).is_meta else "real ")
    layers = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes),
    )
    layers.load_state_dict(torch.load(where / "weights.pt"))
    return layers


class Branch(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 4)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x):
        y = self.conv(x)
        return self.fc((y.relu() if y.mean() > 0 else y.tanh()).mean((2, 3)))


def old_norm(num_classes):
    return nn.Sequential(
        nn.utils.weight_norm(nn.Conv2d(1, 8, 3)), nn.ReLU(), nn.Flatten(),
        nn.Linear(288, num_classes),
    )
"""


def plain() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


def test_weights_that_the_function_loads_are_kept_and_it_is_called_once(tmp_path: Path) -> None:
    """A network without normalisation: ours would be initialised anew."""
    torch.manual_seed(3)
    network = plain()
    torch.save(network.state_dict(), tmp_path / "weights.pt")
    (tmp_path / "own.py").write_text(PRETRAINED)
    ended = process("train", "own.py:net", "--epochs", "0", "-o", "t", "-q", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "Warning" not in ended.stderr
    assert (tmp_path / "calls").read_text() == "real "
    kept = load_file(tmp_path / "t" / "model.safetensors")
    for name, value in network.state_dict().items():
        assert torch.equal(kept[name], value), name


def test_a_network_that_cannot_be_traced_is_trained_and_is_not_compressed(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(PRETRAINED)
    trained = process("train", "own.py:Branch", "--epochs", "1", "-o", "t", "-q", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    cut = process("compress", "own.py:Branch", "--target", "2KB", "-o", "c", "-q", cwd=tmp_path)
    assert cut.returncode == 2
    assert "y.mean() > 0" in cut.stderr
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda conv: parametrizations.weight_norm(conv),
        lambda conv: parametrizations.spectral_norm(conv),
        lambda conv: torch.nn.utils.weight_norm(conv),
        lambda conv: torch.nn.utils.spectral_norm(conv),
        lambda conv: prune.l1_unstructured(conv, "weight", 0.4),
    ],
)
def test_reparametrized_weights_become_plain_ones_of_the_same_value(wrapped) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), wrapped(nn.Conv2d(4, 8, 3)), nn.Flatten()).eval()
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        before = model(x)
    (said,) = resolve_reparametrizations_(model)
    assert "'1" in said
    assert sorted(model.state_dict()) == ["0.bias", "0.weight", "1.bias", "1.weight"]
    assert isinstance(model[1].weight, nn.Parameter)
    with torch.no_grad():
        torch.testing.assert_close(model(x), before)
    assert resolve_reparametrizations_(model) == ()


def test_what_was_resolved_is_remarked(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(PRETRAINED)
    source = ModelSource(f"{tmp_path / 'own.py'}:old_norm", 10, (1, 8, 8))
    assert sorted(build(source).state_dict())[:2] == ["0.bias", "0.weight"]
    assert remarks(source) == (
        "weight norms of 1 tensor(s) were resolved into plain weights, first '0'",
    )
    assert remarks(ModelSource("lenet5", 10, (1, 8, 8))) == ()
    assert all(p.is_meta for p in blank(source).parameters())


def test_a_wrapper_for_several_devices_is_taken_off(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from torch import nn\n\n\ndef net():\n    return nn.DataParallel(nn.Linear(2, 2))\n"
    )
    model = build(ModelSource(f"{tmp_path / 'own.py'}:net", 2, (1, 2, 2)))
    assert isinstance(model, nn.Linear)


def test_a_structure_keeps_ties_and_the_values_that_no_state_dict_holds() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model.register_buffer("grid", torch.arange(4.0), persistent=False)
    model.shift = torch.ones(2)
    copied = structure(model)
    assert copied[1].weight is copied[0].weight
    assert copied[0].weight.is_meta
    assert torch.equal(copied.get_buffer("grid"), torch.arange(4.0))
    assert torch.equal(copied.shift, torch.ones(2))
    assert not model[0].weight.is_meta
