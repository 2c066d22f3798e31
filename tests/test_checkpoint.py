from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from edgecompress import checkpoint
from edgecompress.core import shrink, trace
from edgecompress.core.simplify import find_pools, fold_pool
from edgecompress.errors import UsageError
from edgecompress.models import ModelSource, build
from tests.networks import random_keep

SHAPE = (3, 32, 32)
EXAMPLE = torch.zeros(1, *SHAPE)


def shrunk(name: str) -> tuple[nn.Module, ModelSource]:
    source = ModelSource(name, 5, SHAPE)
    torch.manual_seed(0)
    model = build(source).eval()
    graph = trace(model, EXAMPLE)
    model = shrink(model, random_keep(graph.groups, 1, 0.4))
    for fold in find_pools(model, EXAMPLE):
        model = fold_pool(model, fold)
    return model, source


@pytest.mark.parametrize(
    "name", ["student3", "resnet20", "mobilenet_v2", "densenet121", "shufflenet_v2_x0_5", "lenet5"]
)
def test_a_fresh_process_rebuilds_a_shrunk_network(name: str, tmp_path: Path) -> None:
    model, source = shrunk(name)
    path, given, answer = tmp_path / "model.safetensors", tmp_path / "in.pt", tmp_path / "out.pt"
    checkpoint.save(path, model, source, {"data": "test"})
    images = torch.randn(2, *SHAPE)
    torch.save(images, given)
    code = (
        "import sys, torch\nfrom pathlib import Path\nfrom edgecompress import checkpoint\n"
        "model, manifest = checkpoint.load(Path(sys.argv[1]))\n"
        "assert manifest.notes == {'data': 'test'}\n"
        "with torch.no_grad(): torch.save(model(torch.load(sys.argv[2])), sys.argv[3])\n"
    )
    subprocess.run([sys.executable, "-c", code, path, given, answer], check=True)
    with torch.no_grad():
        torch.testing.assert_close(torch.load(answer), model(images), atol=1e-6, rtol=1e-5)


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
    from safetensors.torch import save_file

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
    with pytest.raises(UsageError, match="allowed are"):
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
