"""The int8 parts of benchmarks/latency.py: our int8 files, and those of ONNX Runtime's own tool."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common import Bench, Row, edgecompress, subset
from edgecompress import checkpoint
from edgecompress.data import DataSet, load_data
from edgecompress.export import calibration, in_float, lean
from edgecompress.export import onnx as onnx_export
from edgecompress.export import quantize as quantizer
from edgecompress.measure import regression, runtime
from edgecompress.measure.runtime import Array
from edgecompress.models import ModelSource, build
from edgecompress.proportions import Paired

THREADS = 2
PAIRS = (
    ("ours_to_fp32", "int8", "fp32"),
    ("plain_to_fp32", "plain", "fp32"),
    ("ours_to_plain", "int8", "plain"),
)
"""Ratios of the result, and the two files of each."""


@dataclass(frozen=True)
class Network:
    """A network by name, the side of its images, and the speed-up that int8 shall reach."""

    model: str
    side: int
    bar: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return (3, self.side, self.side)

    @property
    def classes(self) -> int:
        """Number of classes: CIFAR-10's or ImageNet's."""
        return 10 if self.side == 32 else 1000


NETWORKS = (Network("vgg16_bn", 32, 3.3), Network("resnet20", 32, 1.5), Network("vgg16", 224, 3.1))
SMOKE_NETWORKS = (Network("lenet5", 32, 1.0),)


def protocol(bench: Bench) -> regression.Protocol:
    """How two files are timed: one look, 2 threads."""
    full = regression.Protocol(threads=THREADS, looks=())
    quick = regression.Protocol(threads=1, looks=(), processes=2, blocks=5, block_ms=1.0)
    return bench.size(full, quick)


def plain_tool(
    fp32: Path, target: Path, batches: Sequence[Array], *, prepare: bool = True, **overrides: Any
) -> None:
    """ONNX Runtime's `quantize_static` as its examples call it: pre-processed, per channel, QDQ,
    uint8 activations and int8 weights.

    `overrides` replace its options; without `prepare` the file is not pre-processed.
    """
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    source = fp32
    if prepare:
        source = target.with_suffix(".prepared.onnx")
        quant_pre_process(str(fp32), str(source), skip_symbolic_shape=True)
    options = {
        "per_channel": True,
        "activation_type": QuantType.QUInt8,
        "weight_type": QuantType.QInt8,
        "reduce_range": True,
        **overrides,
    }
    reader = _reader(batches)
    quantize_static(str(source), str(target), reader, quant_format=QuantFormat.QDQ, **options)


def _reader(batches: Sequence[Array]) -> object:
    """A calibration reader of the tool that gives `batches` (B, C, H, W)."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> dict[str, Array] | None:
            batch = next(self.left, None)
            return None if batch is None else {"input": batch}

    return Reader()


def random_file(network: Network, path: Path) -> None:
    """Export `network` with random weights."""
    torch.manual_seed(0)
    model = build(ModelSource(network.model, network.classes, network.shape)).eval()
    onnx_export.save(onnx_export.to_onnx(model, torch.zeros(1, *network.shape)), path)


def random_batches(network: Network, count: int) -> list[Array]:
    """`count` batches of four random images."""
    return [
        np.random.default_rng(n).standard_normal((4, *network.shape)).astype(np.float32)
        for n in range(count)
    ]


def compare(bench: Bench, new: Path, old: Path) -> tuple[regression.Ratio, list[float]]:
    """(ratio of two files, their p50 in ms)."""
    answer = regression.compare(new, old, 0.0, protocol(bench))
    return answer["ratio"], [answer["candidate"]["p50_ms"], answer["baseline"]["p50_ms"]]


def traps(bench: Bench) -> None:
    """Int8 files that the plain tool makes with other options, against fp32: layers that run in
    float, and how fast they are.
    """
    full = (Network("vgg16", 224, 0.0), Network("resnet50", 224, 0.0))
    rows: list[Row] = []
    for network in bench.size(full, SMOKE_NETWORKS):
        with tempfile.TemporaryDirectory() as name:
            rows += traps_of(bench, network, Path(name))
        described = {**bench.described("--traps"), "threads": THREADS}
        bench.store(traps={**described, "rows": rows})


def traps_of(bench: Bench, network: Network, work: Path) -> list[Row]:
    """The files of one network."""
    fp32 = work / "fp32.onnx"
    random_file(network, fp32)
    batches = random_batches(network, 4)
    calibrated = calibration.calibrate(fp32, batches)
    rows = []
    for kind, path in int8_variants(fp32, calibrated, batches, work).items():
        ratio, p50_ms = compare(bench, path, fp32)
        rows.append(
            {
                "model": network.model,
                "file": kind,
                "layers": len(calibrated.layers()),
                "in_float": len(in_float.float_layers(path)),
                "to_fp32": ratio,
                "p50_ms": p50_ms,
                "bytes": path.stat().st_size,
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    left = left_in_float(fp32, calibrated, batches, work)
    file = "three layers left in float"
    rows.append({"model": network.model, "file": file, "in_float": left})
    print(json.dumps(rows[-1]), flush=True)
    return rows


def int8_variants(
    fp32: Path, calibrated: calibration.Calibrated, batches: Sequence[Array], work: Path
) -> dict[str, Path]:
    """Our int8 file, and the plain tool's with several options, by kind."""
    from onnxruntime.quantization import QuantType

    variants: dict[str, dict[str, Any]] = {
        "prepared": {},
        "not prepared": {"prepare": False},
        "per-tensor U8U8": {"per_channel": False, "weight_type": QuantType.QUInt8},
        "S8S8": {"activation_type": QuantType.QInt8},
    }
    paths = {kind: work / f"{kind}.onnx" for kind in ("ours", *variants)}
    onnx_export.save(quantizer.quantized(calibrated), paths["ours"])
    for kind, options in variants.items():
        plain_tool(fp32, paths[kind], batches, **options)
    return paths


def left_in_float(
    fp32: Path, calibrated: calibration.Calibrated, batches: Sequence[Array], work: Path
) -> dict[str, int]:
    """Layers in float where three are excluded, by tool."""
    layers = calibrated.layers()
    kept = list(layers)[3:6]
    paths = {kind: work / f"{kind}.onnx" for kind in ("ours", "plain")}
    onnx_export.save(quantizer.quantized(calibrated, exclude=kept), paths["ours"])
    nodes = [node for layer in kept for node in layers[layer]]
    plain_tool(fp32, paths["plain"], batches, nodes_to_exclude=nodes)
    return {kind: len(in_float.float_layers(path)) for kind, path in paths.items()}


def int8(bench: Bench, given: Path | None, epochs: int) -> None:
    """fp32, our int8, and the plain tool's: without images their speeds, two at a time in fresh
    processes; with images their accuracies.
    """
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        folder = None if given is None else bench.images(given, work)
        for network in bench.size(NETWORKS, SMOKE_NETWORKS):
            if folder is None:
                rows.append(speeds(bench, network, work))
            elif network.side == 32:
                rows.append(accuracies(bench, network, folder, epochs, work))
            else:
                continue
            print(json.dumps(rows[-1]), flush=True)
            store_int8(bench, rows, epochs, with_images=folder is not None)


def store_int8(bench: Bench, rows: list[Row], epochs: int, *, with_images: bool) -> None:
    """Store the rows so far."""
    options = ("--int8", "--data", "DIR", "--epochs", epochs) if with_images else ("--int8",)
    part = "int8_accuracy" if with_images else "int8"
    described = {**bench.described(*options), "threads": THREADS}
    bench.store(**{part: {**described, "rows": rows}})


def row_of(network: Network, paths: dict[str, Path]) -> Row:
    """What every row names."""
    sizes = {kind: path.stat().st_size for kind, path in paths.items()}
    return {"model": network.model, "side": network.side, "bar": network.bar, "bytes": sizes}


def both_int8(paths: dict[str, Path], batches: list[Array]) -> None:
    """Write the int8 files of both tools, from the fp32 file."""
    onnx_export.save(quantizer.to_int8(paths["fp32"], lambda: batches), paths["int8"])
    plain_tool(paths["fp32"], paths["plain"], batches)


def speeds(bench: Bench, network: Network, work: Path) -> Row:
    """The speeds of the three files of a network with random weights."""
    paths = {kind: work / f"{network.model}-{kind}.onnx" for kind in ("fp32", "int8", "plain")}
    random_file(network, paths["fp32"])
    both_int8(paths, random_batches(network, 8))
    row = row_of(network, paths)
    for name, new, old in PAIRS:
        ratio, p50_ms = compare(bench, paths[new], paths[old])
        row[name] = {**ratio, "p50_ms": p50_ms}
    return {**row, "speedup": 1 / row["ours_to_fp32"]["median"]}


def accuracies(bench: Bench, network: Network, folder: Path, epochs: int, work: Path) -> Row:
    """The accuracies of the three files of a trained network."""
    data = trained(bench, network.model, folder, epochs, work)
    paths = {kind: work / f"{network.model}-{kind}.onnx" for kind in ("int8", "plain")}
    paths = {"fp32": work / network.model / "model-fp32.onnx", **paths}
    both_int8(paths, arrays(data, data.train.rows(torch.arange(min(256, len(data.train)))), 32))
    labels = data.test.labels.numpy()
    accuracy = {}
    for kind, path in paths.items():
        outputs = runtime.load(path, threads=THREADS).run_all(arrays(data, data.test, 64))
        accuracy[kind] = float((outputs.argmax(1) == labels).mean())
    return {**row_of(network, paths), "images": len(data.test), "accuracy": accuracy}


def ranges(bench: Bench, given: Path | None, images: Path) -> None:
    """How int8 can hold on processors whose sums of two products saturate: weights of 7 bits, or
    unsigned weights, beside weights of 8 bits, which saturate there. Accuracies on validation, and
    speeds against the file of 7 bits, both on this processor.
    """
    from onnxruntime.quantization import QuantType

    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        data = load_data(f"folder:{bench.images(images, work)}")
        if given is None:
            options = ("--data", f"folder:{work / 'digits'}", "--epochs", 1, "-q")
            edgecompress("train", "lenet5", *options, "-o", work / "t")
            given = work / "t" / "model.safetensors"
        model, manifest = checkpoint.load(given)
        kinds = ("fp32", "7 bits", "8 bits", "U8U8")
        paths = {kind: work / f"{kind}.onnx" for kind in kinds}
        proto = onnx_export.to_onnx(model, torch.zeros(1, *data.image_shape))
        onnx_export.save(proto, paths["fp32"])
        chosen = torch.linspace(0, len(data.train) - 1, min(256, len(data.train))).long()
        batches = arrays(data, data.train.rows(chosen), 32)
        for kind, reduced in (("7 bits", True), ("8 bits", False)):
            made = quantizer.to_int8(paths["fp32"], lambda: batches, reduce_range=reduced)
            lean.write(made, paths[kind])
        unsigned = {"weight_type": QuantType.QUInt8, "reduce_range": False}
        plain_tool(paths["fp32"], paths["U8U8"], batches, **unsigned)

        split = data.validation
        right = {}
        for kind, path in paths.items():
            outputs = runtime.load(path, threads=THREADS).run_all(arrays(data, split, 64))
            right[kind] = (outputs.argmax(1) == split.labels.numpy()).tolist()
        rows = []
        for kind, path in paths.items():
            row: Row = {
                "file": kind,
                "bytes": path.stat().st_size,
                "accuracy": sum(right[kind]) / len(split),
                "against_fp32": Paired.of(right["fp32"], right[kind]).as_dict(),
            }
            if kind not in ("fp32", "7 bits"):
                row["to_7_bits"], row["p50_ms"] = compare(bench, path, paths["7 bits"])
            rows.append(row)
            print(json.dumps(row), flush=True)
        described = {**bench.described("--ranges", "CHECKPOINT", "--data", "DIR"), "rows": rows}
        source = {"model": manifest.model.name, "split": "validation", "images": len(split)}
        bench.store(ranges={**described, **source, "threads": THREADS})


def arrays(data: DataSet, images: Any, size: int) -> list[Array]:
    """The normalised images in batches of `size`."""
    return [data.normalised(part).numpy() for part in images.pixels.split(size)]


def trained(bench: Bench, model: str, folder: Path, epochs: int, work: Path) -> DataSet:
    """Train `model` on 1,000 images of each class, export it into `work`/model; the data."""
    links = subset(folder, 1000, work)
    shared = ("--data", f"folder:{links}", "-q")
    run = work / f"{model}-t"
    precision = bench.size("bf16", "fp32")
    settings = ("--epochs", epochs, "--batch-size", 64, "--precision", precision)
    edgecompress("train", model, *settings, "-o", run, *shared)
    edgecompress("export", run, "-o", work / model, *shared)
    return load_data(f"folder:{links}")
