"""Pretrained weights: from a file, from ImageNet, and those that are refused."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune

from edgecompress.errors import EnvironmentMissingError, UsageError
from edgecompress.models import ModelSource, build
from edgecompress.models.weights import checked, imagenet_file, load_weights, read_tensors

SHAPE = (3, 32, 32)
SOURCE = ModelSource("resnet20", 5, SHAPE)


def test_weights_from_a_file_keep_all_but_the_head(tmp_path: Path) -> None:
    donor = build(ModelSource("resnet18", 1000, SHAPE))
    path = tmp_path / "resnet18.pt"
    torch.save(donor.state_dict(), path)
    model = load_weights(ModelSource("resnet18", 7, SHAPE), str(path))
    assert torch.equal(model.conv1.weight, donor.conv1.weight)
    assert model.fc.out_features == 7
    with pytest.raises(UsageError, match="do not fit"):
        load_weights(ModelSource("vgg11", 7, SHAPE), str(path))


def test_weights_that_need_unpickling_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    torch.save(build(ModelSource("lenet5", 5, SHAPE)), path)
    with pytest.raises(UsageError, match="unpickling"):
        load_weights(ModelSource("lenet5", 5, SHAPE), str(path))


def test_imagenet_weights_placed_by_hand_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "edgecompress" / "weights"
    folder.mkdir(parents=True)
    (folder / "resnet18-f37072fd.pth").write_bytes(b"x")
    assert imagenet_file("resnet18") == folder / "resnet18-f37072fd.pth"


def test_weights_that_were_damaged_on_the_way_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "arrived"
    path.write_bytes(b"x")
    digest = hashlib.sha256(b"x").hexdigest()
    checked(path, f"net-{digest[:8]}.pth")
    assert path.exists()
    with pytest.raises(UsageError, match=r"net-f37072fd\.pth arrived with SHA-256 2d711642"):
        checked(path, "net-f37072fd.pth")
    assert not path.exists()


def test_imagenet_weights_without_a_network_name_the_file_and_the_place(tmp_path: Path) -> None:
    """In a process whose downloads end at a closed local port."""
    code = (
        "import sys\nfrom edgecompress.errors import EdgecompressError\nfrom "
        "edgecompress.models.weights import imagenet_file\n"
        "try:\n    imagenet_file('vgg16')\nexcept EdgecompressError as error:\n    "
        "print(error); sys.exit(error.exit_code)\n"
    )
    closed = "http://127.0.0.1:9"
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(tmp_path),
        "TORCH_HOME": str(tmp_path),
        "https_proxy": closed,
        "http_proxy": closed,
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == EnvironmentMissingError.exit_code == 4
    assert "vgg16-397923af.pth" in done.stdout
    assert str(tmp_path / "edgecompress" / "weights") in done.stdout
    assert len(done.stdout.strip().splitlines()) == 1


def test_masks_of_torch_are_multiplied_into_the_weights(tmp_path: Path) -> None:
    layer = nn.Linear(4, 3)
    prune.l1_unstructured(layer, "weight", 0.5)
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    tensors = read_tensors(tmp_path / "layer.pt")
    assert set(tensors) == {"weight", "bias"}
    assert torch.equal(tensors["weight"], layer.weight)


def test_safetensors_are_read_and_other_files_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "good.safetensors")
    assert torch.equal(read_tensors(tmp_path / "good.safetensors")["a"], torch.ones(2))
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    for name, message in (
        ("bad.safetensors", "cannot be read"),
        ("list.pt", "hold no state dict"),
        ("missing.pt", "do not exist"),
    ):
        with pytest.raises(UsageError, match=message):
            read_tensors(tmp_path / name)


def test_a_model_without_imagenet_weights_is_named() -> None:
    with pytest.raises(UsageError, match="model 'lenet5' has no ImageNet weights"):
        imagenet_file("lenet5")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", ""])
@pytest.mark.parametrize("key", ["state_dict", "model", None])
def test_checkpoints_of_trainings_are_read(tmp_path: Path, prefix: str, key: str | None) -> None:
    tensors = {prefix + name: t for name, t in build(SOURCE).state_dict().items()}
    saved = tensors if key is None else {key: tensors, "epoch": 3}
    torch.save(saved, tmp_path / "w.pt")
    read = read_tensors(tmp_path / "w.pt")
    assert read.keys() == build(SOURCE).state_dict().keys()


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_another_number_format_are_read_as_float32(
    tmp_path: Path, kind: torch.dtype
) -> None:
    torch.manual_seed(1)
    saved = {
        k: v.to(kind) if v.is_floating_point() else v for k, v in build(SOURCE).state_dict().items()
    }
    torch.save(saved, tmp_path / "w.pt")
    model = load_weights(SOURCE, str(tmp_path / "w.pt"))
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            assert value.dtype == torch.float32
            assert torch.equal(value, saved[name].float()), name
