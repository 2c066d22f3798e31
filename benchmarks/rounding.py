"""Are widths that are multiples of 8 faster? VGG16 for 32×32, pool folded, at about the same MACs,
widths rounded or not.

    python benchmarks/rounding.py          # about 1 minute; writes results/rounding.json

Random weights (latency does not depend on them), ONNX Runtime, batch 1, the two files measured in
turns. Ratio: rounded / not rounded.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from common import SEED, Bench, Row, bench_of, parser
from edgecompress.core import ChannelGraph, ChannelGroup, shrink, trace
from edgecompress.core.select import Budget, uniform
from edgecompress.core.simplify import find_pools, fold_pool
from edgecompress.data import Preprocess
from edgecompress.export import onnx as onnx_export
from edgecompress.export import quantize
from edgecompress.measure import latency, runtime
from edgecompress.measure.cost import cost, mac_price
from edgecompress.methods.scores import random
from edgecompress.models import ModelSource, build

SHARES = (0.03, 0.07, 0.15, 0.3, 0.5)
"""Shares of VGG16's MACs that are left."""
BLOCKS = (8, 1)
"""Widths are multiples of these."""


@dataclass(frozen=True)
class Unpruned:
    """VGG16 for 32×32 images, its pool folded, with its graph and scores of its channels."""

    model: nn.Module
    example: Tensor
    graph: ChannelGraph
    scores: Mapping[ChannelGroup, Tensor]
    macs: int

    def cut(self, share: float, block: int) -> nn.Module:
        """The network cut to a `share` of its MACs, its widths multiples of `block`."""
        budget = Budget(mac_price(self.model, self.graph), self.macs * share)
        selection = uniform(self.model, self.graph, self.scores, (budget,), "local", round_to=block)
        return shrink(self.model, selection.keep)


def unpruned() -> Unpruned:
    """VGG16 with random weights."""
    torch.manual_seed(SEED)
    example = torch.zeros(1, 3, 32, 32)
    model = build(ModelSource("vgg16", 10, (3, 32, 32))).eval()
    for fold in find_pools(model, example):
        model = fold_pool(model, fold)
    graph = trace(model, example)
    macs = cost(model, example, graph).macs
    return Unpruned(model, example, graph, random(graph, SEED), macs)


def exported(model: nn.Module, example: Tensor, stem: Path) -> dict[str, Path]:
    """The network as fp32 and int8 files, by format."""
    spec = onnx_export.InputSpec(
        (3, 32, 32), Preprocess((0.0,) * 3, (1.0,) * 3), tuple("0123456789"), "none"
    ).metadata()
    generator = np.random.default_rng(SEED)
    values = generator.standard_normal((32, 3, 32, 32)).astype(np.float32)
    paths = {form: stem.with_name(f"{stem.name}-{form}.onnx") for form in ("fp32", "int8-qdq")}
    onnx_export.save(onnx_export.to_onnx(model, example, spec), paths["fp32"])
    int8 = quantize.to_int8(paths["fp32"], lambda: quantize.batches_of(values))
    onnx_export.save(int8, paths["int8-qdq"])
    return paths


def ratio(rounded: Path, exact: Path, repeats: int, limit_s: float) -> float:
    """Median ratio of the p50 latencies of two files, measured in turns."""
    ratios = []
    for _ in range(repeats):
        loaded = [runtime.load(path, threads=2) for path in (rounded, exact)]
        first, second = latency.measure(loaded, samples=200, limit_s=limit_s)
        ratios.append(first.percentile(50) / second.percentile(50))
    return statistics.median(ratios)


def measured(bench: Bench, network: Unpruned, share: float, work: Path) -> list[Row]:
    """Both formats at one share of the MACs."""
    networks = [network.cut(share, block) for block in BLOCKS]
    macs = [cost(small, network.example).macs for small in networks]
    files = [
        exported(small, network.example, work / f"{share}-{block}")
        for small, block in zip(networks, BLOCKS, strict=True)
    ]
    rows = []
    for form in files[0]:
        median = ratio(files[0][form], files[1][form], bench.size(5, 1), bench.size(2.0, 0.1))
        per_mac = median * macs[1] / macs[0]
        row = {"share": share, "format": form, "macs": macs}
        rows.append({**row, "ratio": median, "ratio_per_mac": per_mac})
        text = f"p50 ratio {median:.3f}, per MAC {per_mac:.3f}"
        print(f"{share:.0%} of the MACs, {form}: {text}", flush=True)
    return rows


def main() -> None:
    """All shares, fp32 and int8."""
    bench = bench_of(__file__, parser(__doc__).parse_args())
    network = unpruned()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        for share in bench.size(SHARES, SHARES[:1]):
            rows += measured(bench, network, share, Path(name))
    bench.store(**bench.described(), rows=rows)


if __name__ == "__main__":
    main()
