"""Networks by name: torchvision's, timm's, ours and the user's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgecompress.errors import UsageError
from edgecompress.models import ModelSource, build, model_names
from edgecompress.models.own import runs_user_code
from edgecompress.models.registry import default_image_size, reads, remarks

SHAPE = (3, 32, 32)


def test_torchvision_names_are_torchvisions_own_classes() -> None:
    model = build(ModelSource("resnet18", 7, SHAPE))
    from torchvision.models.resnet import (
        ResNet,
    )  # importable with a CPU build of torch after our own import

    assert type(model) is ResNet
    assert model.fc.out_features == 7
    assert type(build(ModelSource("torchvision:resnet18", 7, SHAPE))) is ResNet


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


def test_a_network_reads_images_that_its_pools_leave_something_of() -> None:
    assert reads(ModelSource("lenet5", 10, (1, 28, 28)))
    assert reads(ModelSource("resnet8", 10, SHAPE))
    assert not reads(ModelSource("vgg16", 10, (3, 8, 8)))
    with pytest.raises(UsageError, match="vgg61"):
        reads(ModelSource("vgg61", 10, SHAPE))


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("lenet5", 32),
        ("resnet20", 32),
        ("student3", 32),
        ("mlp", 32),
        ("vgg16", 224),
        ("vgg16-nobias", 224),
        ("torchvision:resnet18", 224),
        ("inception_v3", 299),
        ("net.py:make", 224),
    ],
)
def test_images_have_the_size_that_their_network_is_made_for(name: str, side: int) -> None:
    assert default_image_size(name) == side


def test_timm_says_the_size_of_its_networks() -> None:
    pytest.importorskip("timm")
    assert default_image_size("timm:efficientnet_b3") == 288


def test_every_name_of_ours_is_listed_and_builds() -> None:
    for name in ("student1", "resnet20", "lenet5", "mlp"):
        assert name in model_names()
        assert build(ModelSource(name, 4, (3, 8, 8)))


def test_a_network_for_rgb_refuses_grey_images() -> None:
    with pytest.raises(UsageError, match=r"'resnet18' reads RGB, the data has 1 channel\(s\)"):
        build(ModelSource("resnet18", 10, (1, 32, 32)))


def test_only_factories_run_user_code() -> None:
    assert runs_user_code("net.py:make")
    assert runs_user_code("package.module:make")
    assert not any(runs_user_code(name) for name in ("vgg16", "timm:vgg16", "torchvision:vgg16"))


def test_a_factory_gets_the_arguments_that_it_accepts(tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(
        "from torch import nn\n"
        "class Net(nn.Linear):\n    pass\n"
        "def plain(num_classes):\n    return Net(32, num_classes)\n"
        "def both(**options):\n    return Net(32, sum(options.values()))\n"
        "def wrong():\n    return 3\n"
    )
    plain = build(ModelSource(f"{path}:plain", 7, SHAPE))
    both = build(ModelSource(f"{path}:both", 7, SHAPE))
    assert (plain.in_features, plain.out_features) == (32, 7)
    assert (both.in_features, both.out_features) == (32, 10)
    assert type(plain) is type(both), "a file that has not changed is one module"
    with pytest.raises(UsageError, match=r"returned a int: a torch\.nn\.Module is needed"):
        build(ModelSource(f"{path}:wrong", 7, SHAPE))
    with pytest.raises(UsageError, match="has no callable 'absent'"):
        build(ModelSource(f"{path}:absent", 7, SHAPE))


@pytest.mark.parametrize("kind", ["double", "half", "bfloat16"])
def test_networks_of_another_number_format_become_float32(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "nets.py"
    file.write_text(
        "from torch import nn\n"
        f"def net(num_classes):\n    return nn.Sequential(nn.Linear(32, num_classes).{kind}())\n"
    )
    source = ModelSource(f"{file}:net", 10, (3, 32, 32))
    assert {p.dtype for p in build(source).parameters()} == {torch.float32}
    said = {"double": "float64", "half": "float16"}.get(kind, kind)
    assert remarks(source) == (f"weights in {said} became float32",)
