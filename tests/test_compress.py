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

from edgecompress import checkpoint, files
from edgecompress.data import load_data
from edgecompress.measure import runtime
from edgecompress.units import parse_size
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


def test_a_target_above_the_teacher_ships_the_lossless_model_and_says_so(tmp_path: Path) -> None:
    done = run(
        "compress", "lenet5", "--target", "50MB", "--epochs", 1, "-o", "out", "--json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert "nothing is pruned" in result["plan_reason"]
    assert result["missed"] == []
    assert {row["format"] for row in result["formats"]} == {"fp32", "fp16", "int8-qdq"}
    model, _ = checkpoint.load(tmp_path / "out" / "model.safetensors")
    assert model.features[0].out_channels == 6


def test_a_target_out_of_reach_exits_3_and_keeps_the_smallest(tmp_path: Path) -> None:
    done = run(
        "compress",
        "lenet5",
        "--target",
        "2KB",
        "--epochs",
        1,
        "--distill-epochs",
        1,
        "-o",
        "out",
        cwd=tmp_path,
    )
    assert done.returncode == 3, done.stderr
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert "smallest reachable" in done.stdout
    assert (tmp_path / "out" / "model.onnx").stat().st_size == result["bytes"] > 2000
    assert abs(result["bytes"] / result["smallest_bytes"] - 1) < 0.05

    asked = run("compress", "lenet5", "--target", "2KB", "--dry-run", cwd=tmp_path).stdout
    (said,) = [line for line in asked.splitlines() if line.startswith("# smallest file: ")]
    assert said.endswith("the target of 2 KB is out of reach (exit code 3)")
    foretold = parse_size(said.removeprefix("# smallest file: ").split(" as ")[0].replace(" ", ""))
    assert abs(result["smallest_bytes"] / foretold - 1) < 0.02


def test_macs_and_latency_are_targets_too(tmp_path: Path) -> None:
    arguments = (
        "compress",
        "lenet5",
        "--target-macs",
        "300k",
        "--target-latency",
        "50ms",
        "--quantize",
        "none",
    )
    done = run(
        *arguments, "--epochs", 1, "--distill-epochs", 1, "-o", "out", "--json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert 240_000 < result["student"]["macs"] <= 300_000
    assert result["format"] == "fp32"
    assert result["student"]["latency_ms"]["p50"] < 50


SHARED = """
from torch import nn


class Shared(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.first, self.again = nn.Conv2d(3, 32, 3, 2, 1), nn.Conv2d(32, 32, 3, padding=1)
        self.out = nn.Linear(32, classes)

    def forward(self, x):
        x = self.first(x).relu()
        for _ in range(6):
            x = self.again(x).relu()
        return self.out(x.mean((2, 3)))


def shared(num_classes):
    return Shared(num_classes)
"""


def test_more_macs_than_the_target_are_a_missed_target(tmp_path: Path) -> None:
    """A layer that is called six times counts six times: it once passed with all of them."""
    (tmp_path / "nets.py").write_text(SHARED)
    arguments = ("compress", "nets.py:shared", "--target-macs", "500k", "--quantize", "none")
    done = run(
        *arguments, "--epochs", 1, "--distill-epochs", 1, "-o", "out", "--json", cwd=tmp_path
    )
    result = json.loads(done.stdout)
    assert result["teacher"]["macs"] == 256 * (32 * 27 + 6 * 32 * 32 * 9) + 320
    assert result["student"]["macs"] > 500_000
    assert done.returncode == 3
    assert "MACs are above the target 500 k" in result["missed"][0]


def test_max_drop_alone_finds_the_smallest_file_that_keeps_it(tmp_path: Path) -> None:
    arguments = (
        "compress",
        "lenet5",
        "--max-drop",
        "8%",
        "--epochs",
        3,
        "--learning-rate",
        "2e-3",
        "--distill-epochs",
        1,
    )
    done = run(*arguments, "-o", "out", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    rounds = [row for row in result["stages"] if row["name"].startswith("search ")]
    first = next(row for row in result["stages"] if row["name"] == "train")
    chosen = next(row for row in result["formats"] if row["format"] == result["format"])
    assert len(rounds) >= 2
    last = next(row for row in result["stages"] if row["name"] == "search")
    assert last["accuracy"] in {row["accuracy"] for row in rounds if row["bytes"] == last["bytes"]}
    assert first["accuracy"] - chosen["accuracy"] <= 0.08 + 1e-9
    assert result["bytes"] < 0.35 * result["teacher"]["bytes"]


OUTLIER = """import torch
from torch import nn


class Outlier(nn.Module):
    # four inputs of a Linear are always 1000: one scale for the whole tensor leaves few steps
    # for the others

    def __init__(self, num_classes):
        super().__init__()
        first = nn.Conv2d(3, 8, 5, 2), nn.BatchNorm2d(8), nn.ReLU()
        second = nn.Conv2d(8, 16, 5, 2), nn.BatchNorm2d(16), nn.ReLU()
        self.features = nn.Sequential(*first, *second)
        self.fc1, self.fc2 = nn.Linear(16 * 25 + 4, 60), nn.Linear(60, num_classes)

    def forward(self, x):
        flat = self.features(x).flatten(1)
        always = 1000 * torch.ones_like(x[:, 0, 0, :4])
        return self.fc2(torch.relu(self.fc1(torch.cat([flat, always], 1))))


def make(num_classes):
    return Outlier(num_classes)
"""


def test_int8_that_loses_too_much_is_planned_again_as_fp16_and_the_better_ships(
    tmp_path: Path,
) -> None:
    """An outlier among the activations really hurts int8; whichever format wins, file and network
    must belong together.
    """
    (tmp_path / "net.py").write_text(OUTLIER)
    name = f"{tmp_path}/net.py:make"
    (tmp_path / "r.yaml").write_text(
        f"command: compress\nmodel: {name}\nstages:\n  - {{stage: train, epochs: 3}}\n  - "
        "{stage: simplify}\n"
        "  - {stage: plan, targets: {bytes: 30KB}}\n  - {stage: prune, steps: 1, epochs: 1}\n  "
        "- {stage: distill, epochs: 1}\n"
        "  - {stage: export}\n  - "
        "{stage: quantize, max_int8_loss: 0, calibration_images: 16}\n  "
        "- {stage: measure}\n"
    )
    done = run("run", "r.yaml", "-o", "out", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    stages = [row["name"] for row in result["stages"]]
    assert stages.count("prune 1of1") == 2
    ships = next(row for row in result["formats"] if row["format"] == result["format"])
    assert (
        ships["bytes"]
        == result["bytes"]
        == (tmp_path / "out" / "model.onnx").stat().st_size
        <= 30_000
    )
    data = load_data("digits")
    images = data.normalised(data.test.pixels).numpy()
    shipped = runtime.load(tmp_path / "out" / "model.onnx").run_all([images])
    network, _ = checkpoint.load(tmp_path / "out" / "model.safetensors", allow_code=name)
    with torch.no_grad():
        expected = network(torch.from_numpy(images)).numpy()
    assert np.abs(shipped - expected).max() <= result["parity"]["max_abs_logit_diff"] * (1 + 1e-4)
    exported = runtime.load(tmp_path / "out" / "model-fp32.onnx").run_all([images])
    np.testing.assert_allclose(exported, expected, atol=1e-4)


def test_a_tiny_target_takes_the_format_in_which_most_weights_fit(tmp_path: Path) -> None:
    """Int8's graph alone takes more than 3 KB; fp32 and fp16 hold some weights."""
    options = ("--target", "3KB", "--epochs", 1, "--distill-epochs", 1)
    done = run("compress", "lenet5", *options, "-o", "out", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["format"] in ("fp16", "fp32")
    assert 2_400 < result["bytes"] <= 3_000
    assert "weights fit; " in result["plan_reason"]


def test_interrupted_runs_resume_to_the_same_result(tmp_path: Path) -> None:
    """A real SIGINT in the middle of a stage: exit 130, and --resume gives the weights of an
    undisturbed run.
    """
    arguments = [
        "compress",
        "lenet5",
        "--target",
        "30KB",
        "--epochs",
        "1",
        "--distill-epochs",
        "1",
        "--steps",
        "2",
    ]
    whole = process(*arguments, "-o", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    reset = ["env", "--default-signal=INT"]  # a shell's background jobs ignore SIGINT
    command = [*reset, sys.executable, "-m", "edgecompress.cli.app", *arguments, "-o", "cut"]
    running = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "CI": "1", **THREADS},
    )
    deadline = time.monotonic() + 200
    while not (tmp_path / "cut" / "05-prune-1of2" / "stage.json").exists():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130, errors
    assert b"--resume" in errors
    assert b"Traceback" not in errors
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


def test_a_users_own_network(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n\ndef net(num_classes):\n"
        "    head = nn.Sequential(nn.Flatten(), nn.Linear(3136, num_classes))\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 64, 3, 2), "
        "nn.ReLU(), head)\n"
    )
    done = run(
        "compress",
        "mine.py:net",
        "--target",
        "30KB",
        "--epochs",
        1,
        "--distill-epochs",
        1,
        "-o",
        "out",
        "--json",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert 27_000 <= json.loads(done.stdout)["bytes"] <= 30_000


def test_a_full_disk_exits_1_and_keeps_whole_files(tmp_path: Path) -> None:
    """A file-size limit of 1 MB stands for the disk: the teacher's file does not fit."""
    code = (
        "import resource, signal, sys\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))\n"
        "from edgecompress.cli.app import run_command\nsys.exit(run_command(sys.argv[1:]))\n"
    )
    command = [
        sys.executable,
        "-c",
        code,
        "compress",
        "student1",
        "--target",
        "60KB",
        "--epochs",
        "1",
        "-q",
        "-o",
        "out",
    ]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "free the space" in done.stderr
    assert sorted(p.name for p in (tmp_path / "out").rglob("*") if p.is_file()) == [
        "log.jsonl",
        "resolved.yaml",
    ]
