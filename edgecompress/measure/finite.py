"""Where a network in ONNX first computes NaN or an infinity."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from edgecompress.measure.names import recorded


def first_not_finite(path: Path, feeds: Mapping[str, NDArray[np.generic]]) -> str | None:
    """`layer 'NAME' (OPERATOR)`, the first in the order of the file whose output for `feeds`, the
    inputs (N, ...) by name, has NaN or infinite values; None where the runtime does not show it.

    The network runs once more, without optimisation, so that every layer exists.
    """
    try:
        proto = onnx.load(str(path))
        given = {value.name for value in proto.graph.output}
        proto.graph.output.extend(
            onnx.ValueInfoProto(name=name)
            for node in proto.graph.node
            for name in node.output
            if name and name not in given
        )
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        session = ort.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        names = [value.name for value in session.get_outputs()]
        values = dict(zip(names, session.run(None, dict(feeds)), strict=True))
    except Exception:  # the network was only run to explain an error that is reported anyway
        return None
    known = recorded(path)
    for node in proto.graph.node:
        for name in node.output:
            value = values.get(name)
            if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
                continue
            if not np.isfinite(value).all():
                return f"layer '{node.name or known.get(name, name)}' ({node.op_type})"
    return None
