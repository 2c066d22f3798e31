from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgecompress import checkpoint
from edgecompress.core import shrink, trace
from edgecompress.core.simplify import find_pools, fold_pool
from edgecompress.errors import UsageError
from edgecompress.models import ModelSource, build, registry
from tests.networks import NARROW, random_keep

SHAPE = (3, 32, 32)
EXAMPLE = torch.zeros(1, *SHAPE)


REBUILT = (
    *("student3", "resnet20", "mobilenet_v2", "densenet121", "shufflenet_v2_x0_5", "lenet5"),
)


def shrunk(name: str) -> tuple[nn.Module, ModelSource]:
    source = ModelSource(name, 5, SHAPE)
    torch.manual_seed(0)
    model = build(source).eval()
    graph = trace(model, EXAMPLE)
    model = shrink(model, random_keep(graph.groups, 1, 0.4))
    for fold in find_pools(model, EXAMPLE):
        model = fold_pool(model, fold)
    return model, source


def test_a_fresh_process_rebuilds_shrunk_networks(tmp_path: Path) -> None:
    images = torch.randn(2, *SHAPE)
    torch.save(images, tmp_path / "in.pt")
    models = {}
    for name in REBUILT:
        models[name], source = shrunk(name)
        checkpoint.save(tmp_path / f"{name}.safetensors", models[name], source, {"data": "test"})
    code = (
        "import sys, torch\nfrom pathlib import Path\nfrom edgecompress import checkpoint\n"
        "for name in sys.argv[1:]:\n"
        "    model, manifest = checkpoint.load(Path(f'{name}.safetensors'))\n"
        "    assert manifest.notes == {'data': 'test'}\n"
        "    with torch.no_grad(): torch.save(model(torch.load('in.pt')), f'{name}.pt')\n"
    )
    subprocess.run([sys.executable, "-c", code, *models], check=True, cwd=tmp_path)
    for name, model in models.items():
        with torch.no_grad():
            expected = model(images)
        answer = torch.load(tmp_path / f"{name}.pt")
        torch.testing.assert_close(answer, expected, atol=1e-6, rtol=1e-5, msg=name)


def test_nothing_is_pickled(tmp_path: Path) -> None:
    model, source = shrunk("student1")
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, model, source)
    assert path.read_bytes()[8:9] == b"{"  # safetensors: a length, then JSON


def test_pickles_and_rubbish_are_refused_in_one_line(tmp_path: Path) -> None:
    pickle, rubbish, foreign = (
        tmp_path / "model.pt",
        tmp_path / "a.safetensors",
        tmp_path / "b.safetensors",
    )
    torch.save(build(ModelSource("lenet5", 5, SHAPE)), pickle)
    rubbish.write_bytes(b"not a checkpoint")

    save_file({"x": torch.zeros(1)}, foreign)
    for path, text in (
        (pickle, "pickle"),
        (rubbish, "no checkpoint"),
        (foreign, "no manifest"),
        (tmp_path / "none", "does not exist"),
    ):
        with pytest.raises(UsageError, match=text) as caught:
            checkpoint.load(path)
        assert "\n" not in str(caught.value)


def test_a_manifest_cannot_set_anything_else(tmp_path: Path) -> None:
    import json

    from safetensors.torch import load_file, save_file

    model, source = shrunk("student1")
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, model, source)
    manifest = {
        "model": {"name": "student1", "num_classes": 5, "image_shape": SHAPE},
        "layers": {"features": {"forward": 1}},
        "notes": {},
    }
    save_file(load_file(path), path, {"edgecompress": json.dumps(manifest)})
    with pytest.raises(UsageError, match="only numbers"):
        checkpoint.load(path)


def test_user_code_runs_only_when_named_again(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    marker = tmp_path / "ran"
    file.write_text(
        f"import pathlib, torch\npathlib.Path({str(marker)!r}).touch()\n"
        "def net(num_classes):\n    return torch.nn.Sequential(torch.nn.Flatten(), "
        "torch.nn.Linear(3072, num_classes))\n"
    )
    source = ModelSource(f"{file}:net", 5, SHAPE)
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, build(source), source)
    marker.unlink()
    with pytest.raises(UsageError, match="name it again"):
        checkpoint.load(path)
    assert not marker.exists()
    model, _ = checkpoint.load(path, allow_code=f"{file}:net")
    assert model(torch.zeros(1, *SHAPE)).shape == (1, 5)


OWN = """
import torch
from torch import nn

CALLS = []


class Scale(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, x):
        return x * self.scale


class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        widths = [int(w) for w in torch.linspace(8, 12, 2)]
        self.conv = nn.Conv2d(3, widths[0], 3, padding=1)
        self.same = nn.Conv2d(widths[0], widths[1], 1)
        self.fc = nn.Linear(widths[1], num_classes)
        self.tied = nn.Linear(widths[1], num_classes)
        self.tied.weight = self.fc.weight
        self.register_buffer("scale", torch.rand(widths[0], 1, 1), persistent=False)
        self.shift = torch.rand(1)
        self.twin = Scale(self.scale)
        self.parts = (widths[0] // 2, None, widths[0] // 2)
        self.conv.bias.requires_grad_(False)

    def forward(self, x):
        x = self.conv(x).relu() * self.scale + self.shift
        x = torch.cat(torch.split(self.twin(x), [self.parts[0], self.parts[2]], 1)[::-1], 1)
        x = self.same(x).relu().mean((2, 3))
        return self.fc(x) + self.tied(x)


def net(num_classes):
    CALLS.append("meta" if torch.empty(0).is_meta else "real")
    return Net(num_classes)
"""


def own_network(tmp_path: Path) -> tuple[nn.Module, ModelSource]:
    (tmp_path / "own.py").write_text(OWN)
    source = ModelSource(f"{tmp_path / 'own.py'}:net", 5, SHAPE)
    torch.manual_seed(0)
    return build(source).eval(), source


@pytest.mark.parametrize("cut", [False, True])
def test_what_no_state_dict_holds_and_ties_come_back(tmp_path: Path, cut: bool) -> None:
    model, source = own_network(tmp_path)
    if cut:
        model = shrink(model, random_keep(trace(model, EXAMPLE).groups, 1, 0.5))
    path, x = tmp_path / "m.safetensors", torch.randn(2, *SHAPE)
    checkpoint.save(path, model, source)
    back, manifest = checkpoint.load(path, allow_code=source.name)
    assert set(manifest.unstored) == {"scale", "shift", "twin.scale"}
    assert not back.conv.bias.requires_grad
    assert back.conv.weight.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(back(x), model(x))
    assert back.fc.weight is back.tied.weight
    assert sum(p.numel() for p in back.parameters()) == sum(p.numel() for p in model.parameters())


class Notes(nn.Module):
    """A network that notes the size of its input while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.side = x.shape[2]
        return self.fc(x.mean((2, 3)))


def test_a_number_that_forward_sets_is_no_part_of_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry._OWN, "notes", lambda **_: Notes())
    source = ModelSource("notes", 5, SHAPE)
    model, x = build(source).eval(), torch.randn(2, *SHAPE)
    with torch.no_grad():
        expected = model(x)
        checkpoint.save(tmp_path / "m.safetensors", model, source)
        back, manifest = checkpoint.load(tmp_path / "m.safetensors")
        torch.testing.assert_close(back(x), expected)
    assert manifest.layers == {}


def test_own_code_is_called_once_and_never_for_its_structure_alone(tmp_path: Path) -> None:
    model, source = own_network(tmp_path)
    path = tmp_path / "m.safetensors"
    checkpoint.save(path, model, source)
    checkpoint.load(path, allow_code=source.name)
    calls = type(model).forward.__globals__["CALLS"]
    assert calls == ["real"]


@pytest.mark.parametrize("name", ["swin_t", "timm:efficientformerv2_s0", "vit_b_16"])
def test_buffers_that_are_not_persistent_come_back(name: str, tmp_path: Path) -> None:
    shape = (3, 224, 224) if name != "swin_t" else (3, 64, 64)
    source = ModelSource(name, 5, shape)
    torch.manual_seed(0)
    model = build(source).eval()
    path, x = tmp_path / "m.safetensors", torch.randn(1, *shape)
    checkpoint.save(path, model, source)
    with torch.no_grad():
        torch.testing.assert_close(checkpoint.load(path)[0](x), model(x))


@pytest.mark.parametrize("name", ["heads", "widths", "blurred"])
def test_numbers_of_the_user_s_code_come_back(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry._OWN, name, lambda **_: NARROW[name]())
    source = ModelSource(name, 5, SHAPE)
    torch.manual_seed(0)
    whole = build(source).eval()
    model = shrink(whole, random_keep(trace(whole, EXAMPLE).groups, 3, 0.5))
    path, x = tmp_path / "m.safetensors", torch.randn(2, *SHAPE)
    checkpoint.save(path, model, source)
    with torch.no_grad():
        torch.testing.assert_close(checkpoint.load(path)[0](x), model(x))


def test_metadata_without_end_is_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(1)}, path, {"edgecompress": "[" * 100_000 + "]" * 100_000})
    with pytest.raises(UsageError, match="is no checkpoint") as raised:
        checkpoint.load(path)
    assert "\n" not in str(raised.value)
