"""A pytest plugin: the fixture `latency`, with the statistics of `edgecompress bench --against`.

def test_not_slower(latency):
    latency("build/model.onnx", against="release/model.onnx", max_regression=0.05)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from edgecompress.measure.regression import Comparison


def check_latency(
    model: str | Path,
    *,
    against: str | Path,
    max_regression: float = 0.05,
    strict: bool = False,
    threads: int | None = None,
    **more: Any,
) -> Comparison:
    """Measure the .onnx files `model` and `against`, and return the result of
    `measure.regression.compare`; `more` are fields of its `Protocol`.

    Fails the test when `model` is slower than allowed, with `strict` also when the result is
    inconclusive.
    """
    from edgecompress.measure.regression import Protocol, compare
    from edgecompress.report.ci import sentence

    protocol = Protocol(threads=threads, **more)
    result = compare(Path(model), Path(against), max_regression, protocol)
    failures = ("regression", "inconclusive") if strict else ("regression",)
    if result["verdict"] in failures:
        pytest.fail(sentence(result), pytrace=False)
    return result


@pytest.fixture
def latency() -> Callable[..., Comparison]:
    """`latency(model, against=..., max_regression=0.05)`: fails the test when the model is slower
    than allowed.
    """
    return check_latency
