"""A folder that is used again: an earlier run stays until the new one is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgecompress.errors import UsageError
from edgecompress.pipeline import Context, State, execute
from edgecompress.recipe import Recipe, validate
from edgecompress.stages import STAGES


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def recipe(*stages: dict[str, Any]) -> Recipe:
    return validate({"model": "lenet5", "threads": 1, "stages": [*stages]}, "recipe")


TRAIN, SIMPLIFY = {"stage": "train", "epochs": 0}, {"stage": "simplify"}


def fails(context: Context, settings: object, state: State) -> State:
    (context.folder).mkdir(parents=True, exist_ok=True)
    (context.folder / "half.bin").write_bytes(b"half")
    raise UsageError("bad input that is found late")


def test_a_first_stage_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    root = tmp_path / "run"
    execute(recipe(TRAIN), STAGES, root)
    (root / "01-photos").mkdir()
    (root / "01-photos" / "cat.txt").write_text("the user's own")
    before = contents(root)
    with pytest.raises(UsageError, match="found late"):
        execute(recipe(TRAIN, SIMPLIFY), {**STAGES, "train": fails}, root)
    assert contents(root) == before
    with pytest.raises(UsageError, match="found late"):
        execute(recipe(TRAIN), {**STAGES, "train": fails}, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_an_earlier_run_waits_until_the_new_one_is_whole(tmp_path: Path) -> None:
    """A later stage that fails leaves the new run to be resumed, and the earlier one beside it."""
    root = tmp_path / "run"
    execute(recipe(TRAIN), STAGES, root)
    earlier = (root / "result.json").read_bytes()
    for _ in range(2):
        with pytest.raises(UsageError, match="found late"):
            execute(recipe(TRAIN, SIMPLIFY), {**STAGES, "simplify": fails}, root)
        assert not (root / "result.json").exists()
        assert (root / ".before" / "result.json").read_bytes() == earlier
    execute(recipe(TRAIN, SIMPLIFY), STAGES, root, resume=True)
    assert (root / "result.json").is_file()
    assert not (root / ".before").exists()
