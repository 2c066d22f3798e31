"""How a stage trains: optimizer, precision and epochs from network, data, origin and time."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from edgecompress.data import DataSet, Images, load_data
from edgecompress.measure import machine
from edgecompress.models import ModelSource, build
from edgecompress.run.context import Context, Silent
from edgecompress.run.directory import RunDirectory
from edgecompress.run.stage import RunSettings
from edgecompress.run.state import Network, State
from edgecompress.stages.auto import AutoStage
from edgecompress.stages.common import fixed_teacher
from edgecompress.stages.distill import DistillStage
from edgecompress.stages.merge import MergeStage
from edgecompress.stages.train import TrainStage
from edgecompress.stages.training import fit_settings, in_time, pretrained, runs_in_bf16
from edgecompress.train.batches import batches
from edgecompress.train.settings import LARGE_SPLIT


def large() -> DataSet:
    count = LARGE_SPLIT + 1
    train = Images(
        torch.zeros(count, 3, 8, 8, dtype=torch.uint8), torch.zeros(count, dtype=torch.int64)
    )
    return replace(load_data("digits"), train=train)


def context(data: DataSet, recipe: RunSettings, deadline: float | None = None) -> Context:
    return Context(
        data=data,
        device=torch.device("cpu"),
        seed=0,
        recipe=recipe,
        run=RunDirectory(Path()),
        folder=Path(),
        reporter=Silent(),
        threads=1,
        deadline=deadline,
    )


def network(name: str) -> nn.Module:
    return build(ModelSource(name, 10, (3, 32, 32)))


OURS = RunSettings(model="resnet8", stages=())


@pytest.mark.parametrize(
    ("name", "data", "stage", "recipe", "expected"),
    [
        ("resnet8", "large", TrainStage(), OURS, ("sgd", 0.1)),
        ("resnet8", "large", DistillStage(), OURS, ("sgd", 0.1)),
        ("resnet8", "large", TrainStage(optimizer="adamw"), OURS, ("adamw", 1e-3)),
        ("resnet8", "large", TrainStage(learning_rate=0.02), OURS, ("sgd", 0.02)),
        ("resnet8", "digits", TrainStage(), OURS, ("adamw", 1e-3)),
        ("student1", "large", TrainStage(), OURS, ("adamw", 1e-3)),
        ("resnet8", "large", MergeStage(train_parents=2), OURS, ("adamw", 1e-3)),
        (
            "resnet8",
            "large",
            TrainStage(),
            RunSettings(model="net.py:pretrained", stages=()),
            ("adamw", 1e-3),
        ),
    ],
)
def test_the_optimizer_and_its_rate_follow_from_network_data_and_origin(
    name: str, data: str, stage: TrainStage, recipe: RunSettings, expected: tuple[str, float]
) -> None:
    known = large() if data == "large" else load_data("digits")
    chosen = fit_settings(context(known, recipe), network(name), stage)
    assert (chosen.optimizer, chosen.learning_rate) == pytest.approx(expected)


def test_given_weights_may_have_learned_before() -> None:
    assert not pretrained(OURS)
    assert pretrained(RunSettings(model="resnet8", stages=(TrainStage(weights="w.pt"),)))
    assert pretrained(RunSettings(model="net.py:make", stages=()))
    own = AutoStage(models=("resnet8", "net.py:make"))
    assert pretrained(RunSettings(model="auto", stages=(own,)))
    assert not pretrained(RunSettings(model="auto", stages=(AutoStage(),)))


def test_large_data_are_trained_in_bfloat16_where_the_processor_multiplies_it() -> None:
    usual = "bf16" if machine.has_bf16() else "fp32"
    model = network("resnet8")
    many, few = context(large(), OURS), context(load_data("digits"), OURS)
    assert fit_settings(many, model, TrainStage()).precision == usual
    assert fit_settings(many, model, TrainStage(precision="fp32")).precision == "fp32"
    assert fit_settings(few, model, TrainStage()).precision == "auto"


class InFloatAlone(nn.Module):
    """A network with an operator that refuses bfloat16, as those without a kernel do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 10, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        if y.dtype == torch.bfloat16:
            raise NotImplementedError("\"operator\" not implemented for 'BFloat16'")
        return y.mean((2, 3))


def test_a_network_that_cannot_compute_in_bfloat16_is_trained_in_float() -> None:
    example = torch.zeros(1, 3, 32, 32)
    assert not runs_in_bf16(InFloatAlone(), example)
    chosen = fit_settings(context(large(), OURS), InFloatAlone(), TrainStage())
    assert chosen.precision == "fp32"

    model = network("resnet8").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert runs_in_bf16(model, example)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_teacher_that_cannot_compute_in_bfloat16_answers_in_float() -> None:
    """Also where its student can."""
    source = ModelSource("resnet8", 10, (3, 32, 32))
    state = State(source, teacher=Network(InFloatAlone(), source))
    known = context(load_data("digits"), OURS)
    half = fit_settings(known, network("resnet8"), TrainStage(precision="bf16"))
    teacher = fixed_teacher(known, state, half)
    batch = next(batches(known.data, half, known.device, 0, 1))
    assert teacher.logits(batch).shape == (len(batch.ids), 10)


def test_only_open_epochs_are_fitted_to_the_time_that_is_left() -> None:
    model, data = network("resnet8"), load_data("digits")
    bounded = context(data, OURS, deadline=time.perf_counter() + 100)
    open_, given = (fit_settings(bounded, model, TrainStage(epochs=epochs)) for epochs in (None, 3))
    fitted = in_time(bounded, open_, share=0.5)
    assert fitted.time_s == pytest.approx(50, abs=1)
    assert in_time(bounded, given).time_s is None
    assert in_time(context(data, OURS), open_).time_s is None
    late = context(data, OURS, deadline=time.perf_counter() - 5)
    assert in_time(late, open_).time_s == 0
