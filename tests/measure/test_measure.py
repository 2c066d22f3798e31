from __future__ import annotations

import pytest
import torch
from torch import nn

from edgecompress.measure import machine
from edgecompress.measure.cost import cost
from edgecompress.models import ModelSource, build


def test_macs_of_known_networks() -> None:
    """VGG16 at 224 has 15.5 G MACs and 138.4 M parameters; ResNet-18 1.8 G and 11.7 M
    (torchvision's tables).
    """
    for name, macs, params in (
        ("vgg16", 15.47e9, 138_357_544),
        ("resnet18", 1.814e9, 11_689_512),
        ("mobilenet_v2", 0.301e9, 3_504_872),
    ):
        with torch.device("meta"):
            model = build(ModelSource(name, 1000, (3, 224, 224)))
        found = cost(model, torch.zeros(1, 3, 224, 224))
        assert abs(found.macs / macs - 1) < 0.005
        assert found.params == params


def test_macs_are_counted_by_hand_on_a_small_network() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Flatten(),
        nn.Linear(4 * 36, 2),
    )
    rows = cost(model, torch.zeros(5, 3, 8, 8)).layers
    assert [row.macs for row in rows] == [4 * 3 * 9 * 64, 4 * 9 * 36, 2 * 4 * 36]


def test_the_machine_is_described() -> None:
    found = machine.hardware()
    assert found["cores"] == machine.cores() >= 1
    assert machine.peak_rss_bytes() > 10**7
    assert set(machine.versions()) >= {"python", "torch", "onnxruntime", "edgecompress"}


@pytest.mark.parametrize(
    ("features", "name", "effects"),
    [
        ({"avx2", "avx512f", "avx512_vnni"}, "AVX-512 with VNNI", ()),
        ({"avx2", "avx512f"}, "AVX-512 without VNNI", ("7 bits",)),
        ({"avx2", "avx_vnni"}, "AVX2 with VNNI", ("oneDNN#6035",)),
        ({"avx2"}, "AVX2 without VNNI", ("oneDNN#6035", "7 bits")),
        ({"asimd", "asimddp"}, "NEON with int8 dot products", ()),
        (set(), "no vector instructions that are known here", ("7 bits",)),
    ],
)
def test_the_instruction_set_and_what_it_changes(
    features: set[str], name: str, effects: tuple[str, ...]
) -> None:
    assert machine.instruction_set(frozenset(features)) == name
    found = machine.instruction_set_effects(frozenset(features))
    assert len(found) == len(effects)
    assert all(word in text for word, text in zip(effects, found, strict=True))
