"""The lessons of benchmarks/emulate.py: two hosts, joined by links of a stated delay."""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from common import SMOKE_IMAGES, Bench, Row, edgecompress

if TYPE_CHECKING:
    from torch import Tensor

    from edgecompress.data import DataSet
    from edgecompress.lesson import Lesson
    from edgecompress.online.plan import Plan
    from edgecompress.train.fit import Learner
    from edgecompress.train.settings import FitSettings

# torch is imported where it is needed: an emulation runs as root, without it.

TWO_HOST = """
from mininet.topo import Topo


class TwoHost(Topo):
    def build(self) -> None:
        self.addHost("teacher", role="teacher")
        self.addHost("student", role="student")
        self.addSwitch("s1")
        self.addLink("teacher", "s1", bw=100)
        self.addLink("s1", "student", {link})


topos = {{"two_host": TwoHost}}
"""
FIXED = ("--teacher", "lenet5", "--student", "lenet5", "--fixed-teacher")
"""A teacher that is frozen."""
SEEDED = {"teacher": "teacher", "student": "student student"}
"""What an emulation derives the seeds of the first weights from, by role."""
ROUND_TRIPS = {"0 ms": "bw=100", "100 ms": "bw=100, delay='50ms'"}
"""Round trips, and the links that have them."""


def emulated(work: Path, name: str, link: str, *options: object) -> Row:
    """One emulation of two hosts; its result."""
    topology = work / f"{name}.py"
    topology.write_text(TWO_HOST.format(link=link))
    return edgecompress("emulate", topology, *options, "-o", work / name, "--json")


@dataclass(frozen=True)
class Training:
    """How long the lessons last, and what they read."""

    epochs: int
    data: str

    def options(self) -> tuple[object, ...]:
        """The same for the command line."""
        return ("--epochs", self.epochs, "--data", self.data)


def training(bench: Bench, work: Path) -> Training:
    """12 epochs of digits; at smoke size one epoch of a few of them."""
    if not bench.smoke:
        return Training(12, "digits")
    return Training(1, f"folder:{bench.images(SMOKE_IMAGES, work)}")


def hiding(bench: Bench) -> None:
    """A frozen teacher, one way: steps per second without delay and with 100 ms of round trip; and
    bytes on the wire.
    """
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        options = (*FIXED, *training(bench, work).options())
        rows = [
            steps_row(work, repeat, round_trip, *options)
            for repeat in range(bench.size(3, 1))
            for round_trip in ROUND_TRIPS
        ]
        exchanges = bench.size(("logits", "inputs"), ("logits",))
        wire = [wire_row(work, exchange, *options) for exchange in exchanges]
    rates = {name: median_rate(rows, name) for name in ROUND_TRIPS}
    ratio = rates["100 ms"] / rates["0 ms"]
    part = {"command": bench.command("--hiding"), "steps_per_s": rates, "ratio": ratio}
    bench.store(hiding={**part, "rows": rows}, wire=wire, **bench.machine())
    print(rates, ratio)


def median_rate(rows: list[Row], round_trip: str) -> float:
    """Median steps per second of the rows with a round trip."""
    rates = [float(row["steps_per_s"]) for row in rows if row["round_trip"] == round_trip]
    return statistics.median(rates)


def steps_row(work: Path, repeat: int, round_trip: str, *options: object) -> Row:
    """One lesson: how fast it steps, and how long it waits."""
    name = f"hiding-{repeat}-{round_trip.replace(' ', '')}"
    lesson = emulated(work, name, ROUND_TRIPS[round_trip], *options)["distill"]
    speeds = {key: lesson[key] for key in ("steps_per_s", "step_ms", "wait_ms")}
    row = {"round_trip": round_trip, "repeat": repeat, **speeds}
    print(row, flush=True)
    return row


def wire_row(work: Path, exchange: str, *options: object, batch: int = 64) -> Row:
    """One lesson: payload, and bytes on the wire."""
    more = ("--exchange", exchange, "--batch-size", batch)
    lesson = emulated(work, f"wire-{exchange}", "bw=100", *options, *more)["distill"]
    payload, wire = lesson["payload_bytes"], lesson["wire_bytes"]
    row = {
        "exchange": exchange,
        "codec": "fp16",
        "batch": batch,
        "payload_bytes": payload,
        "wire_bytes": wire,
        "ratio": wire / payload,
    }
    print(row, flush=True)
    return row


def lessons(bench: Bench, seeds: int) -> None:
    """The same trained teacher, student LeNet-5, 12 epochs: fp32 and `soft` over two hosts, and
    distillation in one process.
    """
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        chosen = training(bench, work)
        teacher = trained_teacher(bench, work, chosen.data)
        for seed in range(seeds):
            shared = (*chosen.options(), "--seed", seed)
            for codec in ("fp32", "soft"):
                rows.append(lesson_row(work, teacher, codec, seed, *shared))
                print(rows[-1], flush=True)
            rows.append(one_process_row(work, teacher, seed, *shared))
            print(rows[-1], flush=True)
            store_lessons(bench, seeds, rows)


def trained_teacher(bench: Bench, work: Path, data: str) -> Path:
    """Train the teacher; the folder of its run."""
    folder = work / "teacher"
    model, epochs = bench.size(("resnet20", 8), ("lenet5", 1))
    edgecompress("train", model, "--epochs", epochs, "--data", data, "-q", "-o", folder)
    return folder


def lesson_row(work: Path, teacher: Path, codec: str, seed: int, *shared: object) -> Row:
    """A lesson over two hosts."""
    options = ("--teacher", teacher, "--student", "lenet5", "--fixed-teacher", "--codec", codec)
    start = time.perf_counter()
    run = emulated(work, f"{codec}{seed}", "bw=20, delay='5ms'", *options, *shared)
    lesson = run["distill"]
    student = lesson["students"]["student"]
    return {
        "how": codec,
        "seed": seed,
        "accuracy": student["accuracy"],
        "bytes_per_sample": lesson["bytes_per_sample"],
        "validation_accuracy": student["validation_accuracy"],
        "wall_s": time.perf_counter() - start,
    }


def one_process_row(work: Path, teacher: Path, seed: int, *shared: object) -> Row:
    """The same lesson in one process."""
    out = work / f"one{seed}"
    answer = edgecompress("distill", teacher, "lenet5", *shared, "-q", "-o", out, "--json")
    accuracy = answer["student"]["accuracy"]
    return {"how": "one process", "seed": seed, "accuracy": accuracy, "bytes_per_sample": 0.0}


def store_lessons(bench: Bench, seeds: int, rows: list[Row]) -> None:
    """Store the lessons so far, with the mean accuracy of each way."""
    means = {
        how: statistics.fmean(row["accuracy"] for row in rows if row["how"] == how)
        for how in ("fp32", "soft", "one process")
    }
    bench.store(
        lessons={
            "command": bench.command("--lessons", seeds),
            "means": means,
            "rows": rows,
            "teacher": "ResNet-20, 8 epochs on digits",
            "student": "LeNet-5, 12 epochs; 20 Mbit/s, 5 ms",
        },
        **bench.machine(),
    )
    print(means)


def mutual(bench: Bench) -> None:
    """Mutual learning of two LeNet-5 over 100 ms of round trip, and in one process with the same
    staleness: accuracies, steps per second.
    """
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        chosen = training(bench, work)
        for staleness in bench.size((0, 16), (16,)):
            rows.append(mutual_row(work, staleness, chosen))
            print(rows[-1], flush=True)
            bench.store(
                mutual={
                    "command": bench.command("--mutual"),
                    "networks": "two LeNet-5, 12 epochs on digits, seed 0",
                    "round_trip_ms": 100,
                    "rows": rows,
                },
                **bench.machine(),
            )


def mutual_row(work: Path, staleness: int, chosen: Training) -> Row:
    """Two networks that learn from each other over the network, and in one process."""
    ends = ("--teacher", "lenet5", "--student", "lenet5", "--mutual", "--staleness", staleness)
    options = (*ends, *chosen.options(), "--codec", "fp32")
    lesson = emulated(work, f"mutual{staleness}", ROUND_TRIPS["100 ms"], *options)["distill"]
    return {
        "staleness": staleness,
        "steps_per_s": lesson["steps_per_s"],
        "wait_ms": lesson["wait_ms"],
        "over_the_network": {
            "teacher": lesson["teacher_accuracy"],
            "student": lesson["students"]["student"]["accuracy"],
        },
        "in_one_process": in_one_process(staleness, chosen),
    }


def in_one_process(staleness: int, chosen: Training) -> dict[str, float]:
    """Test accuracies of the same two networks that learn from each other here, from logits of the
    same age.
    """
    import torch

    from edgecompress.lesson import Lesson
    from edgecompress.train.batches import evaluate
    from edgecompress.train.fit import fit_together

    lesson = Lesson(data=chosen.data, epochs=chosen.epochs, threads=1)
    data = lesson.load(lambda _: None)
    cpu = torch.device("cpu")
    done = fit_together(both_ends_here(lesson, data, staleness), data, seed=lesson.seed, device=cpu)
    return {name: evaluate(one.model, data, data.test, cpu)[1] for name, one in done.items()}


def both_ends_here(lesson: Lesson, data: DataSet, staleness: int) -> dict[str, Learner]:
    """Both networks, which exchange their logits through a dictionary."""
    from edgecompress.lesson import network as build_network
    from edgecompress.methods.distill import mutual as learning_from_peers
    from edgecompress.methods.sources import Peer
    from edgecompress.online.mutual import Publisher, RemotePeer
    from edgecompress.train.fit import Hooks, Learner

    seeds = {role: lesson.begins_with(name) for role, name in SEEDED.items()}
    built = {role: build_network("lenet5", data, seed) for role, seed in seeds.items()}
    models = {role: learner.model for role, learner in built.items()}
    settings = lesson.settings(built["student"], data)
    plan = mutual_plan(lesson, data, settings, staleness)
    box: dict[tuple[str, int], Tensor] = {}

    def put(name: str, step: int, logits: Tensor) -> None:
        box[name, step] = logits

    def take(name: str, step: int) -> Tensor:
        return box.pop((name, step))

    learners = {}
    for name, other in (("teacher", "student"), ("student", "teacher")):
        end = Publisher(plan, data, partial(put, name))
        stale = end.before(learning_from_peers([RemotePeer(end, partial(take, other))]))
        exact = learning_from_peers([Peer(other)])
        loss, hooks = (stale, Hooks(companion=end)) if staleness else (exact, Hooks())
        learners[name] = Learner(models[name], loss, settings, hooks)
    return learners


def mutual_plan(lesson: Lesson, data: DataSet, settings: FitSettings, staleness: int) -> Plan:
    """The plan that the ends of an emulated session would agree on."""
    from edgecompress.online.plan import Plan, shape_of, values_of

    return Plan(
        "one",
        "logits",
        "fp32",
        lesson.seed,
        settings.epochs,
        settings.batch_size,
        len(data.train),
        len(data.classes),
        "digits",
        data.digest(),
        values_of(data.augmentation),
        settings.view_seed,
        **shape_of(data),
        mutual=True,
        staleness=staleness,
    )
