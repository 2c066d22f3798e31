"""What both commands build before a lesson: networks and how they read pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from edgecompress import checkpoint
from edgecompress import lesson as lessons
from edgecompress.data import DataSet
from edgecompress.errors import UsageError
from tests.online.support import assert_same


def test_checkpoint_reads_pixels_as_in_its_training(data: DataSet, tmp_path: Path) -> None:
    trained = lessons.network("lenet5", data, 1)
    other = replace(
        data, preprocess=replace(data.preprocess, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    )
    checkpoint.save(
        tmp_path / "model.safetensors", trained.model, trained.source, checkpoint.notes_for(other)
    )
    for given in (data, None):
        again = lessons.network(str(tmp_path), given, 0)
        assert again.preprocess == other.preprocess
        assert_same(again.model, trained.model)
    with pytest.raises(UsageError, match="no checkpoint"):
        lessons.network("lenet5", None, 0)

    wide = replace(
        data, train=replace(data.train, pixels=torch.zeros(4, 3, 16, 16, dtype=torch.uint8))
    )
    with pytest.raises(UsageError, match="give the --image-size that it was trained with"):
        lessons.network(str(tmp_path), wide, 0)
