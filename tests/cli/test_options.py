"""Options are made from the fields of settings: their origin, their groups, their verbs."""

from __future__ import annotations

import re

import pytest
import typer
import yaml

from edgecompress.cli.app import app, run_command

TRAINING = {"--normalize", "--resize", "--precision", "--optimizer", "--lr-schedule"}
GIVEN = {
    "train lenet5": "--epochs 3 --optimizer sgd --learning-rate 0.1 --batch-size 8 --patience 2 "
    "--lr-schedule cosine --precision fp32 --train-last 1 --seed 4 --threads 1 --image-size 28",
    "compress lenet5": "--target 40KB --target-macs 1M --target-latency 5ms --max-drop 1% "
    "--quantize int8 --epochs 3 --distill-epochs 2 --steps 2 --criterion l1 --floor 0.1 "
    "--round-to 4 --optimizer sgd --learning-rate 0.1 --batch-size 8 --normalize imagenet",
    "compare mlp": "--budget 12 --repeats 4 --lambda-scale 2 --batch-size 8 --precision fp32",
}


def dry_run(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    code = run_command([*line.split(), "--dry-run"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return printed.out


@pytest.mark.parametrize("command", GIVEN)
def test_what_was_typed_is_marked_so(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every option has its place in the recipe, with its origin; nothing else is marked."""
    plain = {"compress lenet5": " --target 40KB"}.get(command, "")
    printed = dry_run(f"{command} {GIVEN[command]}", capsys)
    marked = re.findall(r"(\w+): .*# command line", printed)
    named = {flag[2:].replace("-", "_") for flag in re.findall(r"--[\w-]+", GIVEN[command])}
    renamed = {"target": "bytes", "target_macs": "macs", "target_latency": "latency"}
    fields = {renamed.get(name, name).removeprefix("distill_") for name in named}
    assert fields | {"model"} == set(marked)
    untouched = re.findall(r"(\w+): .*# command line", dry_run(f"{command}{plain}", capsys))
    assert set(untouched) == {"model"} | ({"bytes"} if plain else set())


def test_the_environment_is_an_origin(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGECOMPRESS_WEIGHT_DECAY", "0.25")
    printed = dry_run("train lenet5", capsys)
    assert "weight_decay: 0.25  # environment" in printed


@pytest.mark.parametrize(
    ("options", "value"),
    [((), "true"), (("--no-norm-decay",), "false"), (("--norm-decay",), "true")],
)
def test_what_is_on_by_default_can_be_switched_off(
    options: tuple[str, ...], value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"norm_decay: {value}" in dry_run(" ".join(("train lenet5", *options)), capsys)


def test_a_wrong_value_is_reported_by_its_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["compress", "lenet5", "--target", "40"]) == 2
    assert "--target: " in capsys.readouterr().err
    assert run_command(["train", "lenet5", "--optimizer", "adamx"]) == 2
    error = capsys.readouterr().err
    assert "--optimizer" in error
    assert "adamw" in error


@pytest.mark.parametrize("name", ["train", "distill", "compress", "prune", "merge", "compare"])
def test_every_verb_that_trains_takes_the_options_of_training(name: str) -> None:
    command = typer.main.get_command(app).commands[name]
    flags = {flag for parameter in command.params for flag in parameter.opts}
    assert flags >= TRAINING


@pytest.mark.parametrize("name", ["train", "compress"])
def test_help_shows_groups(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([name, "--help"]) == 0
    headings = re.findall(r"^(\w[\w ]*):$", capsys.readouterr().out, re.MULTILINE)
    assert headings[0] == "Arguments"
    assert {"Training", "Data", "Run"} <= {*headings}


def test_options_of_a_training_that_does_not_happen_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = ["compress", "lenet5", "--target", "40KB", "--teacher", "t", "--epochs", "3"]
    assert run_command(line) == 2
    assert "--epochs is about training the teacher" in capsys.readouterr().err


def test_a_search_names_the_origin_of_its_target_and_takes_no_steps(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "max_drop: 0.01  # command line" in dry_run("compress lenet5 --max-drop 1%", capsys)
    assert run_command(["compress", "lenet5", "--max-drop", "1%", "--steps", "2"]) == 2
    assert "leave --steps out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "option"),
    [
        ("compress lenet5 --max-drop 1% --distill-epochs 2 --steps 2", "--steps"),
        ("compress lenet5 --max-drop 1% --criterion l1 --floor 0.1", None),
        ("train lenet5 --epochs 1", None),
        ("distill nowhere lenet5 --mode online --quantize fp16 --epochs 1", None),
    ],
)
def test_an_option_that_reaches_no_place_is_refused(
    line: str, option: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run_command([*line.split(), "--dry-run"])
    said = capsys.readouterr().err
    if option is None:
        assert "does not apply here" not in said
    else:
        assert code == 2
        assert option in said


def test_milestones_are_those_of_the_first_training(capsys: pytest.CaptureFixture[str]) -> None:
    """Cuts and distillation have epochs of their own."""
    steps = "--lr-schedule multistep --lr-milestones 5,8 --lr-gamma 0.3 --epochs 9"
    printed = dry_run(f"compress lenet5 --target 30KB {steps}", capsys)
    first, *others = [s for s in yaml.safe_load(printed)["stages"] if "lr_schedule" in s]
    keys = ("lr_schedule", "lr_milestones", "lr_gamma", "warmup")
    assert [first[key] for key in keys] == ["multistep", [5, 8], 0.3, 0.0]
    assert {stage["lr_schedule"] for stage in others} == {"linear"}
