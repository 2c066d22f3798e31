"""`prune --unstructured`: single weights become zero, and the file has a bitmap of the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from edgecompress import checkpoint
from edgecompress.export import in_float
from edgecompress.measure import runtime
from edgecompress.methods.sparsify import mixing_weights
from tests.cli.test_cli import one_line, run

EPOCHS = ("--epochs", 2)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LeNet-5 with 80 % zeros."""
    folder = tmp_path_factory.mktemp("sparse")
    done = run("train", "lenet5", "--epochs", 4, "-o", "trained", cwd=folder)
    assert done.returncode == 0, done.stderr
    amount = ("--unstructured", "--amount", "80%", "--steps", 2)
    done = run("prune", "trained", *amount, *EPOCHS, "-o", "sparse", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def _result(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "result.json").read_text())
    return found


def test_the_asked_share_is_zero_and_nothing_is_narrower(sparse: Path) -> None:
    result = _result(sparse / "sparse")
    rows = {row["name"]: row for row in result["stages"]}
    assert "55.3% of the weights are zero" in rows["sparsify 1 of 2"]["note"]
    assert rows["sparsify 2 of 2"]["params"] == rows["load"]["params"]
    assert rows["sparsify 2 of 2"]["accuracy"] > rows["load"]["accuracy"] - 0.05
    assert result["sparsify"]["share"] == pytest.approx(0.8, abs=1e-4)
    model, _ = checkpoint.load(sparse / "sparse" / "model.safetensors")
    weights = mixing_weights(model)
    zero = sum(int((weight == 0).sum()) for weight in weights.values())
    assert zero / sum(weight.numel() for weight in weights.values()) == pytest.approx(0.8, abs=1e-4)
    for name, share in result["sparsify"]["layers"].items():
        assert float((weights[name] == 0).float().mean()) == pytest.approx(share)


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_zeros_are_bytes(form: str, sparse: Path) -> None:
    """The file is far smaller than that of the dense network, and runs the same operators."""
    sizes = {}
    for name in ("trained", "sparse"):
        output = f"{name}-{form}"
        options = ("--quantize", form, "--qat-epochs", 1, "-o", output)
        done = run("quantize", name, *options, cwd=sparse)
        assert done.returncode == 0, done.stderr
        sizes[name] = (sparse / output / "model.onnx").stat().st_size
    assert sizes["sparse"] < (0.5 if form == "int8" else 0.75) * sizes["trained"]
    (row,) = [r for r in _result(sparse / f"sparse-{form}")["formats"] if r["format"] != "fp32"]
    storage = {one["layer"]: one["storage"] for one in row["weights"]}
    assert storage["classifier.1"].startswith("bitmap and ")
    paths = [sparse / f"{name}-{form}" / "model.onnx" for name in ("trained", "sparse")]
    dense, zeros = (sorted(n.op_type for n in runtime.fused_graph(p).graph.node) for p in paths)
    assert zeros == dense
    assert in_float.float_layers(paths[1]) == []
    model, _ = checkpoint.load(sparse / f"sparse-{form}" / "model.safetensors")
    weights = torch.cat([w.flatten() for w in mixing_weights(model).values()])
    assert float((weights == 0).float().mean()) > 0.7, "fine-tuning kept the zeros"
    assert "CumSum" in {node.op_type for node in onnx.load(str(paths[1])).graph.node}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--amount", "4MB"), "it takes a share of the weights"),
        (("--criterion", "l1"), "--criterion does not apply here"),
        (("--schedule", "early"), "--schedule does not apply here"),
        (("--scope", "cost"), "--scope"),
        (("--layers", "nothing"), "nothing"),
    ],
)
def test_options_that_do_not_fit(options: tuple[str, ...], words: str, sparse: Path) -> None:
    done = run("prune", "trained", "--unstructured", *options, "-o", "wrong", cwd=sparse)
    assert words in one_line(done, 2)
    assert not (sparse / "wrong").exists()


def test_a_layer_that_would_die_ends_the_run(sparse: Path) -> None:
    """Weights of wide layers are the smallest."""
    options = ("--unstructured", "--amount", "90%", "--scope", "global", "--steps", 1)
    done = run("prune", "trained", *options, "-o", "dead", cwd=sparse)
    assert "would lose all its weights" in done.stderr
    assert done.returncode == 1
