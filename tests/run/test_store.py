"""What a run keeps on disk is what the next stage gets: facts, networks, and their digests."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from edgecompress import checkpoint
from edgecompress.data import Preprocess
from edgecompress.errors import EdgecompressError
from edgecompress.measure.cost import LayerCost
from edgecompress.methods.teacher import digest
from edgecompress.models import ModelSource, build
from edgecompress.run import store
from edgecompress.run.directory import RunDirectory
from edgecompress.run.state import (
    Baseline,
    Control,
    EpochRecord,
    FormatRow,
    Int8Attempt,
    LearnedGrid,
    Network,
    Shipped,
    SizePlan,
    StageRow,
    State,
)
from edgecompress.run.store import Ledger

SOURCE = ModelSource("lenet5", 10, (3, 32, 32))
ROW = FormatRow(
    "int8-qdq", "08-quantize/int8-qdq.onnx", 100, 0.5, 0.1, ("conv",), ("fc",), {"w": 3}
)
SHIPPED = Shipped((ROW,), ROW, "because")
PLAN = SizePlan(True, ("int8-qdq", "fp16"), bytes=10, max_drop=0.01, reason="why", amount="50%")


def network(seed: int) -> Network:
    torch.manual_seed(seed)
    preprocess = Preprocess((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), 40, 32)
    return Network(build(SOURCE).eval(), SOURCE, preprocess)


def full_state() -> State:
    """A state in which no field has its default."""
    return State(
        SOURCE,
        model=network(0),
        teacher=network(1),
        teacher_given=True,
        baseline=Baseline(1, 2, 0.3, 4, "teacher.onnx"),
        layers=(LayerCost("conv", "Conv2d", 1, 2, 3, 4),),
        plan=PLAN,
        prune_plan=replace(PLAN, prune=False),
        widths={"features.0": (6, 3)},
        folded_pools=({"pool": "avgpool", "input_shape": [1, 1]},),
        constant_channels=({"group": "a", "removed": 1},),
        control=Control(0.5, 6, 7, "control.onnx"),
        grid=LearnedGrid({"conv": (0.5, 128)}, 0.9),
        exported=True,
        shipped=SHIPPED,
        int8_attempt=Int8Attempt(PLAN, SHIPPED, ("too large",), "08-quantize"),
        sections={"merge": {"gates": [1, 2.5, None]}},
        figures={"student": {"bytes": 3}},
        missed={"prune": ("floors reached",)},
        rows=(StageRow("train", 0.5, 6, wall_s=1.0, note="n"),),
        history=(EpochRecord(1, 0.5, 0.4, 0.3, 0.2, 0.1, 6, stage="train", chosen=True),),
    )


def written(run: RunDirectory, state: State, ledger: Ledger) -> store.Stored:
    folder = run.stage(1, "train")
    folder.mkdir(parents=True, exist_ok=True)
    digests = store.check_declared("train", State(SOURCE), state, ledger)
    return store.write(run, folder, state, digests, (), ledger)


def test_every_fact_is_read_back_equal(tmp_path: Path) -> None:
    run, state = RunDirectory(tmp_path), full_state()
    blank = State(SOURCE)
    same = [f.name for f in fields(State) if getattr(state, f.name) == getattr(blank, f.name)]
    assert same == ["source"], "a field that is not tested: give it another value in full_state"
    written(run, state, Ledger("data", {}))
    stored = store.read(run.stage(1, "train"))
    assert stored is not None
    back = store.restore(run, stored, State(SOURCE), frozenset())
    for name in (f.name for f in fields(State) if f.name not in store.ROLES):
        assert getattr(back, name) == getattr(state, name), name
    for role in store.ROLES:
        before, after = getattr(state, role), getattr(back, role)
        assert digest(before.module) == digest(after.module)
        assert (before.source, before.preprocess) == (after.source, after.preprocess)


def test_a_network_that_stays_is_stored_once(tmp_path: Path) -> None:
    run, state = RunDirectory(tmp_path), full_state()
    first = written(run, state, Ledger("data", {}))
    folder = run.stage(2, "plan")
    folder.mkdir()
    digests = store.check_declared("plan", state, state, first.ledger)
    second = store.write(run, folder, state, digests, (), first.ledger)
    assert second.ledger.networks == first.ledger.networks
    assert [path.name for path in folder.iterdir()] == ["stage.json"]


@pytest.mark.parametrize("role", store.ROLES)
def test_a_network_that_changed_in_place_is_an_error_of_the_stage(
    role: str, tmp_path: Path
) -> None:
    run, state = RunDirectory(tmp_path), full_state()
    ledger = written(run, state, Ledger("data", {})).ledger
    moved: Network = getattr(state, role)
    with torch.no_grad():
        next(moved.module.parameters()).add_(1)
    with pytest.raises(EdgecompressError, match=f"stage lazy changed the {role} .* in place"):
        store.check_declared("lazy", state, state, ledger)


def test_teacher_and_model_never_share_a_module() -> None:
    shared = network(0)
    with pytest.raises(EdgecompressError, match="same module"):
        State(SOURCE, model=shared, teacher=shared)


def test_a_file_that_changed_since_is_refused(tmp_path: Path) -> None:
    run, state = RunDirectory(tmp_path), full_state()
    stored = written(run, state, Ledger("data", {}))
    path = tmp_path / stored.ledger.networks["model"].file
    checkpoint.save(path, network(5).module, SOURCE)
    with pytest.raises(EdgecompressError, match="does not hold the model"):
        store.restore(run, stored, State(SOURCE), frozenset())
