"""`edgecompress bench model.onnx`, alone or `--against` another file or a stored `--baseline`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import Field

from edgecompress import files
from edgecompress.cli.checkpoints import onnx_in
from edgecompress.cli.console import print_json, print_line, stdout, table
from edgecompress.cli.gates import gates_of
from edgecompress.cli.options import Given, RunOptions, options_of, verb
from edgecompress.errors import UsageError
from edgecompress.measure.requests import Profile
from edgecompress.run.stage import RunSettings, Strict
from edgecompress.run.values import Seconds, Share, Side, Size, Threads
from edgecompress.stages.fields import Names, like

if TYPE_CHECKING:
    from edgecompress.measure.bootstrap import Interval
    from edgecompress.measure.regression import Measured, Protocol
    from edgecompress.report.ci import BenchResult


class BenchOptions(Strict):
    """What is measured, with what it is compared, and what is written."""

    against: Path | None = None
    """An .onnx file that it must not be slower than."""
    baseline: Path | None = None
    """Stored results instead: the output of bench MODEL --json."""
    max_regression: Share | None = None
    """How much slower is allowed; default: 5%."""
    max_drop: Share | None = None
    """Accuracy that it may lose, absolute, beyond chance; needs --data."""
    max_bytes: Size | None = None
    """Largest size of the file: 4MB."""
    data: str | None = None
    """Data whose test split --max-drop is measured on."""
    image_size: Side | None = None
    """Side of the square images that --max-drop is measured on."""
    strict: bool = False
    """An inconclusive result, of latency or accuracy, fails too."""
    cross_machine: bool = False
    """Allow a baseline of other hardware, normalised."""
    batch_size: str | None = None
    """Images per run; default: 1, or the file's own. Without a comparison also several: 1,8,32."""
    shape: Names = ()
    """Shapes of inputs with free sizes: x=1x3x224x224, several with commas."""
    time: Seconds = 120.0
    """Longest measurement: 60s, 2min."""
    processes: Annotated[int, Field(ge=5)] = 5
    """Fresh processes to begin with."""
    blocks: Annotated[int, Field(ge=5)] = 30
    """Blocks per process."""
    provider: str = "CPUExecutionProvider"
    """Execution provider of ONNX Runtime."""
    threads: Threads | None = like(RunSettings, "threads")
    history: Path | None = None
    """Append to this file (JSON lines), and fail on a slow drift over many commits."""
    junit: Path | None = None
    """Write JUnit XML."""
    summary: Path | None = None
    """Write Markdown."""
    github_action_benchmark: Path | None = None
    """Write customSmallerIsBetter."""
    bencher: Path | None = None
    """Write Bencher's metric format."""
    as_json: bool = like(RunOptions, "as_json")
    debug: bool = like(RunOptions, "debug")

    @property
    def tolerance(self) -> float:
        """The share by which it may be slower."""
        return 0.05 if self.max_regression is None else self.max_regression

    @property
    def compares(self) -> bool:
        """Is there something to compare with?"""
        return self.against is not None or self.baseline is not None

    @property
    def sizes(self) -> list[int | None]:
        """The batch sizes, None for the file's own. Raises `UsageError` for other text."""
        return [None] if self.batch_size is None else [*_sizes(self.batch_size)]

    @property
    def shapes(self) -> dict[str, list[int]]:
        """The shape of each input that was given one. Raises `UsageError` for other text."""
        return dict(_shape(text) for text in self.shape)

    @property
    def targets(self) -> dict[str, Path | None]:
        """The files to write, by format."""
        return {
            "junit": self.junit,
            "summary": self.summary,
            "github_action_benchmark": self.github_action_benchmark,
            "bencher": self.bencher,
        }

    def check(self) -> None:
        """Raises `UsageError` for options that exclude each other, or miss one they need."""
        given = {"--max-regression": self.max_regression is not None, "--strict": self.strict}
        idle = next((name for name, is_given in given.items() if is_given), None)
        if idle == "--max-regression" and self.history is not None:
            idle = "--strict" if self.strict else None
        if idle is not None and not self.compares:
            raise UsageError(
                f"{idle} judges a comparison: give --against OLD.onnx or --baseline FILE.json"
            )
        if self.cross_machine and self.baseline is None:
            raise UsageError(
                "--cross-machine is about a stored baseline: give --baseline FILE.json"
            )
        if self.max_drop is None and (self.data is not None or self.image_size is not None):
            raise UsageError(
                "--data and --image-size are for the accuracy that --max-drop gates: give it too"
            )
        if self.against is not None and self.baseline is not None:
            raise UsageError(
                "--against and --baseline are both given: compare with a file or with stored "
                "results, not both"
            )
        if self.max_drop is not None and (self.against is None or self.data is None):
            raise UsageError(
                "--max-drop compares the accuracy of two files on data: give --against OLD.onnx "
                "and --data NAME"
            )
        if len(self.sizes) > 1 and self.compares:
            raise UsageError(
                f"--batch-size {self.batch_size} with a comparison: give one size, or measure the "
                "file alone"
            )


@verb(options_of(BenchOptions, "Measurement"))
def bench(
    model: Annotated[Path, typer.Argument(help="an .onnx file, or the folder of a run")],
    given: Given,
) -> None:
    """Measure the latency of an ONNX file, and whether it is slower than another one (exit 3).

    Example: edgecompress bench new.onnx --against old.onnx --max-regression 5%
    """
    from edgecompress.report import ci

    options = given.settings(BenchOptions)
    options.check()
    model = onnx_in(model)
    options = options.model_copy(update={"against": options.against and onnx_in(options.against)})
    appended = [Path(name)] if (name := os.environ.get("GITHUB_STEP_SUMMARY")) else []
    written = [*options.targets.values(), options.history, *appended]
    _check_writable([path for path in written if path is not None])
    if options.history is not None:
        from edgecompress.measure.drift import read_history

        read_history(options.history)
    if options.data is not None:
        from edgecompress.data import load_data

        load_data(options.data, image_size=options.image_size)
    for path in (model, options.against):
        if path is not None:
            _check(path, options.provider)
    result = _measured(model, options)
    if options.as_json:
        print_json(result)
    else:
        _show(result, options.strict)
    ci.write(result, options.strict, options.targets, appended)
    if any(status == "fail" for _, status, _ in ci.checks(result, options.strict)):
        raise typer.Exit(3)


class Progress:
    """A line on stderr with the ratio or latency so far: on a terminal it replaces itself,
    elsewhere a new one comes every `EVERY_S` seconds.
    """

    EVERY_S = 10.0

    def __init__(self, time_s: float) -> None:
        self.time_s = time_s
        self._shown_s = 0.0

    def __call__(self, processes: int, ratio: Interval, spent_s: float) -> None:
        """One process more is measured."""
        bounds = f"95 % {ratio.low:.3f} to {ratio.high:.3f}" if processes > 1 else "no interval yet"
        self._show(processes, spent_s, f"ratio {ratio.median:.3f} ({bounds})")

    def alone(self, measured: Measured, spent_s: float) -> None:
        """One process more has measured the file, which is compared with nothing."""
        p50_ms = median(measured.samples_ms[0])
        self._show(len(measured.blocks_ms), spent_s, f"p50 {p50_ms:.4f} ms")

    def _show(self, processes: int, spent_s: float, value: str) -> None:
        text = (
            f"bench: {processes} process(es), {spent_s:.0f} of at most {self.time_s:.0f} s: {value}"
        )
        if sys.stderr.isatty() and not os.environ.get("CI"):
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()
        elif spent_s - self._shown_s >= self.EVERY_S:
            self._shown_s = spent_s
            print_line(text, sys.stderr)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if sys.stderr.isatty() and not os.environ.get("CI"):
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


def _measured(model: Path, options: BenchOptions) -> BenchResult:
    """The comparison, or the figures of the file alone; then the gates."""
    from edgecompress.measure import regression

    protocol = _protocol(options)
    progress = Progress(options.time)
    start = time.perf_counter()
    try:
        if options.against is not None:
            compared = regression.compare(
                model, options.against, options.tolerance, protocol, progress
            )
            gates = gates_of(model, options, compared, compared["blocks_ms"]["candidate"])
            return {**compared, "gates": gates}
        if options.baseline is not None:
            judged = regression.compare_stored(
                model,
                regression.read_stored(options.baseline),
                options.tolerance,
                protocol,
                cross_machine=options.cross_machine,
                on_process=progress,
            )
            gates = gates_of(model, options, judged, judged["blocks_ms"]["candidate"])
            return {**judged, "gates": gates}
        alone = regression.stored(model, protocol, progress.alone)
    finally:
        progress.close()
    left = options.time - (time.perf_counter() - start)
    return {
        **alone,
        "profile": regression.profile(model, protocol, options.sizes, max(0.0, left)),
        "gates": gates_of(model, options, alone, alone["blocks_ms"]),
    }


def _protocol(options: BenchOptions) -> Protocol:
    from edgecompress.measure import regression

    return regression.Protocol(
        threads=options.threads,
        batch_size=options.sizes[0],
        provider=options.provider,
        processes=options.processes,
        blocks=options.blocks,
        looks=(2 * options.processes, 4 * options.processes),
        shapes=options.shapes,
        time_s=options.time,
    )


def _check_writable(targets: Sequence[Path]) -> None:
    """Raises `UsageError` for a file that could not be written after the measurement, and for two
    results in one file.
    """
    places = [target.resolve() for target in targets]
    twice = next((place for place in places if places.count(place) > 1), None)
    if twice is not None:
        raise UsageError(f"'{twice}' is named for two results: give each a file of its own")
    for target in targets:
        place = next(path for path in target.absolute().parents if path.exists())
        if target.is_dir() or not place.is_dir() or not os.access(place, os.W_OK):
            raise UsageError(
                f"'{target}' cannot be written: name a file in a folder that may be written"
            )


def _sizes(text: str) -> list[int]:
    """`1,8,32` as numbers."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(
            f"--batch-size '{text}' is no list of numbers above 0: write it like 1 or 1,8,32"
        )
    return [int(part) for part in parts]


def _shape(text: str) -> tuple[str, list[int]]:
    """`x=1x3x224x224` as a name and sizes."""
    name, _, sizes = text.rpartition("=")
    parts = sizes.split("x")
    if not name or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"--shape '{text}' is no input with sizes: write it like x=1x3x224x224")
    return name, [int(part) for part in parts]


def _check(path: Path, provider: str) -> None:
    """Raises before anything is measured: no such file, no ONNX, data missing, an operation or a
    provider that the runtime lacks, a file that crashes it.
    """
    from edgecompress.measure import trials

    warning = trials.first_load(path, provider)
    if warning is not None:
        print_line(f"warning: {warning}", sys.stderr)


def _show(result: BenchResult, strict: bool) -> None:
    from edgecompress.report import ci

    sides = ci.sides(result).values()
    names = files.distinct_names([Path(row["file"]) for row in sides])
    rows = [
        (name, str(row["bytes"]), *(f"{value:.4f} ms" for value in ci.percentiles_ms(row)))
        for name, row in zip(names, sides, strict=True)
    ]
    title = f"batch {result['batch']}, {result['threads']} thread(s), {result['provider']}"
    stdout().print(table(title, ["file", "bytes", "p50", "p90", "p99"], rows))
    if "profile" in result:
        _show_profile(result["profile"])
        if result["time_over"]:
            count = len(result["blocks_ms"])
            print_line(f"the time ended after {count} process(es): give more --time")
    for name, status, text in ci.checks(result, strict):
        print_line(
            f"{name}: {text}"
            if name == "latency"
            else f"{name}: {'inconclusive' if status == 'skip' else status}: {text}"
        )


def _show_profile(profile: Profile) -> None:
    """Cold start, memory, batches, and the share of the machine's ceiling."""
    from edgecompress.report.ci import percentiles_ms
    from edgecompress.units import format_count, format_size

    if len(profile["batches"]) > 1:
        rows = [
            (
                str(row["batch"]),
                *(f"{value:.4f} ms" for value in percentiles_ms(row)),
                f"{row['samples_per_s']:.0f}",
            )
            for row in profile["batches"]
        ]
        stdout().print(table("by batch", ["batch", "p50", "p90", "p99", "samples a second"], rows))
    print_line(
        f"cold start: {profile['cold_start_ms']:.1f} ms ({profile['load_ms']:.1f} to load, "
        f"{profile['first_run_ms']:.1f} the first run)"
    )
    print_line(
        f"peak memory: {format_size(profile['peak_rss_bytes'])} "
        f"({format_size(profile['rss_before_load_bytes'])} "
        "before the model)"
    )
    macs, ceilings = profile["macs"], profile["ceiling_gmacs_per_s"]
    if profile["share_of_ceiling"] is not None and macs is not None and ceilings is not None:
        kind = profile["ceiling_kind"]
        peak = ceilings[kind]
        speed = f"{format_count(macs)} MACs, {profile['gmacs_per_s']:.3g} GMAC/s"
        print_line(
            f"of the ceiling: {profile['share_of_ceiling']:.0%} ({speed}; {kind} matrix "
            f"products here reach {peak:.3g})"
        )
