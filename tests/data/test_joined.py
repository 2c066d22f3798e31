"""Several data sets as one."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from edgecompress.data import load_data
from edgecompress.data.joined import joined, part_of
from edgecompress.data.task import Heads
from edgecompress.errors import UsageError


def test_two_data_sets_as_one() -> None:
    data = load_data("digits+digits")
    one = load_data("digits")
    assert data.task == Heads((10, 10))
    assert len(data.train) == 2 * len(one.train)
    assert data.classes[3] == "digits: 3"
    assert data.test.labels.tolist() == [
        *one.test.labels.tolist(),
        *(label + 10 for label in one.test.labels.tolist()),
    ]
    assert part_of(data, 1).preprocess == data.preprocess
    with pytest.raises(UsageError, match="no plain classification"):
        joined([one, load_data("sine")])


def test_images_of_several_shapes_are_refused(digits_folder: Path) -> None:
    for path in digits_folder.rglob("*.png"):
        Image.open(path).resize((16, 16)).save(path)
    with pytest.raises(UsageError, match=r"images of shapes .*: pass --image-size"):
        load_data(f"digits+folder:{digits_folder}")
