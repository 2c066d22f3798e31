"""TLS: both ends must prove who they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgecompress.data import DataSet
from edgecompress.errors import EdgecompressError
from edgecompress.online.secure import make_certificates
from tests.online.support import Serve, assert_same, attend, new_student, train_in_one_process


def test_both_ends_need_a_certificate(data: DataSet, serve_lesson: Serve, tmp_path: Path) -> None:
    ends = make_certificates(
        tmp_path / "tls", {"teacher": ["127.0.0.1", "localhost"], "student": ["127.0.0.1"]}
    )
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "tls").glob("*.key"))
    foreign = make_certificates(tmp_path / "other", {"student": ["127.0.0.1"]})["student"]
    served = serve_lesson(tls=ends["teacher"])
    for refused in (None, foreign):
        with pytest.raises(EdgecompressError, match="stayed away"):
            attend(served, new_student(data), patience=1.0, tls=refused)
    result = attend(served, new_student(data), tls=ends["student"])
    assert_same(result.model, train_in_one_process(data).model)
