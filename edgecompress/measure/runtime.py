"""An ONNX file in ONNX Runtime: sessions, metadata, outputs. numpy only."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from edgecompress.errors import EnvironmentMissingError, UsageError
from edgecompress.measure.machine import cores

Array = NDArray[Any]
CPU = "CPUExecutionProvider"
METADATA_PREFIX = "edgecompress."
_INPUT_TYPES = ("tensor(float)", "tensor(uint8)")


class Metadata(TypedDict, total=False):
    """Our metadata of a file; files of others have none.

    `image_shape` is [C, H, W]; `mean` and `std` (one value per channel, for values in 0..1),
    `resize`, `crop` and `scale` say how it reads images; `task` and `heads` (classes of each) what
    its outputs are, where they are not the logits of one classification.
    """

    image_shape: list[int]
    mean: list[float]
    std: list[float]
    resize: int | None
    crop: int | None
    scale: float
    classes: list[str]
    data: str
    task: str
    heads: list[int]
    input: str
    validation_accuracy: str
    recipe: str
    version: str


@dataclass(frozen=True)
class Runtime:
    """A loaded model with one input: its session, the input's name and shape (without batch; 0
    where it is free), and our metadata.

    `batch` is the only batch size that it accepts, None for any.
    """

    path: Path
    session: ort.InferenceSession
    input_name: str
    input_shape: tuple[int, ...]
    metadata: Metadata
    threads: int
    input_type: str = "tensor(float)"
    batch: int | None = None

    @property
    def reads_pixels(self) -> bool:
        """True if it reads decoded images, uint8 `(N, height, width, C)`."""
        return self.input_type == "tensor(uint8)"

    def random_batch(self, size: int, generator: np.random.Generator) -> Array:
        """Inputs for timing, `(size, ...)`: standard normal, or random pixels of the size that the
        network reads.

        Raises `UsageError` where the input shape is free and the metadata have none.
        """
        if self.reads_pixels:
            channels, height, width = self.metadata.get("image_shape") or (0, 0, 0)
            pixels = self.input_shape if 0 not in self.input_shape else (height, width, channels)
            if 0 in pixels:
                raise UsageError(self._any_size("images"))
            return generator.integers(0, 256, (size, *pixels), dtype=np.uint8)
        shape = self.input_shape
        if 0 in shape:
            shape = tuple(self.metadata.get("image_shape") or ())
            if len(shape) != len(self.input_shape):
                raise UsageError(self._any_size("inputs"))
        return generator.standard_normal((size, *shape), dtype=np.float32)

    def _any_size(self, what: str) -> str:
        return (
            f"'{self.path.name}' reads {what} of any size {self.input_shape}: export it with a "
            "fixed one to time it"
        )

    def run(self, batch: Array) -> Array:
        """Outputs `(N, K)` for a `batch` `(N, C, H, W)` float32, or uint8 `(N, height, width, C)`.

        Raises `UsageError` for any other shape, for a first output that is not numeric, and for NaN
        or infinities in any further output.
        """
        self._check_input(batch)
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
        if not all(_is_finite(extra) for extra in outputs[1:]):
            raise UsageError(
                f"'{self.path.name}' gives NaN or infinite values in another output: "
                "export it again"
            )
        return output

    def _check_input(self, batch: Array) -> None:
        fits = len(batch.shape) == len(self.input_shape) + 1 and all(
            expected in (0, size)
            for size, expected in zip(batch.shape[1:], self.input_shape, strict=True)
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

    def run_all(self, batches: Iterable[Array]) -> Array:
        """Outputs `(N, K)` of all batches `(n, C, H, W)`, concatenated."""
        return np.concatenate([self.run(batch) for batch in batches])


def _is_finite(output: object) -> bool:
    """True for everything but float arrays with NaN or infinities."""
    if not isinstance(output, np.ndarray) or output.dtype.kind != "f":
        return True
    return bool(np.isfinite(output).all())


def load(path: Path, *, threads: int | None = None, provider: str = CPU) -> Runtime:
    """The model at `path`, ready to run on `threads` threads (default: the cores that we may use).

    Raises `UsageError` for a file that is not an ONNX model or has several inputs,
    `EnvironmentMissingError` for a missing provider.
    """
    if not path.is_file():
        raise UsageError(f"model '{path}' does not exist: give an .onnx file")
    threads = threads or cores()
    session = _session(path, threads, provider)
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise UsageError(f"'{path}' has {len(inputs)} inputs: models with one input are supported")
    if inputs[0].type not in _INPUT_TYPES:
        raise UsageError(
            f"'{path}' reads {inputs[0].type}: float32 tensors, or uint8 images, are supported"
        )
    batch, *rest = inputs[0].shape or [None]
    return Runtime(
        path=path,
        session=session,
        input_name=inputs[0].name,
        input_shape=tuple(size if isinstance(size, int) else 0 for size in rest),
        metadata=_metadata(session.get_modelmeta().custom_metadata_map),
        threads=threads,
        input_type=inputs[0].type,
        batch=batch if isinstance(batch, int) else None,
    )


def _session(path: Path, threads: int, provider: str) -> ort.InferenceSession:
    available = ort.get_available_providers()
    if provider not in available:
        raise EnvironmentMissingError(
            f"provider '{provider}' is not in this ONNX Runtime ({', '.join(available)}): "
            "run pip install onnxruntime-gpu, or choose one of these"
        )
    options = _quiet_options()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    if provider != CPU:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = ort.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # onnxruntime raises its own undocumented classes
        if "fallback to CPU" in str(error):
            raise EnvironmentMissingError(
                f"provider '{provider}' does not run all of '{path.name}', the rest would "
                "fall back to the CPU: choose another, or leave --provider out"
            ) from error
        raise _not_loaded(path, error) from error
    running = session.get_providers()
    if provider not in running:
        raise EnvironmentMissingError(
            f"provider '{provider}' could not start here, ONNX Runtime would run on "
            f"{running[0]}: check its libraries, e.g. those of CUDA, or choose another"
        )
    return session


def _quiet_options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return options


def _not_loaded(path: Path, error: Exception) -> UsageError:
    return UsageError(f"'{path}' cannot be loaded by ONNX Runtime: {str(error).splitlines()[0]}")


def _metadata(custom: Mapping[str, str]) -> Metadata:
    """Our entries of a file's metadata, parsed."""
    entries = {
        key.removeprefix(METADATA_PREFIX): _parsed(value)
        for key, value in custom.items()
        if key.startswith(METADATA_PREFIX)
    }
    return cast(Metadata, entries)


def _parsed(text: str) -> object:
    """`text` as JSON, or as it is."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def fused_graph(path: Path) -> Any:
    """The model at `path` as ONNX Runtime runs it on the CPU (an `onnx.ModelProto`): after all
    fusions, before it chooses memory layouts.

    A file and what runs may differ: an operation between QuantizeLinear and DequantizeLinear for
    which there is no int8 kernel runs in float. Raises `UsageError` for a file that cannot be
    loaded.
    """
    import onnx

    options = _quiet_options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "fused.onnx")
        try:
            ort.InferenceSession(str(path), options, providers=[CPU])
        except Exception as error:  # onnxruntime raises its own undocumented classes
            raise _not_loaded(path, error) from error
        return onnx.load(options.optimized_model_filepath)


def file_bytes(path: Path) -> int:
    """Bytes on disk of an ONNX file, external data included."""
    import onnx

    proto = onnx.load(str(path), load_external_data=False)
    external = {
        entry.value
        for tensor in proto.graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return path.stat().st_size + sum((path.parent / str(name)).stat().st_size for name in external)


def accuracy(logits: Array, labels: Array) -> float:
    """Share 0..1 of rows of `logits` `(N, K)` whose largest entry is at the label `(N,)`.

    Raises `UsageError` for logits that are not finite.
    """
    check_finite(logits)
    return float((logits.argmax(1) == labels).mean())


def check_finite(outputs: Array) -> Array:
    """`outputs` `(N, ...)`, if finite. Raises `UsageError` if not."""
    if not np.isfinite(outputs).all():
        raise UsageError(
            "the model gives NaN or infinite outputs, which mean nothing: export it again"
        )
    return outputs
