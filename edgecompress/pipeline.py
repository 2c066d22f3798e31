"""One pipeline for every verb: a recipe's stages, one after the other, into one run directory.

A stage reads the `State` that the one before left, and returns the next. Everything in a state is
on disk when its stage ends, and a stage seeds itself from the run's seed and its own number; so a
run that was stopped goes on (`resume`) to the same result.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from edgecompress import checkpoint, files
from edgecompress import result as results
from edgecompress.data import DataSet
from edgecompress.errors import EdgecompressError, UsageError
from edgecompress.measure import machine
from edgecompress.measure.cost import cost, layer_table
from edgecompress.measure.machine import cores
from edgecompress.models.registry import ModelSource
from edgecompress.prepare import Mentor, inputs, prepare
from edgecompress.recipe import Recipe, to_yaml
from edgecompress.report.html import write_report
from edgecompress.rundir import RunDirectory
from edgecompress.train import distributed


class Reporter(Protocol):
    """Where progress goes. The command line shows bars; a library caller may pass `Silent()`."""

    def stage(self, number: int, total: int, name: str) -> None:
        """A stage begins."""

    def step(self, done: int, total: int, text: str) -> None:
        """`done` of `total` steps of what `text` says."""

    def note(self, text: str) -> None:
        """A line for the reader."""


class Silent:
    """A reporter that says nothing."""

    def stage(self, number: int, total: int, name: str) -> None:
        """Nothing."""

    def step(self, done: int, total: int, text: str) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""


@dataclass(frozen=True)
class State:
    """What flows from stage to stage. `model` is the network being made smaller, `teacher` the one
    it learns from.

    `mentor` says how the teacher differs from the model in more than its widths. `numbers` is what
    later stages, `result.json` and the report read: JSON values only. `rows` are the stages so far,
    `history` the epochs.
    """

    source: ModelSource
    model: nn.Module | None = None
    teacher: nn.Module | None = None
    mentor: Mentor | None = None
    numbers: Mapping[str, Any] = field(default_factory=dict)
    rows: tuple[Mapping[str, Any], ...] = ()
    history: tuple[Mapping[str, Any], ...] = ()

    def need_model(self) -> nn.Module:
        """The model. Raises `UsageError` when no stage made one."""
        if self.model is None:
            raise UsageError("this stage needs a network: put a stage train or load before it")
        return self.model

    def with_numbers(self, **numbers: Any) -> State:
        """A copy with more numbers."""
        return replace(self, numbers={**self.numbers, **numbers})


@dataclass(frozen=True)
class Context:
    """What a stage may use besides the state."""

    recipe: Recipe
    data: DataSet
    device: torch.device
    run: RunDirectory
    folder: Path
    seed: int
    reporter: Reporter
    threads: int

    @property
    def example(self) -> Tensor:
        """One zero image (1, C, H, W) of the data's shape."""
        return torch.zeros(1, *self.data.image_shape)

    def as_read_by(self, mentor: Mentor | None) -> Context:
        """The same context for a teacher that reads pixels in its own way."""
        return (
            self
            if mentor is None
            else replace(self, data=replace(self.data, preprocess=mentor.preprocess))
        )

    def progress(self, text: str) -> Callable[[int, int], None]:
        """An `on_step` for the training loop."""
        return lambda done, total: self.reporter.step(done, total, text)


Stage = Callable[[Context, Any, State], State]


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its folder, its last state, and the exit code it earned (3: a target was
    missed, `missed` says which).
    """

    root: Path
    state: State
    exit_code: int
    missed: tuple[str, ...]


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def execute(
    recipe: Recipe,
    stages: Mapping[str, Stage],
    root: Path,
    *,
    resume: bool = False,
    reporter: Reporter | None = None,
    origins: Mapping[str, str] | None = None,
) -> Outcome:
    """Run all stages of `recipe` into `root`; complete stages are read back when `resume` is set.

    Stages may lengthen the run: a stage that leaves `numbers["next_stages"]` has them run after it.
    Raises what the stages raise. What an earlier run left in `root` goes when the new one is whole,
    and is put back when that fails before a stage is complete.
    """
    data, device, source = prepare(recipe)
    digests = {str(path): files.digest(path) for path in inputs(recipe)}
    run = RunDirectory(root)
    text = to_yaml(recipe, origins)
    if resume:
        _same_recipe(root / "resolved.yaml", text)
    else:
        for path in inputs(recipe):
            if root.resolve() in path.resolve().parents:
                raise UsageError(
                    f"output '{root}' holds '{path}', which this run reads: give another -o"
                )
        run.set_aside()
    state = State(source, numbers={"data_digest": data.digest(), "input_digests": digests})
    try:
        files.write_bytes(root / "resolved.yaml", text.encode())
        outcome = _stages_run(
            recipe, stages, run, state, (data, device), resume=resume, reporter=reporter or Silent()
        )
    except EdgecompressError as error:
        if not resume and not run.begun() and (isinstance(error, UsageError) or run.aside.is_dir()):
            run.give_back()
        raise
    run.forget()
    return outcome


def _stages_run(
    recipe: Recipe,
    stages: Mapping[str, Stage],
    run: RunDirectory,
    state: State,
    where: tuple[DataSet, torch.device],
    *,
    resume: bool,
    reporter: Reporter,
) -> Outcome:
    """All stages, from `state` on; those that are complete are read back with `resume`."""
    root, (data, device) = run.root, where
    distributed.start(device)
    threads = recipe.threads or cores()
    torch.set_num_threads(threads)
    run.log("start", command=recipe.command, resume=resume)
    if data.skipped:
        reporter.note(f"skipped {len(data.skipped)} corrupt image(s), first {data.skipped[0]}")
        run.log("skipped", files=list(data.skipped))
    began = state.numbers
    queue = list(expand(recipe))
    number = 0
    while queue:
        name, settings = queue.pop(0)
        number += 1
        folder = run.stage(number, name)
        reporter.stage(number, number + len(queue), name)
        if settings.stage in ALONE:
            if distributed.rank():
                break
            distributed.stop()
        context = Context(
            recipe, data, device, run, folder, recipe.seed * 1000 + number, reporter, threads
        )
        done = read_stage(folder, state, _named(recipe)) if resume else None
        if done is not None and done.numbers["data_digest"] != began["data_digest"]:
            raise UsageError(
                f"--resume with other data than the run in '{root}': '{recipe.data}' has "
                "changed; start a new run"
            )
        if done is not None and (
            other := _changed(done.numbers.get("input_digests", {}), began["input_digests"])
        ):
            raise UsageError(
                f"--resume with another '{other}' than the run in '{root}' read: start a new run"
            )
        if done is None:
            state = _run_stage(context, stages[settings.stage], name, settings, state)
        else:
            state = done
        if "next_stages" in state.numbers:
            wanted = state.numbers["next_stages"]
            state = replace(
                state, numbers={k: v for k, v in state.numbers.items() if k != "next_stages"}
            )
            queue = [*_parse_stages(recipe, wanted), *queue]
    beside = distributed.rank() > 0
    distributed.stop()
    if beside:
        return Outcome(root, state, 0, ())
    if "result" not in state.numbers:
        state = finish(recipe, data, run, state)
    missed = tuple(state.numbers.get("missed", ()))
    run.log("end", missed=list(missed))
    return Outcome(root, state, 3 if missed else 0, missed)


ALONE = ("export", "quantize", "measure")
"""Stages that measure what was trained: of several processes only the first one goes on with
them.
"""
TOLD = ("profile", "gradual", "distill", "merge", "compare", "int8", "qat")
"""What stages have to tell of themselves, in `result.json` under their own names."""


UNMET = ("floors_reached", "not_better", "left_float", "drop_unmet")
"""Numbers that a stage leaves where something asked for was not reached, in words."""


def finish(recipe: Recipe, data: DataSet, run: RunDirectory, state: State) -> State:
    """`model.safetensors`, `result.json` and `report.html` of a run without a stage `measure`:
    nothing of the test split is read.
    """
    if not (run.root / "model.safetensors").exists() or "export" not in {
        s.stage for s in recipe.stages
    }:
        checkpoint.save(
            run.root / "model.safetensors",
            state.need_model(),
            state.source,
            checkpoint.notes_for(data),
        )
    chosen = state.numbers.get("chosen")
    artifact = (
        "model.onnx"
        if chosen
        else "model-fp32.onnx"
        if "export" in state.numbers
        else "model.safetensors"
    )
    result: dict[str, Any] = {
        "schema": 1,
        "command": recipe.command,
        "model": recipe.model,
        "data": recipe.data,
        "seed": recipe.seed,
        "artifact": artifact,
        "bytes": (run.root / artifact).stat().st_size,
        "stages": [dict(row) for row in state.rows],
        "formats": state.numbers.get("formats", []),
        "format": chosen["format"] if chosen else "fp32",
        "format_reason": chosen["reason"] if chosen else "",
        "widths": state.numbers.get("widths", {}),
        "wall_s": state.numbers["spent_s"],
        "peak_rss_bytes": state.numbers["peak_rss_bytes"],
        "versions": machine.versions(),
        "hardware": machine.hardware(),
        "data_label": data.label,
        "data_digest": data.digest(),
        "recipe_digest": recipe.digest(),
        "missed": [text for text in (state.numbers.get(key) for key in UNMET) if text],
        "layers": layer_table(
            state.numbers.get("layers", []),
            cost(state.need_model(), torch.zeros(1, *data.image_shape)),
        ),
        **{
            key: state.numbers[key]
            for key in (*TOLD, "constant_channels", "control")
            if key in state.numbers
        },
    }
    if data.task.metric != "accuracy":
        result["metric_name"] = data.task.metric
    results.write(run.root / "result.json", result)
    write_report(run.root, result, list(state.history))
    return state.with_numbers(result=result, missed=result["missed"])


def expand(recipe: Recipe) -> list[tuple[str, Any]]:
    """The stages with their names; a prune stage of n steps becomes n stages (with `auto` it is
    one, which asks for the others).
    """
    queue: list[tuple[str, Any]] = []
    for settings in recipe.stages:
        if settings.stage == "prune" and settings.steps != "auto":
            queue += [
                (f"prune-{i}of{settings.steps}", settings) for i in range(1, settings.steps + 1)
            ]
        else:
            queue.append((settings.stage, settings))
    return queue


def _parse_stages(recipe: Recipe, wanted: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    extra = Recipe.model_validate({**recipe.model_dump(mode="python"), "stages": wanted})
    return expand(extra)


def _changed(before: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """A file whose digest is another one now."""
    return next((path for path, digest in now.items() if before.get(path, digest) != digest), None)


def _same_recipe(path: Path, text: str) -> None:
    def values(content: str) -> list[str]:
        return [line.split("  # ")[0] for line in content.splitlines() if not line.startswith("#")]

    before, now = values(path.read_text(encoding="utf-8")), values(text)
    if before != now:
        different = next(
            (b or n for b, n in zip([*before, ""], [*now, ""], strict=False) if b != n), ""
        )
        raise UsageError(
            f"--resume with other settings than the run in '{path.parent}' "
            f"('{different.strip()}'): repeat its options"
        )


def _run_stage(context: Context, stage: Stage, name: str, settings: Any, state: State) -> State:
    start = time.perf_counter()
    seed_everything(context.seed)
    context.run.log("stage", name=name)
    before = len(state.rows)
    after = stage(context, settings, state)
    wall_s = round(time.perf_counter() - start, 3)
    rows = [
        *after.rows[:before],
        *({**row, "wall_s": row.get("wall_s", wall_s)} for row in after.rows[before:]),
    ]
    spent_s = round(state.numbers.get("spent_s", 0.0) + wall_s, 3)
    peak = max(state.numbers.get("peak_rss_bytes", 0), machine.peak_rss_bytes())
    after = replace(after, rows=tuple(rows)).with_numbers(spent_s=spent_s, peak_rss_bytes=peak)
    write_stage(context.folder, state, after)
    context.run.write_history(list(after.history))
    context.run.log("stage-done", name=name, wall_s=wall_s)
    return after


def write_stage(folder: Path, before: State, after: State) -> None:
    """Write what `after` has that `before` had not: networks as checkpoints, then `stage.json`,
    last.
    """
    written = {}
    for role in ("model", "teacher"):
        network = getattr(after, role)
        if network is not None and network is not getattr(before, role):
            same = role == "teacher" and network is after.model and "model" in written
            if not same:
                other = after.mentor if role == "teacher" else None
                source, notes = (
                    (after.source, {})
                    if other is None
                    else (other.source, {"preprocess": other.preprocess.as_dict()})
                )
                checkpoint.save(folder / f"{role}.safetensors", network, source, notes)
            written[role] = "model" if same else role
    files.write_json(
        folder / "stage.json",
        {
            "numbers": dict(after.numbers),
            "rows": list(after.rows),
            "history": list(after.history),
            "written": written,
        },
    )


def _named(recipe: Recipe) -> set[str]:
    """The models that the user named, whose own code may therefore run."""
    return {
        recipe.model,
        *(str(stage.model) for stage in recipe.stages if stage.stage == "teacher"),
    }


def read_stage(folder: Path, before: State, named: set[str]) -> State | None:
    """The state that a complete stage left, or None when it did not complete. Code of the user's
    runs only if its model is `named`.
    """
    path = folder / "stage.json"
    if not path.is_file():
        return None
    stored = json.loads(path.read_text(encoding="utf-8"))
    networks: dict[str, Any] = {}
    for role, name in stored["written"].items():
        if name in networks:
            networks[role] = networks[name]
            continue
        path = folder / f"{name}.safetensors"
        manifest = checkpoint.read_manifest(path)
        networks[role] = checkpoint.load(
            path, allow_code=manifest.model.name if manifest.model.name in named else None
        )[0]
        preprocess = checkpoint.preprocess_of(manifest)
        if role == "teacher" and preprocess is not None:
            networks["mentor"] = Mentor(manifest.model, preprocess)
    return replace(
        before,
        numbers=stored["numbers"],
        rows=tuple(stored["rows"]),
        history=tuple(stored["history"]),
        **networks,
    )
