"""CPU control groups (v1 and v2): the share of one core that a host gets.

A group is named after the process of its run and after its host.
"""

from __future__ import annotations

import os
from pathlib import Path

from edgecompress.emulate import shell
from edgecompress.errors import EnvironmentMissingError

_ROOT = Path("/sys/fs/cgroup")
_VERSION_1 = _ROOT / "cpu"
_PREFIX = "edgecompress-"
_PERIOD_US = 100_000


def create(host: str, cpu: float) -> Path:
    """Create a control group that limits its processes to `cpu` cores.

    Raises `EnvironmentMissingError` where there is no cpu controller, or it refuses.
    """
    name = f"{_PREFIX}{os.getpid()}-{host}"
    quota_us = int(_PERIOD_US * cpu)
    try:
        if _VERSION_1.is_dir():
            group = _VERSION_1 / name
            group.mkdir()
            (group / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
            (group / "cpu.cfs_quota_us").write_text(str(quota_us))
            return group
        if _has_version_2():
            group = _ROOT / name
            group.mkdir()
            (group / "cpu.max").write_text(f"{quota_us} {_PERIOD_US}")
            return group
    except OSError as error:
        raise EnvironmentMissingError(
            f"host '{host}' requests cpu {cpu:g}, and cgroups refuse it ({error.strerror}): "
            "leave cpu out"
        ) from error
    raise EnvironmentMissingError(
        f"host '{host}' requests cpu {cpu:g}, and there is no cpu cgroup here: leave cpu out"
    )


def _has_version_2() -> bool:
    controllers = _ROOT / "cgroup.controllers"
    return controllers.is_file() and "cpu" in controllers.read_text().split()


def remove(group: Path) -> None:
    """Remove a control group, unless processes are still in it."""
    try:
        group.rmdir()
    except OSError:
        return


def remove_stale() -> None:
    """Remove the control groups of runs whose process has ended."""
    for root in (_VERSION_1, _ROOT):
        for group in root.glob(f"{_PREFIX}*-*"):
            pid = group.name.split("-")[1]
            if group.is_dir() and pid.isdigit() and not shell.alive(int(pid)):
                remove(group)
