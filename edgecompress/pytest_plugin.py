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
    max_regression: float | str = 0.05,
    strict: bool = False,
    threads: int | None = None,
    **more: Any,
) -> Comparison:
    """Measure the .onnx files `model` and `against`, and return the result of
    `measure.regression.compare`; `more` are fields of its `Protocol`. `max_regression` is a share,
    0.05 or "5%". Raises `UsageError` for values out of range, before anything is measured.

    Fails the test when `model` is slower than allowed, with `strict` also when the result is
    inconclusive.
    """
    from edgecompress.measure.regression import Protocol, compare
    from edgecompress.report.ci import sentence
    from edgecompress.units import parse_share

    protocol = Protocol(threads=threads, **more)
    tolerance = parse_share(str(max_regression))
    result = compare(Path(model), Path(against), tolerance, protocol)
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
