"""Emulation and lessons between machines, measured. As root.

    # delay and bandwidth of links, a capture at 100 Mbit/s; 3 minutes
    sudo python benchmarks/emulate.py --links
    # steps a second at 0 and at 100 ms of round trip; 3 minutes
    sudo python benchmarks/emulate.py --hiding
    # codecs, and the reference in one process, three seeds; 10 minutes
    sudo python benchmarks/emulate.py --lessons 3
    # mutual learning at 100 ms of round trip, staleness 0 and 16; 4 minutes
    sudo python benchmarks/emulate.py --mutual

Data: digits (demo); accuracies on its 359 test images, one image is 0.28 points. Results go to
benchmarks/results/emulate.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from edgecompress.emulate import links as linking
from edgecompress.emulate import shell
from edgecompress.emulate.capture import capture
from edgecompress.emulate.network import network
from edgecompress.emulate.topology import graph_from
from edgecompress.measure import machine

RESULTS = Path(__file__).parent / "results" / "emulate.json"
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


def store(**parts: Any) -> None:
    """Put `parts` into the result file, whole."""
    known = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    common = {"hardware": machine.hardware(), "versions": machine.versions()}
    temporary = RESULTS.with_suffix(".tmp")
    temporary.write_text(json.dumps({**known, **parts, **common}, indent=1) + "\n")
    temporary.replace(RESULTS)


def pair(**link: Any) -> Any:
    """Two hosts and one link."""
    hosts = {"a": {"role": "teacher"}, "b": {"role": "student"}}
    return graph_from({"name": "pair", "hosts": hosts, "switches": {}, "links": [["a", "b", link]]})


def links() -> None:
    """What links do against what was asked, and a capture under load."""
    rows: list[dict[str, Any]] = []
    asked: list[dict[str, Any]] = [{"delay": f"{ms}ms", "bw": 100} for ms in (1, 10, 100)] + [
        {"bw": mbit} for mbit in (1, 10, 100)
    ]
    for link in asked:
        taken = []
        for _ in range(3):
            with network(pair(**link), "auto", lambda _: None) as net:
                taken.append(net.built[0].row())
        median = {
            key: statistics.median(row["measured"][key] for row in taken)
            for key in ("rtt_ms", "bw_mbps")
        }
        delay = float(link.get("delay", "0ms").removesuffix("ms"))
        rows.append(
            {
                "asked": link,
                "backend": taken[0]["backend"],
                "measured": median,
                "repeats": len(taken),
                "rtt_off_ms": median["rtt_ms"] - 2 * delay,
                "bw_off": median["bw_mbps"] / link["bw"] - 1,
            }
        )
        print(rows[-1], flush=True)
        store(links={"command": "python benchmarks/emulate.py --links", "rows": rows})
    with (
        tempfile.TemporaryDirectory() as name,
        network(pair(bw=100), "auto", lambda _: None) as net,
    ):
        captures = [
            capture(host, net.access(host)[1], net.pid(host), Path(name) / f"{host}.pcap")
            for host in ("a", "b")
        ]
        for built in net.built:
            linking.measure(built, 9)
        seconds, size = 6.0, 1400
        packets = int(105e6 / 8 / (size + linking.HEADERS) * seconds)
        found = linking._paced(
            net.built[0], 0, 1, net.addresses["b"], packets, seconds * 1e6 / packets, size
        )
        for one in captures:
            one.stop()
        load = {
            "seconds": seconds,
            "mbps": 8 * packets * (size + linking.HEADERS) / seconds / 1e6,
            "received": found["received"],
            "captured": [one.captured for one in captures],
            "kernel_dropped": [one.dropped for one in captures],
        }
        print(load)
        store(capture_under_load={"command": "python benchmarks/emulate.py --links", **load})


def emulated(work: Path, name: str, link: str, *options: str) -> dict[str, Any]:
    """One emulation of two hosts; its result."""
    topology = work / f"{name}.py"
    topology.write_text(TWO_HOST.format(link=link))
    command = [
        sys.executable,
        "-m",
        "edgecompress",
        "emulate",
        str(topology),
        *options,
        "-o",
        str(work / name),
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit {done.returncode}: {done.stderr}")
    return dict(json.loads(done.stdout))


def hiding() -> None:
    """A teacher that stands still, one way: steps a second without delay and with 100 ms of round
    trip; and bytes on the wire.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(3):
            for name, link in (("0 ms", "bw=100"), ("100 ms", "bw=100, delay='50ms'")):
                options = (
                    "--teacher",
                    "lenet5",
                    "--student",
                    "lenet5",
                    "--fixed-teacher",
                    "--epochs",
                    "12",
                )
                found = emulated(Path(folder), f"h{len(rows)}", link, *options)
                rows.append(
                    {
                        "round_trip": name,
                        "repeat": repeat,
                        **{k: found["distill"][k] for k in ("steps_per_s", "step_ms", "wait_ms")},
                    }
                )
                print(rows[-1], flush=True)
        rates = {
            name: statistics.median(row["steps_per_s"] for row in rows if row["round_trip"] == name)
            for name in ("0 ms", "100 ms")
        }
        wire = []
        for exchange, size in (("logits", "64"), ("inputs", "64")):
            options = (
                "--teacher",
                "lenet5",
                "--student",
                "lenet5",
                "--fixed-teacher",
                "--epochs",
                "12",
                "--exchange",
                exchange,
            )
            found = emulated(
                Path(folder), f"w{exchange}", "bw=100", *options, "--batch-size", size
            )["distill"]
            wire.append(
                {
                    "exchange": exchange,
                    "codec": "fp16",
                    "batch": int(size),
                    "payload_bytes": found["payload_bytes"],
                    "wire_bytes": found["wire_bytes"],
                    "ratio": found["wire_bytes"] / found["payload_bytes"],
                }
            )
            print(wire[-1], flush=True)
    store(
        hiding={
            "command": "python benchmarks/emulate.py --hiding",
            "steps_per_s": rates,
            "ratio": rates["100 ms"] / rates["0 ms"],
            "rows": rows,
        },
        wire=wire,
    )
    print(rates, rates["100 ms"] / rates["0 ms"])


def lessons(seeds: int) -> None:
    """The same trained teacher, student LeNet-5, 12 epochs: fp32 and `soft` over two hosts, and
    distillation in one process.
    """
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        work, python = Path(folder), [sys.executable, "-m", "edgecompress"]
        teacher = str(work / "teacher")
        subprocess.run(
            [*python, "train", "resnet20", "--epochs", "8", "-q", "-o", teacher],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        for seed in range(seeds):
            shared = ("--epochs", "12", "--seed", str(seed))
            for codec in ("fp32", "soft"):
                options = (
                    "--teacher",
                    teacher,
                    "--student",
                    "lenet5",
                    "--fixed-teacher",
                    "--codec",
                    codec,
                    *shared,
                )
                start = time.perf_counter()
                found = emulated(work, f"{codec}{seed}", "bw=20, delay='5ms'", *options)["distill"]
                student = found["students"]["student"]
                rows.append(
                    {
                        "how": codec,
                        "seed": seed,
                        "accuracy": student["accuracy"],
                        "bytes_per_sample": found["bytes_per_sample"],
                        "validation_accuracy": student["validation_accuracy"],
                        "wall_s": time.perf_counter() - start,
                    }
                )
                print(rows[-1], flush=True)
            out = str(work / f"one{seed}")
            command = [*python, "distill", teacher, "lenet5", *shared, "-q", "-o", out, "--json"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            told = json.loads(done.stdout)
            rows.append(
                {
                    "how": "one process",
                    "seed": seed,
                    "accuracy": told["student"]["accuracy"],
                    "bytes_per_sample": 0.0,
                }
            )
            print(rows[-1], flush=True)
            kinds = ("fp32", "soft", "one process")
            means = {
                how: statistics.fmean(row["accuracy"] for row in rows if row["how"] == how)
                for how in kinds
            }
            store(
                lessons={
                    "command": f"python benchmarks/emulate.py --lessons {seeds}",
                    "means": means,
                    "rows": rows,
                    "teacher": "ResNet-20, 8 epochs on digits",
                    "student": "LeNet-5, 12 epochs; 20 Mbit/s, 5 ms",
                }
            )
    print(means)


def mutual() -> None:
    """Mutual learning of two LeNet-5 over 100 ms of round trip, and in one process with the same
    staleness: accuracies, steps a second.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for staleness in (0, 16):
            options = (
                "--teacher",
                "lenet5",
                "--student",
                "lenet5",
                "--mutual",
                "--staleness",
                str(staleness),
                "--epochs",
                "12",
                "--codec",
                "fp32",
            )
            found = emulated(Path(folder), f"m{staleness}", "bw=100, delay='50ms'", *options)[
                "distill"
            ]
            rows.append(
                {
                    "staleness": staleness,
                    "steps_per_s": found["steps_per_s"],
                    "wait_ms": found["wait_ms"],
                    "over_the_network": {
                        "teacher": found["teacher_accuracy"],
                        "student": found["students"]["student"]["accuracy"],
                    },
                    "in_one_process": in_one_process(staleness),
                }
            )
            print(rows[-1], flush=True)
            store(
                mutual={
                    "command": "python benchmarks/emulate.py --mutual",
                    "networks": "two LeNet-5, 12 epochs on digits, seed 0",
                    "round_trip_ms": 100,
                    "rows": rows,
                }
            )


def in_one_process(staleness: int) -> dict[str, float]:
    """Test accuracies of the same two networks that learn from each other here, from logits of the
    same age.
    """
    from dataclasses import asdict

    import torch

    from edgecompress import lesson as lessons
    from edgecompress.methods.distill import mutual as exact
    from edgecompress.online.mutual import Mutual
    from edgecompress.online.plan import Plan, shape_of
    from edgecompress.train.batches import evaluate
    from edgecompress.train.fit import Hooks, Learner, fit_together

    lesson = lessons.Lesson(epochs=12, threads=1)
    data = lesson.load()
    names = {"teacher": "teacher", "student": "student student"}
    models = {
        role: lessons.network("lenet5", data, lesson.begins_with(name)).model
        for role, name in names.items()
    }
    settings = lesson.settings(models["student"], data)
    plan = Plan(
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
        asdict(data.augmentation),
        settings.view_seed,
        **shape_of(data),
        mutual=True,
        staleness=staleness,
    )
    box: dict[tuple[str, int], torch.Tensor] = {}
    learners = {}
    for name, other in (("teacher", "student"), ("student", "teacher")):
        end = Mutual(
            plan,
            data,
            lambda step, logits, name=name: box.update({(name, step): logits}),  # type: ignore[misc]
            lambda step, other=other: [box.pop((other, step))],
        )  # type: ignore[misc]
        loss, hooks = (end, Hooks(companion=end)) if staleness else (exact(other), Hooks())
        learners[name] = Learner(models[name], loss, settings, hooks)
    done = fit_together(learners, data, seed=lesson.seed, device=torch.device("cpu"))
    return {
        name: evaluate(result.model, data, data.test, torch.device("cpu"))[1]
        for name, result in done.items()
    }


def main() -> None:
    """What was asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--links", action="store_true")
    parser.add_argument("--hiding", action="store_true")
    parser.add_argument("--lessons", type=int, default=0, metavar="SEEDS")
    parser.add_argument("--mutual", action="store_true")
    arguments = parser.parse_args()
    shell.needed()
    if arguments.links:
        links()
    if arguments.hiding:
        hiding()
    if arguments.mutual:
        mutual()
    if arguments.lessons:
        lessons(arguments.lessons)


if __name__ == "__main__":
    main()
