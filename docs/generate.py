"""Write every page and table that comes from the code or from a result file.

    python -m docs.generate        # from the root of the repository; `make docs` runs it

Reference pages come from the command objects and the recipe's models, tables with figures from
`benchmarks/results/*.json`. The tests compare what is committed with what this script writes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from docs.scripts import cli, modules, recipe
from docs.scripts.markdown import filled
from docs.scripts.results import BUILDERS

ROOT = Path(__file__).parents[1]
REFERENCE: dict[str, Callable[[], str]] = {
    "docs/reference/cli.md": cli.page,
    "docs/reference/recipe.md": recipe.page,
    "docs/reference/modules.md": modules.page,
}
"""Pages that are generated completely, by their path in the repository."""


def pages_with_results() -> list[Path]:
    """Pages written by hand, whose tables may come from result files."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def main() -> None:
    """Write all of them."""
    (ROOT / "docs" / "reference").mkdir(exist_ok=True)
    for name, page in REFERENCE.items():
        (ROOT / name).write_text(page(), encoding="utf-8")
    for path in pages_with_results():
        text = path.read_text(encoding="utf-8")
        path.write_text(filled(text, BUILDERS), encoding="utf-8")


if __name__ == "__main__":
    main()
