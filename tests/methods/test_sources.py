"""Every source gives a loss what a direct forward pass of the other network gives, whether that
network is in this process or on another machine.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgecompress.data import DataSet, load_data
from edgecompress.methods.distill import kl_divergence, learning_from, mutual
from edgecompress.methods.features import FixedMaps, Taps, map_ends, reduced
from edgecompress.methods.sources import LogitSource, MapSource, Peer, TopK
from edgecompress.methods.teacher import FixedTeacher
from edgecompress.online.connection import Connection
from edgecompress.online.exchanges import exchange_of
from edgecompress.online.exchanges.base import Objective, StudentSetup
from edgecompress.online.mutual import RemotePeer
from edgecompress.online.plan import Plan
from edgecompress.online.progress import Progress
from edgecompress.train.batches import Batch, batches
from edgecompress.train.fit import Learner, fit_together
from tests.online.support import (
    CPU,
    SEED,
    SETTINGS,
    Frozen,
    ServedLesson,
    feature_plan,
    network,
    plan_for,
    student_network,
)

Sourced = Callable[[DataSet, nn.Module], contextlib.AbstractContextManager[LogitSource]]
"""A source of the logits of a network, for the batches of a training on some data."""


@pytest.fixture(scope="module")
def data() -> DataSet:
    """200 training images of the digits."""
    digits = load_data("digits")
    return replace(digits, train=digits.train.rows(torch.arange(200)))


def training(data: DataSet) -> Iterator[Batch]:
    """The batches of a training, in order."""
    for epoch in range(1, SETTINGS.epochs + 1):
        yield from batches(data, SETTINGS, CPU, SEED, epoch)


def direct(teacher: nn.Module, batch: Batch) -> Tensor:
    """Logits (B, K) of a forward pass."""
    with torch.no_grad():
        return teacher.eval()(batch.images).float()  # type: ignore[no-any-return]


@contextlib.contextmanager
def fixed(data: DataSet, teacher: nn.Module) -> Iterator[LogitSource]:
    yield FixedTeacher(teacher, data, CPU)


@contextlib.contextmanager
def connected(
    data: DataSet, teacher: nn.Module, plan: Plan, mentor: nn.Module | None = None
) -> Iterator[Any]:
    """The student's end of the exchange of `plan`, a source, connected to `teacher` on loopback."""
    served = ServedLesson(data, model=teacher)
    model = student_network(data, "lenet5")
    connection = Connection(served.address, None, plan, "student")
    setup = StudentSetup(plan, data, model, Objective(), Progress(plan), mentor)
    endpoint = exchange_of(plan).student(setup, connection)
    try:
        greeting = connection.meet([0], 20)
        endpoint.begin(greeting.start, greeting.maps, None)
        connection.listen(endpoint.receive)
        yield endpoint
        assert connection.end({})
    finally:
        connection.close()
        served.stop()
    served.assert_ended_well()


def by_steps(exchange: str) -> Sourced:
    return lambda data, teacher: connected(data, teacher, plan_for(data, exchange=exchange))


def by_weights(data: DataSet, teacher: nn.Module) -> contextlib.AbstractContextManager[LogitSource]:
    mentor = network("lenet5", data, 99)
    return connected(data, teacher, plan_for(data, exchange="weights"), mentor)


@contextlib.contextmanager
def remote_peer(data: DataSet, teacher: nn.Module) -> Iterator[LogitSource]:
    """Another thread computes the logits of each step, and the source waits for them."""
    sent, changed = dict[int, Tensor](), threading.Condition()
    progress = Progress(plan_for(data))

    def send() -> None:
        for step, batch in enumerate(training(data), start=1):
            logits = direct(teacher, batch)
            with changed:
                sent[step] = logits
                changed.notify_all()

    def receive(step: int) -> Tensor:
        with changed:
            assert changed.wait_for(lambda: step in sent, 20)
            return sent.pop(step)

    class InStep(RemotePeer):
        def logits(self, batch: Batch) -> Tensor:
            progress.advance(batch)
            return super().logits(batch)

    thread = threading.Thread(target=send)
    thread.start()
    yield InStep(progress, receive)
    thread.join(20)


SOURCES: dict[str, Sourced] = {
    "fixed teacher": fixed,
    "answers by steps": by_steps("logits"),
    "answers by pixels": by_steps("inputs"),
    "weights that travel": by_weights,
    "remote peer": remote_peer,
}


@pytest.mark.parametrize("name", SOURCES)
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 10_000), alpha=st.floats(0.1, 1.0))
def test_a_source_gives_what_a_direct_forward_pass_gives(
    name: str, seed: int, alpha: float, data: DataSet
) -> None:
    """The same logits at every step of a training, so the same loss."""
    teacher = network("lenet5", data, seed)
    generator = torch.Generator().manual_seed(seed)
    with SOURCES[name](data, teacher) as source:
        heard = Heard(source)
        loss, reference = (
            learning_from(each, "kl", 4.0, alpha) for each in (heard, Frozen(teacher))
        )
        for batch in training(data):
            own = torch.randn(len(batch.ids), 10, generator=generator)
            value = loss(own, batch)
            torch.testing.assert_close(heard.last, direct(teacher, batch), atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(value, reference(own, batch), atol=1e-5, rtol=1e-4)


class Heard:
    """A source that remembers what it has answered last."""

    def __init__(self, source: LogitSource) -> None:
        self.source = source
        self.last: Tensor | TopK = torch.zeros(0)

    def logits(self, batch: Batch) -> Tensor | TopK:
        self.last = self.source.logits(batch)
        return self.last


@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_a_peer_gives_the_logits_of_its_own_step(seed: int, data: DataSet) -> None:
    """Those of the network as it is before the step, in training mode, without a gradient."""
    computed, heard = list[Tensor](), list[Tensor]()

    def teaches(logits: Tensor, batch: Batch) -> Tensor:
        computed.append(logits.detach().clone())
        return torch.nn.functional.cross_entropy(logits, batch.labels)

    def learns(logits: Tensor, batch: Batch) -> Tensor:
        heard.append(Peer("teacher").logits(batch))
        return logits.sum() * 0

    learners = {
        "teacher": Learner(network("lenet5", data, seed), teaches, SETTINGS),
        "student": Learner(student_network(data), learns, SETTINGS),
    }
    fit_together(learners, data, seed=SEED, device=CPU)
    assert len(heard) == len(list(training(data)))
    for one, other in zip(heard, computed, strict=True):
        assert not one.requires_grad
        torch.testing.assert_close(one, other)


@given(st.integers(0, 10_000), st.integers(1, 3))
def test_mutual_is_the_same_for_peers_here_and_elsewhere(seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    own, *others = (torch.randn(6, 10, generator=generator) for _ in range(count + 1))
    here = {str(number): one for number, one in enumerate(others)}
    labels = torch.arange(6)
    batch = Batch(torch.arange(6), torch.zeros(6, 1), labels, logits=here)
    bare = replace(batch, logits={})

    class Clock:
        step = 7

    sent = [{7: one} for one in others]
    local = mutual([Peer(name) for name in here])(own, batch)
    remote = mutual([RemotePeer(Clock(), one.__getitem__) for one in sent])(own, bare)
    assert torch.equal(local, remote)
    hard = torch.nn.functional.cross_entropy(own, labels)
    soft = sum(kl_divergence(own, one, 1.0) for one in others) / count
    torch.testing.assert_close(local, hard + soft)


@pytest.mark.parametrize("kind", ["hint", "attention"])
def test_maps_are_those_of_a_direct_forward_pass(kind: str, data: DataSet) -> None:
    """Here and over the wire, each reduced for a student's map."""
    teacher = network("lenet5", data, 1).eval()
    ends = map_ends(teacher, torch.zeros(1, *data.image_shape))
    sizes = list(ends.values())
    taps = Taps(list(ends), "teacher")
    local: MapSource = FixedMaps(kind, list(ends), teacher, data.preprocess)
    plan = feature_plan(data, kind)
    with connected(data, network("lenet5", data, 1), plan) as remote:
        for batch in training(data):
            taps.attach(teacher)
            logits = direct(teacher, batch)
            expected = [
                reduced(kind, maps, size) for maps, size in zip(taps.outputs(), sizes, strict=True)
            ]
            taps.detach()
            torch.testing.assert_close(remote.logits(batch), logits, atol=1e-5, rtol=1e-4)
            for source in (local, remote):
                found = list(source.maps(batch, sizes))
                torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
