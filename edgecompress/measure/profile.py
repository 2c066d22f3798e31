"""One ONNX file in a process of its own: cold start, memory, latency by batch, and how far it is
from what the machine can do.

`python -m edgecompress.measure.profile` reads one JSON object from stdin (`model`, `threads`,
`provider`, `batches`, `seed`), prints one. The ceiling is the rate of large matrix products in the
same runtime on the same threads, in float32 and in int8.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgecompress.errors import EdgecompressError
from edgecompress.measure import latency, machine, products, runtime
from edgecompress.measure.runtime import Array

SIDE = 768
"""Rows and columns of the matrix products that measure the ceiling."""
REPEATS = 15
WEIGHTS = {
    "Conv": 1,
    "ConvTranspose": 1,
    "Gemm": 1,
    "MatMul": 1,
    "QLinearConv": 3,
    "ConvInteger": 1,
    "QLinearMatMul": 3,
    "QGemm": 3,
    "MatMulInteger": 1,
}
"""Operations that multiply and accumulate, and which of their inputs is the weight."""
INT8 = ("DequantizeLinear", "QLinearConv", "ConvInteger", "QLinearMatMul", "QGemm", "MatMulInteger")


def macs(path: Path) -> int | None:
    """Multiply-accumulates of one sample: convolutions and matrix products with a constant weight.
    None where a shape is unknown.
    """
    proto = onnx.load(str(path))
    for size in proto.graph.input[0].type.tensor_type.shape.dim[:1]:
        size.dim_value = 1
    try:
        graph = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, RuntimeError):
        return None
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.output, *graph.input)
    }
    weights = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    made = {output: node for node in graph.node for output in node.output}

    def constant(name: str) -> list[int] | None:
        while name in made and made[name].op_type in (
            "DequantizeLinear",
            "QuantizeLinear",
            "Cast",
            "Transpose",
        ):
            name = made[name].input[0]
        return weights.get(name)

    total = 0
    for node in graph.node:
        if node.op_type not in WEIGHTS:
            continue
        weight, output = constant(node.input[WEIGHTS[node.op_type]]), shapes.get(node.output[0])
        source = shapes.get(node.input[0])
        if weight is None:
            continue
        if (
            not output
            or not source
            or 0 in output
            or (node.op_type == "ConvTranspose" and 0 in source)
        ):
            return None
        if node.op_type in ("Conv", "QLinearConv", "ConvInteger"):
            total += int(np.prod(output)) * int(np.prod(weight[1:]))
        elif node.op_type == "ConvTranspose":
            total += int(np.prod(source)) * int(np.prod(weight[1:]))
        else:
            total += int(np.prod(weight)) * int(np.prod(output[:-1]))
    return total


def ceiling(threads: int) -> dict[str, float]:
    """Giga multiply-accumulates a second of matrix products (SIDE, SIDE) in ONNX Runtime:
    `float32`, and `int8` (uint8 by int8).
    """
    generator = np.random.default_rng(0)
    inputs: dict[str, list[Array]] = {
        "float32": [generator.standard_normal((SIDE, SIDE), dtype=np.float32) for _ in range(2)],
        "int8": [
            generator.integers(0, 255, (SIDE, SIDE), dtype=np.uint8),
            generator.integers(-127, 127, (SIDE, SIDE), dtype=np.int8),
        ],
    }
    return {
        kind: SIDE**3 / min(products.seconds(left, right, threads, REPEATS)) / 1e9
        for kind, (left, right) in inputs.items()
    }


def work(asked: dict[str, Any]) -> dict[str, Any]:
    """Load the model, run it for the first time, then by batch size."""
    path, empty = Path(asked["model"]), machine.own_peak_rss_bytes()
    start = time.perf_counter()
    loaded = runtime.load(path, threads=asked["threads"], provider=asked["provider"])
    loading = time.perf_counter() - start
    generator = np.random.default_rng(asked["seed"])
    start = time.perf_counter()
    loaded.run(loaded.random_batch(loaded.batch or 1, generator))
    first = time.perf_counter() - start
    rows = []
    for size in asked["batches"]:
        (taken,) = latency.measure(
            [loaded], batch_size=size, samples=100, limit_s=1.0, seed=asked["seed"]
        )
        rows.append(
            {"batch": size, **{f"{key}_ms": value for key, value in taken.summary().items()}}
        )
        rows[-1]["samples_per_s"] = round(1e3 * size / taken.percentile(50), 2)
    peak = machine.own_peak_rss_bytes()
    on_cpu = (
        asked["provider"] == "CPUExecutionProvider"
    )  # the ceiling of another device is not measured
    count, peaks = macs(path), ceiling(loaded.threads) if on_cpu else None
    kind = (
        "int8"
        if any(node.op_type in INT8 for node in onnx.load(str(path)).graph.node)
        else "float32"
    )
    rate = None if count is None else count * rows[0]["samples_per_s"] / 1e9
    return {
        "load_ms": round(loading * 1e3, 3),
        "first_run_ms": round(first * 1e3, 3),
        "cold_start_ms": round((loading + first) * 1e3, 3),
        "peak_rss_bytes": peak,
        "rss_before_load_bytes": empty,
        "batches": rows,
        "macs": count,
        "gmacs_per_s": rate,
        "ceiling_gmacs_per_s": peaks,
        "ceiling_kind": kind,
        "share_of_ceiling": None if rate is None or peaks is None else rate / peaks[kind],
        "threads": loaded.threads,
    }


def main() -> None:
    """One object in, one out; an error of ours becomes `{"error", "exit_code"}`."""
    try:
        answer = work(json.loads(sys.stdin.read()))
    except EdgecompressError as error:
        answer = {"error": str(error), "exit_code": error.exit_code}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
