"""The embedded digits: fixed splits of distinct images."""

from __future__ import annotations

import torch

from edgecompress.data import load_data


def test_digits_has_three_splits_that_share_no_image() -> None:
    data = load_data("digits")
    assert (len(data.train), len(data.validation), len(data.test)) == (1169, 269, 359)
    assert data.train.pixels.dtype == torch.uint8
    assert data.image_shape == (3, 32, 32)
    assert data.label == "digits (demo)"
    rows = torch.cat([s.pixels[:, 0].flatten(1) for s in (data.train, data.validation, data.test)])
    assert len(torch.unique(rows, dim=0)) == 1797


def test_the_split_never_changes() -> None:
    assert load_data("digits").digest() == load_data("digits").digest()
    assert (
        load_data("digits").test.labels[:10].tolist()
        == load_data("digits").test.labels[:10].tolist()
    )
