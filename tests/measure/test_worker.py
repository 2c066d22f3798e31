"""Timing in the child process."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from edgecompress.errors import UsageError
from edgecompress.measure import latency, runtime, worker
from edgecompress.measure.requests import TimingRequest
from tests.measure.models import one_operation


def short(*models: Path) -> TimingRequest:
    return TimingRequest(
        models=tuple(map(str, models)),
        threads=1,
        provider="CPUExecutionProvider",
        batch_size=1,
        blocks=4,
        block_ms=0.5,
        seed=0,
        swap=0,
    )


def test_runs_after_a_change_of_model_are_not_counted_even_on_one_thread(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other model has emptied the caches: otherwise a small file timed in turns with a large
    one looks several times slower than it is.
    """
    settle = latency.settle
    settled: list[str] = []

    def watched(loaded: runtime.Runtime, batch: np.ndarray) -> None:
        settled.append(loaded.path.name)
        settle(loaded, batch)

    monkeypatch.setattr(latency, "settle", watched)
    request = short(files["one"], files["three"])
    assert len(worker.work(request)["blocks_ms"]) == 4
    assert all(one != two for one, two in itertools.pairwise(settled)), "each change once"
    assert len(settled) == 3 * 4, "A BB A, B AA B, ..."


def test_a_network_that_takes_roots_is_timed_on_magnitudes(tmp_path: Path) -> None:
    path = one_operation(tmp_path / "root.onnx", "Sqrt")
    answer = worker.work(short(path))
    assert len(answer["blocks_ms"]) == 4


def test_outputs_that_are_never_finite_are_refused(tmp_path: Path) -> None:
    path = one_operation(tmp_path / "angle.onnx", "Acosh")  # needs numbers above 1
    with pytest.raises(UsageError, match=r"gives NaN or infinite outputs, first at layer"):
        worker.work(short(path))
