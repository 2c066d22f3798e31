"""Which classification CNNs of torchvision can be cut, and whether the laws hold on them at full
width.

    # all of them, 2 to 15 minutes on 2 cores; writes results/reach.json and docs/reach.md
    python benchmarks/reach.py

Each is built with random weights, traced at 64×64 (inception_v3: 96×96), cut to a random 60 % of
the channels of every group, and the masked and the shrunk network are compared (float32: at most
1e-5 max(1, largest output)).
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from tests.reach import check_law_1, classification_cnns, law_3_difference, traced  # noqa: E402


def look(name: str) -> dict[str, Any]:
    """One network."""
    start = time.perf_counter()
    model, graph, example = traced(name, torch.float32)
    check_law_1(model, graph)
    difference, largest = law_3_difference(model, graph, example, seed=1, share=0.6)
    reasons = Counter(
        f.frozen
        for f in graph.frozen
        if f.frozen not in ("the network's input", "the network's output")
    )
    return {
        "name": name,
        "params": sum(p.numel() for p in model.parameters()),
        "groups": len(graph.groups),
        "channels": sum(g.size for g in graph.groups),
        "frozen_channels": sum(f.size for f in graph.frozen if f.frozen in reasons),
        "frozen": dict(reasons),
        "difference": difference,
        "largest": largest,
        "holds": difference <= 1e-5 * max(1.0, largest),
        "seconds": round(time.perf_counter() - start, 2),
    }


def page(rows: list[dict[str, Any]]) -> str:
    """docs/reach.md."""
    lines = [
        "# Reach",
        "",
        f"{len(rows)} of torchvision's {len(classification_cnns())} classification CNNs, at "
        "full width with random weights: traced, cut to",
        "a random 60 % of the channels of every group, and compared with the masked twin "
        "(law 3, float32; in brackets the largest",
        "difference of a logit, divided by the largest logit where that is above 1; at most "
        "1e-5 is allowed).",
        "Written by `python benchmarks/reach.py`.",
        "",
        "| network | parameters | groups | prunable channels | frozen channels | masked = shrunk |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        holds = (
            f"{'yes' if row['holds'] else '**no**'} "
            f"({row['difference'] / max(1.0, row['largest']):.1e})"
        )
        numbers = (
            f"{row['params'] / 1e6:.1f} M | {row['groups']} | {row['channels']} | "
            f"{row['frozen_channels']}"
        )
        lines.append(f"| {row['name']} | {numbers} | {holds} |")
    reasons = {(reason, row["name"].split("_")[0]) for row in rows for reason in row["frozen"]}
    lines += ["", "What is frozen (must stay whole), and by which operation:", ""]
    lines += [
        f"- {family}: {reason}" for reason, family in sorted(reasons, key=lambda r: (r[1], r[0]))
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """All networks, results written after each."""
    rows = []
    for name in sorted(
        classification_cnns(), key=lambda name: name == "regnet_y_128gf"
    ):  # 645 M parameters: last
        rows.append(look(name))
        print(
            f"{name}: {rows[-1]['groups']} groups, holds {rows[-1]['holds']}, "
            f"{rows[-1]['seconds']} s",
            flush=True,
        )
        (ROOT / "benchmarks/results/reach.json").write_text(
            json.dumps({"command": "python benchmarks/reach.py", "rows": rows}, indent=1) + "\n"
        )
        (ROOT / "docs/reach.md").write_text(page(rows))


if __name__ == "__main__":
    main()
