"""Open values of a recipe are resolved before the run, as the run itself would choose them."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import pytest
import yaml

from edgecompress import pipeline
from edgecompress.cli import dry_run
from edgecompress.compress import recipe_for
from edgecompress.errors import EnvironmentMissingError, UsageError
from edgecompress.prepare import prepare
from edgecompress.recipe import read, to_yaml, validate
from edgecompress.resolve import resolved
from tests.cli.test_cli import run


def values_of(model: str, *stages: dict[str, object]) -> list[dict[str, object]]:
    recipe = validate({"model": model, "stages": list(stages)}, "test")
    setup, _ = resolved(prepare(recipe))
    return [stage.model_dump() for stage in setup.recipe.stages]


@pytest.mark.parametrize(
    ("model", "epochs", "rate"), [("vgg16", 4, 3e-4), ("vgg16_bn", 12, 1e-3), ("lenet5", 12, 1e-3)]
)
def test_defaults_of_the_first_training(model: str, epochs: int, rate: float) -> None:
    (train,) = values_of(model, {"stage": "train"})
    assert (train["epochs"], train["learning_rate"], train["batch_size"]) == (epochs, rate, 32)
    assert train["dropout"] == 0.0


def test_what_depends_on_a_cut_network_stays_open() -> None:
    stages = ({"stage": "train"}, {"stage": "simplify"}, {"stage": "distill"})
    *_, distill = values_of("vgg16", *stages)
    assert distill["epochs"] is None
    assert distill["learning_rate"] is None
    assert distill["batch_size"] == 32
    *_, distill = values_of("student1", *stages)
    assert (distill["epochs"], distill["learning_rate"]) == (12, 1e-3)
    *_, online = values_of("student1", *stages[:2], {"stage": "distill", "mode": "online"})
    assert online["learning_rate"] is None, "its teacher trains with a rate of its own"


def test_resolving_twice_changes_nothing() -> None:
    setup, origins = resolved(prepare(recipe_for("vgg16", targets={"bytes": "4MB"})))
    assert origins["threads"] == "this machine"
    assert origins["stages.0.epochs"] == "from network and data"
    again, none = resolved(setup)
    assert again.recipe == setup.recipe
    assert none == {}


def test_given_values_stay() -> None:
    (train,) = values_of("lenet5", {"stage": "train", "epochs": 3, "batch_size": 8, "flip": True})
    assert (train["epochs"], train["batch_size"], train["flip"]) == (3, 8, True)


def test_resolved_yaml_has_no_nulls_and_reads_back(tmp_path: Path) -> None:
    setup, _ = resolved(prepare(recipe_for("vgg16", targets={"bytes": "4MB"})))
    (tmp_path / "resolved.yaml").write_text(text := to_yaml(setup.recipe))
    assert "null" not in text
    assert read(tmp_path / "resolved.yaml") == setup.recipe
    unbounded = {"stage": "train", "clip": None}
    recipe = validate({"model": "lenet5", "stages": [unbounded]}, "test")
    (tmp_path / "resolved.yaml").write_text(to_yaml(recipe))
    assert read(tmp_path / "resolved.yaml") == recipe, "a null that was given is a value"


def test_lists_are_in_resolved_yaml(tmp_path: Path) -> None:
    prune = {"stage": "prune", "amount": "50%", "layers": ["conv1", "conv2"]}
    gradual = {"stage": "gradual", "shares": {"conv1": 0.5}, "schedule": [1, 2], "epochs": 3}
    recipe = validate({"model": "lenet5", "stages": [prune, gradual]}, "test")
    path = tmp_path / "resolved.yaml"
    path.write_text(to_yaml(recipe, {"stages.0.layers": "command line"}))
    assert "layers: [conv1, conv2]  # command line" in path.read_text()
    assert read(path) == recipe


def test_a_resumed_run_compares_what_was_given(tmp_path: Path) -> None:
    values = {"model": "lenet5", "stages": [{"stage": "train", "epochs": 0}]}
    first = pipeline.execute(validate(values, "test"), tmp_path / "run")
    kept = (tmp_path / "run" / "resolved.yaml").read_text()
    threads = next(line for line in kept.splitlines() if line.startswith("threads: "))
    # another machine derives other values
    (tmp_path / "run" / "resolved.yaml").write_text(
        kept.replace(threads, "threads: 99  # this machine")
    )
    assert (
        pipeline.execute(validate(values, "test"), tmp_path / "run", resume=True).root == first.root
    )
    for changed in ({"seed": 3}, {"stages": [{"stage": "train", "epochs": 0, "batch_size": 7}]}):
        with pytest.raises(UsageError, match="--resume with other settings"):
            pipeline.execute(validate({**values, **changed}, "test"), tmp_path / "run", resume=True)
    again = pipeline.execute(read(tmp_path / "run" / "resolved.yaml"), tmp_path / "again")
    assert again.result is not None


def test_a_dry_run_says_what_it_would_do(tmp_path: Path) -> None:
    done = run("compress", "vgg16", "--target", "4MB", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "1,169 training, 269 validation, 359 test images of 10 classes, 32x32" in lines[0]
    assert lines[1] == "# model: vgg16, 134 M parameters"
    assert lines[2].startswith("# epochs: 4 or more in all (train 4, contest chosen on the way, ")
    assert "prune 1 in each of its steps" in lines[2]
    assert lines[3].startswith("# smallest file: ")
    assert "ONNX Runtime" in lines[4]
    assert "free" in lines[5]
    assert yaml.safe_load(done.stdout)["stages"][0]["epochs"] == 4
    assert "null" not in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_dry_run_builds_the_own_network(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("def make(num_classes):\n    return nothing\n")
    done = run("train", "net.py:make", "--dry-run", cwd=tmp_path)
    assert done.returncode == 2
    assert "net.py:2: return nothing" in done.stderr


def test_a_full_disk_is_seen_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(dry_run.shutil, "disk_usage", lambda _: usage(10, 9, 1))
    recipe = recipe_for("lenet5", targets={"bytes": "40KB"})
    with pytest.raises(EnvironmentMissingError, match="choose another -o"):
        dry_run.dry_run(recipe, {}, tmp_path / "runs" / "new")
