"""Tables of figures in the README and in docs/ are those that the result files give."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from docs.generate import pages_with_results
from docs.scripts.markdown import blocks, filled
from docs.scripts.results import BUILDERS

ROOT = Path(__file__).parents[2]
BLOCKS = [
    (path, name, body)
    for path in pages_with_results()
    for name, body in blocks(path.read_text(encoding="utf-8"))
]


@pytest.mark.parametrize(
    ("path", "name", "body"),
    [pytest.param(*block, id=f"{block[0].name}-{block[1]}") for block in BLOCKS],
)
def test_table_is_what_the_results_say(path: Path, name: str, body: str) -> None:
    assert body == BUILDERS[name]() + "\n", f"{path.name}: run make docs"


def test_every_builder_is_used() -> None:
    assert {name for _, name, _ in BLOCKS} == set(BUILDERS)


def test_every_marker_is_closed() -> None:
    for path in pages_with_results():
        text = path.read_text(encoding="utf-8")
        own = [name for page, name, _ in BLOCKS if page == path]
        assert text.count("<!-- results:") == text.count("<!-- end -->") == len(own), path.name


def test_every_result_file_that_a_table_reads_is_named() -> None:
    pages = "".join(path.read_text(encoding="utf-8") for path in pages_with_results())
    scripts = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "docs/scripts/results").glob("*.py")
    )
    names = set(re.findall(r'read\("([\w-]+)"\)', scripts))
    assert names
    for name in names:
        assert f"{name}.json" in pages, name


def test_a_page_without_markers_stays_as_it_is() -> None:
    assert filled("# Title\n\n| a |\n|---|\n", BUILDERS) == "# Title\n\n| a |\n|---|\n"


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1000
