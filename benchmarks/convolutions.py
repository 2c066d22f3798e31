"""What `safe_convolutions` costs: training steps (forward and backward) with and without it.

    # narrow and wide 1x1 convolutions with stride 2, and a narrow ResNet-20; about 10 minutes
    python benchmarks/convolutions.py

Each case is measured in a process of its own, on two threads, plain and safe steps interleaved, in
channels_last order; medians, and ratio = safe / plain. All cases run twice: with the machine's own
instructions, and with ONEDNN_MAX_CPU_ISA=AVX2, as on a processor without AVX-512. The plain
backward pass of a narrow 1x1 convolution with a stride writes past its memory in both
(uxlfoundation/oneDNN#6035): where its process crashes or hangs, the plain result is "crashed" or
"hung", and the safe steps are measured in a process without plain ones. The gradients of both are
compared with those in float64 (norm of the difference, as a share of the norm of the gradients): a
plain kernel that does not crash may still be wrong. Wide convolutions (16 or more input channels)
are the control: `safe_convolutions` leaves them as they are. Results go to
results/convolutions.json.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from common import SEED, Bench, Row, bench_of, parser
from edgecompress.core.convolutions import SAFE_CHANNELS, safe_convolutions
from edgecompress.models.resnet import CifarResNet

NATIVE = "native"
LIMITS = (NATIVE, "AVX2")
"""Instruction sets that oneDNN may use; the first is the machine's own."""
KINDS = ("plain", "safe")
BATCH = 64
THREADS = 2
QUIET_LOAD = 1.5
"""Load average below which the machine counts as quiet."""


@dataclass(frozen=True)
class Case:
    """A 1x1 convolution with stride 2 and as many outputs as inputs, or a ResNet-20 whose stages
    have `widths` channels; images of `side` pixels.
    """

    side: int
    inputs: int = 0
    widths: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """How the result names it."""
        if self.widths:
            return f"ResNet-20 {'-'.join(map(str, self.widths))}, {self.side}x{self.side}"
        return f"1x1 stride 2, {self.inputs} channels, {self.side}x{self.side}"

    @property
    def narrow(self) -> bool:
        """Is there a convolution that `safe_convolutions` changes?"""
        return min(self.widths or (self.inputs,)) < SAFE_CHANNELS

    def network(self) -> nn.Module:
        """The network, with random weights."""
        torch.manual_seed(SEED)
        if self.widths:
            return CifarResNet((3, 3, 3), self.widths)
        return nn.Conv2d(self.inputs, self.inputs, 1, stride=2, bias=False)

    def images(self) -> Tensor:
        """Random images (B, C, side, side) that need a gradient."""
        generator = torch.Generator().manual_seed(SEED)
        shape = (BATCH, self.inputs or 3, self.side, self.side)
        return torch.randn(shape, generator=generator)


CONVOLUTIONS = tuple(
    Case(side, inputs) for inputs in (2, 3, 5, 7, 8, 10, 12, 15, 16, 32) for side in (8, 16, 32)
)
NETWORKS = (
    Case(32, widths=(5, 6, 7)),
    Case(32, widths=(13, 24, 39)),
    Case(32, widths=(16, 32, 64)),
)
SMOKE = (Case(9, 5), Case(8, widths=(4, 5, 6)))


@dataclass(frozen=True)
class Effort:
    """How long a case is measured: repeats, steps of each, and seconds until it counts as hung."""

    repeats: int
    steps: int
    limit_s: float


def case_of(text: str) -> tuple[Case, Effort, tuple[str, ...]]:
    """What a child process is given: a case, the effort, and the kinds of steps."""
    given = json.loads(text)
    case = Case(**{**given["case"], "widths": tuple(given["case"]["widths"])})
    return case, Effort(**given["effort"]), tuple(given["kinds"])


def measured(case: Case, effort: Effort, kinds: Sequence[str]) -> Row:
    """Milliseconds of a step of each kind, interleaved, and errors of their gradients."""
    torch.set_num_threads(THREADS)
    model = case.network().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = case.images().contiguous(memory_format=torch.channels_last)
    exact = gradients(copy.deepcopy(model).double(), images.double(), "safe")
    errors = {kind: relative_error(gradients(model, images, kind), exact) for kind in kinds}
    taken: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(effort.repeats):
        for kind in kinds:
            taken[kind].append(milliseconds(partial(step, model, images, kind), effort.steps))
    return {"ms": taken, "error": errors}


def step(model: nn.Module, images: Tensor, kind: str) -> list[Tensor]:
    """One forward and backward pass; the gradients of images and weights."""
    images = images.detach().requires_grad_()
    model.zero_grad()
    with safe_convolutions() if kind == "safe" else contextlib.nullcontext():
        outputs = model(images)
    outputs.square().mean().backward()
    return [tensor.grad for tensor in (images, *model.parameters()) if tensor.grad is not None]


def gradients(model: nn.Module, images: Tensor, kind: str) -> list[Tensor]:
    """The gradients of one step, in float64."""
    return [gradient.double().clone() for gradient in step(model, images, kind)]


def relative_error(values: Sequence[Tensor], exact: Sequence[Tensor]) -> float:
    """The norm of the difference over all tensors, as a share of the norm of the exact values."""
    difference = [a - b for a, b in zip(values, exact, strict=True)]
    return norm(difference) / norm(exact)


def norm(tensors: Sequence[Tensor]) -> float:
    """The Euclidean norm of all elements of all tensors."""
    return float(torch.cat([tensor.flatten() for tensor in tensors]).norm())


def milliseconds(work: Callable[[], object], steps: int) -> float:
    """Milliseconds of one of `steps` calls."""
    start = time.perf_counter()
    for _ in range(steps):
        work()
    return 1e3 * (time.perf_counter() - start) / steps


def in_child(case: Case, effort: Effort, kinds: Sequence[str], limit: str) -> Row | str:
    """`measured` in a process of its own, or how that ended: "crashed" or "hung"."""
    given = json.dumps({"case": asdict(case), "effort": asdict(effort), "kinds": kinds})
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("ONEDNN_MAX_CPU_ISA", None)
    if limit != NATIVE:
        environment["ONEDNN_MAX_CPU_ISA"] = limit
    command = [sys.executable, __file__, "--child", given]
    options: dict[str, Any] = {"env": environment, "capture_output": True, "text": True}
    try:
        done = subprocess.run(command, timeout=effort.limit_s, check=False, **options)
    except subprocess.TimeoutExpired:
        return "hung"
    if done.returncode < 0:
        print(f"{case.name}, {limit}: {signal.Signals(-done.returncode).name}", flush=True)
        return "crashed"
    if done.returncode:
        raise SystemExit(f"{case.name}, {limit}: exit {done.returncode}: {done.stderr}")
    return dict(json.loads(done.stdout))


def row_of(case: Case, effort: Effort, limit: str) -> Row:
    """The result of one case under one limit."""
    both = in_child(case, effort, KINDS, limit)
    safe = in_child(case, effort, KINDS[1:], limit) if isinstance(both, str) else both
    if isinstance(safe, str):
        raise SystemExit(f"{case.name}, {limit}: safe steps {safe}")
    row: Row = {"case": case.name, "instructions": limit, "narrow": case.narrow, "batch": BATCH}
    row["safe_ms"] = statistics.median(safe["ms"]["safe"])
    row["safe_error"] = safe["error"]["safe"]
    if isinstance(both, str):
        return {**row, "plain_ms": both, "plain_error": None, "ratio": None}
    times = both["ms"]
    return {
        **row,
        "plain_ms": statistics.median(times["plain"]),
        "plain_error": both["error"]["plain"],
        "ratio": statistics.median(
            a / b for a, b in zip(times["safe"], times["plain"], strict=True)
        ),
    }


def show(row: Row) -> None:
    """One line per row."""
    crashed = isinstance(row["plain_ms"], str)
    plain = row["plain_ms"] if crashed else f"{row['plain_ms']:.3f} ms"
    ratio = "" if crashed else f", ratio {row['ratio']:.3f}, plain error {row['plain_error']:.1e}"
    text = f"plain {plain}, safe {row['safe_ms']:.3f} ms"
    print(f"{row['instructions']:7} {row['case']}: {text}{ratio}", flush=True)


def load_note(load: float) -> str:
    """How far the load average before the first case lets the times be trusted."""
    if load < QUIET_LOAD:
        return f"quiet machine: load average {load:.2f} before the first case"
    return (
        f"busy machine: load average {load:.2f} before the first case; plain and safe steps are "
        "interleaved, so ratios suffer less than times"
    )


def measure_all(bench: Bench) -> None:
    """All cases under both limits; the result is written after every case."""
    effort = bench.size(Effort(15, 30, 60.0), Effort(2, 2, 60.0))
    network_effort = bench.size(Effort(9, 2, 90.0), Effort(1, 1, 60.0))
    cases = bench.size((*CONVOLUTIONS, *NETWORKS), SMOKE)
    parts: Row = {"seed": SEED, "threads": THREADS, "note": load_note(os.getloadavg()[0])}
    rows: list[Row] = []
    for limit in LIMITS:
        for case in cases:
            rows.append(row_of(case, network_effort if case.widths else effort, limit))
            show(rows[-1])
            bench.store(**bench.described(), **parts, rows=rows)


def main() -> None:
    """All cases, or with --child one of them as JSON."""
    options = parser(__doc__)
    options.add_argument("--child", help=argparse.SUPPRESS)
    arguments = options.parse_args()
    if arguments.child is not None:
        print(json.dumps(measured(*case_of(arguments.child))))
        return
    measure_all(bench_of(__file__, arguments))


if __name__ == "__main__":
    main()
