"""`edgecompress bench`: the regression check on real files in real processes."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgecompress.measure import runtime
from tests.cli.test_cli import one_line, run
from tests.measure.models import fixed_batch, matmuls

FAST = ["--processes", "5", "--blocks", "5", "--threads", "1"]


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


def test_stored_results_are_a_baseline_on_this_machine_or_with_cross_machine(
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
    other["candidate"]["sha256"] = "0" * 64  # its file is not at hand
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


def test_a_job_summary_is_appended_to_github_step_summary(
    files: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "summary.md").write_text("before\n")
    done = run(
        "bench",
        files["one"],
        *FAST,
        cwd=tmp_path,
        GITHUB_STEP_SUMMARY=str(tmp_path / "summary.md"),
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


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (("b", (3, "H", "W")), (), "say the sizes, e.g. --shape x=1x3x224x224"),
        ((4, (3, 8, 8)), ("--batch-size", "1"), "takes batches of 4 only: give --batch-size 4"),
        (("b", (3, 8, 8)), ("--shape", "x=1x2"), "--shape x=1x2: 'm.onnx' reads"),
        (("b", (3, 8, 8)), ("--shape", "1x2"), "--shape '1x2' is no input with sizes"),
        (("b", (3, 8, 8)), ("--junit", "a", "--bencher", "./a"), "is named for two results"),
        (("b", (3, 8, 8)), ("--history", "."), "cannot be written"),
        (("b", (3, 8, 8)), ("--time", "5"), "--time: duration '5' has no unit"),
        (("b", (3, 8, 8)), ("--strict",), "--strict judges a comparison"),
        (("b", (3, 8, 8)), ("--max-regression", "3%"), "--max-regression judges a comparison"),
        (("b", (3, 8, 8)), ("--cross-machine",), "give --baseline FILE.json"),
        (("b", (3, 8, 8)), ("--data", "digits"), "that --max-drop gates"),
    ],
)
def test_inputs_that_cannot_be_timed_or_gated_are_refused(
    model: tuple[Any, ...], options: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    path = fixed_batch(tmp_path / "m.onnx", *model)
    assert words in one_line(run("bench", path, *options, *FAST, cwd=tmp_path), 2)


def test_external_data_count_as_bytes_of_the_file(tmp_path: Path) -> None:
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
    size = (tmp_path / "m.onnx").stat().st_size + (tmp_path / "m.data").stat().st_size
    assert runtime.file_bytes(tmp_path / "m.onnx") == size > 12_000
    done = run("bench", "m.onnx", "--max-bytes", "5kB", *FAST, cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    assert f"{size} bytes, allowed 5000" in done.stdout


def test_unwritable_outputs_are_refused_before_measuring(
    files: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    for target in ("file/j.xml", "."):
        line = one_line(run("bench", files["one"], "--junit", target, *FAST, cwd=tmp_path), 2)
        assert "cannot be written" in line


def test_free_sizes_and_fixed_batches_are_measured(tmp_path: Path) -> None:
    fixed_batch(tmp_path / "four.onnx", 4)
    done = run("bench", "four.onnx", *FAST, "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["batch"] == 4, done.stderr
    fixed_batch(tmp_path / "free.onnx", "n", (3, "h", "w"))
    options = ("--shape", "x=2x3x16x16", *FAST)
    assert run("bench", "free.onnx", *options, cwd=tmp_path).returncode == 0


def test_files_of_one_name_are_told_apart(files: dict[str, Path], tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.onnx").write_bytes(files["one"].read_bytes())
    done = run("bench", "new", "--against", "old", *FAST, "--max-regression", "90%", cwd=tmp_path)
    assert "new/model.onnx" in done.stdout, done.stderr
    assert "old/model.onnx" in done.stdout


def test_a_users_own_onnx_py_is_not_imported(files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "onnx.py").write_text("raise SystemExit('the working folder was imported')")
    done = run("bench", files["one"], *FAST, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_control_characters_do_not_break_junit(files: dict[str, Path], tmp_path: Path) -> None:
    name = "a\x01b&<.onnx"
    (tmp_path / name).write_bytes(files["one"].read_bytes())
    done = run("bench", name, *FAST, "--max-bytes", "1B", "--junit", "j.xml", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    case = ElementTree.parse(tmp_path / "j.xml").getroot()[0][0]
    assert case.get("name") == "bytes of a\ufffdb&<.onnx"


def test_a_history_is_kept_and_a_slow_drift_fails(files: dict[str, Path], tmp_path: Path) -> None:
    first = run("bench", files["one"], *FAST, "--history", "h.jsonl", cwd=tmp_path, GITHUB_SHA="c0")
    assert first.returncode == 0, first.stderr
    assert "drift: pass: no drift above 5.0% in 1 measurement(s)" in first.stdout
    entry = json.loads((tmp_path / "h.jsonl").read_text())
    assert entry["commit"] == "c0"
    older = [
        {**entry, "commit": f"c{number}", "fastest_ms": entry["fastest_ms"] * level}
        for number, level in enumerate([0.5] * 8 + [0.9, 0.91, 0.92, 0.93, 0.94, 0.95])
    ]
    (tmp_path / "h.jsonl").write_text("".join(json.dumps(one) + "\n" for one in older))
    done = run("bench", files["one"], *FAST, "--history", "h.jsonl", "--json", cwd=tmp_path)
    assert done.returncode == 3, done.stderr
    (gate,) = json.loads(done.stdout)["gates"]
    assert gate["name"] == "drift"
    assert gate["began"] == "c8"
    assert len((tmp_path / "h.jsonl").read_text().splitlines()) == 15


def test_a_baseline_of_another_runtime_is_measured_again_or_refused(
    files: dict[str, Path], tmp_path: Path
) -> None:
    done = run("bench", files["one"], *FAST, "--json", cwd=tmp_path)
    other = json.loads(done.stdout)
    other["versions"]["onnxruntime"] = "1.2.3"
    (tmp_path / "other.json").write_text(json.dumps(other))
    again = run("bench", files["three"], "--baseline", "other.json", *FAST, "--json", cwd=tmp_path)
    assert again.returncode == 3, again.stderr
    assert json.loads(again.stdout)["remeasured"] is True
    other["candidate"]["sha256"] = "0" * 64
    (tmp_path / "other.json").write_text(json.dumps(other))
    line = one_line(run("bench", files["one"], "--baseline", "other.json", *FAST, cwd=tmp_path), 2)
    assert "by ONNX Runtime 1.2.3" in line
    assert "give --against OLD.onnx" in line


def test_a_slow_model_is_judged_within_its_time(tmp_path: Path) -> None:
    slow = matmuls(tmp_path / "slow.onnx", 30, 1200, inputs=1200)
    options = ("--batch-size", 64, "--threads", 1, "--time", "3s", "--max-regression", "90%")
    start = time.perf_counter()
    done = run("bench", slow, "--against", slow, *options, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["candidate"]["p50_ms"] > 20
    assert time.perf_counter() - start < 25
