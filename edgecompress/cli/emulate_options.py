"""The options of `edgecompress emulate`, and those that it passes to the roles."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from edgecompress.run.stage import Strict
from edgecompress.run.values import Amount, Seconds, Share
from edgecompress.stages.fields import Schedule, flag


class EmulateOptions(Strict):
    """What is emulated, how teacher and student learn, and what a run is compared with."""

    link: str | None = None
    """Every link like this: ethernet, wifi, lte, 3g or satellite."""
    exchange: str = "logits"
    """logits, features, weights, or inputs (images up)."""
    codec: str = "fp16"
    """How logits travel: fp32, fp16, int8, top-k, soft."""
    teacher: str | None = None
    """A checkpoint or a name; default: the topology's."""
    student: str | None = None
    """A name or a checkpoint; default: the topology's."""
    features: Literal["hint", "attention"] | None = None
    """With --exchange features: how maps are compared; default: attention."""
    mutual: bool = False
    """Teacher and student learn from each other."""
    staleness: Annotated[int, Field(ge=0)] = 0
    """With --mutual: steps by which the logits learned from may be old."""
    prune_teacher: Amount | None = None
    """Cut the teacher while it trains: 50%, 2Mparams, 4MB."""
    prune_student: Amount | None = None
    """Cut every student while it trains."""
    step: Share = 0.1
    """When pruning: share of channels that one cut removes."""
    schedule: Schedule = "early"
    """When cuts are made."""
    fixed_teacher: bool = False
    """The teacher is frozen; else it trains at the same time."""
    backend: Literal["auto", "netem", "wirefilter", "none"] = "auto"
    """Back end of links with delay or loss."""
    baseline: Path | None = None
    """result.json of an earlier run to compare this one with."""
    max_regression: Share = 0.1
    """How much slower, or larger, it may be."""
    window: Annotated[int, Field(ge=1)] = 64
    """Steps under way at once, to hide the round trip."""
    keep_every: Annotated[int, Field(ge=1)] = 50
    """Steps between kept states."""
    timeout: Seconds = 1800.0
    """The longest that a lesson may take: 30min."""
    pcap: bool = False
    """Keep the captures."""
    insecure: bool = False
    """No TLS between the hosts."""
    data: str = "digits"
    """digits, cifar10, cifar100 or folder:DIR."""
    epochs: Annotated[int, Field(ge=0)] | None = None
    """Epochs; default: from network and data."""
    batch_size: Annotated[int, Field(ge=2)] | None = None
    """Images per step; default: from the data."""
    learning_rate: float | None = None
    """Highest learning rate; default: from network and data."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Random seed."""
    output: Path | None = flag(("-o", "--output"), None)
    """Folder of the run."""
    exist_ok: bool = False
    """Overwrite a folder in use."""
    as_json: bool = flag("--json", False)
    """Print one JSON object, nothing else."""
    quiet: bool = flag(("-q", "--quiet"), False)
    """No progress."""
    debug: bool = False
    """Tracebacks."""

    def shared_options(self) -> tuple[str, ...]:
        """Options of both roles."""
        given = (
            ("--data", self.data),
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
