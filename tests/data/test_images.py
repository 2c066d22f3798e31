"""Splits, their digests, and augmentation by views."""

from __future__ import annotations

import torch

from edgecompress.data import Images, load_data
from edgecompress.data.images import Augmentation, pixel_statistics, stratified, stream


def test_stratified_parts_are_disjoint_and_complete() -> None:
    labels = torch.arange(100) % 4
    parts = stratified(labels, (0.2, 0.1))
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(100))
    assert [len(p) for p in parts] == [72, 20, 8]


def test_normalised_pixels_have_the_training_statistics() -> None:
    data = load_data("digits")
    images = data.normalised(data.train.pixels)
    assert abs(float(images.mean())) < 1e-3
    assert abs(float(images.std()) - 1) < 1e-2


def test_augmentation_is_seeded_and_keeps_shapes() -> None:
    batch = torch.rand(5, 3, 16, 16)
    augmentation, ids = Augmentation(flip=True, shift=2, cutout=4), torch.arange(5)
    first, second = (augmentation.view(5, (16, 16), 1, 0)(batch, ids) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == batch.shape
    assert not torch.equal(first, batch)
    assert not torch.equal(first, augmentation.view(5, (16, 16), 1, 1)(batch, ids))
    assert torch.equal(Augmentation().view(5, (16, 16), 1, 0)(batch, ids), batch)


def test_alternate_flips_mirror_each_image_in_one_of_every_two_views() -> None:
    augmentation = Augmentation(flip="alternate")
    flips = [augmentation.view(400, (8, 8), 3, number).flips for number in range(6)]
    known = [one for one in flips if one is not None]
    assert len(known) == 6
    for first, second in zip(known[::2], known[1::2], strict=True):
        assert torch.equal(first, ~second)
        assert 120 < int(first.sum()) < 280, "by chance which of the two"
    assert not torch.equal(known[0], known[2])


def test_an_image_changes_by_seed_view_and_its_own_place_not_by_its_batch() -> None:
    pixels = torch.randint(0, 255, (40, 3, 16, 16), dtype=torch.uint8)
    view = Augmentation(flip=True, shift=3, cutout=5).view(40, (16, 16), 7, 2)
    augmented = view(pixels, torch.arange(40), torch.tensor([9, 8, 7]))
    some = torch.tensor([31, 2, 17])
    assert torch.equal(view(pixels[some], some, torch.tensor([9, 8, 7])), augmented[some])
    assert augmented.dtype == torch.uint8
    holes = (
        (augmented == torch.tensor([9, 8, 7], dtype=torch.uint8)[None, :, None, None])
        .all(1)
        .sum((1, 2))
    )
    assert int(holes.min()) >= 9, "a hole of side 5 is at least 3×3 where it meets a corner"


def test_a_shift_moves_the_complete_image() -> None:
    batch = torch.zeros(64, 1, 8, 8)
    batch[:, :, 4, 4] = 1
    moved = Augmentation(shift=1).view(64, (8, 8), 0, 0)(batch, torch.arange(64))
    assert torch.equal(moved.sum((1, 2, 3)), torch.ones(64))
    places = {tuple(p) for p in moved.nonzero()[:, 2:].tolist()}
    assert places == {(r, c) for r in (3, 4, 5) for c in (3, 4, 5)}


def test_rows_and_digests_follow_pixels_and_labels() -> None:
    split = Images(torch.arange(24, dtype=torch.uint8).reshape(2, 3, 2, 2), torch.tensor([0, 1]))
    swapped = split.rows(torch.tensor([1, 0]))
    assert swapped.labels.tolist() == [1, 0]
    assert torch.equal(swapped.pixels[0], split.pixels[1])
    assert swapped.digest() != split.digest()
    relabelled = Images(split.pixels, torch.tensor([1, 0]))
    assert relabelled.pixel_digest() == split.pixel_digest()
    assert relabelled.digest() != split.digest()


def test_a_constant_channel_has_a_deviation_above_zero() -> None:
    pixels = torch.full((4, 2, 3, 3), 51, dtype=torch.uint8)
    pixels[:2, 1] = 255
    means, deviations = pixel_statistics(pixels)
    assert means == (0.2, 0.6)
    assert deviations[0] == 0.001
    assert deviations[1] > 0.4


def test_random_streams_depend_on_their_parts_alone() -> None:
    first, again, other = (
        torch.rand(3, generator=stream(*p)) for p in (("a", 1), ("a", 1), ("a", 2))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
