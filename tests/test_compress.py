"""Whole runs through the command line, on small networks: the contract of `result.json`, resume,
targets, and the report.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgecompress import files
from edgecompress.data import load_data
from edgecompress.measure import runtime
from tests import forked
from tests.cli.test_cli import THREADS, one_line, process, run

FAST = ("--epochs", 3, "--learning-rate", "1e-3", "--distill-epochs", 2)


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """`compress student1 --target 60KB` on digits, with `--json`."""
    folder = tmp_path_factory.mktemp("compress")
    done = process(
        "compress", "student1", "--target", "60KB", *FAST, "-o", "out", "--json", cwd=folder
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result == json.loads((folder / "out" / "result.json").read_text())
    return folder / "out", result


def test_result_holds_the_contract(compressed: tuple[Path, dict[str, Any]]) -> None:
    root, result = compressed
    expected = {
        "schema",
        "command",
        "model",
        "data",
        "seed",
        "target_bytes",
        "artifact",
        "bytes",
        "format",
        "teacher",
        "student",
        "stages",
        "parity",
        "latency_ratio",
        "load",
        "accuracy_difference",
        "wall_s",
        "peak_rss_bytes",
        "versions",
        "hardware",
    }
    assert expected <= set(result)
    assert (result["schema"], result["command"], result["model"], result["data"]) == (
        1,
        "compress",
        "student1",
        "digits",
    )
    assert result["target_bytes"] == 60_000
    for side in ("teacher", "student"):
        assert {"bytes", "params", "macs", "accuracy", "latency_ms", "threads"} <= set(result[side])
        assert set(result[side]["latency_ms"]) == {"p50", "p90", "p99"}
        low, high = result[side]["ci95"]
        assert 0 <= low <= result[side]["accuracy"] <= high <= 1
        assert result[side]["n"] == 359
    assert all({"n", "ci95"} <= set(row) for row in (*result["stages"], *result["formats"]))
    points = result["student"]["accuracy"] - result["teacher"]["accuracy"]
    assert result["accuracy_difference"]["difference"] == pytest.approx(points)
    low, high = result["latency_ratio"]["ci95"]
    assert 0 < low <= result["latency_ratio"]["median"] <= high
    assert set(result["load"]) == {"other_cores", "steal", "noisy"}
    assert all({"name", "accuracy", "params", "wall_s"} <= set(row) for row in result["stages"])
    assert {"max_abs_logit_diff", "top1_agreement"} <= set(result["parity"])
    assert result["teacher"]["params"] == 706_752
    assert result["teacher"]["bytes"] == (root / "01-train" / "teacher.onnx").stat().st_size


def test_the_file_is_in_range_and_its_size_is_bytes_on_disk(
    compressed: tuple[Path, dict[str, Any]],
) -> None:
    root, result = compressed
    size = (root / "model.onnx").stat().st_size
    assert result["bytes"] == result["student"]["bytes"] == size
    assert 0.9 * 60_000 <= size <= 60_000
    assert result["format"] == "int8-qdq"
    shown = f"({result['bytes']} bytes, "
    assert shown in result["format_reason"], "of the file that ships, with its metadata"
    assert shown in result["stages"][-1]["note"]


def test_the_run_directory_is_complete_and_clean(compressed: tuple[Path, dict[str, Any]]) -> None:
    root, _ = compressed
    names = {p.name for p in root.iterdir()}
    assert names >= {
        "resolved.yaml",
        "result.json",
        "history.csv",
        "log.jsonl",
        "model.onnx",
        "model-fp32.onnx",
        "model.safetensors",
        "report.html",
    }
    assert not [
        p for p in root.rglob("*") if p.name.endswith(".tmp") or p.name.startswith("candidate")
    ]
    events = [row["event"] for row in files.read_lines(root / "log.jsonl")]
    assert events[0] == "start"
    assert events[-1] == "end"


def test_lossless_steps_are_stages_that_lose_nothing(
    compressed: tuple[Path, dict[str, Any]],
) -> None:
    _, result = compressed
    rows = {row["name"]: row for row in result["stages"]}
    assert rows["fold-pool"]["lossless"]
    assert rows["fold-pool"]["accuracy"] == rows["train"]["accuracy"]
    assert rows["fold-pool"]["params"] == 706_752 - 128 * (49 - 16) * 100
    assert rows["fold-pool"]["max_abs_logit_diff"] < 1e-4


def test_predict_reproduces_the_accuracy(compressed: tuple[Path, dict[str, Any]]) -> None:
    root, result = compressed
    done = run("predict", root / "model.onnx", "--data", "digits", "--json", cwd=root.parent)
    assert json.loads(done.stdout)["accuracy"] == result["student"]["accuracy"]


def test_predict_names_an_image(compressed: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    from PIL import Image

    root, _ = compressed
    data = load_data("digits")
    logits = runtime.load(root / "model.onnx").run(data.normalised(data.test.pixels[:1]).numpy())
    Image.fromarray(data.test.pixels[0].permute(1, 2, 0).numpy()).save(tmp_path / "digit.png")
    (row,) = json.loads(
        run("predict", root / "model.onnx", tmp_path / "digit.png", "--json", cwd=tmp_path).stdout
    )["predictions"]
    assert row["label"] == str(int(logits.argmax()))
    assert 0.1 < row["probability"] <= 1
    (tmp_path / "no.png").write_bytes(b"no")
    assert "cannot be read" in one_line(
        run("predict", root / "model.onnx", tmp_path / "no.png", cwd=tmp_path), 2
    )


def test_a_fresh_process_rebuilds_the_network_behind_the_files(
    compressed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    root, result = compressed
    code = (
        "import sys, torch\nfrom pathlib import Path\nfrom edgecompress import checkpoint, "
        "load_data\n"
        "data = load_data('digits'); model, _ = checkpoint.load(Path(sys.argv[1]))\n"
        "with torch.no_grad(): torch.save(model(data.normalised(data.test.pixels[:64])), "
        "sys.argv[2])\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, root / "model.safetensors", tmp_path / "out.pt"], check=True
    )
    logits = torch.load(tmp_path / "out.pt").numpy()
    data = load_data("digits")
    images = data.normalised(data.test.pixels[:64]).numpy()
    exported = runtime.load(root / "model-fp32.onnx").run(images)
    np.testing.assert_allclose(exported, logits, atol=1e-5 * max(1.0, np.abs(logits).max()))
    shipped = runtime.load(root / "model.onnx").run(images)
    assert np.abs(shipped - logits).max() <= result["parity"]["max_abs_logit_diff"] * (1 + 1e-4)


def test_the_report_opens_in_chromium(
    compressed: tuple[Path, dict[str, Any]], chromium: str, tmp_path: Path
) -> None:
    root, result = compressed
    command = [
        chromium,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
        str(root / "report.html"),
    ]
    page = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "student1 on digits (demo)" in page
    assert str(result["bytes"]) in page
    assert page.count("<svg") == 2
    assert f"{result['student']['accuracy']:.2%}" in page
    source = (root / "report.html").read_text()
    assert "<script" not in source
    assert 'src="http' not in source
    assert "<link" not in source


def test_the_report_is_written_again_from_its_files(
    compressed: tuple[Path, dict[str, Any]],
) -> None:
    root, _ = compressed
    before = (root / "report.html").read_text()
    (root / "report.html").unlink()
    assert run("report", root, cwd=root).returncode == 0
    assert (root / "report.html").read_text() == before


def test_the_human_output_names_the_data_and_the_report(
    compressed: tuple[Path, dict[str, Any]],
) -> None:
    root, _ = compressed
    arguments = ("compress", "student1", "--target", "60KB", *FAST, "-o", root, "--resume")
    done = run(*arguments, cwd=root)
    assert done.returncode == 0, done.stderr
    assert "trained on digits (demo)" in done.stdout
    assert "report.html" in done.stdout
    for word in ("file", "parameters", "MACs", "test accuracy", "p50 latency"):
        assert word in done.stdout


def test_resume_with_other_settings_is_refused(compressed: tuple[Path, dict[str, Any]]) -> None:
    root, _ = compressed
    text = one_line(
        run("compress", "student1", "--target", "50KB", *FAST, "-o", root, "--resume", cwd=root), 2
    )
    assert "other settings" in text


def test_interrupted_runs_resume_to_the_same_result(few: str, tmp_path: Path) -> None:
    """A real SIGINT in the middle of a stage: exit 130, and --resume gives the weights of an
    undisturbed run.
    """
    arguments = [
        "compress",
        "lenet5",
        "--target",
        "30KB",
        "--data",
        few,
        "--epochs",
        "1",
        "--distill-epochs",
        "1",
        "--steps",
        "2",
    ]
    whole = process(*arguments, "-o", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    log = tmp_path / "log"
    command = ["-m", "edgecompress", *arguments, "-o", "cut"]
    environment = {**os.environ, "CI": "1", **THREADS}
    running = forked.start(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
    deadline = time.monotonic() + 200
    while not (tmp_path / "cut" / "05-prune-1of2" / "stage.json").exists():
        assert running.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    assert running.wait(60) == 130, log.read_text()
    assert "--resume" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert not (tmp_path / "cut" / "result.json").exists()
    resumed = process(*arguments, "-o", "cut", "--resume", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    for name in ("model.onnx", "model-fp32.onnx", "model.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), (
            name
        )


def test_a_folder_of_images_and_the_other_verbs(digits_folder: Path, tmp_path: Path) -> None:
    data = ("--data", f"folder:{digits_folder}")
    assert run("train", "student1", *data, "--epochs", 2, "-o", "t", cwd=tmp_path).returncode == 0
    pruned = run(
        "prune",
        "t",
        "--amount",
        "50%",
        "--criterion",
        "l1",
        *data,
        "--epochs",
        1,
        "-o",
        "p",
        "--json",
        cwd=tmp_path,
    )
    assert pruned.returncode == 0, pruned.stderr
    rows = json.loads(pruned.stdout)["stages"]
    assert 0.45 < rows[-1]["params"] / rows[0]["params"] <= 0.5
    quantized = run("quantize", "p", *data, "--quantize", "int8", "-o", "q", "--json", cwd=tmp_path)
    assert quantized.returncode == 0, quantized.stderr
    assert json.loads(quantized.stdout)["format"] == "int8-qdq"
    assert run("export", "p", *data, "-o", "e", cwd=tmp_path).returncode == 0
    image = next((digits_folder / "class1").iterdir())
    assert "class" in run("predict", tmp_path / "q" / "model.onnx", image, cwd=tmp_path).stdout
    measured = json.loads(
        run(
            "bench",
            tmp_path / "q" / "model.onnx",
            "--json",
            "--blocks",
            5,
            "--processes",
            5,
            cwd=tmp_path,
        ).stdout
    )
    assert measured["candidate"]["p50_ms"] > 0
    image.write_bytes(next((digits_folder / "class0").iterdir()).read_bytes())
    changed = run(
        "train", "student1", *data, "--epochs", 2, "-o", "t", "--resume", "-q", cwd=tmp_path
    )
    assert "has changed" in one_line(changed, 2)
    criterion = run("prune", "t", "--criterion", "bn", *data, "-o", "b", cwd=tmp_path)
    assert criterion.returncode == 2
    assert "needs BatchNorm" in criterion.stderr
