"""Every benchmark runs at smoke size in a process of its own, and its result has the keys of the
published one.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import forked

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
RESULTS = BENCHMARKS / "results"
LIMIT_S = 300
"""Seconds of a smoke run on a busy machine; on a quiet one it takes at most 40."""
PROGRAMS = ("mnexec", "vde_switch", "wirefilter", "tcpdump", "ip", "tc", "ping", "ethtool")
KEYED_BY_DATA = {
    *("compress.json/summary", "prune.json/cases", "public_onnx.json/counts"),
    "reach.json/rows/frozen",
}
"""Objects whose keys name a target, a network, an outcome or a reason: other ones at smoke size."""
WRITTEN_BY_HAND = {"compress-others.json/note"}
NO_SCRIPT = {"demo-vnni.json"}
"""The result of `make demo`."""


@dataclass(frozen=True)
class Smoke:
    """One run of a script, its result file, and the parts of it that the run writes; no parts:
    all.
    """

    script: str
    options: tuple[str, ...]
    file: str
    parts: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join((self.script, *self.options))


DISTILLED = (
    *("command", "data", "hardware", "versions", "teacher_training", "bytes", "format", "teacher"),
    *("student", "distill", "control", "student3_stages", "parity", "seed", "wall_s"),
    "peak_rss_bytes",
)
RUNS = [
    Smoke("bytes.py", (), "bytes.json"),
    Smoke("compress.py", (), "compress.json"),
    Smoke("convolutions.py", (), "convolutions.json"),
    Smoke("distill.py", ("--rate",), "distill.json", ("input_pipeline",)),
    Smoke("distill.py", ("--data",), "distill.json", DISTILLED),
    Smoke(
        "gate.py",
        ("--injected", "1", "--same", "2", "--statistics", "1", "--slow", "1"),
        "gate.json",
    ),
    Smoke("latency.py", ("--int8", "--traps"), "latency.json", ("int8", "traps", "ranges")),
    Smoke("merge.py", (), "merge.json", ("sine",)),
    Smoke("merge.py", ("--cost",), "merge.json", ("cost",)),
    Smoke("merge.py", ("--selection",), "merge.json", ("selection",)),
    Smoke("pareto.py", ("--only", "ours", "resnet8-int8", "--data"), "pareto.json"),
    Smoke("pretrained.py", ("--data",), "pretrained.json"),
    Smoke("prune.py", (), "prune.json"),
    Smoke("public_onnx.py", (), "public_onnx.json"),
    Smoke("reach.py", (), "reach.json"),
    Smoke("reach_timm.py", (), "reach-timm.json"),
    Smoke("rounding.py", (), "rounding.json"),
    Smoke("structure.py", (), "structure.json"),
    Smoke("training.py", ("--data",), "training.json"),
]
SLOW_RUNS = [
    Smoke("bytes.py", (), "bytes.json"),
    Smoke("compress.py", ("--others",), "compress-others.json"),
    Smoke("latency.py", ("--int8", "--data"), "latency.json", ("int8_accuracy",)),
    Smoke("merge.py", ("--modes",), "merge.json", ("modes",)),
    Smoke("merge.py", ("--resnet",), "merge.json", ("resnet20",)),
]
LINK_PARTS = ("links", "capture_under_load", "hardware", "versions")
EMULATED = [
    Smoke("emulate.py", ("--links",), "emulate.json", LINK_PARTS),
    Smoke("emulate.py", ("--mutual",), "emulate.json", ("mutual",)),
]
SLOW_EMULATED = [
    Smoke("emulate.py", ("--hiding",), "emulate.json", ("hiding", "wire")),
    Smoke("emulate.py", ("--lessons", "1"), "emulate.json", ("lessons",)),
]
ALL = [*RUNS, *SLOW_RUNS, *EMULATED, *SLOW_EMULATED]


def keys(value: Any, path: str) -> set[str]:
    """All keys of a JSON value, by their place; rows of a list count together."""
    if isinstance(value, list):
        return {key for item in value for key in keys(item, path)}
    if not isinstance(value, dict):
        return set()
    places = {
        key: f"{path}/*" if path in KEYED_BY_DATA else f"{path}/{key}" for key in sorted(value)
    }
    inner = {key for name, place in places.items() for key in keys(value[name], place)}
    return {*places.values(), *inner} - WRITTEN_BY_HAND


def published(run: Smoke) -> dict[str, Any]:
    """The parts of the published result that `run` writes."""
    result = json.loads((RESULTS / run.file).read_text())
    names = run.parts or result.keys()
    return {name: result[name] for name in names if f"{run.file}/{name}" not in WRITTEN_BY_HAND}


def written() -> dict[Path, int]:
    """When each published file was written."""
    files = [path for path in RESULTS.iterdir() if path.is_file()]
    return {path: path.stat().st_mtime_ns for path in [*files, ROOT / "docs" / "reach.md"]}


def missing(run: Smoke, output: Path) -> set[str]:
    """Keys of the published result that a run of smoke size does not write."""
    before = written()
    command = [str(BENCHMARKS / run.script), "--smoke", *run.options, "--output", str(output)]
    done = forked.run(command, cwd=ROOT, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr[-3000:]
    assert written() == before, "it never replaces a published figure"
    result = json.loads((output / run.file).read_text())
    return keys(published(run), run.file) - keys(result, run.file)


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_a_benchmark_runs_at_smoke_size(run: Smoke, tmp_path: Path) -> None:
    assert missing(run, tmp_path) == set()


@pytest.mark.slow
@pytest.mark.parametrize("run", SLOW_RUNS, ids=str)
def test_the_other_parts_run_at_smoke_size(run: Smoke, tmp_path: Path) -> None:
    assert missing(run, tmp_path) == set()


emulation = [
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root"),
    pytest.mark.skipif(
        any(shutil.which(name) is None for name in PROGRAMS),
        reason=f"needs {', '.join(PROGRAMS)}: make system",
    ),
    pytest.mark.xdist_group("emulate"),
]


@pytest.mark.parametrize(
    "run",
    [
        *(pytest.param(run, id=str(run), marks=emulation) for run in EMULATED),
        *(
            pytest.param(run, id=str(run), marks=[*emulation, pytest.mark.slow])
            for run in SLOW_EMULATED
        ),
    ],
)
def test_an_emulation_runs_at_smoke_size(run: Smoke, tmp_path: Path) -> None:
    assert missing(run, tmp_path) == set()


def test_every_script_runs_and_every_published_part_is_checked() -> None:
    scripts = {
        path.name
        for path in BENCHMARKS.glob("*.py")
        if 'if __name__ == "__main__"' in path.read_text()
    }
    assert {run.script for run in ALL} == scripts
    files = {path.name for path in RESULTS.glob("*.json")} - NO_SCRIPT
    assert {run.file for run in ALL} == files
    for file in files:
        runs = [run for run in ALL if run.file == file]
        names = {f"{file}/{name}" for run in runs for name in published(run)}
        every = {f"{file}/{name}" for name in json.loads((RESULTS / file).read_text())}
        assert every - WRITTEN_BY_HAND == names
