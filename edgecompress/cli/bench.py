"""`edgecompress bench model.onnx`, alone or `--against` another file or a stored `--baseline`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from edgecompress.cli.console import (
    Debug,
    ImageSize,
    Json,
    Threads,
    print_json,
    print_line,
    stdout,
    table,
)
from edgecompress.errors import UsageError


def bench(
    model: Annotated[Path, typer.Argument(help="an .onnx file")],
    against: Annotated[
        Path | None, typer.Option("--against", help="an .onnx file that it must not be slower than")
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option("--baseline", help="stored results instead: the output of bench MODEL --json"),
    ] = None,
    max_regression: Annotated[
        str | None, typer.Option("--max-regression", help="how much slower is allowed (5%)")
    ] = None,
    max_drop: Annotated[
        str | None, typer.Option("--max-drop", help="accuracy it may lose, absolute; needs --data")
    ] = None,
    max_bytes: Annotated[
        str | None, typer.Option("--max-bytes", help="largest size of the file: 4MB")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="data whose test split --max-drop is measured on")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="an inconclusive result fails too")
    ] = False,
    cross_machine: Annotated[
        bool, typer.Option("--cross-machine", help="allow a baseline of other hardware, normalised")
    ] = False,
    batch_size: Annotated[
        str, typer.Option("--batch-size", help="images a run; alone also several: 1,8,32")
    ] = "1",
    processes: Annotated[
        int, typer.Option("--processes", help="fresh processes to begin with", min=5)
    ] = 5,
    blocks: Annotated[int, typer.Option("--blocks", help="blocks a process", min=5)] = 30,
    provider: Annotated[
        str, typer.Option("--provider", help="of ONNX Runtime")
    ] = "CPUExecutionProvider",
    junit: Annotated[Path | None, typer.Option("--junit", help="write JUnit XML")] = None,
    summary: Annotated[Path | None, typer.Option("--summary", help="write Markdown")] = None,
    github_action_benchmark: Annotated[
        Path | None, typer.Option("--github-action-benchmark", help="write customSmallerIsBetter")
    ] = None,
    bencher: Annotated[
        Path | None, typer.Option("--bencher", help="write Bencher's metric format")
    ] = None,
    image_size: ImageSize = None,
    threads: Threads = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure the latency of an ONNX file, and whether it is slower than another one (exit 3).

    Example: edgecompress bench new.onnx --against old.onnx --max-regression 5%
    """
    from edgecompress import units
    from edgecompress.measure import regression
    from edgecompress.report import ci

    tolerance, allowed = (
        units.parse_share(max_regression or "5%"),
        None if max_drop is None else units.parse_share(max_drop),
    )
    given = {"--max-regression": max_regression is not None, "--strict": strict}
    idle = next(
        (
            name
            for name, is_given in given.items()
            if is_given and against is None and baseline is None
        ),
        None,
    )
    if idle is not None:
        raise UsageError(
            f"{idle} judges a comparison: give --against OLD.onnx or --baseline FILE.json"
        )
    if cross_machine and baseline is None:
        raise UsageError("--cross-machine is about a stored baseline: give --baseline FILE.json")
    if max_drop is None and (data is not None or image_size is not None):
        raise UsageError(
            "--data and --image-size are for the accuracy that --max-drop gates: give it too"
        )
    if against is not None and baseline is not None:
        raise UsageError(
            "--against and --baseline are both given: compare with a file or with stored "
            "results, not both"
        )
    if max_drop is not None and (against is None or data is None):
        raise UsageError(
            "--max-drop compares the accuracy of two files on data: give --against OLD.onnx "
            "and --data NAME"
        )
    limit = None if max_bytes is None else units.parse_size(max_bytes)
    sizes = _sizes(batch_size)
    if len(sizes) > 1 and (against is not None or baseline is not None):
        raise UsageError(
            f"--batch-size {batch_size} with a comparison: give one size, or measure the file alone"
        )
    protocol = regression.Protocol(
        threads=threads,
        batch_size=sizes[0],
        provider=provider,
        processes=processes,
        blocks=blocks,
        looks=(2 * processes, 4 * processes),
    )
    appended = [Path(found)] if (found := os.environ.get("GITHUB_STEP_SUMMARY")) else []
    targets = {
        "junit": junit,
        "summary": summary,
        "github_action_benchmark": github_action_benchmark,
        "bencher": bencher,
    }
    for target in (*targets.values(), *appended):
        place = (
            None
            if target is None
            else next(path for path in target.absolute().parents if path.exists())
        )
        if (
            target is not None
            and place is not None
            and (target.is_dir() or not place.is_dir() or not os.access(place, os.W_OK))
        ):
            raise UsageError(
                f"'{target}' cannot be written: name a file in a folder that may be written"
            )
    if data is not None:
        from edgecompress.data import load_data

        load_data(data, image_size=image_size)
    for path in (model, *([against] if against is not None else [])):
        _check(path, provider)
    if against is not None:
        result = regression.compare(model, against, tolerance, protocol)
    elif baseline is not None:
        kept = regression.read_stored(baseline)
        result = regression.compare_stored(
            model, kept, tolerance, protocol, cross_machine=cross_machine
        )
    else:
        result = regression.stored(model, protocol)
        result["profile"] = regression.profile(model, protocol, sizes)
    result["gates"] = _gates(model, against, limit, allowed, data, image_size, threads)
    if as_json:
        print_json(result)
    else:
        _show(result, strict)
    ci.write(result, strict, targets, appended)
    if any(status == "fail" for _, status, _ in ci.checks(result, strict)):
        raise typer.Exit(3)


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


def _gates(
    model: Path,
    against: Path | None,
    limit: int | None,
    allowed: float | None,
    data: str | None,
    image_size: int | None,
    threads: int | None,
) -> list[dict[str, Any]]:
    """The gates beside latency: `{"name", "passed", "text", ...}`."""
    from edgecompress.cli.predict import accuracy_on
    from edgecompress.measure import runtime

    gates: list[dict[str, Any]] = []
    size = runtime.file_bytes(model)
    if limit is not None:
        gates.append(
            {
                "name": "bytes",
                "passed": size <= limit,
                "bytes": size,
                "max_bytes": limit,
                "text": f"{size} bytes, allowed {limit}",
            }
        )
    if allowed is not None and against is not None and data is not None:
        scores = (
            accuracy_on(runtime.load(path, threads=threads), data, image_size, False)
            for path in (model, against)
        )
        new, old = (
            float(row["accuracy"] if "accuracy" in row else row["metric"]) for row in scores
        )
        text = (
            f"accuracy {new:.4f} against {old:.4f} on the test split of {data}, allowed drop "
            f"{allowed:.4f}"
        )
        passed = old - new <= allowed + 1e-12
        gates.append(
            {
                "name": "accuracy",
                "passed": passed,
                "candidate": new,
                "baseline": old,
                "max_drop": allowed,
                "text": text,
            }
        )
    return gates


def _show(result: dict[str, Any], strict: bool) -> None:
    from edgecompress.report import ci

    rows = []
    for side in ("candidate", "baseline"):
        if side in result:
            row = result[side]
            rows.append(
                (
                    Path(row["file"]).name,
                    str(row["bytes"]),
                    *(f"{row[key]:.4f} ms" for key in ("p50_ms", "p90_ms", "p99_ms")),
                )
            )
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


def _show_profile(found: dict[str, Any]) -> None:
    """Cold start, memory, batches, and the share of the machine's ceiling."""
    from edgecompress.units import format_count, format_size

    if len(found["batches"]) > 1:
        rows = [
            (
                str(row["batch"]),
                *(f"{row[key]:.4f} ms" for key in ("p50_ms", "p90_ms", "p99_ms")),
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
    if found["share_of_ceiling"] is not None:
        peak = found["ceiling_gmacs_per_s"][found["ceiling_kind"]]
        told = f"{format_count(found['macs'])} MACs, {found['gmacs_per_s']:.3g} GMAC/s"
        kind = found["ceiling_kind"]
        print_line(
            f"of the ceiling: {found['share_of_ceiling']:.0%} ({told}; {kind} matrix "
            f"products here reach {peak:.3g})"
        )
