"""What else ran on the machine while something was measured: processes of others, and time that a
hypervisor gave to other machines.
"""

from __future__ import annotations

import os
import time
from types import TracebackType

import psutil
from typing_extensions import TypedDict

BUSY = 0.125
"""Share of all cores, kept busy by others, from which a measurement is called noisy."""
STEAL = 0.02
"""Share of all processor time, taken by the hypervisor, from which it is."""


class LoadRow(TypedDict):
    """Cores that other processes kept busy on average, and the share of all processor time that
    the hypervisor took, in a measurement; `noisy` where one of them is much.
    """

    other_cores: float
    steal: float
    noisy: bool


class Load:
    """A context; afterwards `row` says what else ran inside it. This process and its children that
    ended inside are not counted.
    """

    def __init__(self) -> None:
        self.row: LoadRow = {"other_cores": 0.0, "steal": 0.0, "noisy": False}

    def __enter__(self) -> Load:
        self._start = time.perf_counter()
        self._before = psutil.cpu_times()
        self._own = _own_seconds()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        wall = max(1e-9, time.perf_counter() - self._start)
        now = psutil.cpu_times()
        spent = {name: getattr(now, name) - getattr(self._before, name) for name in now._fields}
        # user and nice contain those of guests
        busy = sum(spent.get(name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))
        others = max(0.0, busy - (_own_seconds() - self._own)) / wall
        cores = os.cpu_count() or 1
        steal = spent.get("steal", 0.0) / (wall * cores)
        noisy = others > BUSY * cores or steal > STEAL
        self.row = {"other_cores": round(others, 3), "steal": round(steal, 4), "noisy": noisy}


def _own_seconds() -> float:
    """Processor seconds of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def sentence(row: LoadRow) -> str:
    """`other processes kept 1.2 cores busy, the hypervisor took 3 %`."""
    return (
        f"other processes kept {row['other_cores']:.2g} cores busy, the hypervisor took "
        f"{row['steal']:.1%} of the time"
    )
