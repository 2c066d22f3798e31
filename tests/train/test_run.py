"""What a run does around the steps of its training."""

from __future__ import annotations

import torch
from torch import nn

from edgecompress.data import load_data
from edgecompress.models import ModelSource, build
from edgecompress.train.companion import Kept, NoCompanion
from edgecompress.train.fit import Hooks, Learner, label_loss
from edgecompress.train.run import Run
from edgecompress.train.settings import FitSettings

CPU = torch.device("cpu")


class Watching(NoCompanion):
    """Notes when it is attached and detached."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def attach(self, model: nn.Module) -> None:
        self.events.append("attach")

    def detach(self) -> None:
        self.events.append("detach")


def run_of(hooks: Hooks | None = None, steps: int = 10, **settings: object) -> Run:
    torch.manual_seed(0)
    model = build(ModelSource("lenet5", 10, (3, 32, 32)))
    chosen = FitSettings(2, **settings)  # type: ignore[arg-type]
    return Run("", Learner(model, label_loss, chosen, hooks or Hooks()), steps, CPU)


def test_every_step_sets_its_rate_and_is_announced_before_it_is_counted() -> None:
    seen: list[tuple[int, int]] = []
    hooks = Hooks(on_step=lambda step, steps: seen.append((step, steps)))
    with run_of(hooks, steps=4, warmup=0.5, learning_rate=0.1, schedule="constant") as run:
        rates = []
        for _ in range(4):
            run.begin_step()
            rates.append(run.optimizer.param_groups[0]["lr"])
    assert rates == [0.05, 0.1, 0.1, 0.1]
    assert seen == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert run.step == 4


def test_a_new_epoch_counts_from_zero_and_a_resumed_one_does_not() -> None:
    with run_of() as run:
        run.end_step(2.0, samples=10)
        with run.training(resumed=True):
            assert (run.loss_sum, run.seen) == (20.0, 10)
        with run.training():
            assert (run.loss_sum, run.seen) == (0.0, 0)


def test_the_companion_is_attached_for_the_epoch_only() -> None:
    companion = Watching()
    with run_of(Hooks(companion=companion)) as run, run.training():
        assert companion.events == ["attach"]
    assert companion.events == ["attach", "detach"]


def test_a_state_is_kept_when_it_is_due() -> None:
    kept: list[Kept] = []
    with run_of(Hooks(keep=kept.append, keep_every=3, keep_last=5)) as run:
        for step in range(1, 8):
            run.begin_step()
            run.save(1, step)
    assert [state["step"] for state in kept] == [3, 5, 6]
    with run_of(Hooks(keep_every=1)) as run:
        run.begin_step()
        run.save(1, 1)  # nobody takes it


def test_the_end_of_an_epoch_records_the_mean_loss_over_samples() -> None:
    rows = []
    data = load_data("digits")
    with run_of(Hooks(on_epoch=rows.append)) as run:
        run.end_step(1.0, samples=30)
        run.end_step(4.0, samples=10)
        run.end_epoch(data, 1, 2.5)
    assert rows == run.rows
    assert (rows[0].train_loss, rows[0].seconds, rows[0].cut) == (1.75, 2.5, 0)
    assert rows[0].params == sum(p.numel() for p in run.model.parameters())
    assert run.result().best_epoch == 1


def test_a_run_without_a_best_epoch_has_all_the_patience() -> None:
    with run_of(Hooks(patience=1, eligible=lambda _: False)) as run:
        assert not run.out_of_patience(100)
