from __future__ import annotations

from pathlib import Path

import pytest

import edgecompress as ec
from edgecompress.compress import recipe_for
from edgecompress.errors import UsageError
from edgecompress.recipe import leaves, parse_overrides, read, to_yaml, validate

ROOT = Path(__file__).parents[1]


def test_the_title_command_resolves_to_the_committed_recipe() -> None:
    assert read(ROOT / "recipes" / "vgg16-4mb.yaml") == recipe_for(
        "vgg16", targets={"bytes": "4MB"}
    )


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_is_valid_and_opens_with_its_command(path: Path) -> None:
    read(path)
    assert path.read_text().startswith("# edgecompress ")


def test_resolved_yaml_reads_back_and_names_origins(tmp_path: Path) -> None:
    recipe = recipe_for("vgg16", targets={"bytes": "4MB", "max_drop": "1%"}, seed=3)
    path = tmp_path / "resolved.yaml"
    path.write_text(to_yaml(recipe, {"seed": "command line"}))
    assert read(path) == recipe
    assert "seed: 3  # command line" in path.read_text()
    assert "data: digits  # default" in path.read_text()


def test_all_errors_come_at_once_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        "model: vgg16\nsede: 1\nstages:\n  - stage: train\n    epochs: -1\n  - stage: prune\n    "
        "amount: 150%\n    stpes: 2\n"
    )
    with pytest.raises(UsageError) as caught:
        read(path)
    text = str(caught.value)
    assert "4 error(s)" in text
    assert "\n" not in text
    for part in (
        "line 2, sede: unknown key",
        "line 5, stages.0.epochs",
        "line 7, stages.1.amount",
        "line 8, stages.1.stpes: unknown key",
    ):
        assert part in text


@pytest.mark.parametrize(
    "setting",
    [
        {"features": "hint"},
        {"prune_student": "50%"},
        {"mode": "online"},
        {"top_k": 2},
        {"control": True},
    ],
)
def test_a_stage_that_learns_from_a_teacher_needs_one(setting: dict[str, object]) -> None:
    """Without one it trains on the labels: what it would have asked of a teacher must not be
    ignored.
    """
    train, distill = {"stage": "train", "epochs": 1}, {"stage": "distill", "epochs": 1, **setting}
    with pytest.raises(
        UsageError,
        match=f"stage distill has no teacher for its {next(iter(setting))}: put a stage teacher "
        "before it",
    ):
        validate({"model": "lenet5", "stages": [train, distill]}, "recipe")
    validate({"model": "lenet5", "stages": [train, {"stage": "distill", "epochs": 1}]}, "recipe")
    for teacher in ({"stage": "teacher", "checkpoint": "t.safetensors"}, {"stage": "simplify"}):
        validate({"model": "lenet5", "stages": [teacher, train, distill]}, "recipe")


def test_sizes_need_units(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no unit"):
        validate({"model": "vgg16", "stages": [{"stage": "plan", "targets": {"bytes": 4}}]}, "test")


def test_set_reaches_into_stages(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("model: vgg16\nstages:\n  - stage: train\n")
    recipe = read(path, parse_overrides(["stages.0.epochs=3", "seed=7"]))
    assert (recipe.seed, recipe.stages[0].epochs) == (7, 3)
    assert leaves(path.read_text()) == ["model", "stages.0.stage"]
    with pytest.raises(UsageError, match="no such place"):
        read(path, {"stages.4.epochs": "1"})
    with pytest.raises(UsageError, match="has no value"):
        parse_overrides(["seed"])


@pytest.mark.parametrize(
    "text", ["", "- a\n- b\n", "model: [", "model: vgg16\nstages:\n", "model: vgg16\nstages: []\n"]
)
def test_no_recipe_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_no_target_and_two_teachers_are_refused() -> None:
    with pytest.raises(UsageError, match="no target"):
        recipe_for("vgg16", targets={})
    with pytest.raises(UsageError, match="both given"):
        recipe_for("vgg16", targets={"bytes": "4MB"}, teacher="a", train={"weights": "b"})


def test_a_recipe_runs_from_python(few: str, tmp_path: Path) -> None:
    """By public names alone."""
    (tmp_path / "r.yaml").write_text(
        f"model: lenet5\ndata: {few}\nstages:\n- stage: train\n  epochs: 3\n"
    )
    recipe = ec.read_recipe(tmp_path / "r.yaml", {"stages.0.epochs": "1"})
    outcome = ec.execute(recipe, tmp_path / "run")
    assert outcome.exit_code == 0
    assert outcome.result is not None
    assert outcome.result["stages"][0]["name"] == "train"
    assert (outcome.root / "history.csv").read_text().count("\n") == 2
    network, _ = ec.load(outcome.root / "model.safetensors")
    assert sum(p.numel() for p in network.parameters()) > 0


ALIASES = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
"""Ten lines that stand for 9 ** 9 values."""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"{ALIASES}model: lenet5\nstages: *i\n", "stands for more than 20,000 values"),
        ("model: &m [*m]\nstages: []\n", "an alias stands for what it stands in"),
        (f"model: lenet5\nstages: {'[' * 5000}{']' * 5000}\n", "nested too deeply"),
        ("model: lenet5\ndata: 2024-13-45\nstages: []\n", "month must be in 1..12"),
        ("model: lenet5\ndata: !!bool x\nstages: []\n", "is no YAML: KeyError"),
        ("model: lenet5\n" + "# long\n" * 200_000, "more than 1,000,000 characters"),
    ],
    ids=["aliases", "cycle", "depth", "date", "word", "length"],
)
def test_a_recipe_that_is_made_to_hurt(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UsageError) as raised:
        read(tmp_path / "r.yaml")
    assert reason in str(raised.value)
    assert "\n" not in str(raised.value)


def test_aliases_within_reason_are_read(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "model: lenet5\nstages:\n  - &t {stage: train, epochs: 2}\n  - *t\n"
    )
    epochs = [getattr(stage, "epochs", None) for stage in read(tmp_path / "r.yaml").stages]
    assert epochs == [2, 2]


def test_an_override_that_is_no_yaml_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("model: lenet5\nstages: [{stage: train}]\n")
    with pytest.raises(UsageError, match=r"--set model: .* is no YAML"):
        read(tmp_path / "r.yaml", {"model": "[unclosed"})
