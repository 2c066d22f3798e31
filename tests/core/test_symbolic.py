"""A trace is confined to its thread, although torch.fx changes how every module of the process is
called while it traces.
"""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from edgecompress.core.symbolic import meta_copy, symbolic_trace
from edgecompress.errors import UsageError


class Meanwhile(nn.Module):
    """Waits in its forward until another thread has done `work`, and keeps what that raised."""

    def __init__(self, work: object) -> None:
        super().__init__()
        self.inner, self.scale = nn.Linear(2, 2), nn.Parameter(torch.ones(2))
        self.work, self.errors = work, list[Exception]()

    def forward(self, x: Tensor) -> Tensor:
        def watched() -> None:
            try:
                self.work()  # type: ignore[operator]
            except Exception as error:
                self.errors.append(error)

        thread = threading.Thread(target=watched)
        thread.start()
        thread.join(20)
        result: Tensor = self.inner(x) * self.scale
        return result


def test_another_thread_may_run_and_train_its_network_meanwhile() -> None:
    other = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))
    images, outputs = torch.randn(4, 1, 4, 4), list[Tensor]()

    def work() -> None:
        other.train()(images).sum().backward()
        outputs.append(other.eval()(images))

    traced = symbolic_trace(network := Meanwhile(work))
    assert network.errors == []
    torch.testing.assert_close(outputs[0], other(images))
    assert other[3].weight.grad is not None
    assert [node.op for node in traced.graph.nodes] == [
        "placeholder",
        "call_module",
        "get_attr",
        "call_function",
        "output",
    ]


def test_another_thread_may_run_the_network_that_is_traced() -> None:
    outputs = list[Tensor]()
    inner = nn.Linear(2, 2)
    network = Meanwhile(lambda: outputs.append(inner(torch.ones(1, 2))))
    network.inner = inner
    symbolic_trace(network)
    assert network.errors == []
    torch.testing.assert_close(outputs[0], inner(torch.ones(1, 2)))


def test_traces_of_several_threads_follow_one_another() -> None:
    """None is lost, none has another's nodes, and `nn.Module` is restored after the last."""
    call, traces = nn.Module.__call__, list[list[str]]()

    def work() -> None:
        for _ in range(30):
            network = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.Linear(2, 2)))
            traces.append([str(node.target) for node in symbolic_trace(network).graph.nodes])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert traces == [["input", "0", "1.0", "1.1", "output"]] * 120
    assert nn.Module.__call__ is call


def test_an_untraceable_model_is_named() -> None:
    class Branch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(UsageError, match="Branch cannot be traced"):
        symbolic_trace(Branch())


def test_a_meta_copy_reads_no_weight_and_keeps_the_structure() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    prune.l1_unstructured(model[0], "weight", 0.5)
    copied = meta_copy(model)
    assert {tensor.device.type for tensor in copied.state_dict().values()} == {"meta"}
    assert copied[0].weight.device.type == "meta"
    assert not copied.training
    assert model.training
    assert list(copied.state_dict()) == list(model.state_dict())
