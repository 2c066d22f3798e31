"""Which networks of timm can be cut: one of each family, beside Torch-Pruning.

    # about 25 minutes on 2 cores; writes results/reach-timm.json
    python benchmarks/reach_timm.py

Each has random weights and reads images of 64 pixels, or of its own size where it reads no other.
Ours: the trace with its proof, half of each group cut, forward and backward of what is left, and
law 3 (float32: at most 1e-5 max(1, largest output)). Torch-Pruning: MagnitudePruner with
pruning_ratio 0.5, the classifier ignored. Each in a process of its own, at most one minute.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from common import ROOT, Bench, Row, bench_of, parser
from edgecompress.core import masked, shrink
from edgecompress.core import trace as label_trace
from edgecompress.core.frozen import frozen_share
from edgecompress.core.labels import INPUT, OUTPUT
from edgecompress.core.proof import trace
from edgecompress.models.vision import torchvision

sys.path.insert(0, str(ROOT))

LARGEST = 60_000_000
"""Parameters."""
CANDIDATES = 4
"""Networks of a family that are looked at; the smallest is taken."""
SIDE = 64
LIMIT_S = 60
SMOKE = ["resnet10t", "test_vit"]
ENDS = (INPUT, OUTPUT)


def timm() -> Any:
    """The package, which torchvision must be mended for."""
    torchvision()
    import timm

    return timm


def families() -> dict[str, list[str]]:
    """Names of networks by family (the module of timm that defines them), some of each."""
    found: dict[str, list[str]] = {}
    for name in timm().list_models():
        module = timm().models.model_entrypoint(name).__module__.rpartition(".")[2]
        found.setdefault(module, []).append(name)
    return {
        family: names[:: max(1, len(names) // CANDIDATES)][:CANDIDATES]
        for family, names in sorted(found.items())
    }


def sized(name: str) -> Row:
    """Its number of parameters; the largest that is looked at where it cannot be built without
    values.
    """
    with torch.device("meta"):
        return {"params": count(timm().create_model(name))}


def smallest(names: list[str]) -> list[str]:
    """The smallest of `names`, where it is small enough."""
    counts = {name: apart(sized, name, {"params": LARGEST})["params"] for name in names}
    small = [name for name, params in counts.items() if params <= LARGEST]
    return sorted(small, key=lambda name: counts[name])[:1]


def built(name: str) -> tuple[nn.Module, Tensor]:
    """The network, and an image that it can read."""
    torch.manual_seed(0)
    model = timm().create_model(name).eval()
    own = model.default_cfg.get("input_size", (3, 224, 224))
    fixed = model.default_cfg.get("fixed_input_size")
    for side in [own[1]] if fixed else [SIDE, own[1]]:
        image = torch.randn(2, own[0], side, side)
        try:
            with torch.no_grad():
                model(image)
        except Exception:
            # this size it cannot read
            continue
        return model, image
    raise RuntimeError(f"{name} reads no image of {own}")


def count(model: nn.Module) -> int:
    """Its parameters."""
    return sum(p.numel() for p in model.parameters())


def learns(model: nn.Module, image: Tensor) -> bool:
    """Do forward and backward run in training mode?"""
    out = model.train()(image)
    leaves = out if isinstance(out, (tuple, list)) else [out]
    torch.stack([leaf.float().square().mean() for leaf in leaves]).sum().backward()
    return True


def ours(name: str) -> Row:
    """What edgecompress makes of a network."""
    model, image = built(name)
    example = image[:1]
    start = time.perf_counter()
    label_trace(model, example)
    labels_s = time.perf_counter() - start
    start = time.perf_counter()
    graph = trace(model, example)
    trace_s = time.perf_counter() - start
    share = frozen_share(model, graph)
    why = {reason: part for reason, part in share.reasons.items() if reason not in ENDS}
    partly = any(group.frozen not in ENDS for group in graph.frozen)
    keep = {group: torch.arange(group.size) < max(1, group.size // 2) for group in graph.groups}
    small, large = shrink(model, keep), masked(model, keep)
    with torch.no_grad():
        left, right = large(image), small(image)
    difference = float((left - right).abs().max())
    return {
        "params": count(model),
        "side": image.shape[-1],
        "outcome": "none" if not graph.groups else "part" if partly else "whole",
        "groups": len(graph.groups),
        "frozen": round(share.params, 4),
        "reasons": [[reason[:160], round(part, 4)] for reason, part in list(why.items())[:3]]
        or [[str(group.frozen)[:160], 0.0] for group in graph.frozen if group.frozen not in ENDS][
            :1
        ],
        "left": round(count(small) / count(model), 4),
        "holds": difference <= 1e-5 * max(1.0, float(left.abs().max())),
        "learns": learns(small, image),
        "labels_s": round(labels_s, 3),
        "trace_s": round(trace_s, 3),
        "error": None,
    }


def theirs(name: str) -> Row:
    """What Torch-Pruning makes of it."""
    import torch_pruning as tp

    model, image = built(name)
    classifier = getattr(model, "get_classifier", lambda: None)()
    before = count(model)
    start = time.perf_counter()
    pruner = tp.pruner.MagnitudePruner(
        model,
        image[:1],
        importance=tp.importance.MagnitudeImportance(),
        pruning_ratio=0.5,
        ignored_layers=[classifier] if isinstance(classifier, nn.Module) else [],
    )
    pruner.step()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        model.eval()(image)
    return {
        "left": round(count(model) / before, 4),
        "runs": True,
        "learns": learns(model, image),
        "seconds": round(seconds, 3),
        "error": None,
    }


EMPTY_OURS: Row = {
    **dict.fromkeys(("params", "side")),
    "outcome": "failed",
    **dict.fromkeys(("groups", "frozen")),
    "reasons": [],
    **dict.fromkeys(("left", "holds", "learns", "labels_s", "trace_s", "error")),
}
EMPTY_THEIRS: Row = dict.fromkeys(("left", "runs", "learns", "seconds", "error"))


def apart(look: Callable[[str], Row], name: str, empty: Row) -> Row:
    """What `look` says of a network, in a process of its own. This one runs nothing of torch, whose
    threads a fork would not have.
    """
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def work() -> None:
        warnings.filterwarnings("ignore")
        try:
            answers.put(look(name))
        except Exception as error:  # whatever the network's code raises
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{last.filename.rpartition('/')[2]}:{last.lineno}"
            text = " ".join(f"{type(error).__name__}: {error} ({where})".split())
            answers.put({**empty, "error": text[:300]})

    process = context.Process(target=work)
    process.start()
    deadline = time.monotonic() + LIMIT_S
    while process.is_alive() and answers.empty() and time.monotonic() < deadline:
        time.sleep(0.02)
    found = answers.get() if not answers.empty() else None
    if process.is_alive() and found is None:
        process.kill()
    process.join()
    return found or {**empty, "error": f"no answer, exit {process.exitcode}, {LIMIT_S} s at most"}


def main() -> None:
    """All networks, results written after each."""
    options = parser(__doc__)
    options.add_argument("names", nargs="*", help="networks to look at again, in the known result")
    arguments = options.parse_args()
    bench: Bench = bench_of(__file__, arguments)
    timm()
    chosen: dict[str, list[str]] = {"smoke": SMOKE} if bench.smoke else families()
    rows: list[Row] = []
    if arguments.names:
        rows = json.loads((bench.folder / "reach-timm.json").read_text())["rows"]
        chosen = {row["family"]: [row["name"]] for row in rows if row["name"] in arguments.names}
        rows = [row for row in rows if row["name"] not in arguments.names]
    for family, names in chosen.items():
        for name in names if bench.smoke or arguments.names else smallest(names):
            row: Row = {
                "name": name,
                "family": family,
                "ours": apart(ours, name, EMPTY_OURS),
                "torch_pruning": apart(theirs, name, EMPTY_THEIRS),
            }
            rows = [*rows, row]
            mine, other = row["ours"], row["torch_pruning"]
            print(
                f"{name}: {mine['outcome']}, left {mine['left']}, {mine['trace_s']} s; "
                f"torch-pruning {other['left']} {other['error'] or ''}; {mine['error'] or ''}",
                flush=True,
            )
            rows.sort(key=lambda row: str(row["family"]))
            bench.store("reach-timm", **bench.described(), rows=rows)


if __name__ == "__main__":
    main()
