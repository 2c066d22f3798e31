"""An ONNX file as ONNX Runtime runs it: sessions, metadata, outputs. numpy only."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edgecompress.errors import EnvironmentMissingError, UsageError
from edgecompress.measure.machine import cores

Array = NDArray[Any]


@dataclass(frozen=True)
class Runtime:
    """A loaded model with one input: its session, the input's name and shape (without batch; 0
    where it is free), and our metadata.

    `batch` is the only batch that it takes, None for any.
    """

    path: Path
    session: ort.InferenceSession
    input_name: str
    input_shape: tuple[int, ...]
    metadata: dict[str, Any]
    threads: int
    input_type: str = "tensor(float)"
    batch: int | None = None

    @property
    def reads_pixels(self) -> bool:
        """Does it read decoded images, uint8 (N, height, width, C)?"""
        return self.input_type == "tensor(uint8)"

    def random_batch(self, size: int, generator: np.random.Generator) -> Array:
        """Inputs for timing, (size, ...): standard normal, or random pixels of the size that the
        network reads.
        """
        if self.reads_pixels:
            channels, height, width = self.metadata.get("image_shape") or (0, 0, 0)
            pixels = self.input_shape if 0 not in self.input_shape else (height, width, channels)
            if 0 in pixels:
                raise UsageError(
                    f"'{self.path.name}' reads images of any size {self.input_shape}: export "
                    "it with a fixed one to time it"
                )
            return generator.integers(0, 256, (size, *pixels), dtype=np.uint8)
        shape = self.input_shape
        if 0 in shape:
            shape = tuple(self.metadata.get("image_shape") or ())
            if len(shape) != len(self.input_shape):
                raise UsageError(
                    f"'{self.path.name}' reads inputs of any size {self.input_shape}: export "
                    "it with a fixed one to time it"
                )
        return generator.standard_normal((size, *shape), dtype=np.float32)

    def run(self, batch: Array) -> Array:
        """Outputs (N, K) for a `batch` (N, C, H, W) float32, or uint8 (N, height, width, C). Raises
        `UsageError` for another shape.
        """
        fits = len(batch.shape) == len(self.input_shape) + 1 and all(
            w in (0, s) for s, w in zip(batch.shape[1:], self.input_shape, strict=True)
        )
        if not fits and not self.reads_pixels:
            raise UsageError(
                f"input of shape {batch.shape[1:]} for '{self.path.name}': it reads "
                f"{self.input_shape}"
            )
        if self.batch is not None and len(batch) != self.batch:
            raise UsageError(
                f"a batch of {len(batch)} for '{self.path.name}', which takes {self.batch} "
                "only: export it with a free batch"
            )
        try:
            outputs = self.session.run(None, {self.input_name: batch})
        except Exception as error:  # onnxruntime raises its own undocumented classes
            raise UsageError(
                f"'{self.path.name}' cannot run on inputs {batch.shape}: "
                f"{' '.join(str(error).split())[:300]}"
            ) from error
        output: Array = outputs[0]
        if not isinstance(output, np.ndarray) or output.dtype.kind not in "fiu":
            raise UsageError(
                f"'{self.path.name}' gives no numbers as its first output: export the part "
                "that does"
            )
        for other in outputs[1:]:
            if (
                isinstance(other, np.ndarray)
                and other.dtype.kind == "f"
                and not np.isfinite(other).all()
            ):
                raise UsageError(
                    f"'{self.path.name}' gives NaN or infinite values in another output: "
                    "export it again"
                )
        return output

    def run_all(self, batches: Iterable[Array]) -> Array:
        """Outputs of all batches, one below the other."""
        return np.concatenate([self.run(batch) for batch in batches])


def load(
    path: Path, *, threads: int | None = None, provider: str = "CPUExecutionProvider"
) -> Runtime:
    """The model at `path`, ready to run on `threads` threads (default: the cores that we may use).

    Raises `UsageError` for a file that is no ONNX model or has several inputs,
    `EnvironmentMissingError` for an absent provider.
    """
    if not path.is_file():
        raise UsageError(f"model '{path}' does not exist: give an .onnx file")
    if provider not in ort.get_available_providers():
        raise EnvironmentMissingError(
            f"provider '{provider}' is not in this ONNX Runtime "
            f"({', '.join(ort.get_available_providers())}): "
            "run pip install onnxruntime-gpu, or choose one of these"
        )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if provider != "CPUExecutionProvider":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = ort.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # onnxruntime raises its own undocumented classes
        if "fallback to CPU" in str(error):
            raise EnvironmentMissingError(
                f"provider '{provider}' does not run all of '{path.name}', the rest would "
                "fall back to the CPU: choose another, or leave "
                "--provider out"
            ) from error
        raise UsageError(
            f"'{path}' cannot be loaded by ONNX Runtime: {str(error).splitlines()[0]}"
        ) from error
    if provider not in session.get_providers():
        raise EnvironmentMissingError(
            f"provider '{provider}' could not start here, ONNX Runtime would run on "
            f"{session.get_providers()[0]}: look at its libraries, "
            "e.g. those of CUDA, or choose another"
        )
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise UsageError(f"'{path}' has {len(inputs)} inputs: models with one input are supported")
    custom = session.get_modelmeta().custom_metadata_map
    metadata = {
        k.removeprefix("edgecompress."): _json(v)
        for k, v in custom.items()
        if k.startswith("edgecompress.")
    }
    if inputs[0].type not in ("tensor(float)", "tensor(uint8)"):
        raise UsageError(
            f"'{path}' reads {inputs[0].type}: float32 tensors, or uint8 images, are supported"
        )
    batch, *rest = inputs[0].shape or [None]
    shape = tuple(size if isinstance(size, int) else 0 for size in rest)
    only = batch if isinstance(batch, int) else None
    return Runtime(
        path,
        session,
        inputs[0].name,
        shape,
        metadata,
        options.intra_op_num_threads,
        inputs[0].type,
        only,
    )


def fused_graph(path: Path) -> Any:
    """The model at `path` as ONNX Runtime runs it on the CPU (an `onnx.ModelProto`): after all
    fusions, before it chooses memory layouts.

    What a file asks for and what runs differ: an operation between QuantizeLinear and
    DequantizeLinear for which there is no int8 kernel runs in float. Raises `UsageError` for a file
    that cannot be loaded.
    """
    import onnx

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "fused.onnx")
        try:
            ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises its own undocumented classes
            raise UsageError(
                f"'{path}' cannot be loaded by ONNX Runtime: {str(error).splitlines()[0]}"
            ) from error
        return onnx.load(options.optimized_model_filepath)


def file_bytes(path: Path) -> int:
    """Size of an ONNX file with its external data, bytes on disk."""
    import onnx

    proto = onnx.load(str(path), load_external_data=False)
    outside = {
        entry.value
        for tensor in proto.graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return path.stat().st_size + sum((path.parent / str(name)).stat().st_size for name in outside)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def accuracy(logits: Array, labels: Array) -> float:
    """Share of rows whose largest logit is at the label, 0..1."""
    check_finite(logits)
    return float((logits.argmax(1) == labels).mean())


def check_finite(outputs: Array) -> Array:
    """`outputs`, which must be numbers. Raises `UsageError`."""
    if not np.isfinite(outputs).all():
        raise UsageError(
            "the model gives NaN or infinite outputs: what it says means nothing; export it again"
        )
    return outputs
