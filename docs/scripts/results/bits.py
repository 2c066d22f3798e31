"""Tables of bytes: what a graph takes, and what fewer bits cost."""

from __future__ import annotations

from typing import Any

from docs.scripts.markdown import table
from docs.scripts.results.files import percent, read


def fixed() -> str:
    """Bytes of int8 files that are no values."""
    rows = [
        (
            row["network"],
            f"{row['fixed_before']:,}",
            f"{row['fixed']:,}",
            f"{row['bar']:,}" if row["bar"] else "",
        )
        for row in read("bytes")["fixed"]["rows"]
    ]
    return table(["network", "before", "lean", "at most"], rows)


def accuracy() -> str:
    """ResNet-20 in fewer bits, on the test split."""
    rows = []
    for row in read("bytes")["accuracy"]:
        low, high = row["difference"]["ci95"]
        points = 100 * row["difference"]["difference"]
        tuning = row["tuning"]
        rows.append(
            (
                row["format"],
                f"{row['bytes']:,}",
                f"{percent(row['fp32']['accuracy'])} -> {percent(row['test']['accuracy'])}",
                f"{points:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})",
                f"{tuning['epochs']} epochs, seed {row['seed']}, {row['device']}",
            )
        )
    columns = ["format", "bytes", "test, fp32 and file", "points (95 % interval)", "fine-tuning"]
    return table(columns, rows)


def speed() -> str:
    """Each file against the int8 file of the same network."""
    rows = []
    for row in read("bytes")["speed"]["rows"]:
        ratio = row.get("against_int8")
        against = "" if ratio is None else _ratio(ratio)
        memory = f"{row['peak_rss_bytes'] / 1e6:.1f} MB"
        rows.append((row["format"], f"{row['bytes']:,}", against, f"{row['load_ms']:.1f}", memory))
    columns = ["format", "bytes", "p50 against int8", "load, ms", "peak memory"]
    return table(columns, rows)


def _ratio(ratio: dict[str, Any]) -> str:
    low, high = ratio["ci95"]
    return f"{ratio['median']:.3f} ({low:.3f} to {high:.3f})"
