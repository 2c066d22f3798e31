"""prune, shrink and profile from the command line, on a small trained network; the source's
experiments at small scale.
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils import prune

from edgecompress import checkpoint
from edgecompress.models import ModelSource, build
from tests.cli.test_cli import one_line, run

RECIPES = Path(__file__).parents[2] / "recipes" / "garcia2022"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small trained network (LeNet-5, 3 epochs)."""
    folder = tmp_path_factory.mktemp("trained")
    done = run("train", "lenet5", "--epochs", 3, "-o", "t", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "t"


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("amount", "key", "limit"),
    [
        ("60%", "params", 0.4),
        ("20kparams", "params", 20_000),
        ("200kMACs", "macs", 200_000),
        ("90KB", "bytes", 90_000),
    ],
)
@pytest.mark.parametrize("scope", ["cost", "local", "global"])
def test_every_kind_of_amount_is_met(
    trained: Path, tmp_path: Path, amount: str, key: str, limit: float, scope: str
) -> None:
    done = run(
        "prune",
        trained,
        "--amount",
        amount,
        "--scope",
        scope,
        "--epochs",
        0,
        "--criterion",
        "l2",
        "-o",
        "p",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    result = result_of(tmp_path / "p")
    whole = {k: sum(row[k][0] for row in result["layers"]) for k in ("params", "macs")}
    left = {k: sum(row[k][1] for row in result["layers"]) for k in ("params", "macs")}
    if key == "bytes":
        run("export", tmp_path / "p", "-o", "e", cwd=tmp_path)
        size = (tmp_path / "e" / "model-fp32.onnx").stat().st_size
        assert 0.9 * limit <= size <= limit
    else:
        allowed = limit * whole[key] if limit < 1 else limit
        assert 0.7 * allowed <= left[key] <= allowed, (
            "one channel of the first layer alone is a tenth of all MACs"
        )
    assert result["layers"][-1]["outputs"] == [10, 10]


@pytest.mark.parametrize("shares", ["static", "dynamic"])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_pruning_while_training_chooses_an_epoch_that_meets_the_amount(
    trained: Path, tmp_path: Path, shares: str, scope: str
) -> None:
    done = run(
        "prune",
        trained,
        "--amount",
        "50%",
        "--schedule",
        "early",
        "--shares",
        shares,
        "--scope",
        scope,
        "--epochs",
        5,
        "--step",
        "20%",
        "--criterion",
        "l1",
        "-o",
        "g",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    result = result_of(tmp_path / "g")
    model, _ = checkpoint.load(tmp_path / "g" / "model.safetensors")
    before = sum(row["params"][0] for row in result["layers"])
    assert sum(p.numel() for p in model.parameters()) <= 0.5 * before
    with (tmp_path / "g" / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    sizes = [int(row["params"]) for row in rows]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < sizes[0], (
        "the network shrinks while it trains"
    )
    chosen = next(row for row in rows if row["chosen"] == "True")
    meeting = [
        row
        for row, after in zip(rows, [*sizes[1:], sizes[-1]], strict=True)
        if after <= 0.5 * before
    ]
    assert float(chosen["validation_accuracy"]) == max(
        float(row["validation_accuracy"]) for row in meeting
    )
    page = (tmp_path / "g" / "report.html").read_bytes()
    assert b"Cuts while training" in page
    assert run("report", tmp_path / "g", cwd=tmp_path).returncode == 0
    assert (tmp_path / "g" / "report.html").read_bytes() == page, (
        "the report follows from the files of the run"
    )


def test_an_amount_that_no_epoch_meets_exits_3(trained: Path, tmp_path: Path) -> None:
    done = run(
        "prune",
        trained,
        "--amount",
        "50%",
        "--schedule",
        "1",
        "--epochs",
        1,
        "--floor",
        "90%",
        "-o",
        "g",
        cwd=tmp_path,
    )
    assert done.returncode == 3
    assert "target missed" in done.stdout and (tmp_path / "g" / "model.safetensors").is_file()


def test_profile_ends_with_the_level_that_holds(trained: Path, tmp_path: Path) -> None:
    done = run("profile", trained, "-o", "p", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    profile = result_of(tmp_path / "p")["profile"]
    assert len(profile["levels"]) == len(profile["accuracy"]) == 19
    assert profile["accuracy"][-1] < profile["unpruned"]
    assert re.search(rf"accuracy holds up to {profile['holds_to']:.0%} of all weights", done.stdout)
    page = (tmp_path / "p" / "report.html").read_text()
    assert page.count("<svg") >= 2 and 'id="profile"' in page
    total = {row["layer"]: row["params"][0] for row in result_of(tmp_path / "p")["layers"]}
    share = sum(shares[9] * total[name] for name, shares in profile["layers"].items()) / sum(
        total.values()
    )
    assert share == pytest.approx(0.5, abs=0.01), "half of all weights are zero at the level 50 %"


def test_a_network_that_torch_zeroed_becomes_smaller_and_says_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build(ModelSource("lenet5", 10, (3, 32, 32)))
    prune.ln_structured(model.get_submodule("features.3"), "weight", 0.5, 1, 0)
    prune.ln_structured(
        model.get_submodule("classifier.3"), "weight", 0.25, 2, 1
    )  # a quarter of its inputs is not read
    torch.save(model.state_dict(), tmp_path / "zeroed.pt")
    done = run("shrink", "zeroed.pt", "--model", "lenet5", "-o", "s", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    small, _ = checkpoint.load(tmp_path / "s" / "model.safetensors")
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(small(images), model.eval()(images), atol=1e-5, rtol=1e-5)
    assert small.get_submodule("features.3").out_channels == 8
    assert small.get_submodule("classifier.1").out_features == 90
    assert re.search(r"features\.3 +16 +8 +0 +8", done.stdout)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--amount", "150%"], "outside 0..1"),
        (["--amount", "500"], "outside 0..1"),
        (["--amount", "4 apples"], "50% of the parameters"),
        (["--layers", "features.00"], "did you mean features.0"),
        (["--criterion", "bn"], "needs BatchNorm"),
        (["--criterion", "magic"], "is not one of 'l1', 'l2', 'bn', 'taylor', 'random'"),
        (["--schedule", "soon", "--epochs", "2"], "'early', 'middle' or 'late'"),
        (["--schedule", "9", "--epochs", "2"], "allowed are 1..2"),
        (["--schedule", "early", "--steps", "2"], "drop --schedule"),
        (["--scope", "all"], "is not one of 'cost', 'local', 'global'"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    trained: Path, tmp_path: Path, arguments: list[str], text: str
) -> None:
    line = one_line(run("prune", trained, *arguments, "-o", "out", cwd=tmp_path), 2)
    assert text in line
    assert not (tmp_path / "out").exists()


NARROW_VGG = """
from torch import nn
from torchvision.models.vgg import VGG, make_layers

def make(num_classes):
    plan = [8, 8, "M", 16, 16, "M", 16, 16, 16, "M", 32, 32, 32, "M", 32, 32, 50, "M"]
    model = VGG(make_layers(plan), num_classes=num_classes)
    model.classifier = nn.Sequential(
        nn.Linear(50 * 49, 50), nn.ReLU(), nn.Dropout(),
        nn.Linear(50, 50), nn.ReLU(), nn.Dropout(), nn.Linear(50, num_classes),
    )
    return model
"""


@pytest.mark.parametrize(
    "name", ["profile", "student3-dynamic", "student3-static", "teacher-dynamic", "teacher-static"]
)
def test_the_experiments_of_the_source_run_at_small_scale(
    name: str, few: str, tmp_path: Path
) -> None:
    """Tables 3.1-3.3 and Figures 3.9-3.26; the teachers as narrow twins with VGG16's layer
    names.
    """
    (tmp_path / "narrow.py").write_text(NARROW_VGG)
    more = ["--set", "stages.0.epochs=1"] if name == "profile" else ["--set", "stages.1.epochs=4"]
    if name.startswith("teacher"):
        more += ["--set", "model=narrow.py:make"]
    more += ["--set", f"data={few}"]
    done = run("run", RECIPES / f"{name}.yaml", *more, "-o", "r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = result_of(tmp_path / "r")
    page = (tmp_path / "r" / "report.html").read_text()
    if name == "profile":
        assert result["profile"]["levels"][0] == 0.05
        return
    assert "Against the control" in page
    parameters = [sum(row["params"][i] for row in result["layers"]) for i in (0, 1)]
    assert parameters[1] < parameters[0]
    if name == "student3-dynamic":
        kept = {n: 1 - after / before for n, (before, after) in result["widths"].items()}
        assert kept["classifier.1"] == pytest.approx(0.32, abs=0.015)
        assert kept["features.11"] == pytest.approx(0.10, abs=0.015)
        assert set(result["gradual"]["left_alone"]) == {"features.0", "features.3"}, (
            "too narrow, as the source says"
        )


def test_a_training_that_makes_it_worse_ends_with_what_was_before(
    trained: Path, tmp_path: Path
) -> None:
    """A rate that ruins the network: the weights that the cut left are kept."""
    options = ("--amount", "5%", "--steps", 1, "--epochs", 2, "--learning-rate", 0.3)
    done = run("prune", trained, *options, "-o", "p", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    known = re.search(r"no epoch was better .*\(validation ([0-9.]+)%.*it is kept", done.stderr)
    assert known is not None
    result = result_of(tmp_path / "p")
    kept = result["stages"][-1]["accuracy"]
    assert f"{kept:.2%}" == f"{known[1]}%"
    with (tmp_path / "p" / "history.csv").open() as file:
        trained_for = [float(row["validation_accuracy"]) for row in csv.DictReader(file)]
    assert len(trained_for) == 2
    assert max(trained_for) < kept
