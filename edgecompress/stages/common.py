"""What several stages share: training settings, rows, calibration images, the files of one
format.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import onnx
import torch
from torch import Tensor, nn

from edgecompress.data import DataSet, Images
from edgecompress.export import fp16, portable
from edgecompress.export import onnx as onnx_export
from edgecompress.export import quantize as quantizer
from edgecompress.export.onnx import InputSpec
from edgecompress.files import cache_dir
from edgecompress.measure import machine, runtime
from edgecompress.measure.runtime import Array, Runtime
from edgecompress.methods.distill import DEFAULTS, learning_from
from edgecompress.methods.teacher import FixedTeacher
from edgecompress.proportions import Paired
from edgecompress.run.context import Context
from edgecompress.run.schema import Score
from edgecompress.run.state import Network, StageRow, State
from edgecompress.stages.scoring import on_validation, paired, score_of, weakness
from edgecompress.stages.training import runs_in_bf16
from edgecompress.train.batches import evaluate, outputs_on
from edgecompress.train.fit import Hooks, Loss, label_loss
from edgecompress.train.history import EpochRow
from edgecompress.train.settings import FitSettings
from edgecompress.units import format_duration

if TYPE_CHECKING:
    from edgecompress.stages.export import ExportStage
    from edgecompress.stages.quantize import QuantizeStage

DIGEST_LENGTH = 64
"""Characters of a recipe's digest, SHA-256 in hex."""


def fixed_teacher(
    context: Context,
    state: State,
    settings: FitSettings,
    temperature: float | None = None,
    top_k: int | None = None,
) -> FixedTeacher:
    """The state's teacher, with its cached logits for the views that `settings` train on, in the
    precision of its student where it runs in that, too.
    """
    teacher, precision = state.need_teacher(), settings.precision
    if precision == "bf16" and context.device.type == "cpu":
        example = context.reading_as(teacher.preprocess).example
        precision = "bf16" if runs_in_bf16(teacher.module, example) else "fp32"
    return FixedTeacher(
        teacher.module,
        context.data,
        context.device,
        preprocess=teacher.preprocess,
        augmentation=settings.augmentation,
        view_seed=settings.view_seed,
        top_k=top_k,
        temperature=temperature or DEFAULTS["kl"][0],
        precision=precision,
        folder=cache_dir() / "teacher-logits",
        on_step=context.progress("logits of the teacher"),
    )


def learning_loss(
    context: Context,
    state: State,
    settings: FitSettings,
    temperature: float | None = None,
    alpha: float | None = None,
) -> Loss:
    """Hinton's loss when the state has a teacher, else cross-entropy."""
    if state.teacher is None:
        return label_loss
    teacher = fixed_teacher(context, state, settings, temperature)
    return learning_from(teacher, "kl", temperature, alpha)


def watched(
    context: Context, text: str, patience: int | None = None, *, keep_initial: bool = False
) -> Hooks:
    """Hooks that show a training called `text` on the progress bar and write each of its epochs to
    the log. With `keep_initial` the network before the training is a candidate for the best.
    """
    start, show = time.perf_counter(), context.progress(text)
    steps = {"done": 0, "total": 0}

    def on_step(done: int, total: int) -> None:
        steps.update(done=done + 1, total=total)
        show(done, total)

    def on_epoch(row: EpochRow) -> None:
        context.run.log("epoch", what=text, **row.as_dict())
        share = steps["done"] / steps["total"] if steps["total"] else None
        score = on_validation(context.data, row.validation_accuracy)
        context.reporter.epoch(epoch_line(text, row, score, share, time.perf_counter() - start))

    return Hooks(on_step, on_epoch, patience=patience, keep_initial=keep_initial)


def epoch_line(text: str, row: EpochRow, score: str, share: float | None, spent_s: float) -> str:
    """`train lenet5: epoch 2/12, loss 0.51, validation 93.30% (95 % 90.2 to 95.5, n 359), loss
    0.66, rate 9.1e-04, 6 s left`, with that `score`.

    `share` of all steps (None: not known) took `spent_s` seconds.
    """
    of = "" if not share else f"/{max(row.epoch, round(row.epoch / share))}"
    left = "" if not share else f", {format_duration(max(0.0, spent_s * (1 / share - 1)))} left"
    return (
        f"{text}: epoch {row.epoch}{of}, loss {row.train_loss:.4g}, validation {score}, loss "
        f"{row.validation_loss:.4g}, rate {row.learning_rate:.1e}{left}"
    )


def count(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in model.parameters())


def validation_row(context: Context, name: str, model: nn.Module) -> StageRow:
    """A row for `model` as it stands: its accuracy on validation, and its parameters; a network
    that has learned little is named as such.
    """
    data, split = context.data, context.data.validation
    outputs = validation_outputs(context, model)
    note = weakness(data, split, outputs)
    if note is not None:
        context.reporter.note(f"{name}: {note}")
    accuracy = data.task.score(outputs, data.targets(split))
    return StageRow(name, accuracy, count(model), note=note, n=len(split))


def validation_outputs(context: Context, model: nn.Module) -> Tensor:
    """The outputs (N, K) of a torch model on the validation split, on the CPU."""
    split = context.data.validation
    return outputs_on(model.to(context.device), context.data, split, context.device).cpu()


def against(context: Context, first: Network, second: nn.Module) -> Paired | None:
    """How `second` differs from `first` on the validation split; None for a regression."""
    own = context.reading_as(first.preprocess)
    before, after = validation_outputs(own, first.module), validation_outputs(context, second)
    return paired(context.data.task, before, after, context.data.targets(context.data.validation))


def validation_accuracy(context: Context, model: nn.Module) -> float:
    """Accuracy (0..1) of a torch model on the validation split."""
    return evaluate(
        model.to(context.device), context.data, context.data.validation, context.device
    )[1]


def input_spec(context: Context, accuracy: float = 0.0) -> InputSpec:
    """What the shipped file says of its input, and where it comes from; `accuracy` is that on
    validation.
    """
    return _input_spec(context.data, context.recipe.digest(), accuracy)


def _input_spec(data: DataSet, recipe: str, accuracy: float) -> InputSpec:
    """The same for a file of the `recipe` with this digest."""
    made = {
        "validation_accuracy": f"{accuracy:.4f}",
        "recipe": recipe,
        "version": machine.versions()["edgecompress"],
    }
    return InputSpec(
        data.image_shape,
        data.preprocess,
        data.classes,
        data.label,
        {**data.task.metadata(), **made},
    )


def export_settings(context: Context) -> ExportStage | None:
    """How the recipe wants its files; None for a recipe without a stage `export`."""
    for stage in context.recipe.stages:
        if stage.stage == "export":
            return cast("ExportStage", stage)
    return None


def reads_pixels(context: Context) -> bool:
    """Does the file that ships have the preprocessing in its graph?"""
    return (settings := export_settings(context)) is not None and settings.embed_preprocess


def ships_lean(context: Context) -> bool:
    """Does the recipe end in `model.onnx`, which is lean, and not in `model-fp32.onnx`?"""
    return any(stage.stage == "quantize" for stage in context.recipe.stages)


def int8_processor(context: Context) -> str:
    """Where the recipe's int8 file will run."""
    stages = (stage for stage in context.recipe.stages if stage.stage == "quantize")
    return next((cast("QuantizeStage", stage).cpu for stage in stages), "any")


def reduces_range(context: Context) -> bool:
    """Do the weights of the recipe's int8 file have 7 bits, so that it holds on every processor?"""
    return int8_processor(context) in ("any", "no-vnni")


def fp32_file(context: Context, model: nn.Module, accuracy: float = 0.0) -> onnx.ModelProto:
    """The fp32 file of `model`, for the oldest ONNX Runtime that the recipe names."""
    proto = onnx_export.to_onnx(model, context.example, input_spec(context, accuracy).metadata())
    oldest = settings.min_ort if (settings := export_settings(context)) is not None else None
    return proto if oldest is None else portable.for_runtime(proto, oldest)


def fp32_bytes(data: DataSet, model: nn.Module) -> int:
    """Bytes of the fp32 file that a run on `data` makes of `model`, without a run: of the recipe,
    the length of its digest counts.
    """
    metadata = _input_spec(data, "0" * DIGEST_LENGTH, 0.0).metadata()
    proto = onnx_export.to_onnx(model, torch.zeros(1, *data.image_shape), metadata)
    return int(proto.ByteSize())


def finished(context: Context, path: Path, accuracy: float) -> onnx.ModelProto:
    """The file at `path` as it ships: with its own accuracy in the metadata and, where asked, the
    preprocessing in the graph.
    """
    proto = onnx.load(str(path))
    known = {prop.key: prop.value for prop in proto.metadata_props}
    known["edgecompress.validation_accuracy"] = json.dumps(f"{accuracy:.4f}")
    if runtime.WEIGHT_BITS in known:
        known["edgecompress.cpu"] = json.dumps(int8_processor(context))
    onnx_export.set_metadata(proto, known)
    if reads_pixels(context):
        proto = portable.embed_preprocess(proto, context.data.preprocess, context.data.image_shape)
    return proto


def arrays(
    context: Context,
    split: Images,
    limit: int | None = None,
    size: int = 32,
    *,
    pixels: bool = False,
) -> Iterator[Array]:
    """Normalised images of a split as float32 batches (B, C, h, w), or with `pixels` uint8
    (B, height, width, C).

    With `limit`, that many, evenly spread.
    """
    chosen = torch.arange(len(split))
    if limit is not None and limit < len(split):
        chosen = torch.linspace(0, len(split) - 1, limit).long()
    for part in chosen.split(size):
        images = split.pixels[part]
        yield (
            images.permute(0, 2, 3, 1).contiguous().numpy()
            if pixels
            else context.data.normalised(images).numpy()
        )


def make_format(
    context: Context, fp32: Path, form: str, images: int = 256, method: str = "minmax"
) -> onnx.ModelProto:
    """The fp32 file in another format, int8 calibrated on `images` training images."""
    if form == "fp32":
        return onnx.load(str(fp32))
    if form == "fp16":
        return fp16.to_fp16(fp32)
    return quantizer.to_int8(
        fp32,
        lambda: arrays(context, context.data.train, images),
        reduce_range=reduces_range(context),
        method=method,
        form=form,
    )


def file_accuracy(context: Context, path: Path, split: Images) -> float:
    """Score of an ONNX file on a split, by ONNX Runtime, as the data's task has it."""
    return runtime_score(context, runtime.load(path, threads=context.threads), split)["accuracy"]


def runtime_score(context: Context, loaded: Runtime, split: Images) -> Score:
    """`accuracy` (0..1) of a loaded ONNX file on a split; of a regression R², and `loss`."""
    return score_of(
        context.data.task, runtime_outputs(context, loaded, split), context.data.targets(split)
    )


def runtime_outputs(context: Context, loaded: Runtime, split: Images) -> Tensor:
    """The outputs (N, K) of a loaded ONNX file for a split."""
    batches = arrays(context, split, pixels=loaded.reads_pixels)
    return torch.from_numpy(loaded.run_all(batches, finite=True))
