"""Convolutions as pruning makes them: outputs and gradients against float64, on this processor and
as one without AVX-512 has them.

They run in child processes whose heap is checked, since a faulty kernel may hang, crash, or write
past its memory unnoticed.
"""

from __future__ import annotations

import ast
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import edgecompress
from edgecompress.core.convolutions import safe_convolutions
from edgecompress.export.onnx import to_onnx
from edgecompress.measure import machine

SCRIPT = Path(__file__).with_name("convolution_cases.py")
HEAP_CHECK = "libc_malloc_debug.so.0"
"""Of glibc: aborts when memory past an allocation was written."""


def child_environment(isa: str) -> dict[str, str]:
    # a child's threads wait for each other without a core: other tests use them
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    if isa:
        environment["ONEDNN_MAX_CPU_ISA"] = isa
    if any(
        (folder / HEAP_CHECK).exists() for folder in (Path("/lib/x86_64-linux-gnu"), Path("/lib64"))
    ):
        environment |= {"LD_PRELOAD": HEAP_CHECK, "GLIBC_TUNABLES": "glibc.malloc.check=3"}
    return environment


def faults(
    isa: str, seed: int, share: float, *options: str, most: int = 20, limit_s: float = 900.0
) -> list[str]:
    """One line per case that differs, crashes or hangs, at most `most`. After a crash the run
    continues with the next case.
    """
    cases: list[str] = []
    start = 0
    while len(cases) < most:
        command = [sys.executable, str(SCRIPT), str(seed), str(share), str(start), *options]
        try:
            done = subprocess.run(
                command,
                env=child_environment(isa),
                capture_output=True,
                text=True,
                timeout=limit_s,
                check=False,
            )
            output, log, end = done.stdout, done.stderr, f"exit {done.returncode}"
        except subprocess.TimeoutExpired as error:
            output, log, end = (
                (part or b"").decode() for part in (error.stdout, error.stderr, b"hangs")
            )
        lines = output.splitlines()
        cases += [line for line in lines if "off by" in line]
        if lines and lines[-1].startswith("done"):
            return cases
        last = [line for line in log.splitlines() if "Case(" in line][-1:]
        if not last:
            raise AssertionError(f"{end} before the first case: {log[-400:]}")
        cases.append(f"{last[0]}: {end}")
        start = int(last[0].split()[0]) + 1
    return cases


@pytest.mark.timeout(300)
@pytest.mark.parametrize("isa", ["", "AVX2"])
def test_outputs_and_gradients_are_those_of_float64(isa: str) -> None:
    limited = os.environ.get("ONEDNN_MAX_CPU_ISA") == isa
    if isa and (limited or "avx512f" not in machine.cpu_features()):
        pytest.skip("these are the kernels of the other case")
    assert faults(isa, seed=0, share=0.1, limit_s=240) == []


@pytest.mark.timeout(300)
def test_they_are_in_bfloat16_too() -> None:
    assert faults("", 1, 0.01, "--bf16", limit_s=240) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("isa", ["", "AVX2"])
def test_all_outputs_and_gradients_are_those_of_float64(isa: str) -> None:
    assert faults(isa, seed=0, share=1.0, limit_s=1800) == []


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the fault is one of x86 kernels")
@pytest.mark.skipif(
    "LD_PRELOAD" not in child_environment(""),
    reason=f"{HEAP_CHECK} is not installed: the fault may go unnoticed",
)
@pytest.mark.parametrize("isa", ["", "AVX2"])
def test_the_known_fault_occurs_without_the_replacement(isa: str) -> None:
    """oneDNN#6035, with AVX-512 too. When this test fails, oneDNN may have fixed it: check whether
    `safe_convolutions` is still needed.
    """
    if not isa and "avx512f" not in machine.cpu_features():
        pytest.skip("this processor's own kernels are those of AVX2")
    cases = faults(isa, 3, 0.15, "--plain", most=1, limit_s=120)
    assert cases
    assert "kernel=1, stride=2" in cases[0]


@pytest.mark.parametrize("padding", [0, 1, (1, 0), "valid"])
@pytest.mark.parametrize("stride", [2, (2, 1), (1, 3)])
def test_a_narrow_pointwise_convolution_is_the_same_function(
    stride: int | tuple[int, int], padding: int | tuple[int, int] | str
) -> None:
    layer = nn.Conv2d(5, 4, 1, stride, padding, dtype=torch.float64)
    x = torch.randn(2, 5, 7, 6, dtype=torch.float64)
    with safe_convolutions():
        actual = layer(x)
    torch.testing.assert_close(actual, layer(x), rtol=0, atol=1e-12)


def test_the_file_has_the_convolution_with_its_stride() -> None:
    """What stands for it is for training alone."""
    layer = nn.Sequential(nn.Conv2d(5, 4, 1, 2), nn.Flatten(), nn.Linear(4 * 16, 3)).eval()
    with safe_convolutions():
        layer(torch.zeros(2, 5, 8, 8)).sum().backward()
    proto = to_onnx(layer, torch.zeros(1, 5, 8, 8))
    kinds = [node.op_type for node in proto.graph.node]
    assert kinds == ["Conv", "Reshape", "Gemm"]
    (strides,) = (a.ints for a in proto.graph.node[0].attribute if a.name == "strides")
    assert [*strides] == [2, 2]


def test_every_backward_pass_follows_a_safe_forward() -> None:
    """Every module that computes gradients uses `safe_convolutions`, or trains no
    convolution.
    """
    without_convolutions = {"methods/gradual.py", "train/many.py"}
    package = Path(edgecompress.__file__).parent
    for path in package.rglob("*.py"):
        names = {
            n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)
        }
        if "backward" in names and str(path.relative_to(package)) not in without_convolutions:
            assert "with safe_convolutions(" in path.read_text(), path
