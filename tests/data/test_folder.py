"""Folders of images: layouts, corrupt files, and images of several sizes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from edgecompress.data import load_data
from edgecompress.data.folder import _enlarged, _read
from edgecompress.errors import UsageError


def test_one_tree_is_split_here(digits_folder: Path) -> None:
    data = load_data(f"folder:{digits_folder}")
    assert data.classes == ("class0", "class1", "class2")
    assert len(data.train) + len(data.validation) + len(data.test) == 36
    assert data.image_shape == (3, 32, 32)


def test_train_and_val_on_disk_are_used(digits_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "split"
    shutil.copytree(digits_folder, root / "train")
    shutil.copytree(digits_folder, root / "val")
    data = load_data(f"folder:{root}", image_size=16)
    assert len(data.test) == 36
    assert len(data.train) + len(data.validation) == 36
    assert data.image_shape == (3, 16, 16)


def test_bad_folders_are_one_line(digits_folder: Path, tmp_path: Path) -> None:
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


def test_corrupt_images_are_named_counted_and_skipped_only_on_request(digits_folder: Path) -> None:
    bad = digits_folder / "class1" / "3.png"
    bad.write_bytes(bad.read_bytes()[:60])
    with pytest.raises(UsageError, match=r"1 corrupt image\(s\).*3\.png.*--skip-bad"):
        load_data(f"folder:{digits_folder}")
    data = load_data(f"folder:{digits_folder}", skip_bad=True)
    assert data.skipped == (str(bad),)
    assert len(data.train) + len(data.validation) + len(data.test) == 35


def test_small_and_large_images_of_a_folder_become_one_size(digits_folder: Path) -> None:
    path = next((digits_folder / "class0").iterdir())
    Image.open(path).resize((50, 80)).save(path)
    default = load_data(f"folder:{digits_folder}", default_size=24)
    assert default.image_shape == (3, 24, 24)
    assert default.notes == (
        "images of 2 sizes, 32x32 to 50x80 are read as 24x24: --image-size for another",
    )
    data = load_data(f"folder:{digits_folder}", image_size=40)
    assert data.image_shape == (3, 40, 40)
    assert len(data.train) + len(data.validation) + len(data.test) == 36


def test_large_images_of_one_size_are_read_at_the_default_size(tmp_path: Path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        for number in range(10):
            Image.new("RGB", (160, 120)).save(tmp_path / label / f"{number}.png")
    assert load_data(f"folder:{tmp_path}").image_shape == (3, 120, 160)
    for path in tmp_path.rglob("*.png"):
        Image.new("RGB", (1600, 1200)).save(path)
    data = load_data(f"folder:{tmp_path}", default_size=64)
    assert data.image_shape == (3, 64, 64)
    assert "1600x1200 are read as 64x64" in data.notes[0]


def test_three_splits_on_disk_are_the_three_splits(digits_folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "split"
    for name in ("train", "valid", "test"):
        shutil.copytree(digits_folder, root / name)
    for path in (root / "valid").rglob("*1.png"):
        path.unlink()
    data = load_data(f"folder:{root}")
    held_out = len(list((root / "valid").rglob("*.png")))
    assert data.sizes() == {"training": 36, "validation": held_out, "test": 36}
    assert data.notes == ()
    assert data.summary() == (
        f"36 training, {held_out} validation, 36 test images of 3 classes, 32x32"
    )


def test_with_two_splits_on_disk_it_is_said_which_is_the_test_split(
    digits_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(digits_folder, tmp_path / "split" / "train")
    shutil.copytree(digits_folder, tmp_path / "split" / "val")
    (note,) = load_data(f"folder:{tmp_path / 'split'}").notes
    assert note == "val/ is the test split; a tenth of train/ is for validation"


def test_files_that_are_no_images_are_counted(digits_folder: Path) -> None:
    (digits_folder / "class0" / "x.HEIC").write_bytes(b"0")
    (digits_folder / "class1" / "y.HEIC").write_bytes(b"0")
    (digits_folder / "class1" / "notes.txt").write_text("1")
    (digits_folder / "class1" / ".hidden").write_text("1")
    (note,) = load_data(f"folder:{digits_folder}").notes
    assert note.startswith("not read: 2 .HEIC, 1 .txt (images are .jpg, ")


def test_small_training_images_beside_large_test_images(
    digits_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(digits_folder, tmp_path / "split" / "train")
    shutil.copytree(digits_folder, tmp_path / "split" / "test")
    for path in (tmp_path / "split" / "test").rglob("*.png"):
        Image.open(path).resize((80, 80)).save(path)
    data = load_data(f"folder:{tmp_path / 'split'}", image_size=64)
    assert data.train.pixels.shape[1:] == data.test.pixels.shape[1:] == (3, 64, 64)


def test_train_without_a_test_split_and_other_classes_are_refused(
    digits_folder: Path, tmp_path: Path
) -> None:
    root = tmp_path / "split"
    shutil.copytree(digits_folder, root / "train")
    with pytest.raises(UsageError, match="neither test/ nor val/"):
        load_data(f"folder:{root}")
    shutil.copytree(digits_folder, root / "test")
    shutil.rmtree(root / "test" / "class0")
    with pytest.raises(UsageError, match="have different classes"):
        load_data(f"folder:{root}")


def test_a_split_that_lacks_a_class_is_refused(digits_folder: Path) -> None:
    for image in sorted((digits_folder / "class0").iterdir())[2:]:
        image.unlink()
    with pytest.raises(UsageError, match=r"split of .* lacks images of '.*': .* 10 per class"):
        load_data(f"folder:{digits_folder}")


def test_the_central_square_is_cut_out(tmp_path: Path) -> None:
    image = Image.new("RGB", (60, 20), "black")
    image.paste("white", (20, 0, 40, 20))
    image.save(tmp_path / "wide.png")
    assert _read(tmp_path / "wide.png", None).shape == (3, 20, 60)
    square = _read(tmp_path / "wide.png", 20)
    assert square.shape == (3, 20, 20)
    assert int(square.min()) == 255
    assert _enlarged(torch.zeros(3, 4, 8, dtype=torch.uint8), 8).shape == (3, 8, 8)


@pytest.mark.parametrize(("white", "named"), [(4095, True), (65535, False)])
def test_data_of_12_bits_in_files_of_16_are_named(white: int, named: bool, tmp_path: Path) -> None:
    values = np.linspace(0, white, 32 * 32).reshape(32, 32).astype(np.uint16)
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        Image.new("RGB", (32, 32)).save(tmp_path / label / "0.png")  # beside images of 8 bits too
        for number in range(1, 10):
            Image.fromarray(values).save(tmp_path / label / f"{number}.png")
    notes = [note for note in load_data(f"folder:{tmp_path}").notes if "16-bit" in note]
    assert len(notes) == named
    if named:
        assert "reach 4,095 of 65,535 (data of 12 bits?)" in notes[0]
