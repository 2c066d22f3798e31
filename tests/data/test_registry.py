"""Data sets by name, and the options for image sizes and normalisation."""

from __future__ import annotations

import pytest

from edgecompress.data import data_names, load_data
from edgecompress.errors import UsageError


def test_sizes_and_normalisation_of_the_source() -> None:
    data = load_data("digits", image_size=224, resize=256, normalize="imagenet")
    assert data.image_shape == (3, 224, 224)
    assert data.native_shape == (3, 32, 32)
    assert data.preprocess.mean == (0.485, 0.456, 0.406)
    assert tuple(data.normalised(data.train.pixels[:2]).shape) == (2, 3, 224, 224)
    assert load_data("digits", image_size=32).preprocess == load_data("digits").preprocess
    with pytest.raises(UsageError, match="--resize 16 is smaller"):
        load_data("digits", image_size=32, resize=16)


def test_unknown_names_offer_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean cifar10"):
        load_data("cifar")
    with pytest.raises(UsageError, match=r"a folder of images is folder:DIR"):
        load_data("folder:")
    assert {"digits", "sine", "folder:DIR", "A+B"} <= set(data_names())
