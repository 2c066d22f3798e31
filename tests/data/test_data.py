from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgecompress.data import Preprocess, load_data
from edgecompress.data.images import Augmentation, stratified
from edgecompress.errors import UsageError


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


def test_stratified_parts_are_disjoint_and_whole() -> None:
    labels = torch.arange(100) % 4
    parts = stratified(labels, (0.2, 0.1))
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(100))
    assert [len(p) for p in parts] == [72, 20, 8]


def test_normalised_pixels_have_the_training_statistics() -> None:
    data = load_data("digits")
    images = data.normalised(data.train.pixels)
    assert abs(float(images.mean())) < 1e-3
    assert abs(float(images.std()) - 1) < 1e-2


def test_folder(digits_folder: Path) -> None:
    data = load_data(f"folder:{digits_folder}")
    assert data.classes == ("class0", "class1", "class2")
    assert len(data.train) + len(data.validation) + len(data.test) == 36
    assert data.image_shape == (3, 32, 32)


def test_folder_with_train_and_test(digits_folder: Path, tmp_path: Path) -> None:
    import shutil

    root = tmp_path / "split"
    shutil.copytree(digits_folder, root / "train")
    shutil.copytree(digits_folder, root / "val")
    data = load_data(f"folder:{root}", image_size=16)
    assert len(data.test) == 36
    assert len(data.train) + len(data.validation) == 36
    assert data.image_shape == (3, 16, 16)


def test_bad_folders_are_one_line(digits_folder: Path, tmp_path: Path) -> None:
    import shutil

    empty, one, hollow = tmp_path / "empty", tmp_path / "one", tmp_path / "hollow"
    empty.mkdir()
    shutil.copytree(digits_folder / "class0", one / "class0")
    shutil.copytree(digits_folder, hollow)
    for image in (hollow / "class2").iterdir():
        image.unlink()
    for path, text in (
        (empty, "no class folders"),
        (one, "one class only"),
        (hollow, "holds no image"),
        (tmp_path / "no", "does not exist"),
    ):
        with pytest.raises(UsageError, match=text) as caught:
            load_data(f"folder:{path}")
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="did you mean"):
        load_data("digit")


def test_corrupt_images_are_named_counted_and_skipped_only_when_asked(digits_folder: Path) -> None:
    bad = digits_folder / "class1" / "3.png"
    bad.write_bytes(bad.read_bytes()[:60])
    with pytest.raises(UsageError, match=r"1 corrupt image\(s\).*3\.png.*--skip-bad"):
        load_data(f"folder:{digits_folder}")
    data = load_data(f"folder:{digits_folder}", skip_bad=True)
    assert data.skipped == (str(bad),)
    assert len(data.train) + len(data.validation) + len(data.test) == 35


def test_augmentation_is_seeded_and_keeps_shapes() -> None:
    batch = torch.rand(5, 3, 16, 16)
    augmentation, ids = Augmentation(flip=True, shift=2, cutout=4), torch.arange(5)
    first, second = (augmentation.view(5, (16, 16), 1, 0)(batch, ids) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == batch.shape
    assert not torch.equal(first, batch)
    assert not torch.equal(first, augmentation.view(5, (16, 16), 1, 1)(batch, ids))
    assert torch.equal(Augmentation().view(5, (16, 16), 1, 0)(batch, ids), batch)


def test_an_image_changes_by_seed_view_and_its_own_place_not_by_its_batch() -> None:
    pixels = torch.randint(0, 255, (40, 3, 16, 16), dtype=torch.uint8)
    view = Augmentation(flip=True, shift=3, cutout=5).view(40, (16, 16), 7, 2)
    whole = view(pixels, torch.arange(40), torch.tensor([9, 8, 7]))
    some = torch.tensor([31, 2, 17])
    assert torch.equal(view(pixels[some], some, torch.tensor([9, 8, 7])), whole[some])
    assert whole.dtype == torch.uint8
    holes = (
        (whole == torch.tensor([9, 8, 7], dtype=torch.uint8)[None, :, None, None])
        .all(1)
        .sum((1, 2))
    )
    assert int(holes.min()) >= 9, "a hole of side 5 is at least 3×3 where it meets a corner"


def test_a_shift_moves_the_whole_image() -> None:
    batch = torch.zeros(64, 1, 8, 8)
    batch[:, :, 4, 4] = 1
    moved = Augmentation(shift=1).view(64, (8, 8), 0, 0)(batch, torch.arange(64))
    assert torch.equal(moved.sum((1, 2, 3)), torch.ones(64))
    places = {tuple(p) for p in moved.nonzero()[:, 2:].tolist()}
    assert places == {(r, c) for r in (3, 4, 5) for c in (3, 4, 5)}


def test_images_are_resized_and_cut_as_an_image_library_does() -> None:
    import numpy as np
    from PIL import Image

    pixels = load_data("digits").train.pixels[:4]
    preprocess = Preprocess((0.0,) * 3, (1.0,) * 3, 48, 40)
    found = preprocess(pixels) * 255
    assert tuple(found.shape) == (4, 3, 40, 40)
    assert preprocess.shape((3, 32, 32)) == (3, 40, 40)
    assert Preprocess((0.0,) * 3, (1.0,) * 3, 16).shape((3, 32, 64)) == (3, 16, 32)
    for row in range(4):
        image = Image.fromarray(pixels[row].permute(1, 2, 0).numpy()).resize(
            (48, 48), Image.Resampling.BILINEAR
        )
        wanted = (
            torch.from_numpy(np.asarray(image.crop((4, 4, 44, 44))).copy()).permute(2, 0, 1).float()
        )
        assert float((found[row] - wanted).abs().max()) <= 1.01
    assert Preprocess.from_dict(preprocess.as_dict()) == preprocess


def test_sizes_and_normalisation_of_the_source() -> None:
    data = load_data("digits", image_size=224, resize=256, normalize="imagenet")
    assert data.image_shape == (3, 224, 224)
    assert data.native_shape == (3, 32, 32)
    assert data.preprocess.mean == (0.485, 0.456, 0.406)
    assert tuple(data.normalised(data.train.pixels[:2]).shape) == (2, 3, 224, 224)
    assert load_data("digits", image_size=32).preprocess == load_data("digits").preprocess
    with pytest.raises(UsageError, match="--resize 16 is smaller"):
        load_data("digits", image_size=32, resize=16)


def test_small_and_large_images_of_a_folder_become_one_size(digits_folder: Path) -> None:
    from PIL import Image

    path = next((digits_folder / "class0").iterdir())
    Image.open(path).resize((50, 80)).save(path)
    with pytest.raises(UsageError, match="different sizes"):
        load_data(f"folder:{digits_folder}")
    data = load_data(f"folder:{digits_folder}", image_size=40)
    assert data.image_shape == (3, 40, 40)
    assert len(data.train) + len(data.validation) + len(data.test) == 36
