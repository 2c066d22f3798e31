"""Are widths that are multiples of 8 faster? VGG16 for 32×32, pool folded, at about the same MACs,
widths rounded or not.

    python benchmarks/rounding.py          # about 1 minute; writes results/rounding.json

Random weights (latency does not depend on them), ONNX Runtime, batch 1, the two files measured in
turns. Ratio: rounded / not rounded.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch

from edgecompress.core import shrink, trace
from edgecompress.core.select import Budget, uniform
from edgecompress.core.simplify import find_pools, fold_pool
from edgecompress.data import Preprocess
from edgecompress.export import onnx as onnx_export
from edgecompress.export import quantize
from edgecompress.measure import latency, machine, runtime
from edgecompress.measure.cost import cost, mac_price
from edgecompress.methods.scores import random
from edgecompress.models import ModelSource, build

RESULTS = Path(__file__).parent / "results"
SHARES = (0.03, 0.07, 0.15, 0.3, 0.5)
"""Shares of VGG16's MACs that are left."""


def main() -> None:
    """All shares, fp32 and int8."""
    torch.manual_seed(0)
    example = torch.zeros(1, 3, 32, 32)
    model = build(ModelSource("vgg16", 10, (3, 32, 32))).eval()
    for fold in find_pools(model, example):
        model = fold_pool(model, fold)
    graph = trace(model, example)
    scores, whole = random(graph, 0), cost(model, example, graph).macs
    spec = onnx_export.InputSpec(
        (3, 32, 32), Preprocess((0.0,) * 3, (1.0,) * 3), tuple("0123456789"), "none"
    ).metadata()
    values = np.random.default_rng(0).standard_normal((32, 3, 32, 32)).astype(np.float32)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for share in SHARES:
            files: dict[str, list[Path]] = {"fp32": [], "int8-qdq": []}
            macs = []
            for block in (8, 1):
                budget = Budget(mac_price(model, graph), whole * share)
                small = shrink(
                    model, uniform(model, graph, scores, (budget,), "local", round_to=block).keep
                )
                macs.append(cost(small, example).macs)
                paths = {form: Path(name) / f"{share}-{block}-{form}.onnx" for form in files}
                onnx_export.save(onnx_export.to_onnx(small, example, spec), paths["fp32"])
                onnx_export.save(
                    quantize.to_int8(paths["fp32"], lambda: quantize.batches_of(values)),
                    paths["int8-qdq"],
                )
                for form, path in paths.items():
                    files[form].append(path)
            for form, (eight, one) in files.items():
                ratios = []
                for _ in range(5):
                    taken = latency.measure(
                        [runtime.load(eight, threads=2), runtime.load(one, threads=2)],
                        samples=200,
                        limit_s=2.0,
                    )
                    ratios.append(taken[0].percentile(50) / taken[1].percentile(50))
                per_mac = statistics.median(ratios) * macs[1] / macs[0]
                rows.append(
                    {
                        "share": share,
                        "format": form,
                        "macs": macs,
                        "ratio": statistics.median(ratios),
                        "ratio_per_mac": per_mac,
                    }
                )
                print(
                    f"{share:.0%} of the MACs, {form}: p50 ratio {rows[-1]['ratio']:.3f}, a "
                    f"MAC {per_mac:.3f}",
                    flush=True,
                )
    content = {
        "command": "python benchmarks/rounding.py",
        "hardware": machine.hardware(),
        "versions": machine.versions(),
        "rows": rows,
    }
    (RESULTS / "rounding.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
