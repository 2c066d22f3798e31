"""What else runs while something is measured."""

from __future__ import annotations

import subprocess
import sys
import time

from edgecompress.measure.load import Load, sentence

SPIN = "import time\nend = time.time() + {}\nwhile time.time() < end: pass"


def test_own_work_and_that_of_children_is_not_others() -> None:
    with Load() as alone:
        subprocess.run([sys.executable, "-c", SPIN.format(1)], check=True)
        end = time.perf_counter() + 0.5
        while time.perf_counter() < end:
            pass
    neighbour = subprocess.Popen([sys.executable, "-c", SPIN.format(30)])
    try:
        with Load() as beside:
            time.sleep(1.5)
    finally:
        neighbour.kill()
        neighbour.wait()
    assert beside.row["other_cores"] > 0.3
    assert beside.row["noisy"]
    assert "cores busy" in sentence(beside.row)
    assert 0 <= alone.row["steal"] <= 1
    assert alone.row["other_cores"] >= 0
