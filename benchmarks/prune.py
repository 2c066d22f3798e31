"""Pruning, measured side by side with its peers in one run: time and memory, each in a process of
its own.

    # global magnitude, trace + shrink, seconds an epoch; about 10 minutes on 2 cores
    python benchmarks/prune.py

- global magnitude: 60 % of VGG16's weights (138 M parameters), against
  torch.nn.utils.prune.global_unstructured
- trace + shrink: half of the channels of every group, against building Torch-Pruning's dependency
  graph and one step of its pruner
- seconds an epoch while VGG16 (its pool folded, digits) shrinks by half a cut; a plot in
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
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
SEED = 0


def rss_mb() -> float:
    """Resident memory now, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def network(name: str) -> Any:
    """A torchvision network with 1,000 classes and random weights."""
    import torch

    from edgecompress.models import ModelSource, build

    torch.manual_seed(SEED)
    torch.set_num_threads(2)
    return build(ModelSource(name, 1000, (3, 224, 224))).eval()


def measured(work: Callable[[], object]) -> dict[str, float]:
    """Seconds and peak memory above what is loaded, in MB."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = rss_mb()
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    status = Path("/proc/self/status").read_text()
    peak = (
        next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
        * 1024
        / 1e6
    )
    return {"seconds": seconds, "peak_above_loaded_mb": peak - before, "peak_mb": peak}


def global_ours() -> dict[str, float]:
    """`zero_smallest_` at 60 %."""
    from edgecompress.methods.sparsify import zero_smallest_

    model = network("vgg16")
    found = measured(lambda: zero_smallest_(model, 0.6))
    return found | {"share": _share(model)}


def global_peer() -> dict[str, float]:
    """torch.nn.utils.prune.global_unstructured at 60 %."""
    from torch import nn
    from torch.nn.utils import prune

    model = network("vgg16")
    targets = [(m, "weight") for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    found = measured(lambda: prune.global_unstructured(targets, prune.L1Unstructured, amount=0.6))
    return found | {"share": _share(model)}


def _share(model: Any) -> float:
    from torch import nn

    weights = [m.weight for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def shrink_ours(name: str) -> dict[str, float]:
    """Trace, score by L2, keep the better half of every group, shrink."""
    import torch

    from edgecompress.core import shrink, trace
    from edgecompress.core.select import top
    from edgecompress.methods.scores import magnitude

    model, example = network(name), torch.randn(1, 3, 224, 224)
    kept: list[Any] = []

    def work() -> None:
        graph = trace(model, example)
        scores = magnitude(model, graph, 2)
        kept.append(
            shrink(model, top(scores, {g.name: g.size - g.size // 2 for g in graph.groups}))
        )

    found = measured(work)
    return found | {"params": sum(p.numel() for p in kept[0].parameters())}


def shrink_peer(name: str) -> dict[str, float]:
    """Torch-Pruning: build the dependency graph, score by L2, one step at a ratio of one half, each
    group by itself.
    """
    import torch
    import torch_pruning as tp

    model, example = network(name), torch.randn(1, 3, 224, 224)
    head = [m for m in model.modules() if isinstance(m, torch.nn.Linear)][-1]

    def work() -> None:
        pruner = tp.pruner.MagnitudePruner(
            model,
            example,
            importance=tp.importance.MagnitudeImportance(p=2),
            pruning_ratio=0.5,
            ignored_layers=[head],
        )
        pruner.step()

    found = measured(work)
    return found | {"params": sum(p.numel() for p in model.parameters())}


CASES: dict[str, tuple[Callable[[], dict[str, float]], Callable[[], dict[str, float]], str]] = {
    "global 60 % of vgg16": (global_ours, global_peer, "torch.nn.utils.prune.global_unstructured"),
    **{
        f"shrink {name} by half": (
            lambda name=name: shrink_ours(name),
            lambda name=name: shrink_peer(name),
            "Torch-Pruning",
        )
        for name in ("vgg16", "resnet50", "densenet121")
    },
}


def epochs() -> list[dict[str, float]]:
    """Seconds an epoch of VGG16 on digits, its pool folded, while every group loses 30 % of its
    channels after each epoch.
    """
    import torch

    from edgecompress.core import trace
    from edgecompress.core.select import top
    from edgecompress.core.simplify import find_pools, fold_pool
    from edgecompress.data import load_data
    from edgecompress.methods.scores import magnitude
    from edgecompress.train.fit import Hooks, cross_entropy, fit
    from edgecompress.train.init import unit_variance_init
    from edgecompress.train.settings import FitSettings

    data, example = load_data("digits"), torch.zeros(1, 3, 32, 32)
    model = network("vgg16")
    model.classifier[-1] = torch.nn.Linear(4096, 10)
    for fold in find_pools(model, example):
        model = fold_pool(model, fold)
    unit_variance_init(model, data.normalised(data.train.pixels[:128]))

    def cut(network: Any, epoch: int) -> Any:
        graph = trace(network, example)
        return top(
            magnitude(network, graph, 1),
            {g.name: max(4, round(g.size * 0.7)) for g in graph.groups},
        )

    settings = FitSettings(8, learning_rate=3e-4, dropout=0.0)
    result = fit(
        model,
        data,
        cross_entropy,
        settings,
        seed=SEED,
        device=torch.device("cpu"),
        hooks=Hooks(cut=cut),
    )
    return [
        {
            "epoch": row.epoch,
            "params": row.params,
            "seconds": row.seconds,
            "accuracy": row.validation_accuracy,
        }
        for row in result.history
    ]


def plot(rows: list[dict[str, float]]) -> None:
    """Seconds an epoch and parameters, over epochs, as SVG."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "edgecompress", "svg.fonttype": "none"})
    from matplotlib import pyplot as plt

    figure, left = plt.subplots(figsize=(5, 2.8))
    left.bar([r["epoch"] for r in rows], [r["seconds"] for r in rows], color="#94a3b8")
    left.set(
        xlabel="epoch",
        ylabel="seconds an epoch",
        title="VGG16 on digits, 30 % of all channels cut after each epoch",
    )
    right = left.twinx()
    right.plot(
        [r["epoch"] for r in rows],
        [r["params"] / 1e6 for r in rows],
        "o-",
        color="#ea580c",
        markersize=3,
    )
    right.set_ylim(bottom=0)
    right.set_ylabel("million parameters", color="#ea580c")
    figure.tight_layout()
    figure.savefig(RESULTS / "prune-epochs.svg", metadata={"Date": None})


def one(case: str, side: str) -> dict[str, float]:
    """One measurement in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--case", case, "--side", side],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{case}, {side}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def main() -> None:
    """All cases, interleaved: ours, peer, ours, peer, ..."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--case")
    parser.add_argument("--side", choices=("ours", "peer"))
    arguments = parser.parse_args()
    if arguments.case:
        ours, peer, _ = CASES[arguments.case]
        print(json.dumps((ours if arguments.side == "ours" else peer)()))
        return
    from edgecompress.measure import machine

    content: dict[str, Any] = {
        "command": "python benchmarks/prune.py",
        "seed": SEED,
        "repeats": arguments.repeats,
        "cases": {},
    }
    content |= {"hardware": machine.hardware(), "versions": machine.versions(), "threads": 2}
    for case, (_, _, name) in CASES.items():
        rows = [
            {"ours": one(case, "ours"), "peer": one(case, "peer")} for _ in range(arguments.repeats)
        ]
        summary: dict[str, Any] = {"peer": name}
        for key in ("seconds", "peak_above_loaded_mb", "peak_mb"):
            mine, other = (
                statistics.median(row[side][key] for row in rows) for side in ("ours", "peer")
            )
            summary[key] = {"ours": mine, "peer": other, "ratio": mine / other if other else None}
        content["cases"][case] = {**summary, "rows": rows}
        seconds, memory = summary["seconds"], summary["peak_above_loaded_mb"]
        print(
            f"{case}: {seconds['ours']:.2f} s against {seconds['peer']:.2f} s ({name}), "
            f"ratio {seconds['ratio']:.3f}; "
            f"{memory['ours']:.0f} MB above the loaded model against {memory['peer']:.0f} MB",
            flush=True,
        )
        (RESULTS / "prune.json").write_text(json.dumps(content, indent=1) + "\n")
    content["epochs"] = epochs()
    plot(content["epochs"])
    for row in content["epochs"]:
        print(
            f"epoch {row['epoch']}: {row['params'] / 1e6:.1f} M parameters, {row['seconds']:.1f} s"
        )
    (RESULTS / "prune.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
