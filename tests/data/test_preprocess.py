"""From pixels to the input of a network."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from edgecompress.data import Preprocess, load_data


def test_images_are_resized_and_cut_as_an_image_library_does() -> None:
    pixels = load_data("digits").train.pixels[:4]
    preprocess = Preprocess((0.0,) * 3, (1.0,) * 3, 48, 40)
    actual = preprocess(pixels) * 255
    assert tuple(actual.shape) == (4, 3, 40, 40)
    assert preprocess.shape((3, 32, 32)) == (3, 40, 40)
    assert Preprocess((0.0,) * 3, (1.0,) * 3, 16).shape((3, 32, 64)) == (3, 16, 32)
    for row in range(4):
        image = Image.fromarray(pixels[row].permute(1, 2, 0).numpy()).resize(
            (48, 48), Image.Resampling.BILINEAR
        )
        expected = (
            torch.from_numpy(np.asarray(image.crop((4, 4, 44, 44))).copy()).permute(2, 0, 1).float()
        )
        assert float((actual[row] - expected).abs().max()) <= 1.01
    assert Preprocess.from_dict(preprocess.as_dict()) == preprocess


def test_normalisation_is_per_channel_and_the_scale_of_pixels_is_implied() -> None:
    preprocess = Preprocess((0.5, 0.0), (0.5, 0.25))
    pixels = torch.tensor([0, 255, 255, 51], dtype=torch.uint8).reshape(1, 2, 1, 2)
    torch.testing.assert_close(preprocess(pixels).flatten(), torch.tensor([-1.0, 1.0, 4.0, 0.8]))
    assert "scale" not in preprocess.as_dict()
    raw = Preprocess((0.0,), (1.0,), scale=1)
    assert raw.as_dict()["scale"] == 1
    assert Preprocess.from_dict(raw.as_dict()) == raw


def test_without_a_resize_the_crop_is_central() -> None:
    pixels = torch.arange(25, dtype=torch.uint8).reshape(1, 1, 5, 5)
    cropped = Preprocess((0.0,), (1.0,), crop=3, scale=1)(pixels)
    assert torch.equal(cropped, pixels[:, :, 1:4, 1:4].float())
