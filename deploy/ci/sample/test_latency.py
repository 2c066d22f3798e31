"""The same check from plain pytest: the fixture `latency` comes with edgecompress."""


def test_the_model_is_not_slower_than_the_last_release(latency):
    result = latency(
        "build/model.onnx", against="release/model.onnx", max_regression=0.25, threads=1
    )
    assert result["candidate"]["p50_ms"] > 0
