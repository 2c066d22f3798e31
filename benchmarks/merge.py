"""Merging, measured.

    # the full sine experiment: 50 students, 150 parents, 50 long networks, 900 epochs a budget
    python benchmarks/merge.py
    # what a merging step costs, against a plain step of the same wide network, 3 minutes
    python benchmarks/merge.py --cost
    # how to draw gates, and greedy merging, on LeNet-5; 10 minutes
    python benchmarks/merge.py --modes DIR
    # do gates select? ten pairs of LeNet-5 on digits, both schedules; 12 minutes
    python benchmarks/merge.py --selection
    # ResNet-20 on CIFAR-10 (JPEG): `compare`, three repeats
    python benchmarks/merge.py --resnet DIR --images 500 --budget 72

Sine problem: x ~ U(0, 1), y = sin(10 pi x) + N(0, 0.2); 10,000 samples to train, 10,000 to choose,
10,000 to test (mean square error, floor 0.04); networks 1-100-1, batches of 32, SGD. Every strategy
has the same budget of epochs. Results go to benchmarks/results/merge.json, with a box plot in
merge-sine.svg.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from common import (
    SEED,
    SMOKE_IMAGES,
    Bench,
    Row,
    add_images,
    bench_of,
    edgecompress,
    parser,
    subset,
)
from edgecompress.core import trace
from edgecompress.core.convolutions import safe_convolutions
from edgecompress.core.simplify import find_pools, fold_pool
from edgecompress.core.stack import stack
from edgecompress.data.sine import load_sine
from edgecompress.methods.compare import Compared, SineSetting, compared, sine_experiment
from edgecompress.methods.gates import Gated
from edgecompress.models import ModelSource, build
from edgecompress.report.plots import boxes

SHAPE = (3, 32, 32)
SOURCE = ["--lambda-schedule", "source"]
"""The schedule that was the default when the modes were measured."""
MODES: dict[str, list[str]] = {
    "gates, a draw a batch": SOURCE,
    "gates, a draw a sample": ["--draw", "sample", *SOURCE],
    "gates, noise 0.2": ["--noise", "0.2", *SOURCE],
    "gates, no noise": ["--noise", "0", *SOURCE],
    "greedy, lambda constant": ["--method", "greedy", "--lambda-schedule", "constant"],
    "greedy, lambda increasing": ["--method", "greedy", "--lambda-schedule", "source"],
    "average of the weights": ["--method", "average"],
    "average after matching": ["--method", "align"],
}
"""Ways to merge, as the result names them, and their options."""


def sine(bench: Bench, budget: int, repeats: int, threads: int) -> None:
    """The complete experiment, its statistics and its plot."""
    torch.set_num_threads(threads)
    setting = SineSetting(budget=budget, repeats=repeats)
    phases: list[Row] = []
    start = time.perf_counter()

    def phase(text: str) -> None:
        phases.append({"phase": text, "at_s": round(time.perf_counter() - start, 1)})
        print(f"{phases[-1]['at_s']:.0f} s: {text}", flush=True)

    results, _ = sine_experiment(load_sine(*bench.size((), (320, 320))), setting, phase)
    wall_s = time.perf_counter() - start
    statistic = compared(results)
    options = ("--budget", budget, "--repeats", repeats, "--threads", threads)
    parts = {"setting": asdict(setting), "wall_s": wall_s, "threads": threads, "phases": phases}
    bench.store(
        sine={**bench.described(*options), **parts, **statistic, "test_loss": results},
    )
    plot = boxes(results, "test loss of the sine problem", floor=0.04)
    (bench.folder / "merge-sine.svg").write_text(plot)
    show_sine(statistic, wall_s)


def show_sine(statistic: Compared, wall_s: float) -> None:
    """One line per strategy."""
    for name, row in statistic["summary"].items():
        print(
            f"{name:10} median {row['median']:.4f}  mean {row['mean']:.4f}  std "
            f"{row['std']:.4f}  {row['min']:.4f} .. {row['max']:.4f}"
        )
    print(f"{wall_s / 60:.1f} min; {statistic['student_against']}")


def cost(bench: Bench) -> None:
    """Seconds of a training step of two stacked networks: plain, with gates drawn once per batch,
    and once per sample; interleaved, medians.
    """
    torch.set_num_threads(2)
    rows: list[Row] = []
    for name in bench.size(("resnet20", "lenet5", "vgg16"), ("lenet5",)):
        rows.append(step_cost(name, bench.size(7, 1), bench.size(12, 2)))
        ratio = rows[-1]["ratio"]
        print(
            f"{name}: a step with gates drawn per batch {ratio['batch']:.3f}x, per sample "
            f"{ratio['sample']:.3f}x of a plain one",
            flush=True,
        )
        described = bench.described("--cost")
        bench.store(cost={k: described[k] for k in ("command", "hardware")} | {"rows": rows})


def step_cost(name: str, repeats: int, steps: int) -> Row:
    """The cost of the steps of one network; the first repeat is not counted."""
    large = name == "vgg16"
    size = 16 if large else 128
    wide = two_stacked(name)
    graph = trace(wide, torch.zeros(1, *SHAPE))
    stepped = {
        "plain": Stepped(wide),
        "batch": Stepped(Gated(wide, graph)),
        "sample": Stepped(Gated(wide, graph, per="sample")),
    }
    images = torch.randn(size, *SHAPE).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (size,))
    seconds: dict[str, list[float]] = {kind: [] for kind in stepped}
    for repeat in range(repeats + 1):
        for kind, network in stepped.items():
            taken = network.seconds(images, labels, 2 if large else steps)
            if repeat:
                seconds[kind].append(taken)
    median = {kind: statistics.median(values) for kind, values in seconds.items()}
    ratio = {kind: relative(seconds[kind], seconds["plain"]) for kind in ("batch", "sample")}
    return {"model": name, "batch": size, "seconds": median, "ratio": ratio}


def relative(values: list[float], plain: list[float]) -> float:
    """The median of their ratios, repeat by repeat."""
    return statistics.median(a / b for a, b in zip(values, plain, strict=True))


class Stepped:
    """A network, plain or with gates, and its optimizer."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, fused=True)

    def seconds(self, images: Tensor, labels: Tensor, steps: int) -> float:
        """Seconds of `steps` steps on `images` (B, C, H, W) with `labels` (B,)."""
        start = time.perf_counter()
        for _ in range(steps):
            self.optimizer.zero_grad()
            self._loss(images, labels).backward()
            self.optimizer.step()
        return time.perf_counter() - start

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        with safe_convolutions():
            logits = self.model.train()(images)
        loss = nn.functional.cross_entropy(logits, labels)
        return loss + self.model.distance(0.5) if isinstance(self.model, Gated) else loss


def two_stacked(name: str) -> nn.Module:
    """Two networks with random weights as one wide network; a VGG16 as it is trained on 32×32: its
    pool folded into the first Linear layer.
    """
    torch.manual_seed(SEED)
    example = torch.zeros(1, *SHAPE)
    parts = [build(ModelSource(name, 10, SHAPE)) for _ in range(2)]
    if name == "vgg16":
        parts = [fold_pool(part, fold) for part in parts for fold in find_pools(part, example)]
    return stack(parts, example)


@dataclass(frozen=True)
class Training:
    """How the commands train: images of each class, their folder, epochs and threads."""

    folder: Path
    images: int
    threads: int
    work: Path

    def data(self) -> str:
        """The value of --data."""
        return f"folder:{subset(self.folder, self.images, self.work)}"


def resnet(bench: Bench, training: Training, budget: int, repeats: int) -> None:
    """`compare resnet20` on the first images of each class of CIFAR-10 (JPEG), and all its test
    images.
    """
    options = ["--budget", budget, "--repeats", repeats, "--learning-rate", 2e-3]
    options += ["--batch-size", 64, "--precision", bench.size("bf16", "fp32")]
    model = bench.size("resnet20", "lenet5")
    run = ["--threads", training.threads, "-o", training.work / "run", "--json"]
    start = time.perf_counter()
    answer = edgecompress("compare", model, "--data", training.data(), *options, *run)["compare"]
    wall_s = time.perf_counter() - start
    images = training.images
    repeat = ("--images", images, "--budget", budget, "--repeats", repeats)
    bench.store(
        resnet20={
            **bench.described("--resnet", "DIR", *repeat, "--threads", training.threads),
            "data": f"CIFAR-10 (JPEG): the first {images} training images of each class (a tenth "
            "of them validation), 10,000 test images",
            "options": options,
            "wall_s": wall_s,
            "threads": training.threads,
            **answer,
        }
    )
    for name, row in answer["summary"].items():
        percent = [round(100 * value, 2) for value in answer["results"][name]]
        print(f"{name:10} {percent} mean {100 * row['mean']:.2f} %")


def modes(bench: Bench, training: Training, seeds: int) -> None:
    """What the ways to merge give on LeNet-5: accuracy after the cut and after fine-tuning, seconds
    of the merging epochs.
    """
    shared = ("--data", training.data(), "--batch-size", 32, "--threads", training.threads, "-q")
    images = training.images
    options = ("--images", images, "--seeds", seeds, "--threads", training.threads)
    described = bench.described("--modes", "DIR", *options)
    data = (
        f"CIFAR-10 (JPEG): the first {images} training images of each class, 10,000 test images; "
        "LeNet-5, 20 epochs a parent, 10 of merging, 10 of fine-tuning"
    )
    rows: list[Row] = []
    for seed in range(seeds):
        parents = [parent(bench, training, seed, n, *shared) for n in range(2)]
        for mode in bench.size(list(MODES), ["average of the weights"]):
            out = training.work / f"merged-{len(rows)}"
            rows.append(merged(bench, mode, seed, out, *parents, *shared))
            print(rows[-1], flush=True)
            bench.store(modes={**described, "data": data, "rows": rows})


def parent(bench: Bench, training: Training, seed: int, number: int, *shared: object) -> Path:
    """Train parent `number`; the folder of its run."""
    folder = training.work / f"parent-{seed}-{number}"
    epochs = ("--epochs", bench.size(20, 1), "--seed", 100 * seed + number)
    edgecompress("train", "lenet5", *epochs, *shared, "-o", folder)
    return folder


def merged(bench: Bench, mode: str, seed: int, out: Path, *arguments: object) -> Row:
    """Merge the parents among `arguments` in one mode."""
    epochs = ("--epochs", bench.size(10, 1), "--finetune-epochs", bench.size(10, 1))
    options = (*epochs, "--seed", seed, *MODES[mode], "-o", out, "--json")
    answer = edgecompress("merge", *arguments, *options)
    stages = {row["name"]: row for row in answer["stages"]}
    cut = next(stages[name] for name in ("mimic", "cut", "average", "align") if name in stages)
    return {
        "mode": mode,
        "seed": seed,
        "parents": answer["merge"]["parents"],
        "after_cut": cut["accuracy"],
        "merged": answer["merge"]["validation_accuracy"],
        "test_accuracy": answer["student"]["accuracy"],
        "best_parent_test_accuracy": answer["teacher"]["accuracy"],
        "merging_s": merging_seconds(stages),
    }


def selections(bench: Bench, pairs: int, threads: int, work: Path) -> None:
    """Pairs of LeNet-5 on digits, cut by what gates learned and by other choices; the test split is
    not read.
    """
    shared: tuple[object, ...] = ("--threads", threads, "-q")
    if bench.smoke:
        shared = (*shared, "--data", f"folder:{bench.images(SMOKE_IMAGES, work)}")
    rows: list[Row] = []
    for pair in range(pairs):
        parents = []
        for seed in (2 * pair, 2 * pair + 1):
            parents.append(work / f"parent-{seed}")
            epochs = ("--epochs", bench.size(8, 1), "--seed", seed)
            edgecompress("train", "lenet5", *epochs, *shared, "-o", parents[-1])
        for schedule in ("fitted", "source"):
            options = ("--epochs", bench.size(12, 1), "--finetune-epochs", 0, "--json")
            more = ("--lambda-schedule", schedule, "-o", work / f"{schedule}-{pair}")
            section = edgecompress("merge", *parents, *options, *more, *shared)["merge"]
            step = section["steps"][0]
            kept = ("gated", "decided", "entropy", "agreement", "selection")
            row: Row = {key: step[key] for key in kept}
            rows.append({"pair": pair, "schedule": schedule, "parents": section["parents"], **row})
            print(rows[-1], flush=True)
            data = "digits (demo), 269 validation images; LeNet-5, 8 epochs a parent, 12 of merging"
            bench.store(selection={**bench.described("--selection"), "data": data, "rows": rows})


def merging_seconds(stages: dict[str, Row]) -> float:
    """Seconds of the merging epochs; averages have none."""
    if "gates" in stages:
        return float(stages["gates"]["wall_s"])
    greedy = ("cut", "mimic") if "mimic" in stages else ()
    return float(sum(stages[name]["wall_s"] for name in greedy))


def main() -> None:
    """Run the parts that the options select."""
    options = parser(__doc__)
    options.add_argument("--cost", action="store_true")
    options.add_argument("--budget", type=int, default=900)
    options.add_argument("--repeats", type=int, default=50)
    options.add_argument("--threads", type=int, default=2)
    add_images(options, "--resnet")
    add_images(options, "--modes")
    options.add_argument("--selection", action="store_true")
    options.add_argument("--pairs", type=int, default=10)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--images", type=int, default=500)
    arguments = options.parse_args()
    bench = bench_of(__file__, arguments)
    budget, repeats = bench.size((arguments.budget, arguments.repeats), (6, 2))
    if arguments.cost:
        cost(bench)
    elif arguments.selection:
        with tempfile.TemporaryDirectory() as name:
            selections(bench, bench.size(arguments.pairs, 1), arguments.threads, Path(name))
    elif arguments.modes is None and arguments.resnet is None:
        sine(bench, budget, repeats, arguments.threads)
    else:
        on_images(bench, arguments, budget, repeats)


def on_images(bench: Bench, arguments: argparse.Namespace, budget: int, repeats: int) -> None:
    """What needs an image folder: --modes, else --resnet."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        with_modes = arguments.modes is not None
        folder = bench.images(arguments.modes if with_modes else arguments.resnet, work)
        training = Training(folder, arguments.images, arguments.threads, work)
        if with_modes:
            modes(bench, training, bench.size(arguments.seeds, 1))
        else:
            resnet(bench, training, budget, repeats)


if __name__ == "__main__":
    main()
