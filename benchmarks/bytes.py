"""Bytes of the file that ships: what its graph takes, and what fewer bits cost in accuracy.

    python benchmarks/bytes.py --fixed                       # fixed cost of int8 files; 2 minutes
    python benchmarks/bytes.py --data DIR --checkpoint FILE  # ResNet-20 in 8, 4 and 2 bits; an hour
    python benchmarks/bytes.py --collect RUN...              # rows of runs made elsewhere, on a GPU
    python benchmarks/bytes.py --speed RUN... --oldest 1.15.1

Fixed cost: bytes of a file that are no values of weights, biases and scales; before is the file of
ONNX Runtime's static quantization as it comes, with names and value infos of the exporter.

Accuracy: the network of FILE (--epochs of training from scratch without it), fine-tuned on each
grid by distillation from itself in fp32; validation is a tenth of DIR/train, the test split is read
once per file. Beside it: ONNX Runtime's own static int8 of the same network, and whether its 4-bit
weights take convolutions.

Speed: each file against the int8 file of the same network, by `edgecompress bench` (interleaved
blocks in fresh processes), with load time and peak memory; --oldest repeats load and inference in
that ONNX Runtime, installed for it, and compares the outputs. Results: results/bytes.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import yaml

from common import SEED, SMOKE_IMAGES, Bench, Row, add_images, bench_of, edgecompress, parser
from edgecompress.data import Images, load_data
from edgecompress.export import calibration, lean
from edgecompress.export import onnx as onnx_export
from edgecompress.export import quantize as quantizer
from edgecompress.measure import runtime
from edgecompress.models.registry import ModelSource, build
from edgecompress.proportions import interval

SHAPE = (3, 32, 32)
NETWORKS = ("resnet20", "mobilenet_v2", "vgg16", "lenet5", "student3")
BARS = {"resnet20": 6_000, "mobilenet_v2": 14_000, "vgg16": 5_000}
"""Bytes that the graph may take at most."""
FORMS = {"int8": (1, 0.002), "int4": (3, 0.02), "int2": (6, 0.02)}
"""Epochs and highest learning rate of the fine-tuning in each format."""
IN_ANOTHER = """
import json, sys, time
import numpy as np
import onnxruntime as ort
rows = []
for path in sys.argv[1:]:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    begun = time.perf_counter()
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    load = time.perf_counter() - begun
    x = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    feeds = {session.get_inputs()[0].name: x}
    times = []
    for _ in range(300):
        begun = time.perf_counter()
        outputs = session.run(None, feeds)[0]
        times.append(time.perf_counter() - begun)
    rows.append({"load_ms": 1e3 * load, "p50_ms": 1e3 * float(np.median(times)),
                 "outputs": outputs.ravel().tolist()})
print(json.dumps({"onnxruntime": ort.__version__, "rows": rows}))
"""
"""What an older runtime, in a Python process of its own, says of files."""


def fixed_costs(bench: Bench) -> list[Row]:
    """A row for each network: its int8 file as it comes, and lean."""
    rows = []
    for name in bench.size(NETWORKS, ("lenet5",)):
        torch.manual_seed(SEED)
        model = build(ModelSource(name, 10, SHAPE)).eval()
        images = np.random.default_rng(SEED).standard_normal((8, *SHAPE)).astype(np.float32)
        with tempfile.TemporaryDirectory() as folder:
            fp32 = Path(folder) / "fp32.onnx"
            onnx_export.save(onnx_export.to_onnx(model, torch.zeros(1, *SHAPE)), fp32)
            before = quantizer.quantized(calibration.calibrate(fp32, [images]))
        after = lean.shipped(before).proto
        row: Row = {
            "network": name,
            "bytes_before": before.ByteSize(),
            "fixed_before": lean.overhead(before),
            "bytes": after.ByteSize(),
            "fixed": lean.overhead(after),
            "bar": BARS.get(name),
        }
        rows.append(row)
        print(row, flush=True)
    return rows


def train(bench: Bench, data: Path, arguments: argparse.Namespace, work: Path) -> list[Path]:
    """Run directories of ResNet-20 in each format."""
    checkpoint = arguments.checkpoint
    name = bench.size("resnet20", "lenet5")
    shared: dict[str, Any] = {
        "model": name,
        "data": f"folder:{data}",
        "seed": arguments.seed,
        "device": arguments.device,
    }
    if checkpoint is None:
        first = {"stage": "train", "epochs": bench.size(arguments.epochs, 1)}
        _run({**shared, "stages": [first, {"stage": "export"}]}, work / "fp32")
        checkpoint = work / "fp32" / "model.safetensors"
    runs = []
    for form in bench.size(arguments.forms, ["int8", "int2"]):
        epochs, rate = FORMS[form]
        tuned = {
            "stage": "qat",
            "epochs": bench.size(epochs, 1),
            "batch_size": bench.size(256, 32),
            "optimizer": "sgd",
            "learning_rate": rate,
            "weight_decay": 1e-4,
        }
        stages = [
            {"stage": "load", "checkpoint": str(checkpoint)},
            tuned,
            {"stage": "export"},
            {"stage": "quantize", "quantize": form},
            {"stage": "measure", "samples": bench.size(200, 20)},
        ]
        runs.append(work / form)
        _run({**shared, "stages": stages}, runs[-1])
        bench.store(accuracy=_accuracies(bench, [_collected(runs[-1])]))
    return runs


def _run(recipe: Row, output: Path) -> None:
    """Run `recipe`; its directory is `output`."""
    output.parent.mkdir(parents=True, exist_ok=True)
    path = output.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    edgecompress("run", path, "-o", output)


def _collected(run: Path) -> Row:
    """What a run says of its file: bytes, accuracy against fp32 on the same images, machine."""
    result = json.loads((run / "result.json").read_text())
    tuned = next(row for row in result["stages"] if row["name"] == "qat")
    recipe = run / "resolved.yaml"
    recipe = recipe if recipe.is_file() else run.with_suffix(".yaml")
    stages = yaml.safe_load(recipe.read_text())["stages"]
    settings = next(stage for stage in stages if stage["stage"] == "qat")
    keys = ("epochs", "batch_size", "optimizer", "learning_rate")
    return {
        "format": result["format"],
        "seed": result["seed"],
        "bytes": result["bytes"],
        "validation": {key: tuned[key] for key in ("accuracy", "n", "ci95")},
        "test": {key: result["student"][key] for key in ("accuracy", "n", "ci95")},
        "fp32": {key: result["teacher"][key] for key in ("bytes", "accuracy", "n", "ci95")},
        "difference": result["accuracy_difference"],
        "tuning": {key: settings.get(key) for key in keys},
        "device": settings_device(result),
        "wall_s": result["wall_s"],
        "hardware": {k: v for k, v in result["hardware"].items() if k != "gpu"},
        "versions": result["versions"],
    }


def settings_device(result: Row) -> str:
    """The processor or GPU of a run."""
    hardware = result["hardware"]
    return str(hardware.get("gpu") or hardware.get("cpu"))


def _accuracies(bench: Bench, rows: Sequence[Row]) -> list[Row]:
    """`rows` among those that the result file has, each format and seed once."""
    known = bench.known().get("accuracy", [])
    new = {(row["format"], row["seed"]): row for row in [*known, *rows]}
    return [new[key] for key in sorted(new, key=lambda key: (-_bits(key[0]), key[1]))]


def _bits(form: str) -> int:
    return int("".join(letter for letter in form if letter.isdigit()))


def plain_int8(run: Path, data: Path) -> Row:
    """ONNX Runtime's own static int8 of the network of `run` (its defaults, 256 training images),
    on the test split; and whether its 4-bit weights take convolutions.
    """
    from onnxruntime.quantization import quantize_static
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    images = load_data(f"folder:{data}")
    chosen = torch.linspace(0, len(images.train) - 1, 256).long().clamp_max(len(images.train) - 1)
    pixels = images.normalised(images.train.pixels[chosen]).numpy()
    fp32 = run / "model-fp32.onnx"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        reader = calibration.Reader(quantizer.batches_of(pixels), "input")
        quantize_static(str(fp32), str(path), reader, per_channel=True)
        loaded = runtime.load(path)
        batches = (images.normalised(images.test.pixels[i]).numpy() for i in _parts(images.test))
        outputs = torch.from_numpy(loaded.run_all(batches))
        size = path.stat().st_size
    right = int((outputs.argmax(1) == images.test.labels).sum())
    few = MatMulNBitsQuantizer(onnx.load(str(fp32)), block_size=32)
    few.process()
    operators = [node.op_type for node in few.model.model.graph.node]
    return {
        "static_int8": {
            "bytes": size,
            "accuracy": right / len(images.test),
            "n": len(images.test),
            "ci95": list(interval(right, len(images.test))),
        },
        "weights_in_4_bits": {
            "layers": operators.count("MatMulNBits"),
            "convolutions_left_in_float": operators.count("Conv"),
        },
    }


def _parts(split: Images) -> list[torch.Tensor]:
    return [*torch.arange(len(split)).split(256)]


def speeds(bench: Bench, runs: Sequence[Path], oldest: str | None) -> Row:
    """Each file of `runs` against the int8 file among them."""
    files = {json.loads((run / "result.json").read_text())["format"]: run for run in runs}
    base = files["int8-qdq"] / "model.onnx"
    rows = []
    for form, run in files.items():
        path = run / "model.onnx"
        row: Row = {"format": form, "bytes": path.stat().st_size}
        profile = edgecompress("bench", path, "--json")["profile"]
        row |= {key: profile[key] for key in ("load_ms", "cold_start_ms", "peak_rss_bytes")}
        if path != base:
            time = ("--time", bench.size("2min", "1s"))
            found = edgecompress("bench", path, "--against", base, *time, "--json", exits=(0, 3))
            row["against_int8"] = found["ratio"]
        rows.append(row)
        print(row, flush=True)
    part: Row = {"rows": rows, **bench.described("--speed", "RUN...", "--oldest", oldest)}
    if oldest is not None or bench.smoke:
        paths = {form: run / "model.onnx" for form, run in files.items()}
        part["oldest"] = _in_oldest(oldest, paths)
    return part


def _in_oldest(version: str | None, files: dict[str, Path]) -> Row:
    """Load time, p50 and outputs of `files` in another ONNX Runtime (None: this one), and in this
    one.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = {}
        if version is not None:
            install = [sys.executable, "-m", "pip", "install", "-q", "--target", folder]
            subprocess.run([*install, f"onnxruntime=={version}", "numpy<2"], check=True)
            environment["PYTHONPATH"] = folder
        old = _measured(environment, files)
    new = _measured({}, files)
    rows = []
    for form, before, after in zip(files, old["rows"], new["rows"], strict=True):
        equal = np.array_equal(before.pop("outputs"), after.pop("outputs"))
        rows.append({"format": form, "same_outputs": equal, "oldest": before, "newest": after})
    return {"oldest": old["onnxruntime"], "newest": new["onnxruntime"], "rows": rows}


def _measured(environment: dict[str, str], files: dict[str, Path]) -> Row:
    command = [sys.executable, "-c", IN_ANOTHER, *map(str, files.values())]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    found: Row = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Run the parts that were asked for; at smoke size, all of them on a small network."""
    options = parser(__doc__)
    add_images(options, "--data")
    options.add_argument("--fixed", action="store_true", help="fixed cost of int8 files")
    options.add_argument("--checkpoint", type=Path, help="a trained ResNet-20")
    options.add_argument("--epochs", type=int, default=60, help="of training without a checkpoint")
    options.add_argument("--forms", nargs="+", choices=[*FORMS], default=[*FORMS])
    options.add_argument("--seed", type=int, default=SEED)
    options.add_argument("--device", default="cpu")
    options.add_argument("--work", type=Path, help="folder of the runs; default: a temporary one")
    options.add_argument("--collect", type=Path, nargs="+", default=[], metavar="RUN")
    options.add_argument("--speed", type=Path, nargs="+", default=[], metavar="RUN")
    options.add_argument("--oldest", metavar="VERSION", help="an ONNX Runtime to load them in, too")
    arguments = options.parse_args()
    bench = bench_of(__file__, arguments)
    if arguments.fixed or bench.smoke:
        bench.store(fixed={"rows": fixed_costs(bench), **bench.described("--fixed")})
    speed = arguments.speed
    with tempfile.TemporaryDirectory() as folder:
        work = (arguments.work or Path(folder)).expanduser().resolve()
        if arguments.data is not None or bench.smoke:
            data = bench.images(arguments.data or SMOKE_IMAGES, work)
            runs = train(bench, data, arguments, work)
            speed = speed or (runs if bench.smoke else [])
            bench.store(peer={**plain_int8(runs[0], data), **bench.described("--data", "DIR")})
        if arguments.collect:
            rows = [_collected(run) for run in arguments.collect]
            bench.store(accuracy=_accuracies(bench, rows))
        if speed:
            bench.store(speed=speeds(bench, speed, arguments.oldest))


if __name__ == "__main__":
    main()
