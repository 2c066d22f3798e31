"""Matrix products in ONNX Runtime: what this machine can do at most, and how fast it is compared
with another.
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
    """Times of `repeats` products left (M, K) @ right (K, N) on `threads` threads: float32, or
    uint8 by int8.
    """
    whole = left.dtype == np.float32
    shape = [left.shape[0], right.shape[1]]
    graph = helper.make_graph(
        [helper.make_node("MatMul" if whole else "MatMulInteger", ["a", "b"], ["c"])],
        "product",
        [helper.make_tensor_value_info("a", _TYPES[left.dtype], list(left.shape))],
        [
            helper.make_tensor_value_info(
                "c", TensorProto.FLOAT if whole else TensorProto.INT32, shape
            )
        ],
        [onnx.numpy_helper.from_array(right, "b")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = (
        threads,
        1,
        3,
    )
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        session.run(None, {"a": left})
        taken.append(time.perf_counter() - start)
    return taken


def reference_ms(threads: int, repeats: int = 60) -> float:
    """Median milliseconds of a fixed workload on `threads` threads, a float32 product of 256×256:
    how fast this machine is, roughly.
    """
    generator = np.random.default_rng(0)
    left, right = (
        generator.standard_normal((REFERENCE_SIDE, REFERENCE_SIDE), dtype=np.float32)
        for _ in range(2)
    )
    return 1e3 * float(np.median(seconds(left, right, threads, repeats)[repeats // 3 :]))
