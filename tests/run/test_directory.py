"""A folder that is used again: an earlier run stays until the new one is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgecompress.errors import UsageError
from edgecompress.pipeline import execute
from edgecompress.recipe import Recipe, validate
from edgecompress.run.context import Context
from edgecompress.run.stage import StageResult
from edgecompress.run.state import State
from edgecompress.stages.simplify import SimplifyStage
from edgecompress.stages.train import TrainStage


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def recipe(*stages: dict[str, Any]) -> Recipe:
    return validate({"model": "lenet5", "threads": 1, "stages": [*stages]}, "recipe")


TRAIN, SIMPLIFY = {"stage": "train", "epochs": 0}, {"stage": "simplify"}


def fails(settings: object, context: Context, state: State) -> StageResult:
    (context.folder).mkdir(parents=True, exist_ok=True)
    (context.folder / "half.bin").write_bytes(b"half")
    raise UsageError("bad input that is found late")


def test_a_first_stage_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "run"
    execute(recipe(TRAIN), root)
    (root / "01-photos").mkdir()
    (root / "01-photos" / "cat.txt").write_text("the user's own")
    before = contents(root)
    monkeypatch.setattr(TrainStage, "run", fails)
    with pytest.raises(UsageError, match="found late"):
        execute(recipe(TRAIN, SIMPLIFY), root)
    assert contents(root) == before
    with pytest.raises(UsageError, match="found late"):
        execute(recipe(TRAIN), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_an_earlier_run_waits_until_the_new_one_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later stage that fails leaves the new run to be resumed, and the earlier one beside it."""
    root = tmp_path / "run"
    execute(recipe(TRAIN), root)
    earlier = (root / "result.json").read_bytes()
    for _ in range(2):
        with monkeypatch.context() as patch, pytest.raises(UsageError, match="found late"):
            patch.setattr(SimplifyStage, "run", fails)
            execute(recipe(TRAIN, SIMPLIFY), root)
        assert not (root / "result.json").exists()
        assert (root / ".before" / "result.json").read_bytes() == earlier
    execute(recipe(TRAIN, SIMPLIFY), root, resume=True)
    assert (root / "result.json").is_file()
    assert not (root / ".before").exists()
