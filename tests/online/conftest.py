"""The data of all lessons, and servers that are stopped after each test."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from edgecompress.data import DataSet, load_data
from tests.online.support import Serve, ServedLesson


@pytest.fixture(scope="session")
def data() -> DataSet:
    """200 training and 60 validation images of the digits."""
    digits = load_data("digits")
    return replace(
        digits,
        train=digits.train.rows(torch.arange(200)),
        validation=digits.validation.rows(torch.arange(60)),
    )


@pytest.fixture
def serve_lesson(data: DataSet) -> Iterator[Serve]:
    """Serves lessons of the fixture `data`."""
    running = list[ServedLesson]()

    def start(**options: object) -> ServedLesson:
        running.append(ServedLesson(data, **options))  # type: ignore[arg-type]
        return running[-1]

    yield start
    for served in running:
        served.stop()
