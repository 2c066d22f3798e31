"""The fp16 format of an fp32 ONNX file."""

from __future__ import annotations

from pathlib import Path

import onnx

from edgecompress.export import onnx as onnx_export
from edgecompress.export.calibration import quiet

KEPT = ("LayerNormalization", "Softmax", "LogSoftmax", "Celu")
"""Operations that stay float32. The first three add many values, as mixed precision leaves them,
and ONNX Runtime before 1.17 cannot load their fp16 form in opset 18; Celu has none.
"""


def to_fp16(fp32: Path) -> onnx.ModelProto:
    """The fp16 format of the model at `fp32`: weights and arithmetic in half precision; input and
    output, and `KEPT`, stay float32.
    """
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    original = onnx.load(str(fp32))
    with quiet():
        proto: onnx.ModelProto = convert_float_to_float16(
            onnx.load(str(fp32)),
            keep_io_types=True,
            op_block_list=[*DEFAULT_OP_BLOCK_LIST, *KEPT],
        )
    OnnxModel(proto).topological_sort()  # the converter puts its casts last
    onnx_export.finish_like(proto, original)
    return proto
