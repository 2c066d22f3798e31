"""What the verbs share: option types, streams, progress. Results go to stdout, everything else to
stderr.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, TextIO

import typer
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
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
        self._planned = total if number == 1 else self._planned or total
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


PROSE = 24
"""Characters from which a cell is text, which is aligned on the left and may be folded."""


GAP = 2
"""Blank columns between two of a table."""


class Folded:
    """A table that fits: words and numbers stay whole, text is folded, and columns that do not
    stand beside the others come below them, each time behind the first column.
    """

    def __init__(self, title: str, columns: list[str], rows: Sequence[tuple[str, ...]]) -> None:
        self.title = title
        self.columns = columns
        self.rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        for number, chosen in enumerate(self._blocks(options.max_width)):
            yield self._table(chosen, self.title if number == 0 else "", options.max_width)

    def _cells(self, column: int) -> list[str]:
        return [self.columns[column], *(row[column] for row in self.rows)]

    def _full(self, column: int) -> int:
        """Width at which nothing of the column is folded."""
        return max(map(cell_len, self._cells(column)))

    def _least(self, column: int, width: int) -> int:
        """Width of the longest word, which is only folded where it does not fit a line."""
        words = [word for cell in self._cells(column) for word in cell.split()]
        if column == 0:
            return min(self._full(0), width // 2)
        return min(max(map(cell_len, words), default=0), width - self._least(0, width) - GAP)

    def _blocks(self, width: int) -> list[list[int]]:
        """The columns of each part."""
        first = self._least(0, width)
        blocks, used = [[0]], first
        for column in range(1, len(self.columns)):
            needed = self._least(column, width) + GAP
            if used + needed > width:
                blocks.append([0])
                used = first
            blocks[-1].append(column)
            used += needed
        return blocks

    def _widths(self, chosen: list[int], width: int) -> dict[int, int]:
        """The least widths, and the space that is left to the columns that need it, in turn."""
        widths = {column: self._least(column, width) for column in chosen}
        left = width - sum(widths.values()) - GAP * (len(chosen) - 1)
        for column in sorted(chosen, key=self._full):
            more = min(left, self._full(column) - widths[column])
            widths[column] += more
            left -= more
        return widths

    def _table(self, chosen: list[int], title: str, width: int) -> Table:
        made = Table(
            title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold"
        )
        for column, own in self._widths(chosen, width).items():
            text = column == 0 or self._full(column) > PROSE
            side: Literal["left", "right"] = "left" if text else "right"
            made.add_column(self.columns[column], justify=side, overflow="fold", width=own)
        for row in self.rows:
            made.add_row(*(row[column] for column in chosen))
        return made


def table(title: str, columns: list[str], rows: Sequence[tuple[str, ...]]) -> Folded:
    """A table whose first column is text. What is too wide for the terminal (80 columns in a pipe)
    is folded or comes below, never cut.
    """
    return Folded(title, columns, rows)
