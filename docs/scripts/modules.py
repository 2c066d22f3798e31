"""`docs/reference/modules.md`: every module and the first sentence of its docstring."""

from __future__ import annotations

import ast
from pathlib import Path

from docs.scripts.markdown import code, escaped, table

PACKAGE = Path(__file__).parents[2] / "edgecompress"
HEADER = """\
# Modules

What each module of the package is for. [Architecture](../architecture.md) says how they fit
together; `tests/test_architecture.py` holds the order in which they may import each other.
"""


def page() -> str:
    """The text of the page."""
    packages = sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))
    parts = [HEADER, "## edgecompress\n", _modules(PACKAGE)]
    for package in packages:
        parts += [f"\n## {package.name}\n", _summary(package / "__init__.py") + "\n"]
        parts.append(_modules(package))
    return "\n".join(part for part in parts if part) + "\n"


def _modules(package: Path) -> str:
    files = [path for path in sorted(package.glob("*.py")) if not path.name.startswith("__")]
    rows = [(code(path.stem), _summary(path)) for path in files]
    return table(["module", "purpose"], rows) if rows else ""


def _summary(path: Path) -> str:
    """The first paragraph of a module's docstring."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return escaped(docstring.split("\n\n")[0])
