"""The committed reference pages are those that the code generates now."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from docs.generate import REFERENCE
from docs.scripts import cli, recipe
from edgecompress.settings import STAGE_NAMES

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", REFERENCE)
def test_page_is_current(name: str) -> None:
    committed = (ROOT / name).read_text(encoding="utf-8")
    assert committed == REFERENCE[name](), f"{name} is out of date: run make docs"


def test_every_stage_has_a_section() -> None:
    page = recipe.page()
    for name in STAGE_NAMES:
        assert f"## Stage `{name}`" in page


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
