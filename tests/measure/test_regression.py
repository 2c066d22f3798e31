"""The regression check: its statistics on made-up timings, and the check itself on real files in
real processes.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgecompress.errors import EnvironmentMissingError, UsageError
from edgecompress.measure import latency, products, profile, regression, runtime, worker
from edgecompress.measure.regression import Interval, blocks_needed, interval, verdict
from edgecompress.measure.requests import TimingRequest
from tests.cli.test_cli import one_line, run

FAST = ["--processes", "5", "--blocks", "5", "--threads", "1"]


def matmuls(
    path: Path, count: int, size: int = 192, *, inputs: int = 192, poison: bool = False
) -> Path:
    """A chain of `count` products with `size` x `size` matrices; `poison` makes its outputs NaN."""
    generator = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(
            (generator.standard_normal((inputs if n == 0 else size, size)) / 14).astype(np.float32),
            f"w{n}",
        )
        for n in range(count)
    ]
    if poison:
        weights[0] = numpy_helper.from_array(
            np.full((inputs, size), np.nan, dtype=np.float32), "w0"
        )
    names = ["x", *(f"h{n}" for n in range(count - 1)), "y"]
    nodes = [helper.make_node("MatMul", [names[n], f"w{n}"], [names[n + 1]]) for n in range(count)]
    shapes = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", s])
        for n, s in (("x", inputs), ("y", size))
    ]
    graph = helper.make_graph(nodes, "chain", shapes[:1], shapes[1:], weights)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path
    )
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model, one with three times its work, one of another input, one that gives NaN."""
    folder = tmp_path_factory.mktemp("onnx")
    return {
        "one": matmuls(folder / "one.onnx", 4),
        "three": matmuls(folder / "three.onnx", 12),
        "other": matmuls(folder / "other.onnx", 4, inputs=64),
        "nan": matmuls(folder / "nan.onnx", 4, poison=True),
    }


def timings(
    ratio: float,
    processes: int,
    blocks: int,
    seed: int,
    between: float = 0.01,
    within: float = 0.05,
) -> list[np.ndarray]:
    """Ratios of blocks with a spread between processes and within them."""
    generator = np.random.default_rng(seed)
    shifts = ratio * np.exp(generator.normal(0, between, processes))
    return [shift * np.exp(generator.normal(0, within, blocks)) for shift in shifts]


def test_the_interval_holds_the_true_ratio_about_as_often_as_it_says() -> None:
    held = 0
    for seed in range(200):
        found = interval(timings(1.0, 5, 30, seed))
        held += found.low <= 1.0 <= found.high
    assert 174 <= held <= 200, f"{held} of 200"


def test_no_alarm_between_equals_and_an_alarm_where_there_is_cause() -> None:
    alarms = sum(
        verdict(interval(timings(1.0, 5, 30, seed)), 0.03) == "regression" for seed in range(200)
    )
    caught = sum(
        verdict(interval(timings(1.5, 5, 30, seed, 0.03, 0.2)), 0.05) == "regression"
        for seed in range(50)
    )
    assert alarms <= 2
    assert caught == 50


def test_one_wild_process_does_not_decide() -> None:
    groups = [*timings(1.0, 4, 30, 0), *timings(1.6, 1, 30, 1)]
    assert verdict(interval(groups), 0.05) != "regression"


def test_verdicts_and_what_would_settle_them() -> None:
    assert verdict(Interval(1.1, 1.06, 1.14), 0.05) == "regression"
    assert verdict(Interval(1.0, 0.96, 1.05), 0.05) == "pass"
    open_ = Interval(1.03, 0.97, 1.09)
    assert verdict(open_, 0.05) == "inconclusive"
    assert blocks_needed(open_, 0.05, 150) == 150 * 9
    assert blocks_needed(Interval(1.05, 1.0, 1.1), 0.05, 150) is None, (
        "a median on the line is never settled"
    )


def test_a_slower_file_fails_and_a_faster_one_passes(
    files: dict[str, Path], tmp_path: Path
) -> None:
    done = run(
        "bench",
        files["three"],
        "--against",
        files["one"],
        *FAST,
        "--json",
        "--junit",
        "j.xml",
        "--summary",
        "s.md",
        "--github-action-benchmark",
        "g.json",
        "--bencher",
        "b.json",
        cwd=tmp_path,
    )
    assert done.returncode == 3, done.stderr
    result = json.loads(done.stdout)
    assert result["verdict"] == "regression"
    assert result["ratio"]["ci95"][0] > 1.3
    assert set(result["candidate"]) >= {"p50_ms", "p90_ms", "p99_ms"}
    assert result["candidate"]["p50_ms"] > result["baseline"]["p50_ms"]
    suite = ElementTree.parse(tmp_path / "j.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures")) == ("1", "1")
    assert "regression: candidate" in str(suite[0][0].get("message"))
    assert "**fail**" in (tmp_path / "s.md").read_text()
    entries = json.loads((tmp_path / "g.json").read_text())
    assert entries[0] == {
        "name": "three.onnx p50 latency",
        "unit": "ms",
        "value": result["candidate"]["p50_ms"],
        "range": entries[0]["range"],
    }
    measures = json.loads((tmp_path / "b.json").read_text())["three.onnx"]
    assert measures["latency"]["value"] == pytest.approx(1e6 * result["candidate"]["p50_ms"])
    done = run("bench", files["one"], "--against", files["three"], *FAST, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "latency: pass" in done.stdout


def test_a_file_against_itself_is_no_regression(files: dict[str, Path], tmp_path: Path) -> None:
    done = run(
        "bench",
        files["one"],
        "--against",
        files["one"],
        *FAST,
        "--max-regression",
        "25%",
        "--json",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["verdict"] in ("pass", "inconclusive")


def test_size_is_gated_in_the_same_call(files: dict[str, Path], tmp_path: Path) -> None:
    done = run("bench", files["one"], *FAST, "--max-bytes", "1KB", "--junit", "j.xml", cwd=tmp_path)
    assert done.returncode == 3
    assert "bytes: fail" in done.stdout
    assert run("bench", files["one"], *FAST, "--max-bytes", "10MB", cwd=tmp_path).returncode == 0


def test_stored_results_are_a_baseline_here_and_elsewhere_only_when_asked(
    files: dict[str, Path], tmp_path: Path
) -> None:
    done = run("bench", files["one"], *FAST, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (tmp_path / "base.json").write_text(done.stdout)
    slow = run("bench", files["three"], "--baseline", "base.json", *FAST, "--json", cwd=tmp_path)
    assert slow.returncode == 3, slow.stdout
    assert json.loads(slow.stdout)["normalised"] is False
    other = json.loads(done.stdout)
    other["hardware"]["cpu"] = "another processor"
    (tmp_path / "other.json").write_text(json.dumps(other))
    line = one_line(
        run("bench", files["three"], "--baseline", "other.json", *FAST, cwd=tmp_path), 2
    )
    assert "another processor" in line
    assert "--cross-machine" in line
    rough = run(
        "bench",
        files["three"],
        "--baseline",
        "other.json",
        "--cross-machine",
        *FAST,
        "--json",
        cwd=tmp_path,
    )
    assert json.loads(rough.stdout)["normalised"] is True
    line = one_line(
        run(
            "bench",
            files["one"],
            "--baseline",
            "base.json",
            *FAST,
            "--batch-size",
            "4",
            cwd=tmp_path,
        ),
        2,
    )
    assert "pass the same --batch-size" in line


def test_a_job_summary_is_appended_where_github_asks_for_it(
    files: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "summary.md").write_text("before\n")
    done = run(
        "bench", files["one"], *FAST, cwd=tmp_path, GITHUB_STEP_SUMMARY=str(tmp_path / "summary.md")
    )
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "summary.md").read_text()
    assert text.startswith("before\n## edgecompress bench")
    assert "| candidate | one.onnx |" in text


def test_bad_input_is_one_line(files: dict[str, Path], tmp_path: Path) -> None:
    def line(*arguments: object, code: int = 2) -> str:
        return one_line(run("bench", *arguments, cwd=tmp_path), code)

    (tmp_path / "no.onnx").write_bytes(b"this is no model")
    (tmp_path / "empty.json").write_text("{}")
    assert "cannot be loaded" in line("no.onnx")
    assert "does not exist" in line(files["one"], "--against", "gone.onnx")
    assert "read different inputs ((192,) and (64,))" in line(
        files["one"], "--against", files["other"], *FAST
    )
    assert "gives NaN" in line(files["nan"], *FAST)
    assert "holds no measurements" in line(files["one"], "--baseline", "empty.json")
    assert "cannot be read" in line(files["one"], "--baseline", "gone.json")
    assert "not both" in line(files["one"], "--against", files["one"], "--baseline", "empty.json")
    assert "give --against OLD.onnx and --data" in line(files["one"], "--max-drop", "1%")
    assert "is not in this ONNX Runtime" in line(
        files["one"], "--provider", "CUDAExecutionProvider", code=4
    )
    big = onnx.load(files["one"])
    onnx.save(
        big,
        tmp_path / "parts.onnx",
        save_as_external_data=True,
        location="parts.bin",
        size_threshold=0,
    )
    (tmp_path / "parts.bin").unlink()
    assert "cannot be loaded" in line("parts.onnx")
    strange = helper.make_graph(
        [helper.make_node("Wonder", ["x"], ["y"], domain="nowhere")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("nowhere", 1)]
    onnx.save(
        helper.make_model(strange, opset_imports=opsets, ir_version=9), tmp_path / "strange.onnx"
    )
    assert "cannot be loaded" in line("strange.onnx")


def test_the_fixture_of_the_pytest_plugin(files: dict[str, Path], tmp_path: Path) -> None:
    """A project's own test, run by pytest in a process of its own: the fixture is there without an
    import.
    """
    import subprocess
    import sys

    (tmp_path / "test_speed.py").write_text(
        "def test_faster(latency):\n"
        f"    result = latency({str(files['one'])!r}, against={str(files['three'])!r}, "
        "threads=1, processes=2, blocks=8, looks=())\n"
        "    assert result['verdict'] == 'pass'\n"
        "def test_slower(latency):\n"
        f"    latency({str(files['three'])!r}, against={str(files['one'])!r}, "
        "max_regression=0.05, threads=1, processes=2, blocks=8)\n"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "test_speed.py",
    ]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=200
    )
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "regression: candidate" in done.stdout


def fixed_batch(
    path: Path, batch: object, shape: tuple[object, ...] = (3, 8, 8), kind: int = TensorProto.FLOAT
) -> Path:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", kind, [batch, *shape])],
        [helper.make_tensor_value_info("y", kind, None)],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    return path


@pytest.mark.parametrize(
    ("made", "options", "words"),
    [
        (("b", (3, "H", "W")), (), "reads inputs of any size"),
        ((4, (3, 8, 8)), (), "takes 4 only"),
        (("b", (3, 8, 8), TensorProto.DOUBLE), (), "tensor(double)"),
        (("b", (3, 8, 8)), ("--strict",), "--strict judges a comparison"),
        (("b", (3, 8, 8)), ("--max-regression", "3%"), "--max-regression judges a comparison"),
        (("b", (3, 8, 8)), ("--cross-machine",), "give --baseline FILE.json"),
        (("b", (3, 8, 8)), ("--data", "digits"), "that --max-drop gates"),
    ],
)
def test_what_cannot_be_timed_or_gated_is_refused(
    made: tuple[Any, ...], options: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    path = fixed_batch(tmp_path / "m.onnx", *made)
    assert words in one_line(run("bench", path, *options, *FAST, cwd=tmp_path), 2)


def test_a_file_weighs_what_lies_beside_it_too(tmp_path: Path) -> None:
    weight = onnx.numpy_helper.from_array(np.ones((1000, 3, 1, 1), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [weight],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(
        proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0
    )
    whole = (tmp_path / "m.onnx").stat().st_size + (tmp_path / "m.data").stat().st_size
    assert runtime.file_bytes(tmp_path / "m.onnx") == whole > 12_000
    done = run("bench", "m.onnx", "--max-bytes", "5kB", *FAST, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert f"{whole} bytes, allowed 5000" in done.stdout


@pytest.mark.parametrize(
    "change",
    [
        {"blocks_ms": [[-1.0, 1.0], [1.0, 1.0]]},
        {"blocks_ms": [["1"], ["1"]]},
        {"blocks_ms": [[float("inf")], [1.0]]},
        {"blocks_ms": [[0.0], [1.0]]},
        {"reference_ms": 0.0},
        {"schema": 99},
        {"hardware": None},
        {"candidate": {}, "blocks_ms": 5},
    ],
)
def test_a_baseline_that_was_edited_is_refused(
    change: dict[str, Any], files: dict[str, Path], tmp_path: Path
) -> None:
    stored = regression.stored(files["one"], regression.Protocol(threads=1, processes=2, blocks=2))
    (tmp_path / "b.json").write_text(json.dumps({**stored, **change}))
    with pytest.raises(UsageError, match="baseline"):
        regression.read_stored(tmp_path / "b.json")


def test_a_processor_with_other_instructions_is_another_one(files: dict[str, Path]) -> None:
    protocol = regression.Protocol(threads=1, processes=2, blocks=2)
    stored = regression.stored(files["one"], protocol)
    regression.compare_stored(files["one"], stored, 0.5, protocol, cross_machine=False)
    stored["hardware"]["instructions"] = []
    with pytest.raises(UsageError, match="pass --cross-machine"):
        regression.compare_stored(files["one"], stored, 0.5, protocol, cross_machine=False)


def test_where_nothing_can_be_written_nothing_is_measured(
    files: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    for target in ("file/j.xml", "."):
        line = one_line(run("bench", files["one"], "--junit", target, *FAST, cwd=tmp_path), 2)
        assert "cannot be written" in line


def test_runs_after_a_change_of_model_are_not_counted_on_one_thread_either(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other model has emptied the caches: without that a small file beside a large one looked
    several times slower than it is.
    """
    settled, settle = list[str](), latency.settle

    def watched(loaded: runtime.Runtime, batch: np.ndarray) -> None:
        settled.append(loaded.path.name)
        settle(loaded, batch)

    monkeypatch.setattr(latency, "settle", watched)
    asked = {
        "models": [str(files["one"]), str(files["three"])],
        "threads": 1,
        "provider": "CPUExecutionProvider",
        "batch_size": 1,
        "blocks": 4,
        "block_ms": 0.5,
        "seed": 0,
        "swap": 0,
    }
    assert len(worker.work(TimingRequest(**asked))["blocks_ms"]) == 4
    assert all(one != two for one, two in itertools.pairwise(settled)), "each change once"
    assert len(settled) == 3 * 4, "A BB A, B AA B, ..."


def test_the_peak_of_memory_is_the_models_own(files: dict[str, Path], tmp_path: Path) -> None:
    """Not what this process, the parent of the measuring one, has once held."""
    ballast = np.ones(60_000_000)
    del ballast
    found = regression.profile(files["one"], regression.Protocol(threads=1), [1])
    assert found["rss_before_load_bytes"] < found["peak_rss_bytes"] < 300_000_000
    large = regression.profile(
        matmuls(tmp_path / "large.onnx", 8, 2048), regression.Protocol(threads=1), [1]
    )
    assert large["peak_rss_bytes"] > large["rss_before_load_bytes"] + 100_000_000


def test_a_provider_that_leaves_the_work_to_the_cpu_is_refused(files: dict[str, Path]) -> None:
    """Stock ONNX Runtime offers Azure's provider, which runs nothing of a plain file."""
    if "AzureExecutionProvider" not in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has no AzureExecutionProvider")
    with pytest.raises(EnvironmentMissingError, match="would fall back to the CPU"):
        runtime.load(files["one"], provider="AzureExecutionProvider")


@pytest.mark.parametrize("form", ["qoperator", "dynamic"])
def test_the_work_of_other_quantized_files_is_counted(
    form: str, files: dict[str, Path], tmp_path: Path
) -> None:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        quantize_dynamic,
        quantize_static,
    )

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [{"x": np.ones((1, 192), np.float32)}]

        def get_next(self) -> dict[str, np.ndarray] | None:
            return self.left.pop() if self.left else None

    path = tmp_path / "q.onnx"
    if form == "dynamic":
        quantize_dynamic(files["one"], path)
    else:
        quantize_static(files["one"], path, Reader(), quant_format=QuantFormat.QOperator)
    assert profile.macs(path) == profile.macs(files["one"]) == 4 * 192 * 192


def test_looks_that_were_passed_are_left_out(files: dict[str, Path]) -> None:
    protocol = regression.Protocol(threads=1, processes=3, looks=(2, 3), blocks=5, block_ms=0.5)
    found = regression.compare(files["three"], files["three"], 0.0, protocol)
    assert found["processes"] == 3


def test_the_reference_is_that_of_the_threads_asked_for() -> None:
    assert 0 < products.reference_ms(1, 9) < 100
