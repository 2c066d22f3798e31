"""The user who called sudo."""

from __future__ import annotations

import pytest

from edgecompress.emulate.user import invoking_user
from edgecompress.errors import UsageError


def test_sudo_uid_must_be_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_UID", "abc")
    with pytest.raises(UsageError, match="SUDO_UID"):
        invoking_user()
