"""What has a branch for GPUs, on a real one (`make test-gpu`); skipped where there is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgecompress.core.convolutions import _Replacing, safe_convolutions
from edgecompress.core.graph import trace
from edgecompress.core.shrink import masked, shrink
from edgecompress.methods.gates import Gated, most_open
from tests.cli.test_cli import run
from tests.networks import EXAMPLE, NARROW, narrow, random_keep

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]
DEVICE = "cuda"


def done(*arguments: object, cwd: Path, code: int = 0) -> dict[str, Any]:
    """The result of a command that ran on the GPU."""
    ended = run(*arguments, "--device", DEVICE, "--json", cwd=cwd)
    assert ended.returncode == code, ended.stderr
    result: dict[str, Any] = json.loads(ended.stdout)
    return result


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two runs, `a` and `b`: ResNet-20, 4 epochs on the GPU."""
    folder = tmp_path_factory.mktemp("gpu")
    for name, seed in (("a", 1), ("b", 2)):
        result = done("train", "resnet20", "--epochs", 4, "--seed", seed, "-o", name, cwd=folder)
        assert result["stages"][0]["accuracy"] > 0.85
        assert result["hardware"]["gpu"] == torch.cuda.get_device_name()
    return folder


def test_the_file_computes_what_the_gpu_trained(trained: Path) -> None:
    trained_on, on_file = done("export", trained / "a", "-o", "e", cwd=trained)["stages"]
    assert abs(trained_on["accuracy"] - on_file["accuracy"]) < 0.01


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precisions(precision: str, tmp_path: Path) -> None:
    options = ("--epochs", 3, "--precision", precision, "-o", "t")
    assert done("train", "resnet20", *options, cwd=tmp_path)["stages"][0]["accuracy"] > 0.8


@pytest.mark.parametrize("criterion", ["l1", "bn", "taylor", "random"])
def test_criteria(trained: Path, criterion: str, tmp_path: Path) -> None:
    options = ("--amount", "40%", "--criterion", criterion, "--epochs", 1, "-o", "p")
    loaded, *_, last = done("prune", trained / "a", *options, cwd=tmp_path)["stages"]
    assert last["params"] <= 0.61 * loaded["params"]


@pytest.mark.parametrize(
    "verb",
    [
        ("distill", "a", "student1", "--epochs", 1),
        ("distill", "a", "lenet5", "--mode", "online", "--epochs", 1),
        ("distill", "a", "lenet5", "--mode", "mutual", "--epochs", 1),
        ("quantize", "a", "--qat-epochs", 1, "--quantize", "int8"),
        ("merge", "a", "b", "--epochs", 1, "--finetune-epochs", 1),
        ("merge", "a", "b", "--method", "greedy", "--epochs", 1, "--finetune-epochs", 0),
        ("profile", "a"),
    ],
    ids=lambda verb: "-".join(str(word) for word in verb[:5] if str(word)[:2] != "--"),
)
def test_verbs(trained: Path, verb: tuple[object, ...], tmp_path: Path) -> None:
    words = [trained / word if word in ("a", "b") else word for word in verb]
    ended = run(*words, "--device", DEVICE, "-o", "o", cwd=tmp_path)
    assert ended.returncode in (0, 3), ended.stderr  # so few epochs may miss a target
    assert (tmp_path / "o" / "result.json").is_file()


def test_compress_meets_its_target(tmp_path: Path) -> None:
    done("compress", "resnet20", "--target", "60KB", "--epochs", 4, "-o", "c", cwd=tmp_path)
    assert (tmp_path / "c" / "model.onnx").stat().st_size <= 60_000


@pytest.mark.parametrize("name", sorted(NARROW))
def test_law_3_and_gates_where_the_weights_are_on_the_gpu(name: str) -> None:
    """The small network computes what the masked one does, and stays on its device."""
    model = narrow(name, 0).to(DEVICE).eval()
    example = torch.randn(2, 3, 32, 32, dtype=torch.float64, device=DEVICE)
    graph = trace(model, EXAMPLE)
    keep = random_keep(graph.groups, 0, 0.5)
    small = shrink(model, keep)
    assert {p.device.type for p in small.parameters()} == {DEVICE}
    with torch.no_grad():
        torch.testing.assert_close(small(example), masked(model, keep)(example))

    gated = Gated(model, graph).to(DEVICE)
    gated(example)
    gated.cpu()  # as after a training
    cut = gated.cut(most_open(gated.scores(), 0.5))
    assert cut(example.cpu()) is not None


def test_nothing_watches_the_operations_of_a_gpu() -> None:
    assert isinstance(safe_convolutions(torch.device("cpu")), _Replacing)
    assert not isinstance(safe_convolutions(torch.device(DEVICE)), _Replacing)


def test_gates_follow_their_network_from_device_to_device() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).to(DEVICE)
    example = torch.zeros(1, 3, 8, 8, device=DEVICE)
    gated = Gated(model, trace(model, example))
    on_gpu = gated.eval()(example).cpu()
    torch.testing.assert_close(gated.cpu()(example.cpu()), on_gpu, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(gated.folded()(example.cpu()), on_gpu, rtol=1e-3, atol=1e-4)
