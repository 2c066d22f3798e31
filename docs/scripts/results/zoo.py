"""Tables of what can be cut of timm's networks, and of a pretrained network compressed."""

from __future__ import annotations

from collections import Counter
from typing import Any

from docs.scripts.markdown import table
from docs.scripts.results.files import bullets, percent, read, size


def _rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read("reach-timm")["rows"]
    return rows


def _left(value: float | None) -> str:
    return "-" if value is None else percent(value, 0)


def reach_timm() -> str:
    """One network of each family of timm, beside Torch-Pruning."""
    rows = []
    for row in _rows():
        mine, other = row["ours"], row["torch_pruning"]
        why = mine["error"] or "; ".join(reason for reason, _ in mine["reasons"][:2])
        theirs = _left(other["left"] if other["runs"] else None)
        seconds = "-" if mine["trace_s"] is None else f"{mine['trace_s']:.1f} s"
        rows.append(
            (
                f"{row['family']}: {row['name']}",
                mine["outcome"],
                _left(mine["left"]),
                theirs,
                seconds,
                " ".join(why.replace("|", "/").split())[:110],
            )
        )
    columns = ["family: network", "cut", "left", "left by Torch-Pruning", "trace", "what stays"]
    return table(columns, rows)


def reach_timm_summary() -> str:
    """How many can be cut, and how that compares."""
    rows = _rows()
    outcomes = Counter(row["ours"]["outcome"] for row in rows)
    cut = [row for row in rows if row["ours"]["outcome"] in ("whole", "part")]
    held = sum(bool(row["ours"]["holds"]) for row in cut)
    learning = sum(bool(row["ours"]["learns"]) for row in cut)
    working = [row for row in rows if row["torch_pruning"]["runs"]]
    both = [row for row in working if row["ours"]["left"] is not None]
    behind = [
        row["name"] for row in both if row["ours"]["left"] > row["torch_pruning"]["left"] + 0.02
    ]
    slowest = max(row["ours"]["trace_s"] or 0.0 for row in rows)
    names = f": {', '.join(behind)}" if behind else ""
    return bullets(
        f"{len(cut)} of {len(rows)} can be cut: {outcomes['whole']} whole, {outcomes['part']} in "
        f"part; {outcomes['none']} nowhere, {outcomes['failed']} failed.",
        f"Law 3 holds on {held} of these {len(cut)}; {learning} run forward and backward after "
        "the cut.",
        f"After Torch-Pruning {len(working)} of {len(rows)} run. On {len(behind)} of the "
        f"{len(both)} that run after both it removes over 2 points more{names}.",
        f"The trace with its proof takes at most {slowest:.1f} s.",
    )


def pretrained() -> str:
    """EfficientNet-Lite0 with ImageNet weights on a folder of photos."""
    result = read("pretrained")
    rows = [
        (
            str(run["seed"]),
            f"{percent(run['teacher']['accuracy'], 2)}, {size(run['teacher']['bytes'])}",
            f"{percent(run['student']['accuracy'], 2)}, {run['bytes']:,} bytes {run['format']}",
            f"{100 * run['drop']:.2f}",
        )
        for run in result["runs"]
    ]
    return table(["seed", "fine-tuned", "compressed", "points lost"], rows)
