"""A wrong command line or recipe is answered with the option that was typed, what is allowed, and
the nearest of it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from edgecompress.cli.app import app
from edgecompress.cli.mistakes import mistake
from tests.cli.test_cli import one_line, run


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        (
            "compress vgg16 --target 4MB --quantize int3",
            [
                "'--quantize'",
                "'auto', 'int8', 'int4', 'int2', 'mixed', 'fp16', 'none'",
                "did you mean int8?",
            ],
        ),
        (
            "train vgg16 --lr-schedule cosin",
            ["'--lr-schedule'", "'cosine', 'constant', 'multistep'", "did you mean cosine?"],
        ),
        (
            "compress vgg16 --target 4MB --quantise int8",
            ["unknown option --quantise; did you mean --quantize?"],
        ),
        (
            "train lenet5 --lr-schedule multistep",
            ["lr_schedule multistep with milestones []: give both"],
        ),
        ("train lenet5 --lr-milestones 2,3", ["lr_schedule linear with milestones [2, 3]"]),
        (
            "train lenet5 --epochs 4 --lr-schedule multistep --lr-milestones 2,4",
            ["lr_milestones [2, 4] with epochs 4: give epochs, and milestones before their end"],
        ),
        (
            "train lenet5 --lr-schedule multistep --lr-milestones 50",
            ["lr_milestones [50] with epochs not given"],
        ),
        (
            "compare lenet5 --lr-schedule multistep --lr-milestones 2",
            ["the trainings of this stage have different lengths"],
        ),
        (
            "train lenet5 --lr-schedule multistep --lr-milestones 3,2",
            ["give each epoch once, in rising order"],
        ),
        ("train vgg16 --xyzzy", ["unknown option --xyzzy; edgecompress train --help lists all"]),
        ("compres vgg16", ["No such command 'compres'", "'compress'"]),
        (
            "train vgg16 --device cude",
            ["--device 'cude' is not known: allowed are auto, cpu, cuda", "did you mean cuda?"],
        ),
        ("train vgg16 --data digit", ["digit", "did you mean digits"]),
        (
            "run vgg16-4mb --set stages.0.epochs=-3 --dry-run",
            ["--set stages.0.epochs: Input should be greater than or equal to 0 (got -3)"],
        ),
        ("run vgg16-4mb --set seeed=1", ["--set seeed: unknown key", "did you mean seed?"]),
    ],
)
def test_the_nearest_is_offered(line: str, parts: list[str], tmp_path: Path) -> None:
    said = one_line(run(*line.split(), cwd=tmp_path), 2)
    assert all(part in said for part in parts), said
    assert "line 7" not in said


def test_the_environment_is_named_by_its_variable(tmp_path: Path) -> None:
    said = one_line(run("run", "vgg16-4mb", cwd=tmp_path, EDGECOMPRESS_SEED="-1"), 2)
    assert "EDGECOMPRESS_SEED: Input should be greater" in said


def test_the_nearest_key_and_word_of_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "model: vgg16\nsede: 1\nstages:\n  - stage: train\n    epoch: 1\n    optimizer: adm\n"
        "  - stage: plan\n    targets: {byts: 4MB}\n"
    )
    said = one_line(run("recipe", "validate", "r.yaml", cwd=tmp_path), 2)
    for part in (
        "line 2, sede: unknown key (got 1); did you mean seed?",
        "line 5, stages.0.epoch: unknown key (got 1); did you mean epochs?",
        "did you mean adam?",
        "byts: unknown key (got '4MB'); did you mean bytes?",
    ):
        assert part in said, said
    (tmp_path / "r.yaml").write_text("model: vgg16\nstages:\n  - stage: trian\n")
    said = one_line(run("recipe", "validate", "r.yaml", cwd=tmp_path), 2)
    assert "did you mean train?" in said


def test_choices_complete_in_the_shell() -> None:
    command = typer.main.get_command(app).commands["compress"]
    context = typer.Context(command)
    for option, begun, expected in (
        ("quantize", "in", {"int8", "int4", "int2"}),
        ("data", "cifar", {"cifar10", "cifar100"}),
        ("device", "c", {"cpu", "cuda"}),
        ("round_to", "a", {"auto"}),
    ):
        parameter = next(p for p in command.params if p.name == option)
        completed = {item.value for item in parameter.shell_complete(context, begun)}
        assert completed == expected, option


def test_other_mistakes_stay_one_line() -> None:
    class Other:
        def format_message(self) -> str:
            return "Value error, first\n  second"

    assert mistake(Other()) == "first second"
