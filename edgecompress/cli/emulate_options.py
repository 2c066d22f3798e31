"""The options of `edgecompress emulate`, and those that it passes to the roles."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Literal

from edgecompress.cli.online import AttendOptions
from edgecompress.cli.options import RunOptions
from edgecompress.run.stage import RunSettings, Strict
from edgecompress.run.values import Above0, Amount, Natural, Positive, Seconds, Share
from edgecompress.stages.distill import DistillStage
from edgecompress.stages.fields import BatchSize, Maps, Schedule, Training, flag, like


def _absolute(data: str) -> str:
    """The name of data whose paths do not depend on the working folder: the roles have another."""
    parts = (part.partition(":") for part in data.split("+"))
    return "+".join(
        f"{kind}:{Path(place).expanduser().absolute()}"
        if kind in ("folder", "npz")
        else kind + place
        for kind, _, place in parts
    )


class EmulateOptions(Strict):
    """What is emulated, how teacher and student learn, and what a run is compared with."""

    link: str | None = None
    """Every link like this: ethernet, wifi, lte, 3g or satellite."""
    exchange: str = like(AttendOptions, "exchange")
    codec: str = like(AttendOptions, "codec")
    teacher: str | None = None
    """A checkpoint or a name; default: the topology's."""
    student: str | None = None
    """A name or a checkpoint; default: the topology's."""
    features: Maps | None = like(AttendOptions, "features")
    mutual: bool = False
    """Teacher and student learn from each other."""
    staleness: Natural = like(AttendOptions, "staleness")
    prune_teacher: Amount | None = None
    """Cut the teacher while it trains: 50%, 2Mparams, 4MB."""
    prune_student: Amount | None = like(DistillStage, "prune_student")
    step: Share = like(DistillStage, "step")
    schedule: Schedule = like(DistillStage, "schedule")
    fixed_teacher: bool = False
    """The teacher is frozen; else it trains at the same time."""
    backend: Literal["auto", "netem", "wirefilter", "none"] = "auto"
    """Back end of links with delay or loss."""
    baseline: Path | None = None
    """result.json of an earlier run to compare this one with."""
    max_regression: Share = 0.1
    """How much slower, or larger, it may be."""
    window: Positive = like(AttendOptions, "window")
    keep_every: Positive = like(AttendOptions, "keep_every")
    timeout: Seconds = 1800.0
    """The longest that a lesson may take: 30min."""
    pcap: bool = False
    """Keep the captures."""
    insecure: bool = False
    """No TLS between the hosts."""
    data: str = like(RunSettings, "data")
    epochs: Natural | None = like(Training, "epochs")
    batch_size: BatchSize | None = like(Training, "batch_size")
    learning_rate: Above0 | None = like(Training, "learning_rate")
    seed: Natural = like(RunSettings, "seed")
    output: Path | None = flag(("-o", "--output"), None)
    """Folder of the run."""
    exist_ok: bool = like(RunOptions, "exist_ok")
    as_json: bool = like(RunOptions, "as_json")
    quiet: bool = like(RunOptions, "quiet")
    debug: bool = like(RunOptions, "debug")

    def shared_options(self) -> tuple[str, ...]:
        """Options of both roles."""
        given = (
            ("--data", _absolute(self.data)),
            ("--seed", self.seed),
            ("--epochs", self.epochs),
            ("--batch-size", self.batch_size),
            ("--learning-rate", self.learning_rate),
        )
        pairs = ((name, str(value)) for name, value in given if value is not None)
        return tuple(itertools.chain.from_iterable(pairs))

    def cut_options(self, amount: str | None) -> tuple[str, ...]:
        """Options of a role whose network is cut to `amount` while it trains."""
        if amount is None:
            return ()
        return ("--prune", amount, "--step", f"{self.step:g}", "--schedule", self.schedule)

    def student_options(self, exchange: str) -> tuple[str, ...]:
        """Options of the students alone."""
        flow = ("--window", str(self.window), "--keep-every", str(self.keep_every))
        mutual = ("--mutual", "--staleness", str(self.staleness)) if self.mutual else ()
        by_maps = self.features if exchange == "features" else None
        features = ("--features", by_maps) if by_maps else ()
        return (*flow, *mutual, *self.cut_options(self.prune_student), *features)
