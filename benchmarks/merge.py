"""Merging, measured.

    # the full sine experiment: 50 students, 150 parents, 50 long networks, 900 epochs a budget
    python benchmarks/merge.py
    # what a merging step costs beside a plain step of the same wide network, 3 minutes
    python benchmarks/merge.py --cost
    # how to draw gates, and greedy merging, on LeNet-5; 10 minutes
    python benchmarks/merge.py --modes DIR
    # ResNet-20 on CIFAR-10 (JPEG): `compare`, three repeats
    python benchmarks/merge.py --resnet DIR --images 500 --budget 72

Sine problem: x ~ U(0, 1), y = sin(10 pi x) + N(0, 0.2); 10,000 samples to train, 10,000 to choose,
10,000 to test (mean square error, floor 0.04); networks 1-100-1, batches of 32, SGD. Every strategy
has the same budget of epochs. Results go to benchmarks/results/merge.json, with a box plot beside
it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from edgecompress.measure import machine

RESULTS = Path(__file__).parent / "results"


def store(**parts: Any) -> None:
    """Put `parts` into the result file, whole."""
    path = RESULTS / "merge.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({**known, **parts}, indent=1) + "\n")
    temporary.replace(path)


def sine(budget: int, repeats: int, threads: int) -> None:
    """The whole experiment, its statistics and its plot."""
    from edgecompress.data.sine import load_sine
    from edgecompress.methods.compare import SineSetting, compared, sine_experiment
    from edgecompress.report.plots import boxes

    torch.set_num_threads(threads)
    setting, start = SineSetting(budget=budget, repeats=repeats), time.perf_counter()
    phases: list[dict[str, Any]] = []

    def phase(text: str) -> None:
        phases.append({"phase": text, "at_s": round(time.perf_counter() - start, 1)})
        print(f"{phases[-1]['at_s']:.0f} s: {text}", flush=True)

    results, _ = sine_experiment(load_sine(), setting, phase)
    wall_s = time.perf_counter() - start
    found = compared(results)
    store(
        sine={
            "command": f"python benchmarks/merge.py --budget {budget} --repeats {repeats} "
            f"--threads {threads}",
            "setting": asdict(setting),
            "wall_s": wall_s,
            "threads": threads,
            "phases": phases,
            **found,
            "test_loss": results,
            "hardware": machine.hardware(),
            "versions": machine.versions(),
        }
    )
    (RESULTS / "merge-sine.svg").write_text(
        boxes(results, "test loss of the sine problem", floor=0.04)
    )
    for name, row in found["summary"].items():
        print(
            f"{name:10} median {row['median']:.4f}  mean {row['mean']:.4f}  std "
            f"{row['std']:.4f}  {row['min']:.4f} .. {row['max']:.4f}"
        )
    print(f"{wall_s / 60:.1f} min; {found['student_against']}")


def cost(repeats: int = 7, steps: int = 12) -> None:
    """Seconds of a training step of two stacked networks: plain, with gates drawn once a batch, and
    once a sample; in turns, medians.
    """
    from edgecompress.core import trace
    from edgecompress.core.simplify import find_pools, fold_pool
    from edgecompress.core.stack import stack
    from edgecompress.methods.gates import Gated
    from edgecompress.models import ModelSource, build

    torch.set_num_threads(2)
    rows = []
    for name in ("resnet20", "lenet5", "vgg16"):
        torch.manual_seed(0)
        shape = (3, 32, 32)
        parts = [build(ModelSource(name, 10, shape)) for _ in range(2)]
        if (
            name == "vgg16"
        ):  # as it is trained on 32×32: its pool folded into the first Linear layer
            parts = [
                fold_pool(part, fold)
                for part in parts
                for fold in find_pools(part, torch.zeros(1, *shape))
            ]
        wide = stack(parts, torch.zeros(1, *shape))
        graph = trace(wide, torch.zeros(1, *shape))
        size = 16 if name == "vgg16" else 128
        images, labels = (
            torch.randn(size, *shape).contiguous(memory_format=torch.channels_last),
            torch.randint(0, 10, (size,)),
        )
        kinds: dict[str, Any] = {
            "plain": wide,
            "batch": Gated(wide, graph),
            "sample": Gated(wide, graph, per="sample"),
        }
        optimizers = {
            k: torch.optim.SGD(m.parameters(), lr=1e-4, momentum=0.9, fused=True)
            for k, m in kinds.items()
        }
        taken: dict[str, list[float]] = {k: [] for k in kinds}
        for repeat in range(repeats + 1):
            for kind, model in kinds.items():
                start = time.perf_counter()
                for _ in range(steps if name != "vgg16" else 2):
                    optimizers[kind].zero_grad()
                    loss = torch.nn.functional.cross_entropy(model.train()(images), labels)
                    if kind != "plain":
                        loss = loss + model.distance(0.5)
                    loss.backward()
                    optimizers[kind].step()
                if repeat:
                    taken[kind].append(time.perf_counter() - start)
        median = {k: statistics.median(v) for k, v in taken.items()}
        ratios = {
            k: statistics.median(a / b for a, b in zip(taken[k], taken["plain"], strict=True))
            for k in ("batch", "sample")
        }
        rows.append({"model": name, "batch": size, "seconds": median, "ratio": ratios})
        print(
            f"{name}: a step with gates drawn a batch {ratios['batch']:.3f}x, a sample "
            f"{ratios['sample']:.3f}x of a plain one",
            flush=True,
        )
        store(
            cost={
                "command": "python benchmarks/merge.py --cost",
                "hardware": machine.hardware(),
                "rows": rows,
            }
        )


def resnet(folder: Path, images: int, budget: int, repeats: int, threads: int) -> None:
    """`compare resnet20` on the first `images` training images of each class of CIFAR-10 (JPEG),
    and all its test images.
    """
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        options = [
            "--budget",
            budget,
            "--repeats",
            repeats,
            "--learning-rate",
            2e-3,
            "--batch-size",
            64,
            "--precision",
            "bf16",
        ]
        command = [
            "compare",
            "resnet20",
            "--data",
            f"folder:{subset(folder, images, work)}",
            *map(str, options),
        ]
        start = time.perf_counter()
        told = edgecompress(*command, "--threads", str(threads), "-o", str(work / "run"), "--json")[
            "compare"
        ]
    store(
        resnet20={
            "command": f"python benchmarks/merge.py --resnet DIR --images {images} --budget "
            f"{budget} --repeats {repeats} --threads {threads}",
            "data": f"CIFAR-10 (JPEG): the first {images} training images of each class (a tenth "
            "of them validation), 10,000 test images",
            "options": options,
            "wall_s": time.perf_counter() - start,
            "threads": threads,
            **told,
            "hardware": machine.hardware(),
            "versions": machine.versions(),
        }
    )
    for name, row in told["summary"].items():
        print(
            f"{name:10} {[round(100 * value, 2) for value in told['results'][name]]} mean "
            f"{100 * row['mean']:.2f} %"
        )


MODES: dict[str, list[str]] = {
    "gates, a draw a batch": [],
    "gates, a draw a sample": ["--draw", "sample"],
    "gates, noise 0.2": ["--noise", "0.2"],
    "gates, no noise": ["--noise", "0"],
    "greedy, lambda constant": ["--method", "greedy", "--lambda-schedule", "constant"],
    "greedy, lambda increasing": ["--method", "greedy", "--lambda-schedule", "source"],
    "average of the weights": ["--method", "average"],
    "average after matching": ["--method", "align"],
}


def modes(folder: Path, images: int, seeds: int, threads: int) -> None:
    """What the ways to merge give on LeNet-5: accuracy after the cut and after fine-tuning, seconds
    of the merging epochs.
    """
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        data = f"folder:{subset(folder, images, work)}"
        shared = ["--data", data, "--batch-size", "32", "--threads", str(threads), "-q"]
        for seed in range(seeds):
            parents = [str(work / f"parent-{seed}-{n}") for n in range(2)]
            for n, parent in enumerate(parents):
                edgecompress(
                    "train",
                    "lenet5",
                    "--epochs",
                    "20",
                    "--seed",
                    str(100 * seed + n),
                    *shared,
                    "-o",
                    parent,
                )
            for mode, more in MODES.items():
                out = str(work / f"merged-{len(rows)}")
                epochs = ["--epochs", "10", "--finetune-epochs", "10", "--seed", str(seed)]
                told = edgecompress("merge", *parents, *epochs, *more, *shared, "-o", out, "--json")
                stages = {row["name"]: row for row in told["stages"]}
                cut = next(stages[n] for n in ("mimic", "cut", "average", "align") if n in stages)
                greedy = [stages[n]["wall_s"] for n in ("cut", "mimic") if "mimic" in stages]
                rows.append(
                    {
                        "mode": mode,
                        "seed": seed,
                        "parents": told["merge"]["parents"],
                        "after_cut": cut["accuracy"],
                        "merged": told["merge"]["validation_accuracy"],
                        "test_accuracy": told["student"]["accuracy"],
                        "best_parent_test_accuracy": told["teacher"]["accuracy"],
                        "merging_s": stages["gates"]["wall_s"]
                        if "gates" in stages
                        else sum(greedy),
                    }
                )
                print(rows[-1], flush=True)
                store(
                    modes={
                        "command": f"python benchmarks/merge.py --modes DIR --images {images} "
                        f"--seeds {seeds} --threads {threads}",
                        "data": f"CIFAR-10 (JPEG): the first {images} training images of each "
                        "class, 10,000 test images; LeNet-5, 20 epochs a "
                        "parent, 10 of merging, 10 of fine-tuning",
                        "rows": rows,
                        "hardware": machine.hardware(),
                        "versions": machine.versions(),
                    }
                )


def edgecompress(*arguments: str) -> dict[str, Any]:
    """What one command prints as JSON (nothing without `--json`)."""
    process = [sys.executable, "-m", "edgecompress", *arguments]
    done = subprocess.run(process, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(process)}: exit {done.returncode}: {done.stderr}")
    return dict(json.loads(done.stdout)) if "--json" in arguments else {}


def subset(folder: Path, images: int, work: Path) -> Path:
    """A folder of links to the first `images` training images of each class, and to all test
    images.
    """
    for split, most in (("train", images), ("test", None)):
        for label in sorted(path for path in (folder / split).iterdir() if path.is_dir()):
            (work / "cifar10-jpeg" / split / label.name).mkdir(parents=True)
            for path in sorted(label.iterdir())[:most]:
                (work / "cifar10-jpeg" / split / label.name / path.name).symlink_to(path.resolve())
    return work / "cifar10-jpeg"


def main() -> None:
    """What was asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cost", action="store_true")
    parser.add_argument("--budget", type=int, default=900)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--resnet", type=Path, metavar="DIR", help="CIFAR-10 (JPEG) with train/ and test/"
    )
    parser.add_argument(
        "--modes",
        type=Path,
        metavar="DIR",
        help="the same data: what the ways to merge give on LeNet-5",
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=500)
    arguments = parser.parse_args()
    if arguments.cost:
        cost()
    elif arguments.modes is not None:
        modes(arguments.modes, arguments.images, arguments.seeds, arguments.threads)
    elif arguments.resnet is not None:
        resnet(
            arguments.resnet,
            arguments.images,
            arguments.budget,
            arguments.repeats,
            arguments.threads,
        )
    else:
        sine(arguments.budget, arguments.repeats, arguments.threads)


if __name__ == "__main__":
    main()
