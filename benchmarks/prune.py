"""Pruning, measured with its peers in one run: time and memory, each in a process of its own.

    # global magnitude, trace + shrink, seconds per epoch; about 10 minutes on 2 cores
    python benchmarks/prune.py

- global magnitude: 60 % of VGG16's weights (138 M parameters), against
  torch.nn.utils.prune.global_unstructured
- trace + shrink: half of the channels of every group, against building Torch-Pruning's dependency
  graph and one step of its pruner
- seconds per epoch while VGG16 (its pool folded, digits) shrinks with every cut; a plot in
  benchmarks/results/prune-epochs.svg

Medians of the repeats, with their ratios; results in benchmarks/results/prune.json, written after
every case.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from common import SEED, Bench, Row, bench_of, parser
from edgecompress.models import ModelSource, build

if TYPE_CHECKING:
    from edgecompress.core.shrink import Keep
    from edgecompress.data import DataSet

# What only one side uses is imported there: the memory of a process is what it needs itself.

Side = Callable[[], Row]
"""Builds a network, does the work, and returns what was measured."""
SIDES = ("ours", "peer")
MEASURES = ("seconds", "peak_above_loaded_mb", "peak_mb")


@dataclass(frozen=True)
class Case:
    """The same work by this package and by a peer."""

    ours: Side
    peer: Side
    peer_name: str


def rss_mb() -> float:
    """Resident memory now, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def peak_rss_mb() -> float:
    """Largest resident memory since it was last reset, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    peak_kib = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return peak_kib * 1024 / 1e6


def network(name: str) -> nn.Module:
    """A torchvision network with 1,000 classes and random weights."""
    torch.manual_seed(SEED)
    torch.set_num_threads(2)
    return build(ModelSource(name, 1000, (3, 224, 224))).eval()


def measured(work: Callable[[], object]) -> Row:
    """Seconds and peak memory above what is loaded, in MB."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = rss_mb()
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    peak = peak_rss_mb()
    return {"seconds": seconds, "peak_above_loaded_mb": peak - before, "peak_mb": peak}


def global_ours(name: str) -> Row:
    """`zero_smallest_` at 60 %."""
    from edgecompress.methods.sparsify import zero_smallest_

    model = network(name)
    row = measured(lambda: zero_smallest_(model, 0.6))
    return row | {"share": zero_share(model)}


def global_peer(name: str) -> Row:
    """torch.nn.utils.prune.global_unstructured at 60 %."""
    from torch.nn.utils import prune

    model = network(name)
    layers = [(module, "weight") for module in mixing(model)]
    row = measured(lambda: prune.global_unstructured(layers, prune.L1Unstructured, amount=0.6))
    return row | {"share": zero_share(model)}


def mixing(model: nn.Module) -> list[nn.Module]:
    """Its convolutions and Linear layers."""
    return [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]


def zero_share(model: nn.Module) -> float:
    """Share of the weights of these layers that are zero."""
    weights = [cast(Tensor, module.weight) for module in mixing(model)]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def shrink_ours(name: str) -> Row:
    """Trace, score by L2, keep the better half of every group, shrink."""
    from edgecompress.core import shrink, trace
    from edgecompress.core.select import top
    from edgecompress.methods.scores import magnitude

    model = network(name)
    example = torch.randn(1, 3, 224, 224)
    small: list[nn.Module] = []

    def work() -> None:
        graph = trace(model, example)
        halves = {group.name: group.size - group.size // 2 for group in graph.groups}
        small.append(shrink(model, top(magnitude(model, graph, 2), halves)))

    row = measured(work)
    return row | {"params": parameters(small[0])}


def shrink_peer(name: str) -> Row:
    """Torch-Pruning: build the dependency graph, score by L2, one step at a ratio of one half, each
    group by itself.
    """
    import torch_pruning as tp

    model = network(name)
    example = torch.randn(1, 3, 224, 224)
    head = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]

    def work() -> None:
        pruner = tp.pruner.MagnitudePruner(
            model,
            example,
            importance=tp.importance.MagnitudeImportance(p=2),
            pruning_ratio=0.5,
            ignored_layers=[head],
        )
        pruner.step()

    row = measured(work)
    return row | {"params": parameters(model)}


def parameters(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in model.parameters())


def cases(bench: Bench) -> dict[str, Case]:
    """All cases by name."""
    sparsified = bench.size("vgg16", "resnet18")
    torch_own = "torch.nn.utils.prune.global_unstructured"
    named = {
        f"global 60 % of {sparsified}": Case(
            partial(global_ours, sparsified), partial(global_peer, sparsified), torch_own
        )
    }
    for name in bench.size(("vgg16", "resnet50", "densenet121"), ("resnet18",)):
        ours, peer = partial(shrink_ours, name), partial(shrink_peer, name)
        named[f"shrink {name} by half"] = Case(ours, peer, "Torch-Pruning")
    return named


def measured_case(bench: Bench, name: str, peer: str, repeats: int) -> Row:
    """One case: ours, peer, ours, peer, ...; the medians and their ratios."""
    rows = [{side: one(bench, name, side) for side in SIDES} for _ in range(repeats)]
    summary: Row = {"peer": peer}
    for key in MEASURES:
        ours = statistics.median(row["ours"][key] for row in rows)
        theirs = statistics.median(row["peer"][key] for row in rows)
        ratio = ours / theirs if theirs else None
        summary[key] = {"ours": ours, "peer": theirs, "ratio": ratio}
    return {**summary, "rows": rows}


def one(bench: Bench, case: str, side: str) -> Row:
    """One measurement in a process of its own; at smoke size in this one."""
    if bench.smoke:
        return side_of(bench, case, side)
    command = [sys.executable, __file__, "--case", case, "--side", side]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{case}, {side}: {done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def side_of(bench: Bench, case: str, side: str) -> Row:
    """One side of a case, measured here."""
    both = cases(bench)[case]
    return both.ours() if side == "ours" else both.peer()


def show(case: str, row: Row) -> None:
    """One line per case."""
    seconds, memory = row["seconds"], row["peak_above_loaded_mb"]
    print(
        f"{case}: {seconds['ours']:.2f} s against {seconds['peer']:.2f} s ({row['peer']}), "
        f"ratio {seconds['ratio']:.3f}; "
        f"{memory['ours']:.0f} MB above the loaded model against {memory['peer']:.0f} MB",
        flush=True,
    )


def epochs(bench: Bench) -> list[Row]:
    """Seconds per epoch of VGG16 on digits, its pool folded, while every group loses 30 % of its
    channels after each epoch.
    """
    from edgecompress.train.fit import Hooks, fit, label_loss
    from edgecompress.train.settings import FitSettings

    data = digits(bench)
    model = folded(bench.size("vgg16", "vgg11"), data)
    settings = FitSettings(bench.size(8, 2), learning_rate=3e-4, dropout=0.0)
    cpu = torch.device("cpu")
    result = fit(model, data, label_loss, settings, seed=SEED, device=cpu, hooks=Hooks(cut=cut))
    return [
        {
            "epoch": row.epoch,
            "params": row.params,
            "seconds": row.seconds,
            "accuracy": row.validation_accuracy,
        }
        for row in result.history
    ]


def digits(bench: Bench) -> DataSet:
    """The digits; at smoke size 32 images of each split."""
    from edgecompress.data import load_data

    data = load_data("digits")
    if not bench.smoke:
        return data
    few = torch.arange(32)
    return replace(data, train=data.train.rows(few), validation=data.validation.rows(few))


def folded(name: str, data: DataSet) -> nn.Module:
    """A VGG for the digits, its pool folded into the first Linear layer."""
    from edgecompress.core.simplify import find_pools, fold_pool
    from edgecompress.train.init import unit_variance_init

    model = network(name)
    cast(nn.Sequential, model.classifier)[-1] = nn.Linear(4096, 10)
    for fold in find_pools(model, torch.zeros(1, 3, 32, 32)):
        model = fold_pool(model, fold)
    unit_variance_init(model, data.normalised(data.train.pixels[:128]))
    return model


def cut(model: nn.Module, epoch: int) -> Keep:
    """The better 70 % of every group."""
    from edgecompress.core import trace
    from edgecompress.core.select import top
    from edgecompress.methods.scores import magnitude

    graph = trace(model, torch.zeros(1, 3, 32, 32))
    sizes = {group.name: max(4, round(group.size * 0.7)) for group in graph.groups}
    return top(magnitude(model, graph, 1), sizes)


def plot(rows: list[Row], path: Path) -> None:
    """Seconds per epoch and parameters, over epochs, as SVG."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "edgecompress", "svg.fonttype": "none"})
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 2.8))
    left = figure.subplots()
    numbers = [row["epoch"] for row in rows]
    title = "VGG16 on digits, 30 % of all channels cut after each epoch"
    left.bar(numbers, [row["seconds"] for row in rows], color="#94a3b8")
    left.set(xlabel="epoch", ylabel="seconds per epoch", title=title)
    right = left.twinx()
    millions = [row["params"] / 1e6 for row in rows]
    right.plot(numbers, millions, "o-", color="#ea580c", markersize=3)
    right.set_ylim(bottom=0)
    right.set_ylabel("million parameters", color="#ea580c")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def measure_all(bench: Bench, repeats: int) -> None:
    """All cases, then the epochs."""
    parts: dict[str, Any] = {**bench.described(), "seed": SEED, "repeats": repeats, "threads": 2}
    parts["cases"] = {}
    for name, case in cases(bench).items():
        parts["cases"][name] = measured_case(bench, name, case.peer_name, repeats)
        show(name, parts["cases"][name])
        bench.store(**parts)
    rows = epochs(bench)
    plot(rows, bench.folder / "prune-epochs.svg")
    for row in rows:
        millions = row["params"] / 1e6
        print(f"epoch {row['epoch']}: {millions:.1f} M parameters, {row['seconds']:.1f} s")
    bench.store(**parts, epochs=rows)


def main() -> None:
    """All measurements, or with --case one of them as JSON."""
    options = parser(__doc__)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--case", help=argparse.SUPPRESS)
    options.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = options.parse_args()
    bench = bench_of(__file__, arguments)
    if arguments.case is None:
        measure_all(bench, bench.size(arguments.repeats, 1))
        return
    print(json.dumps(side_of(bench, arguments.case, arguments.side)))


if __name__ == "__main__":
    main()
