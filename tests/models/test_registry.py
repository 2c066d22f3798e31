from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from edgecompress.errors import EnvironmentMissingError, UsageError
from edgecompress.models import ModelSource, build
from edgecompress.models.weights import imagenet_file, load_weights

SHAPE = (3, 32, 32)


@pytest.mark.parametrize(
    ("name", "count"), [("student1", 706_752), ("student2", 740_836), ("student3", 935_156)]
)
def test_students_have_the_sizes_of_the_source(name: str, count: int) -> None:
    """The source's files are 2,763, 2,897 and 3,657 KiB; the rest of each is its format."""
    model = build(ModelSource(name, 10, SHAPE))
    assert sum(p.numel() for p in model.parameters()) == count
    file_kib = {"student1": 2763, "student2": 2897, "student3": 3657}[name]
    assert 0 < file_kib - count * 4 / 1024 < 5


def test_torchvision_names_are_torchvisions_own_classes() -> None:
    model = build(ModelSource("resnet18", 7, SHAPE))
    from torchvision.models.resnet import (
        ResNet,
    )  # importable beside a CPU build of torch once ours has been

    assert type(model) is ResNet
    assert model.fc.out_features == 7
    assert type(build(ModelSource("torchvision:resnet18", 7, SHAPE))) is ResNet


def test_resnet20_has_the_papers_size() -> None:
    assert sum(p.numel() for p in build(ModelSource("resnet20", 10, SHAPE)).parameters()) == 272_474


@pytest.mark.parametrize(
    "name", ["vgg61", "resnet", "timm:resnet18x", "nopackage.mod:net", "missing.py:net"]
)
def test_unknown_names_offer_the_nearest(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        build(ModelSource(name, 10, SHAPE))
    assert "\n" not in str(caught.value)
    if name == "vgg61":
        assert "vgg16" in str(caught.value)


def test_timm() -> None:
    pytest.importorskip("timm")
    model = build(ModelSource("timm:resnet10t", 4, SHAPE))
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 4)


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
