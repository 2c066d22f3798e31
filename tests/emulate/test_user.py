"""The user who called sudo, and what root does with that user's files."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgecompress.emulate.user import (
    User,
    import_from_safe_folders,
    invoking_user,
    make_folder,
    rights_of,
)
from edgecompress.errors import UsageError

NOBODY = User(65534, 65534, "nobody", invoked=True)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can have another user's rights")


def test_sudo_uid_must_be_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("abc", "-1", str(2**32)):
        monkeypatch.setenv("SUDO_UID", text)
        with pytest.raises(UsageError, match="SUDO_UID"):
            invoking_user()


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder of the user in one that everyone may enter; beside it one that is root's alone."""
    outside = Path(tempfile.mkdtemp(dir="/tmp"))
    outside.chmod(0o755)
    (outside / "roots").mkdir(mode=0o700)
    (outside / "home").mkdir()
    os.chown(outside / "home", NOBODY.uid, NOBODY.gid)
    yield outside / "home"
    shutil.rmtree(outside)


@as_root
def test_links_in_the_way_lead_nowhere_that_the_user_could_not_go(home: Path) -> None:
    secret = home.parent / "roots" / "secret"
    secret.write_text("root's")
    (home / "student.log").symlink_to(secret)
    with rights_of(NOBODY):
        with pytest.raises(PermissionError), open(home / "student.log", "a"):
            pass
        with pytest.raises(PermissionError):
            (home / "student.log").read_text()
        (home / "result.json").write_text("{}")
    assert (home / "result.json").stat().st_uid == NOBODY.uid
    assert secret.read_text() == "root's"
    assert (os.geteuid(), os.getegid()) == (0, 0)
    secret.write_text("root may again")


@as_root
def test_an_output_folder_is_the_users_or_refused(home: Path) -> None:
    make_folder(home / "a" / "run", NOBODY)
    assert {path.stat().st_uid for path in home.rglob("*")} == {NOBODY.uid}
    taken = home.parent / "roots" / "run"
    with pytest.raises(UsageError, match="cannot be used by nobody"):
        make_folder(taken, NOBODY)
    assert not taken.exists()


def test_nothing_more_is_imported_from_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    safe = str(Path(os.__file__).parent)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), safe])
    import_from_safe_folders()
    assert sys.path == [safe]
