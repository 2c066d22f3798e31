"""`edgecompress bench model.onnx`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgecompress.cli.console import Debug, Json, Threads, print_json, stdout, table


def bench(
    model: Annotated[Path, typer.Argument(help="an .onnx file")],
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 1,
    samples: Annotated[int, typer.Option("--samples", min=20)] = 200,
    threads: Threads = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure the latency of an ONNX file in ONNX Runtime, here."""
    from edgecompress.measure import latency, machine, runtime

    loaded = runtime.load(model, threads=threads)
    taken = latency.measure([loaded], batch_size=batch_size, samples=samples)[0]
    summary = {f"{key}_ms": value for key, value in taken.summary().items()}
    if as_json:
        candidate = {**summary, "samples": len(taken.samples_ms), "batch": batch_size, "threads": taken.threads}
        print_json({"candidate": candidate, "file": str(model), "bytes": model.stat().st_size, "hardware": machine.hardware()})
        return
    rows = [tuple(f"{v:.3f} ms" for v in summary.values())]
    stdout().print(table(f"{model}, batch {batch_size}, {taken.threads} thread(s)", ["p50", "p90", "p99"], rows))
