"""The committed reference pages are those that the code generates now."""

from __future__ import annotations

import enum
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
import typer
import yaml
from pydantic import BaseModel, Field

from docs.generate import REFERENCE
from docs.scripts import cli, recipe

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", REFERENCE)
def test_page_is_current(name: str) -> None:
    committed = (ROOT / name).read_text(encoding="utf-8")
    assert committed == REFERENCE[name](), f"{name} is out of date: run make docs"


def test_every_stage_of_the_recipes_has_a_section() -> None:
    page = recipe.page()
    for path in (ROOT / "recipes").rglob("*.yaml"):
        for stage in yaml.safe_load(path.read_text(encoding="utf-8"))["stages"]:
            assert f"## Stage `{stage['stage']}`" in page


def test_every_unit_is_used() -> None:
    """A unit that no key has was renamed in the models: rename it in the generator, too."""
    page = recipe.page()
    for word, _ in recipe.UNITS.values():
        assert f"[{word}](#values-with-units)" in page, word


def test_options_have_values_and_defaults() -> None:
    page = cli.page()
    assert "## edgecompress teacher serve" in page
    assert "| `-o`, `--output` | path |" in page
    assert "| `--set` | text, repeatable |" in page
    assert "--help" not in page.split("## edgecompress")[1]


def test_the_generator_imports_no_torch() -> None:
    code = "import sys; from docs import generate; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert done.returncode == 0


class Kind(str, enum.Enum):
    """Choices of an option."""

    small = "small"
    large = "large"


def test_panels_and_choices_of_options() -> None:
    application = typer.Typer()

    @application.command("cut")
    def cut(
        paths: Annotated[list[Path], typer.Argument(help="what to cut")],
        kind: Annotated[Kind, typer.Option("--kind", rich_help_panel="Training")] = Kind.small,
        mode: Annotated[
            Literal["a", "b"] | None, typer.Option("--mode", help="how: a|b <c>")
        ] = None,
        secret: Annotated[int, typer.Option("--secret", hidden=True)] = 1,
        count: Annotated[int, typer.Option("--count", min=1, envvar="COUNT")] = 3,
    ) -> None:
        """Cut.

        Example: cut a b
        """

    @application.command("hidden", hidden=True)
    def hidden() -> None:
        """Not shown."""

    page = cli.page(application)
    assert "```sh\ncut a b\n```" in page
    assert "| `PATHS...` | what to cut |" in page
    assert "**Training**\n\n" in page
    assert "| `--kind` | `small`, `large` | `small` |  |" in page
    assert "| `--mode` | `a`, `b` |  | how: a\\|b &lt;c> |" in page
    assert "| `--count` | integer, at least 1 | `3` | environment `COUNT` |" in page
    assert "secret" not in page
    assert "Not shown" not in page


Share = Annotated[float, Field(ge=0, le=1)]


class Inner(BaseModel):
    """Values of one key."""

    part: Annotated[Share, Field(description="Of all.")] = 0.1
    floor: Annotated[Share | None, Field(description="Lowest.")] = None
    size: int = Field(3, ge=1, description="Side in pixels.")


class SharedSettings(BaseModel):
    """Keys of several stages."""

    rate: float | None = None
    """None: chosen here."""


class First(SharedSettings):
    """The first stage."""

    stage: Literal["first"]
    inner: Inner = Inner()
    rate: float | None = 0.5


class Second(SharedSettings):
    """The second stage."""

    stage: Literal["second"]
    kinds: tuple[Kind, ...] = ()


class Small(BaseModel):
    """A recipe."""

    name: str
    stages: tuple[Annotated[First | Second, Field(discriminator="stage")], ...]


def test_descriptions_nested_models_and_inherited_keys() -> None:
    page = recipe.page(Small)
    first = page.split("## Stage `first`")[1].split("\n## ")[0]
    assert "| `inner` | [inner keys](#inner-keys) |" in first
    assert "| `rate` | number | `0.5` | `null`: chosen here. |" in first
    assert "Also takes the [shared keys](#shared-keys)." in first
    assert "| `kinds` | list of `small`, `large` | `[]` |  |" in page
    assert "| `rate` | number | `null` | `null`: chosen here. |" in page.split("## Shared keys")[1]
    assert "| `size` | integer, at least 1 | `3` | Side in pixels. |" in page
    assert "| `part` | [share](#values-with-units) | `0.1` | Of all. |" in page
    assert "| `floor` | [share](#values-with-units) | `null` | Lowest. |" in page
