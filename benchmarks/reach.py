"""Which classification CNNs of torchvision can be cut, and whether the laws hold on them at full
width.

    # all of them, 2 to 15 minutes on 2 cores; writes results/reach.json
    python benchmarks/reach.py

Each is built with random weights, traced at 64×64 (inception_v3: 96×96), cut to a random 60 % of
the channels of every group, and the masked and the shrunk network are compared (float32: at most
1e-5 max(1, largest output)).
"""

from __future__ import annotations

import sys
import time
from collections import Counter

import torch

from common import ROOT, Bench, Row, bench_of, parser

sys.path.insert(0, str(ROOT))
from tests.reach import check_law_1, classification_cnns, law_3_difference, traced

ENDS = ("the network's input", "the network's output")
"""Frozen in every network."""
LARGEST = "regnet_y_128gf"
"""645 M parameters: the last one."""
SMOKE = ["squeezenet1_1", "convnext_tiny"]
"""A small one, and one in which something is frozen."""


def look(name: str) -> Row:
    """One network."""
    start = time.perf_counter()
    model, graph, example = traced(name, torch.float32)
    check_law_1(model, graph)
    difference, largest = law_3_difference(model, graph, example, seed=1, share=0.6)
    reasons = Counter(f.frozen for f in graph.frozen if f.frozen not in ENDS)
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


def store(bench: Bench, rows: list[Row]) -> None:
    """The result; `python -m docs.generate` writes docs/reach.md from it."""
    bench.store(**bench.described(), rows=rows)


def main() -> None:
    """All networks, results written after each."""
    bench = bench_of(__file__, parser(__doc__).parse_args())
    names = bench.size(sorted(classification_cnns(), key=lambda name: name == LARGEST), SMOKE)
    rows: list[Row] = []
    for name in names:
        rows.append(look(name))
        verdict = f"holds {rows[-1]['holds']}, {rows[-1]['seconds']} s"
        print(f"{name}: {rows[-1]['groups']} groups, {verdict}", flush=True)
        store(bench, rows)


if __name__ == "__main__":
    main()
