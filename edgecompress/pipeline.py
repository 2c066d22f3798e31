"""One pipeline for every verb: the stages of a recipe, one after the other, in a run directory.

A stage gets the `State` that the one before left on disk, and returns the next. It seeds itself
from the run's seed and its own number. So a run that was stopped continues (`resume`) to the same
result.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from edgecompress import checkpoint, files
from edgecompress.errors import EdgecompressError, UsageError
from edgecompress.measure import machine
from edgecompress.models.registry import remarks
from edgecompress.prepare import prepare
from edgecompress.recipe import Recipe, leaves, to_yaml
from edgecompress.report.html import write_report
from edgecompress.resolve import DERIVED, resolved
from edgecompress.run import result as results
from edgecompress.run import store
from edgecompress.run.context import Context, Reporter, Silent, seed_everything, stage_seed
from edgecompress.run.directory import RunDirectory
from edgecompress.run.schema import RunResult
from edgecompress.run.stage import RunSettings, Scheduled, Setup, Stage, StageResult
from edgecompress.run.state import State
from edgecompress.run.store import Ledger, Stored
from edgecompress.stages import stage_names
from edgecompress.stages.plan import PlanStage
from edgecompress.train import distributed
from edgecompress.units import format_duration

LAST_SHARE, LAST_SECONDS = 0.1, 45.0
"""Of a run's time, what stays for export, quantization and measurement: the smaller of both."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its folder, last state, result (None in a process beside the first, which
    writes it), and the exit code that it earned (3: a
    target was missed, `missed` names each).
    """

    root: Path
    state: State
    result: RunResult | None
    exit_code: int
    missed: tuple[str, ...]


def execute(
    recipe: Recipe,
    root: Path,
    *,
    resume: bool = False,
    reporter: Reporter | None = None,
    origins: Mapping[str, str] | None = None,
) -> Outcome:
    """Run all stages of `recipe` into `root`; complete stages are read back when `resume` is set.

    A stage may ask for stages that run after it. Raises what the stages raise. What an earlier run
    left in `root` goes when the new one is complete, and is put back when that fails before its
    first stage is.
    """
    setup, derived = resolved(prepare(recipe))
    run = RunDirectory(root, stage_names())
    text = to_yaml(setup.recipe, {**derived, **(origins or {})})
    if resume:
        _check_same_recipe(root / "resolved.yaml", text)
    else:
        _check_outside(root, recipe)
        run.set_aside()
    try:
        files.write_bytes(root / "resolved.yaml", text.encode())
        outcome = _Runner(setup, run, reporter or Silent(), resume).run()
    except EdgecompressError as error:
        unusable = isinstance(error, UsageError) or run.aside.is_dir()
        if not resume and not run.begun() and unusable:
            run.give_back()
        raise
    run.forget()
    return outcome


class _Runner:
    """The stages of one run, from the first to the last."""

    def __init__(self, setup: Setup, run: RunDirectory, reporter: Reporter, resume: bool) -> None:
        self.setup, self.run_directory = setup, run
        self.reporter, self.resume = reporter, resume
        self.recipe, self.data = setup.recipe, setup.data
        self.threads = setup.recipe.threads or machine.threads()
        self.state = State(setup.source)
        self.ledger = Ledger(self.data.digest(), input_digests(setup.recipe))

    def run(self) -> Outcome:
        """Run what is not complete yet, and write the result."""
        self._begin()
        ended_beside = self._run_stages()
        distributed.stop()
        if ended_beside:
            return Outcome(self.run_directory.root, self.state, None, 0, ())
        result = self._finish()
        missed = results.missed_texts(self.state)
        self.run_directory.log("end", missed=list(missed))
        code = 3 if missed else 0
        return Outcome(self.run_directory.root, self.state, result, code, missed)

    def _begin(self) -> None:
        distributed.start(self.setup.device)
        torch.set_num_threads(self.threads)
        self.run_directory.log("start", command=self.recipe.command, resume=self.resume)
        self.reporter.note(self.data.summary())
        for note in (*self.data.notes, *remarks(self.setup.source)):
            self.reporter.note(note)
        if self.recipe.time is not None:
            self.reporter.note(self._division(self.recipe.time))
        skipped = self.data.skipped
        if skipped:
            self.reporter.note(f"skipped {len(skipped)} corrupt image(s), first {skipped[0]}")
            self.run_directory.log("skipped", files=list(skipped))

    def _division(self, seconds: float) -> str:
        """How the run's time is divided, as far as it is known before it."""
        shares: dict[str, float] = {}
        state = self._foreseen()
        for entry in scheduled(self.recipe.stages):
            share = entry.settings.time_share(state)
            shares[entry.settings.stage] = shares.get(entry.settings.stage, 0.0) + share
        if not any(shares.values()):
            return (
                f"{format_duration(seconds)} for the run: it has no training whose epochs are open"
            )
        parts = ", ".join(
            f"{name} {format_duration(seconds * share / sum(shares.values()))}"
            for name, share in shares.items()
            if share
        )
        of_all = f"{format_duration(seconds)} for the run: {parts}"
        return f"{of_all}; what one does not need is the others'"

    def _run_stages(self) -> bool:
        """True in a process beside the first one, which leaves before the run ends."""
        queue = scheduled(self.recipe.stages)
        number, pending = 0, None
        while queue:
            current = queue.pop(0)
            number += 1
            self.reporter.stage(number, number + len(queue), current.name)
            if current.settings.single_process:
                if distributed.rank():
                    return True
                distributed.stop()
            folder = self.run_directory.stage(number, current.name)
            complete = store.read(folder) if self.resume else None
            if complete is None:
                # a network is only read back for a stage that needs it
                self._restore(pending)
                deadline = self._deadline(current, queue)
                complete = self._run_stage(current, number, folder, deadline)
            pending = complete
            self._check_same_inputs(complete.ledger)
            self.ledger = complete.ledger
            queue = [*scheduled(self._stages_in(complete)), *queue]
        self._restore(pending)
        return distributed.rank() > 0

    def _deadline(self, current: Scheduled, queue: Sequence[Scheduled]) -> float | None:
        """When the trainings of `current` are to end, so that those of `queue` have their share of
        what is left of the run's time, and the last stages a little.
        """
        if self.recipe.time is None:
            return None
        state = self._foreseen()
        shares = [entry.settings.time_share(state) for entry in (current, *queue)]
        if not shares[0]:
            return None
        last = min(LAST_SHARE * self.recipe.time, LAST_SECONDS) if queue else 0.0
        left = max(0.0, self.recipe.time - last - self.ledger.spent_s)
        return time.perf_counter() + left * shares[0] / sum(shares)

    def _foreseen(self) -> State:
        """The state, with its plan where that is plain before it is made."""
        plans = [stage for stage in self.recipe.stages if isinstance(stage, PlanStage)]
        network = self.setup.network
        if self.state.plan is not None or network is None or not plans:
            return self.state
        return replace(self.state, plan=plans[0].foretold(network))

    def _run_stage(
        self, current: Scheduled, number: int, folder: Path, deadline: float | None
    ) -> Stored:
        """Run one stage and write what it leaves."""
        settings = current.settings
        seed = stage_seed(self.recipe.seed, number)
        context = Context(
            data=self.data,
            device=self.setup.device,
            seed=seed,
            recipe=self.recipe,
            run=self.run_directory,
            folder=folder,
            reporter=self.reporter,
            threads=self.threads,
            fresh=self.setup.fresh,
            deadline=deadline,
        )
        start = time.perf_counter()
        seed_everything(seed)
        self.run_directory.log("stage", name=current.name)
        before = self.state
        outcome = settings.run(context, before)
        digests = store.check_declared(settings.stage, before, outcome.state, self.ledger)
        wall_s = round(time.perf_counter() - start, 3)
        after = _with_bookkeeping(settings.stage, before, outcome, wall_s)
        ledger = replace(
            self.ledger,
            spent_s=round(self.ledger.spent_s + wall_s, 3),
            peak_rss_bytes=max(self.ledger.peak_rss_bytes, machine.peak_rss_bytes()),
        )
        stored = store.write(self.run_directory, folder, after, digests, outcome.follow, ledger)
        self.run_directory.write_history(after.history_rows())
        self.run_directory.log("stage-done", name=current.name, wall_s=wall_s)
        return stored

    def _restore(self, stored: Stored | None) -> None:
        """Go on with what the stage `stored` left on disk."""
        if stored is not None:
            named = self.recipe.code_names()
            self.state = store.restore(self.run_directory, stored, State(self.setup.source), named)

    def _stages_in(self, stored: Stored) -> Sequence[Stage]:
        """The stages that a complete stage asked for."""
        if not stored.follow:
            return ()
        values = self.recipe.model_dump(mode="python")
        return Recipe.model_validate({**values, "stages": list(stored.follow)}).stages

    def _check_same_inputs(self, stored: Ledger) -> None:
        """Raises `UsageError` where a resumed run would read other data or networks."""
        root = self.run_directory.root
        if stored.data_digest != self.ledger.data_digest:
            raise UsageError(
                f"--resume with other data than the run in '{root}': '{self.recipe.data}' has "
                "changed; start a new run"
            )
        for path, value in self.ledger.input_digests.items():
            if stored.input_digests.get(path, value) != value:
                raise UsageError(
                    f"--resume with another '{path}' than the run in '{root}' read: start a new run"
                )

    def _finish(self) -> RunResult:
        """Write `model.safetensors` (where no export did), `result.json` and `report.html`."""
        root, state = self.run_directory.root, self.state
        exported = any(stage.stage == "export" for stage in self.recipe.stages)
        if not ((root / "model.safetensors").exists() and exported):
            state.need_model()
            network = state.model
            if network is not None:
                notes = checkpoint.notes_for(self.data)
                checkpoint.save(root / "model.safetensors", network.module, network.source, notes)
        result = results.build(self.recipe, self.data, state, self.ledger, root, self.setup.device)
        results.write(root / "result.json", result)
        write_report(root, result, state.history_rows())
        return result


def _with_bookkeeping(stage: str, before: State, outcome: StageResult, wall_s: float) -> State:
    """The state that a stage returned, with the time of its rows and the targets that it missed."""
    after, known = outcome.state, len(before.rows)
    timed = tuple(
        replace(row, wall_s=wall_s) if row.wall_s is None and row.timed else row
        for row in after.rows[known:]
    )
    missed = {name: texts for name, texts in after.missed.items() if name != stage}
    if outcome.missed:
        missed[stage] = outcome.missed
    return replace(after, rows=(*after.rows[:known], *timed), missed=missed)


def scheduled(stages: Sequence[Stage]) -> list[Scheduled]:
    """What `stages` stand for, in order: a prune stage of n steps is n of them."""
    return [entry for stage in stages for entry in stage.scheduled()]


def inputs(recipe: RunSettings) -> list[Path]:
    """Files with networks that the stages of `recipe` read."""
    return [path for stage in recipe.stages for path in stage.inputs() if path.is_file()]


def input_digests(recipe: RunSettings) -> dict[str, str]:
    """Digest of each file with a network that the run reads, by path."""
    return {str(path): files.digest(path) for path in inputs(recipe)}


def _check_outside(root: Path, recipe: Recipe) -> None:
    """Raises `UsageError` when the output would overwrite what the run reads."""
    for path in inputs(recipe):
        if root.resolve() in path.resolve().parents:
            raise UsageError(
                f"output '{root}' holds '{path}', which this run reads: give another -o"
            )


def _check_same_recipe(path: Path, text: str) -> None:
    """Raises `UsageError` when the run whose recipe is at `path` had other settings."""

    before, now = (_stated(content) for content in (path.read_text(encoding="utf-8"), text))
    for place in [*before, *(place for place in now if place not in before)]:
        old, new = before.get(place), now.get(place)
        if old == new or all(side is None or side[1] in DERIVED for side in (old, new)):
            continue
        if old is not None and new is not None and old[0] == new[0]:
            continue  # the same value, given this time
        shown = f"{place}: {(old or new or ('',))[0]}"
        raise UsageError(
            f"--resume with other settings than the run in '{path.parent}' "
            f"('{shown}'): repeat its options"
        )


def _stated(text: str) -> dict[str, tuple[str, str]]:
    """(value, origin) of each place of a resolved recipe."""
    values = [
        line.partition(": ")[2].rpartition("  # ") for line in text.splitlines() if "  # " in line
    ]
    pairs = [(value, origin) for value, _, origin in values]
    return dict(zip(leaves(text), pairs, strict=False))
