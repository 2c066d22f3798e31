"""Is one ONNX file slower than another? Measured so that a busy machine raises no false alarm.

Both files are timed in turns (A B B A) within one process, and that in several fresh processes,
since where a model lands in memory differs from process to process. The ratio candidate / baseline
of each block is taken; the 95 % interval of their median comes from a bootstrap over processes and,
within them, over blocks.

    regression    the complete interval lies above 1 + tolerance
    pass          the complete interval lies at or below 1 + tolerance
    inconclusive  neither, after the last extension

The rule for extending is fixed in advance: `PROCESSES` processes first, then up to each of `LOOKS`
while the result is inconclusive.
"""

from __future__ import annotations

from edgecompress.measure.baseline import (
    Baseline,
    Stored,
    StoredComparison,
    compare_stored,
    read_stored,
    stored,
)
from edgecompress.measure.bootstrap import (
    Interval,
    blocks_needed,
    interval,
    resampled_medians,
    verdict,
)
from edgecompress.measure.comparison import Comparison, Judged, Ratio, compare
from edgecompress.measure.processes import (
    LOOKS,
    PROCESSES,
    Measured,
    Protocol,
    measure,
    profile,
)

__all__ = [
    "LOOKS",
    "PROCESSES",
    "Baseline",
    "Comparison",
    "Interval",
    "Judged",
    "Measured",
    "Protocol",
    "Ratio",
    "Stored",
    "StoredComparison",
    "blocks_needed",
    "compare",
    "compare_stored",
    "interval",
    "measure",
    "profile",
    "read_stored",
    "resampled_medians",
    "stored",
    "verdict",
]
