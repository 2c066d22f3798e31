"""An ONNX file in ONNX Runtime: sessions, metadata, outputs. numpy only."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from google.protobuf.message import Message
from numpy.typing import NDArray

from edgecompress.errors import EnvironmentMissingError, UsageError
from edgecompress.measure import machine
from edgecompress.measure.metadata import Metadata

Array = NDArray[Any]
CPU = "CPUExecutionProvider"
OLDEST_OPSET = 7
"""The first version of ONNX's operations that ONNX Runtime has."""
WEIGHT_BITS = "edgecompress.weight_bits"
"""Metadata of an int8 file: the bits of its weights, 7 or 8."""
DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(uint16)": np.uint16,
    "tensor(int16)": np.int16,
    "tensor(uint32)": np.uint32,
    "tensor(int32)": np.int32,
    "tensor(uint64)": np.uint64,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}
"""Types of the inputs that are filled with random values."""
Feeds = dict[str, Array]
"""An array for each input of a model, by name."""
Shapes = Mapping[str, Sequence[int]]
"""Complete shapes (batch first) that a user gave to inputs, by name."""


@dataclass(frozen=True)
class Input:
    """An input of a model: its sizes, 0 where they are free, batch first."""

    name: str
    type: str
    sizes: tuple[int, ...]

    @property
    def text(self) -> str:
        """`(3, 32, 32)`, without the batch; with its type unless that is float32."""
        kind = self.type.removeprefix("tensor(").removesuffix(")")
        return f"{'' if kind == 'float' else kind + ' '}{self.sizes[1:]}"


@dataclass(frozen=True)
class Runtime:
    """A loaded model: its session, its inputs, and our metadata."""

    path: Path
    session: ort.InferenceSession
    inputs: tuple[Input, ...]
    metadata: Metadata
    threads: int

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of the first input without batch; 0 where it is free."""
        return self.inputs[0].sizes[1:]

    @property
    def batch(self) -> int | None:
        """The only batch size that it accepts, None for any: the first size of its first input."""
        sizes = self.inputs[0].sizes
        return sizes[0] or None if sizes else None

    @property
    def reads_pixels(self) -> bool:
        """True if it reads decoded images, uint8 `(N, height, width, C)`."""
        return self.inputs[0].type == "tensor(uint8)"

    def described(self) -> str:
        """All inputs in one line."""
        return " and ".join(one.text for one in self.inputs)

    def warning(self) -> str | None:
        """What this processor does to the results of the file, if anything."""
        if self.metadata.integer("weight_bits") != 8 or not machine.knows_features():
            return None
        if machine.has_int8_dot():
            return None
        return (
            f"'{self.path.name}' has 8-bit weights, for processors with an int8 dot product; here "
            "sums saturate, and its outputs are others: quantize it again with --cpu any"
        )

    def execute(self, feeds: Feeds) -> list[object]:
        """All outputs, as ONNX Runtime returns them, unchecked: what is timed."""
        try:
            outputs: list[object] = self.session.run(None, feeds)
        except Exception as error:  # onnxruntime raises its own undocumented classes
            shapes = " and ".join(str(value.shape) for value in feeds.values())
            raise UsageError(
                f"'{self.path.name}' cannot run on inputs {shapes}: "
                f"{' '.join(str(error).split())[:300]}"
            ) from error
        return outputs

    def run(self, batch: Array) -> Array:
        """Outputs `(N, K)` for a `batch` `(N, C, H, W)` float32, or uint8 `(N, height, width, C)`.

        Raises `UsageError` for any other shape, for a model of several inputs, for a first output
        that is not numeric, and for NaN or infinities in any further output.
        """
        self._check_input(batch)
        outputs = self.execute({self.inputs[0].name: batch})
        output = outputs[0]
        if not isinstance(output, np.ndarray) or output.dtype.kind not in "fiu":
            raise UsageError(
                f"'{self.path.name}' gives no numbers as its first output: export the part "
                "that does"
            )
        if not all(is_finite(extra) for extra in outputs[1:]):
            raise self._not_finite({self.inputs[0].name: batch})
        return output

    def run_finite(self, batch: Array) -> Array:
        """`run`, from a `batch` `(N, ...)` to `(N, K)`. Raises `UsageError` also for NaN or
        infinities in the first output, and names the first layer that has them.
        """
        output = self.run(batch)
        if not is_finite(output):
            raise self._not_finite({self.inputs[0].name: batch})
        return output

    def check_finite(self, feeds: Feeds) -> None:
        """Raises `UsageError` where an output for `feeds` has NaN or infinite values."""
        if not all(is_finite(output) for output in self.execute(feeds)):
            raise self._not_finite(feeds)

    def _not_finite(self, feeds: Feeds) -> UsageError:
        from edgecompress.measure.finite import first_not_finite

        layer = first_not_finite(self.path, feeds)
        where = "" if layer is None else f", first at {layer}"
        return UsageError(
            f"'{self.path.name}' gives NaN or infinite outputs{where}: they mean nothing; train "
            "or export it again"
        )

    def _check_input(self, batch: Array) -> None:
        if len(self.inputs) != 1:
            raise UsageError(
                f"'{self.path.name}' has {len(self.inputs)} inputs: one that reads images is needed"
            )
        if batch.dtype != DTYPES.get(self.inputs[0].type):
            raise UsageError(
                f"'{self.path.name}' reads {self.inputs[0].type}, not {batch.dtype}: float32 "
                "tensors, or uint8 images, are supported"
            )
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

    def run_all(self, batches: Iterable[Array], *, finite: bool = False) -> Array:
        """Outputs `(N, K)` of all batches `(n, C, H, W)`, concatenated; `finite` checks them."""
        run = self.run_finite if finite else self.run
        return np.concatenate([run(batch) for batch in batches])


def is_finite(output: object) -> bool:
    """True for everything but float arrays with NaN or infinities."""
    if not isinstance(output, np.ndarray) or output.dtype.kind != "f":
        return True
    return bool(np.isfinite(output).all())


def load(path: Path, *, threads: int | None = None, provider: str = CPU) -> Runtime:
    """The model at `path`, ready to run on `threads` threads (default: `machine.threads`).

    Raises `UsageError` for a file that is not an ONNX model or has no input,
    `EnvironmentMissingError` for a missing provider.
    """
    if not path.is_file():
        raise UsageError(f"model '{path}' does not exist: give an .onnx file")
    threads = threads or machine.threads()
    session = _session(path, threads, provider)
    inputs = tuple(
        Input(one.name, one.type, tuple(n if isinstance(n, int) else 0 for n in one.shape))
        for one in session.get_inputs()
    )
    if not inputs:
        raise UsageError(f"'{path}' has no input: a model that reads something is needed")
    metadata = Metadata(path, session.get_modelmeta().custom_metadata_map)
    return Runtime(path, session, inputs, metadata, threads)


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
    reason = f"'{path}' cannot be loaded by ONNX Runtime: {str(error).splitlines()[0]}"
    if "NOT_IMPLEMENTED" in reason and (opset := _opset(path)) < OLDEST_OPSET:
        reason += (
            f" (its operations are of opset {opset}, the runtime's begin at {OLDEST_OPSET}: "
            "convert it with onnx.version_converter)"
        )
    return UsageError(reason)


def _opset(path: Path) -> int:
    """The version of ONNX's own operations that a file uses."""
    import onnx

    proto = onnx.load(str(path), load_external_data=False)
    versions = (one.version for one in proto.opset_import if one.domain in ("", "ai.onnx"))
    return int(next(versions, OLDEST_OPSET))


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
    """Bytes on disk of an ONNX file with all files that it needs: external data of tensors,
    wherever they stand (initializers, attributes, subgraphs, functions), and compiled contexts.
    """
    return path.stat().st_size + sum(
        (path.parent / name).stat().st_size for name in sorted(external_files(path))
    )


def external_files(path: Path) -> set[str]:
    """The files, relative to its own folder, that the ONNX file at `path` needs."""
    import onnx

    proto = onnx.load(str(path), load_external_data=False)
    names: set[str] = set()

    def look(message: Message) -> None:
        if isinstance(message, onnx.TensorProto):
            if message.data_location == onnx.TensorProto.EXTERNAL:
                names.update(e.value for e in message.external_data if e.key == "location")
            return
        if isinstance(message, onnx.NodeProto) and message.op_type == "EPContext":
            values = {a.name: a for a in message.attribute}
            if "embed_mode" in values and not values["embed_mode"].i:
                names.add(values["ep_cache_context"].s.decode())
        for field, value in message.ListFields():
            if field.message_type is not None:
                repeated = not isinstance(value, Message)
                for inner in value if repeated else [value]:
                    if isinstance(inner, Message):
                        look(inner)

    look(proto)
    return names
