"""The three students have the sizes that their source reports."""

from __future__ import annotations

import pytest
import torch

from edgecompress.models import ModelSource, build
from edgecompress.models.students import SOURCE, Student

SHAPE = (3, 32, 32)


@pytest.mark.parametrize(
    ("name", "count"), [("student1", 706_752), ("student2", 740_836), ("student3", 935_156)]
)
def test_students_have_the_sizes_of_the_source(name: str, count: int) -> None:
    """The source's files are 2,763, 2,897 and 3,657 KiB; the rest of each is its format."""
    model = build(ModelSource(name, 10, SHAPE))
    assert sum(p.numel() for p in model.parameters()) == count
    file_kib = {"student1": 2763, "student2": 2897, "student3": 3657}[name]
    assert 0 < file_kib - count * 4 / 1024 < 5


@pytest.mark.parametrize("number", [1, 2, 3])
def test_students_read_both_image_sizes_of_the_source(number: int) -> None:
    model = Student(number, num_classes=4).eval()
    for side in (32, 224):
        assert model(torch.zeros(2, 3, side, side)).shape == (2, 4)
    assert not any(name.endswith("bias") for name, _ in model.named_parameters())
    assert f"student{number}" in SOURCE
