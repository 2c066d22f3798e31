"""The site builds without a warning, and asks no other host for anything."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("material", reason="no mkdocs-material here: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_the_readme_is_the_start_page(site: Path) -> None:
    page = (site / "index.html").read_text(encoding="utf-8")
    assert "edgecompress compress vgg16 --target 4MB" in re.sub("<[^>]*>", "", page)
    assert (site / "contributing" / "index.html").exists()
    assert (site / "changelog" / "index.html").exists()


def test_no_page_fetches_from_another_host(site: Path) -> None:
    fetched = re.compile(r'<(?:script|img|link)\b[^>]*(?:src|href)="https?://[^"]*"')
    for path in site.rglob("*.html"):
        found = fetched.findall(path.read_text(encoding="utf-8"))
        assert not [tag for tag in found if 'rel="canonical"' not in tag], path


def test_scripts_are_no_pages(site: Path) -> None:
    assert not list(site.rglob("*.py"))
