"""Kill a run after each of its stages, resume it, and compare it with the run that was not killed.

    python tests/run/resume_cases.py RECIPE.yaml...

A run is a child that kills itself (SIGKILL) when the stage after the chosen one begins, and behind
the last when the result would be written: the chosen one's stage.json then stands. The next child
resumes it, and is killed one stage later. Prints
{path: {"stages": [...], "different": [...]}} as JSON.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from edgecompress import pipeline
from edgecompress.export.onnx import to_onnx
from edgecompress.pipeline import execute
from edgecompress.recipe import Recipe, read
from edgecompress.run.context import Silent

COMPARED = ("model.safetensors", "model-fp32.onnx", "model.onnx")
MEASURED = ("wall_s", "note", "bytes")
"""What two runs of the same recipe may differ in: times, and texts that hold them."""


class KilledAt(Silent):
    """A reporter that kills its own process when stage `number` begins."""

    def __init__(self, number: int) -> None:
        self.number = number

    def stage(self, number: int, total: int, name: str) -> None:
        if number == self.number:
            os.kill(os.getpid(), signal.SIGKILL)


def preload() -> None:
    """Import what runs need, once for all children."""
    stages = importlib.import_module("edgecompress.stages")
    found = pkgutil.walk_packages(stages.__path__, "edgecompress.stages.")
    for name in (*(module.name for module in found), "onnxruntime.quantization"):
        importlib.import_module(name)
    to_onnx(torch.nn.Flatten(), torch.zeros(1, 1, 2, 2))  # the exporter's own, kept by children
    gc.collect()
    gc.freeze()  # children that look for garbage would copy all of it


def in_child(work: Any) -> int:
    """The wait status of a child that does `work`."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            os._exit(1)
    return os.waitpid(child, 0)[1]


def outcome(root: Path) -> dict[str, Any]:
    """What must be equal of two runs."""
    files = {name: (root / name).read_bytes() for name in COMPARED if (root / name).exists()}
    result = json.loads((root / "result.json").read_text())
    rows = [{k: v for k, v in r.items() if k not in MEASURED} for r in result["stages"]]
    names = ("auto", "contest", "distill", "gradual", "merge", "qat", "compare", "profile")
    sections = {name: result.get(name) for name in (*names, "sparsify", "int8", "frozen")}
    scores = {side: result.get(side, {}).get("accuracy") for side in ("teacher", "student")}
    if sections["distill"]:  # a table of logits that an earlier run left in the cache is read
        sections["distill"].pop("tables_computed", None)
        sections["distill"].pop("tables_read", None)
    return {**files, "rows": rows, "widths": result["widths"], **sections, **scores}


def killed_behind_all(recipe: Recipe, root: Path) -> None:
    """Run what is left; the process is killed where the result of all stages would be written."""
    pipeline.results.build = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    execute(recipe, root, resume=True)


def main(recipe: Recipe, folder: Path) -> dict[str, list[str]]:
    """One run that is killed after every stage, each time by the process that had just resumed it:
    every stage but the first works on what was read back from disk.
    """
    reference, root = folder / "reference", folder / "killed"
    if in_child(lambda: execute(recipe, reference)) != 0:
        raise SystemExit("the run that was not killed failed")
    stages = sorted(path.name for path in reference.glob("[0-9][0-9]-*") if path.is_dir())
    different = []
    for number, name in enumerate(stages[:-1], start=1):
        resume = number > 1
        killed = in_child(
            lambda at=number + 1, on=resume: execute(recipe, root, resume=on, reporter=KilledAt(at))
        )
        if killed != signal.SIGKILL or not (root / name / "stage.json").is_file():
            different.append(f"{name}: was not killed behind it")
    if in_child(lambda: killed_behind_all(recipe, root)) != signal.SIGKILL:
        different.append(f"{stages[-1]}: was not killed behind it")
    if in_child(lambda: execute(recipe, root, resume=True)) != 0:
        return {"stages": stages, "different": [*different, "resuming failed"]}
    expected, found = outcome(reference), outcome(root)
    different += [key for key in expected if found.get(key) != expected[key]]
    return {"stages": stages, "different": different}


if __name__ == "__main__":
    torch.set_num_threads(1)
    preload()
    found = {path: main(read(Path(path)), Path(path).parent) for path in sys.argv[1:]}
    sys.stdout.write(json.dumps(found) + "\n")
