"""The lossless rewrites change no output: folding of BatchNorms, and of pools with its inverse."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgecompress.core.simplify import (
    find_pools,
    fold_batchnorm,
    fold_pool,
    pool_matrix,
    unfold_pool,
)
from tests.networks import EXAMPLE, NARROW, narrow


def images(seed: int) -> torch.Tensor:
    return torch.randn(
        3, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


def same(left: nn.Module, right: nn.Module, seed: int = 0) -> None:
    with torch.no_grad():
        torch.testing.assert_close(left(images(seed)), right(images(seed)), atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", NARROW)
def test_folding_batchnorm_changes_no_output(name: str) -> None:
    model = narrow(name, 1)
    folded = fold_batchnorm(model, images(0))
    same(folded, model)
    if name in ("vgg16_bn", "resnet18", "resnet20", "mobilenet_v2"):
        assert not [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize("name", ["vgg16", "student1", "student2", "student3", "lenet5"])
def test_folding_an_enlarging_pool_changes_no_output_and_unfolds(name: str) -> None:
    model = narrow(name, 2)
    folds = find_pools(model, EXAMPLE)
    if name == "lenet5":
        assert folds == []  # its pool reads 5x5 and makes 5x5
        return
    (fold,) = folds
    folded = fold_pool(model, fold)
    same(folded, model)
    before, after = (m.get_submodule(fold.linear).in_features for m in (model, folded))
    assert before == fold.channels * fold.pooled[0] * fold.pooled[1]
    assert after == fold.channels * fold.read[0] * fold.read[1] < before
    again = unfold_pool(folded, fold)
    assert again.get_submodule(fold.linear).in_features == before
    same(again, model)


def test_student3_on_32_pixels_has_the_documented_size() -> None:
    from edgecompress.models import ModelSource, build

    model = build(ModelSource("student3", 10, (3, 32, 32)))
    (fold,) = find_pools(model, torch.zeros(1, 3, 32, 32))
    assert sum(p.numel() for p in fold_pool(model, fold).parameters()) == 320_756
    assert find_pools(model, torch.zeros(1, 3, 224, 224)) == []


def test_vgg16_on_32_pixels_loses_the_documented_parameters() -> None:
    from edgecompress.models import ModelSource, build

    with torch.device("meta"):
        model = build(ModelSource("vgg16", 10, (3, 32, 32)))
    (fold,) = find_pools(model, torch.zeros(1, 3, 32, 32))
    folded = fold_pool(model, fold)
    assert folded.get_submodule("classifier.0").in_features == 512
    removed = sum(p.numel() for p in model.parameters()) - sum(
        p.numel() for p in folded.parameters()
    )
    assert removed == 100_663_296
    assert fold.input_shape == (3, 32, 32)


@given(read=st.integers(1, 9), extra=st.integers(0, 8))
def test_pool_matrix_is_adaptive_average_pooling(read: int, extra: int) -> None:
    values = torch.randn(1, 1, read, dtype=torch.float64)
    expected = nn.functional.adaptive_avg_pool1d(values, read + extra)
    torch.testing.assert_close(values @ pool_matrix(read, read + extra).T, expected)
