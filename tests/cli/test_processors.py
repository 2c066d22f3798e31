"""Int8 files for one kind of processor, and what a processor of another kind says of them. The
other kind is this machine with another /proc/cpuinfo, in a mount namespace of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgecompress.measure import machine, runtime
from tests.cli.test_cli import one_line, run

FLAGS = {"old": "fpu sse2 avx2", "new": "fpu sse2 avx2 avx512f avx512_vnni"}
WARNING = "has 8-bit weights, for processors with an int8 dot product"

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="mount namespaces need root")


def on_processor(kind: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`edgecompress ARGUMENTS` where the kernel reports a processor of that kind."""
    (cwd / "cpuinfo").write_text(f"model name\t: a {kind} one\nflags\t\t: {FLAGS[kind]}\n")
    script = 'mount --bind cpuinfo /proc/cpuinfo && exec "$@"'
    command = [sys.executable, "-m", "edgecompress", *map(str, arguments)]
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *command],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture(scope="module")
def files(few: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The int8 file of a small network, for each kind of processor."""
    folder = tmp_path_factory.mktemp("processors")
    done = run("train", "lenet5", "--data", few, "--epochs", 1, "-o", "t", cwd=folder)
    assert done.returncode == 0, done.stderr
    for cpu in ("any", "vnni", "no-vnni", "arm-dot"):
        more = ("--quantize", "int8", "--cpu", cpu)
        done = run("quantize", "t", *more, "-o", cpu, cwd=folder)
        assert done.returncode == 0, done.stderr
        saturates = cpu in ("vnni", "arm-dot") and not machine.has_int8_dot()
        assert ("saturates on this processor" in done.stderr) == saturates
    return {cpu: folder / cpu / "model.onnx" for cpu in ("any", "vnni", "no-vnni", "arm-dot")}


@pytest.mark.xdist_group("processors")
@pytest.mark.parametrize(("cpu", "bits"), [("any", 7), ("vnni", 8), ("no-vnni", 7), ("arm-dot", 8)])
def test_the_range_and_the_processor_stand_in_the_file(
    cpu: str, bits: int, files: dict[str, Path]
) -> None:
    entries = runtime.load(files[cpu]).metadata.entries
    assert (entries["cpu"], entries["weight_bits"]) == (cpu, bits)


@as_root
@pytest.mark.xdist_group("processors")
@pytest.mark.parametrize("kind", FLAGS)
@pytest.mark.parametrize("cpu", ["any", "vnni"])
def test_predict_and_bench_warn_on_the_wrong_processor(
    kind: str, cpu: str, files: dict[str, Path], few: str, tmp_path: Path
) -> None:
    warned = kind == "old" and cpu == "vnni"
    done = on_processor(kind, "predict", files[cpu], "--data", few, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["accuracy"] >= 0
    assert (WARNING in done.stderr) == warned
    if cpu == "vnni":
        quick = ("--blocks", 5, "--processes", 5, "--time", "10s", "--json")
        done = on_processor(kind, "bench", files[cpu], *quick, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert (WARNING in done.stderr) == warned


@as_root
def test_a_file_for_another_processor_is_made_with_a_note(few: str, tmp_path: Path) -> None:
    done = run("train", "lenet5", "--data", few, "--epochs", 0, "-o", "t", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    more = ("--quantize", "int8", "--cpu", "vnni", "-o", "q")
    made = on_processor("old", "quantize", "t", *more, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert "--cpu vnni: int8 saturates on this processor" in made.stderr
    doctor = on_processor("old", "doctor", cwd=tmp_path)
    assert "AVX2 without VNNI" in doctor.stdout


def test_an_unknown_processor_is_refused(tmp_path: Path) -> None:
    line = one_line(run("quantize", "t", "--cpu", "vnny", "-o", "q", cwd=tmp_path), 2)
    assert "'--cpu': 'vnny' is not one of 'any', 'vnni', 'no-vnni', 'arm-dot'" in line
