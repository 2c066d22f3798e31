from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgecompress.data import load_data
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
    assert load_data("digits").test.labels[:10].tolist() == load_data("digits").test.labels[:10].tolist()


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
    augmentation = Augmentation(flip=True, shift=2, cutout=4)
    first, second = (augmentation(batch, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == batch.shape
    assert not torch.equal(first, batch)
    assert torch.equal(Augmentation()(batch, torch.Generator()), batch)


def test_a_shift_moves_the_whole_image() -> None:
    batch = torch.zeros(64, 1, 8, 8)
    batch[:, :, 4, 4] = 1
    moved = Augmentation(shift=1)(batch, torch.Generator().manual_seed(0))
    assert torch.equal(moved.sum((1, 2, 3)), torch.ones(64))
    places = {tuple(p) for p in moved.nonzero()[:, 2:].tolist()}
    assert places == {(r, c) for r in (3, 4, 5) for c in (3, 4, 5)}
