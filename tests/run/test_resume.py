"""A run that is killed after any of its stages, and resumed, equals the run that was not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgecompress import checkpoint
from edgecompress.pipeline import execute
from edgecompress.recipe import validate
from edgecompress.stages import stage_names

SCRIPT = Path(__file__).with_name("resume_cases.py")
ONE = {"epochs": 1}
TRAIN = {"stage": "train", **ONE}
SHIP = [{"stage": "export"}, {"stage": "quantize", "quantize": "int8"}]
MEASURE = {"stage": "measure", "samples": 20}
RECIPES: dict[str, list[dict[str, Any]]] = {
    "compress": [
        TRAIN,
        {"stage": "simplify"},
        {"stage": "plan", "targets": {"bytes": "9KB"}},
        {"stage": "contest", **ONE},
        {"stage": "prune", **ONE},
        {"stage": "distill", **ONE},
        {"stage": "qat", "only_low_bits": True, "epochs": 2},
        {"stage": "export"},
        {"stage": "quantize"},
        MEASURE,
    ],
    "auto": [
        {"stage": "auto", "models": ["lenet5", "mlp"], **ONE},
        {"stage": "train", "epochs": 0},
        {"stage": "plan", "targets": {"bytes": "40KB"}},
        {"stage": "prune", **ONE},
    ],
    "steps": [TRAIN, {"stage": "prune", "amount": "40%", "steps": 2, **ONE}],
    "qat": [TRAIN, {"stage": "simplify"}, {"stage": "qat", **ONE}, *SHIP],
    "gradual": [
        {"stage": "train", **ONE},
        {"stage": "simplify"},
        {"stage": "gradual", "amount": "30%", "step": "40%", "epochs": 2},
        {"stage": "shrink"},
        {"stage": "profile", "levels": [0.2, 0.4]},
    ],
    "teacher": [
        {"stage": "teacher", "model": "mlp", **ONE},
        {"stage": "train", "epochs": 0},
        {"stage": "distill", "mode": "online", **ONE},
        {"stage": "simplify"},
        {"stage": "export"},
    ],
    "load": [
        {"stage": "load", "checkpoint": "CHECKPOINT"},
        {"stage": "sparsify", "amount": "60%", "steps": 1, **ONE},
        {"stage": "distill", **ONE},
    ],
    "merge": [{"stage": "merge", "train_parents": 2, "parent_epochs": 1, **ONE}, *SHIP, MEASURE],
    "compare": [{"stage": "compare", "budget": 6, "repeats": 2}, {"stage": "export"}],
    "search": [
        TRAIN,
        {"stage": "simplify"},
        {"stage": "search", "max_drop": 0.5, "refine": 0, "quantize": "int8", "floor": 0.5, **ONE},
    ],
}
NAMED = {"compare": "mlp", "merge": "mlp", "auto": "auto"}


def test_every_stage_is_in_a_recipe() -> None:
    assert {stage["stage"] for stages in RECIPES.values() for stage in stages} == {*stage_names()}


@pytest.fixture(scope="module")
def found(few: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[str]]]:
    """What the runs of all recipes left, in one process that imports what they need once."""
    paths = {}
    for name, stages in RECIPES.items():
        folder = tmp_path_factory.mktemp(name)
        if stages[0]["stage"] == "load":
            first = execute(recipe(TRAIN, data=few), folder / "first")
            checkpoint = str(first.root / "model.safetensors")
            stages = [{**stages[0], "checkpoint": checkpoint}, *stages[1:]]
        values = {"model": NAMED.get(name, "lenet5"), "data": few, "threads": 1, "stages": stages}
        paths[name] = folder / "recipe.yaml"
        paths[name].write_text(yaml.safe_dump(values))
    command = [sys.executable, str(SCRIPT), *map(str, paths.values())]
    # it forks, and children of a process that uses a GPU cannot use it
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=900, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    by_path = json.loads(done.stdout)
    return {name: by_path[str(path)] for name, path in paths.items()}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", RECIPES)
def test_a_killed_run_resumes_to_the_same_result(
    name: str, found: dict[str, dict[str, list[str]]]
) -> None:
    assert len(found[name]["stages"]) >= len(RECIPES[name])
    assert found[name]["different"] == []


def recipe(*stages: dict[str, Any], **more: str) -> Any:
    return validate({"model": "lenet5", "threads": 1, "stages": list(stages), **more}, "recipe")


@pytest.mark.parametrize("last", [
    {"stage": "gradual", "amount": "30%", "step": "40%", "epochs": 2},
    {"stage": "qat", "epochs": 1},
    {"stage": "distill", "epochs": 1},
], ids=lambda stage: stage["stage"])  # fmt: skip
def test_after_simplify_the_network_learns_from_a_frozen_copy(
    last: dict[str, Any], tmp_path: Path
) -> None:
    """Not from itself: the teacher stays what `simplify` left, and the student moves."""
    outcome = execute(recipe(TRAIN, {"stage": "simplify"}, last), tmp_path / "run")
    stored = json.loads((outcome.root / f"03-{last['stage']}" / "stage.json").read_text())
    before = json.loads((outcome.root / "02-simplify" / "stage.json").read_text())
    networks, first = stored["ledger"]["networks"], before["ledger"]["networks"]
    assert first["teacher"]["digest"] == first["model"]["digest"]
    assert networks["teacher"] == first["teacher"]
    assert networks["model"]["digest"] != first["model"]["digest"]
    shipped = checkpoint.load(outcome.root / "model.safetensors")[0].state_dict()
    kept = checkpoint.load(outcome.root / networks["model"]["file"])[0].state_dict()
    assert all(bool((shipped[name] == kept[name]).all()) for name in kept)
