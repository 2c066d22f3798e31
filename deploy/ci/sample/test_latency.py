"""The same check in plain pytest: edgecompress provides the fixture `latency`."""

from collections.abc import Callable

from edgecompress.measure.regression import Comparison


def test_the_model_is_not_slower_than_the_last_release(latency: Callable[..., Comparison]) -> None:
    result = latency(
        "build/model.onnx", against="release/model.onnx", max_regression=0.25, threads=1
    )
    assert result["candidate"]["p50_ms"] > 0
