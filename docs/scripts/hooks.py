"""MkDocs hook: the README and the other pages at the root become pages of the site."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PAGES = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
"""Page of the site -> file at the root of the repository."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not under `docs/`."""
    for page, name in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_relinked(text)))
    return files


def _relinked(text: str) -> str:
    """The links of a page at the root, as seen from `docs/`."""
    for page, name in PAGES.items():
        text = text.replace(f"]({name})", f"]({page})")
    return re.sub(r"\]\(docs/", "](", text)
