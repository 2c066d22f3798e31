"""`edgecompress bench model.onnx`, alone or `--against` another file or a stored `--baseline`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import Field

from edgecompress.cli.console import print_json, print_line, stdout, table
from edgecompress.cli.options import Given, options_of, verb
from edgecompress.errors import UsageError
from edgecompress.measure.requests import Gate, Profile
from edgecompress.run.stage import Strict
from edgecompress.stages.fields import Share, Size, flag

if TYPE_CHECKING:
    from edgecompress.measure.regression import Protocol
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
    """Accuracy that it may lose, absolute; needs --data."""
    max_bytes: Size | None = None
    """Largest size of the file: 4MB."""
    data: str | None = None
    """Data whose test split --max-drop is measured on."""
    image_size: Annotated[int, Field(ge=8)] | None = None
    """Side of the square images that --max-drop is measured on."""
    strict: bool = False
    """An inconclusive result fails too."""
    cross_machine: bool = False
    """Allow a baseline of other hardware, normalised."""
    batch_size: str = "1"
    """Images per run; without a comparison also several: 1,8,32."""
    processes: Annotated[int, Field(ge=5)] = 5
    """Fresh processes to begin with."""
    blocks: Annotated[int, Field(ge=5)] = 30
    """Blocks per process."""
    provider: str = "CPUExecutionProvider"
    """Execution provider of ONNX Runtime."""
    threads: Annotated[int, Field(ge=1, le=256)] | None = None
    """CPU threads; default: all cores."""
    junit: Path | None = None
    """Write JUnit XML."""
    summary: Path | None = None
    """Write Markdown."""
    github_action_benchmark: Path | None = None
    """Write customSmallerIsBetter."""
    bencher: Path | None = None
    """Write Bencher's metric format."""
    as_json: bool = flag("--json", False)
    """Print one JSON object, nothing else."""
    debug: bool = False
    """Tracebacks."""

    @property
    def compares(self) -> bool:
        """Is there something to compare with?"""
        return self.against is not None or self.baseline is not None

    @property
    def sizes(self) -> list[int]:
        """The batch sizes. Raises `UsageError` for other text."""
        return _sizes(self.batch_size)

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


class BytesGate(Gate):
    """The size of the file, in bytes."""

    bytes: int
    max_bytes: int


class AccuracyGate(Gate):
    """Accuracy (R² of a regression) on the test split, and how much of it may be lost, absolute."""

    candidate: float
    baseline: float
    max_drop: float


@verb(options_of(BenchOptions, "Measurement"))
def bench(model: Annotated[Path, typer.Argument(help="an .onnx file")], given: Given) -> None:
    """Measure the latency of an ONNX file, and whether it is slower than another one (exit 3).

    Example: edgecompress bench new.onnx --against old.onnx --max-regression 5%
    """
    from edgecompress.report import ci

    options = given.settings(BenchOptions)
    options.check()
    appended = [Path(name)] if (name := os.environ.get("GITHUB_STEP_SUMMARY")) else []
    _check_writable([*(path for path in options.targets.values() if path), *appended])
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


def _measured(model: Path, options: BenchOptions) -> BenchResult:
    """The comparison, or the figures of the file alone; then the gates."""
    from edgecompress.measure import regression

    protocol = _protocol(options)
    tolerance = 0.05 if options.max_regression is None else options.max_regression
    if options.against is not None:
        compared = regression.compare(model, options.against, tolerance, protocol)
        return {**compared, "gates": _gates(model, options)}
    if options.baseline is not None:
        kept = regression.read_stored(options.baseline)
        judged = regression.compare_stored(
            model, kept, tolerance, protocol, cross_machine=options.cross_machine
        )
        return {**judged, "gates": _gates(model, options)}
    return {
        **regression.stored(model, protocol),
        "profile": regression.profile(model, protocol, options.sizes),
        "gates": _gates(model, options),
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
    )


def _check_writable(targets: Iterable[Path]) -> None:
    """Raises `UsageError` for a file that could not be written after the measurement."""
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


def _check(path: Path, provider: str) -> None:
    """Raises before anything is measured: no such file, no ONNX, data missing, an operation or a
    provider that the runtime lacks.
    """
    from edgecompress.measure import runtime

    runtime.load(path, threads=1, provider=provider)


def _gates(model: Path, options: BenchOptions) -> list[Gate]:
    """The gates beside latency."""
    gates: list[Gate] = []
    if options.max_bytes is not None:
        gates.append(_bytes_gate(model, options.max_bytes))
    if options.max_drop is not None and options.against is not None and options.data is not None:
        gates.append(_accuracy_gate(model, options.against, options.data, options))
    return gates


def _bytes_gate(model: Path, limit: int) -> BytesGate:
    from edgecompress.measure import runtime

    size = runtime.file_bytes(model)
    return {
        "name": "bytes",
        "passed": size <= limit,
        "bytes": size,
        "max_bytes": limit,
        "text": f"{size} bytes, allowed {limit}",
    }


def _accuracy_gate(model: Path, against: Path, data: str, options: BenchOptions) -> AccuracyGate:
    from edgecompress.measure import runtime
    from edgecompress.measure.score import score_on

    def score(path: Path) -> float:
        loaded = runtime.load(path, threads=options.threads)
        row = score_on(loaded, data, options.image_size)
        return row["accuracy"] if "accuracy" in row else row["metric"]

    new, old, allowed = score(model), score(against), options.max_drop or 0.0
    return {
        "name": "accuracy",
        "passed": old - new <= allowed + 1e-12,
        "candidate": new,
        "baseline": old,
        "max_drop": allowed,
        "text": (
            f"accuracy {new:.4f} against {old:.4f} on the test split of {data}, allowed drop "
            f"{allowed:.4f}"
        ),
    }


def _show(result: BenchResult, strict: bool) -> None:
    from edgecompress.report import ci

    rows = [
        (
            Path(row["file"]).name,
            str(row["bytes"]),
            *(f"{value:.4f} ms" for value in ci.percentiles_ms(row)),
        )
        for row in ci.sides(result).values()
    ]
    title = f"batch {result['batch']}, {result['threads']} thread(s), {result['provider']}"
    stdout().print(table(title, ["file", "bytes", "p50", "p90", "p99"], rows))
    if "profile" in result:
        _show_profile(result["profile"])
    for name, status, text in ci.checks(result, strict):
        print_line(
            f"{name}: {text}"
            if name == "latency"
            else f"{name}: {'pass' if status == 'pass' else 'fail'}: {text}"
        )


def _show_profile(found: Profile) -> None:
    """Cold start, memory, batches, and the share of the machine's ceiling."""
    from edgecompress.report.ci import percentiles_ms
    from edgecompress.units import format_count, format_size

    if len(found["batches"]) > 1:
        rows = [
            (
                str(row["batch"]),
                *(f"{value:.4f} ms" for value in percentiles_ms(row)),
                f"{row['samples_per_s']:.0f}",
            )
            for row in found["batches"]
        ]
        stdout().print(table("by batch", ["batch", "p50", "p90", "p99", "samples a second"], rows))
    print_line(
        f"cold start: {found['cold_start_ms']:.1f} ms ({found['load_ms']:.1f} to load, "
        f"{found['first_run_ms']:.1f} the first run)"
    )
    print_line(
        f"peak memory: {format_size(found['peak_rss_bytes'])} "
        f"({format_size(found['rss_before_load_bytes'])} "
        "before the model)"
    )
    macs, ceilings = found["macs"], found["ceiling_gmacs_per_s"]
    if found["share_of_ceiling"] is not None and macs is not None and ceilings is not None:
        kind = found["ceiling_kind"]
        peak = ceilings[kind]
        told = f"{format_count(macs)} MACs, {found['gmacs_per_s']:.3g} GMAC/s"
        print_line(
            f"of the ceiling: {found['share_of_ceiling']:.0%} ({told}; {kind} matrix "
            f"products here reach {peak:.3g})"
        )
