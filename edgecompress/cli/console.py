"""What the verbs share: option types, streams, progress. Results go to stdout, everything else to
stderr.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TextIO

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table


def env(name: str) -> str:
    """The environment variable that sets the option `name`."""
    return f"EDGECOMPRESS_{name.upper()}"


Data = Annotated[
    str, typer.Option("--data", help="digits, cifar10, cifar100 or folder:DIR", envvar=env("DATA"))
]
Seed = Annotated[int, typer.Option("--seed", help="random seed", envvar=env("SEED"), min=0)]
Device = Annotated[
    str, typer.Option("--device", help="auto, cpu, cuda or cuda:N", envvar=env("DEVICE"))
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        help="default: all cores, or OMP_NUM_THREADS",
        envvar=env("THREADS"),
        min=1,
        max=256,
    ),
]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", help="folder of the run", envvar=env("OUTPUT"))
]
Epochs = Annotated[
    int | None,
    typer.Option("--epochs", help="default: from network and data", envvar=env("EPOCHS"), min=0),
]
Rate = Annotated[float | None, typer.Option("--learning-rate", envvar=env("LEARNING_RATE"))]
BatchSize = Annotated[int | None, typer.Option("--batch-size", envvar=env("BATCH_SIZE"), min=2)]
ImageSize = Annotated[
    int | None, typer.Option("--image-size", help="resize images to this side", min=8)
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="skip corrupt images, and report how many")
]
ExistOk = Annotated[bool, typer.Option("--exist-ok", help="overwrite a folder in use")]
Json = Annotated[bool, typer.Option("--json", help="print one JSON object, nothing else")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="no progress")]
Debug = Annotated[bool, typer.Option("--debug", help="tracebacks")]


def stderr() -> Console:
    """Console for everything that is not a result."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def stdout() -> Console:
    """Console for results."""
    return Console(highlight=False, soft_wrap=True)


def print_error(text: str) -> None:
    """One line on stderr."""
    print_line(f"error: {text}", sys.stderr)


def print_line(text: str, stream: TextIO | None = None) -> None:
    """One plain line on `stream` (default stdout), flushed."""
    stream = stream or sys.stdout
    stream.write(text + "\n")
    stream.flush()


def print_json(value: object) -> None:
    """The one JSON object of `--json`."""
    print_line(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False, default=str))


class Bars:
    """Progress on stderr: bars with the time left on a terminal, one line a stage elsewhere,
    nothing under `-q`.
    """

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self.console = stderr()
        live = not quiet and self.console.is_terminal and not os.environ.get("CI")
        self.progress: Progress | None = None
        if live:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
            )
            self.progress = Progress(
                *columns,
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self.progress.start()
        self._task: TaskID | None = None
        self._planned = 0

    def stage(self, number: int, total: int, name: str) -> None:
        """A stage begins. Stages that others asked for on the way are counted apart: `[5/8+2]`."""
        self._end_task()
        self._planned = self._planned or total
        added = f"+{total - self._planned}" if total > self._planned else ""
        if not self.quiet:
            self.console.print(f"[{number}/{self._planned}{added}] {name}", markup=False)

    def step(self, done: int, total: int, text: str) -> None:
        """Move the bar of the work called `text`."""
        if self.progress is None:
            return
        if self._task is None or self.progress.tasks[-1].description != text:
            self._end_task()
            self._task = self.progress.add_task(text, total=total)
        self.progress.update(self._task, completed=done, total=total)

    def note(self, text: str) -> None:
        """A line for the reader."""
        if not self.quiet:
            self.console.print(f"      {text}", markup=False)

    def epoch(self, text: str) -> None:
        """A line for a log; on a terminal the bar shows where the training is."""
        if not self.quiet and self.progress is None:
            self.console.print(f"      {text}", markup=False)

    def close(self) -> None:
        """Leave the terminal as it was."""
        self._end_task()
        if self.progress is not None:
            self.progress.stop()

    def _end_task(self) -> None:
        if self.progress is not None and self._task is not None:
            self.progress.remove_task(self._task)
        self._task = None


def table(title: str, columns: list[str], rows: Sequence[tuple[str, ...]]) -> Table:
    """A table whose first column is text and whose others are numbers. What is too wide for the
    terminal (80 columns in a pipe) is folded, never cut.
    """
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        made.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made
