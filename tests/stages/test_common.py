"""What stages share: the bytes of a file that is not written yet."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from edgecompress.core.proof import trace
from edgecompress.data import load_data
from edgecompress.formats import FORMATS
from edgecompress.models import ModelSource, build
from edgecompress.run.context import Context, Silent
from edgecompress.run.directory import RunDirectory
from edgecompress.run.stage import RunSettings
from edgecompress.stages.candidates import file_bytes
from edgecompress.stages.common import fp32_bytes
from edgecompress.stages.plan.work import at_floors


@pytest.mark.parametrize("name", ["lenet5", "resnet20"])
def test_bytes_without_a_run_are_those_of_the_file_of_a_run(name: str, tmp_path: Path) -> None:
    data = load_data("digits")
    model = build(ModelSource(name, 10, data.image_shape))
    context = Context(
        data=data,
        device=torch.device("cpu"),
        seed=0,
        recipe=RunSettings(model=name, stages=()),
        run=RunDirectory(tmp_path),
        folder=tmp_path / "stage",
        reporter=Silent(),
        threads=1,
    )
    assert fp32_bytes(data, model) == file_bytes(context, "fp32", model)
    assert list((tmp_path / "stage").iterdir()) == []


def test_the_floors_are_the_same_in_every_format(tmp_path: Path) -> None:
    """So one export serves them all."""
    data = load_data("digits")
    model = build(ModelSource("resnet20", 10, data.image_shape))
    graph = trace(model, torch.zeros(1, *data.image_shape))
    together = at_floors(model, graph, tuple(FORMATS), 0.1, 8)
    for form in FORMATS:
        alone = at_floors(model, graph, (form,), 0.1, 8)
        assert alone.weights[form] == together.weights[form]
        pairs = zip(alone.network.parameters(), together.network.parameters(), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)
