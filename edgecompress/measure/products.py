"""Matrix products in ONNX Runtime: what this machine can do at most, and how fast it is compared
with another one.
"""

from __future__ import annotations

import time

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from edgecompress.measure.runtime import Array

REFERENCE_SIDE = 256
_TYPES = {
    np.dtype("float32"): TensorProto.FLOAT,
    np.dtype("uint8"): TensorProto.UINT8,
    np.dtype("int8"): TensorProto.INT8,
}


def seconds(left: Array, right: Array, threads: int, repeats: int) -> list[float]:
    """Durations in seconds of `repeats` products left `(M, K)` @ right `(K, N)` on `threads`
    threads: float32, or uint8 by int8.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(
        _product(left, right).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        session.run(None, {"left": left})
        taken.append(time.perf_counter() - start)
    return taken


def _product(left: Array, right: Array) -> onnx.ModelProto:
    """A model that multiplies its input, of the shape and type of `left` `(M, K)`, with `right`
    `(K, N)`.
    """
    is_float = left.dtype == np.float32
    operation = "MatMul" if is_float else "MatMulInteger"
    result = TensorProto.FLOAT if is_float else TensorProto.INT32
    shape = [left.shape[0], right.shape[1]]
    graph = helper.make_graph(
        [helper.make_node(operation, ["left", "right"], ["product"])],
        "product",
        [helper.make_tensor_value_info("left", _TYPES[left.dtype], list(left.shape))],
        [helper.make_tensor_value_info("product", result, shape)],
        [onnx.numpy_helper.from_array(right, "right")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def reference_ms(threads: int, repeats: int = 60) -> float:
    """Median milliseconds of a fixed workload on `threads` threads, a float32 product of 256×256:
    a rough measure of the speed of this machine.
    """
    generator = np.random.default_rng(0)
    shape = (REFERENCE_SIDE, REFERENCE_SIDE)
    left = generator.standard_normal(shape, dtype=np.float32)
    right = generator.standard_normal(shape, dtype=np.float32)
    warm = seconds(left, right, threads, repeats)[repeats // 3 :]
    return 1e3 * float(np.median(warm))
