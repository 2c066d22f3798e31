"""Tables of figures by the name that stands in their marker, each written from result files."""

from __future__ import annotations

from collections.abc import Callable

from docs.scripts.results import (
    bits,
    compression,
    curves,
    latency,
    merging,
    online,
    overview,
    public,
    zoo,
)

BUILDERS: dict[str, Callable[[], str]] = {
    "demo": overview.demo,
    "proven": overview.proven,
    "pareto": curves.pareto,
    "training": curves.training,
    "compress": compression.compress,
    "compress-runs": compression.compress_runs,
    "compress-others": compression.others,
    "rounding": compression.rounding,
    "prune": compression.prune,
    "prune-epochs": compression.prune_epochs,
    "reach": compression.reach,
    "reach-frozen": compression.reach_frozen,
    "reach-timm": zoo.reach_timm,
    "reach-timm-summary": zoo.reach_timm_summary,
    "pretrained": zoo.pretrained,
    "distill": compression.distill,
    "distill-input": compression.distill_input,
    "merge-sine": merging.sine,
    "merge-resnet20": merging.resnet20,
    "merge-modes": merging.modes,
    "merge-cost": merging.cost,
    "merge-selection": merging.selection,
    "latency-check": latency.check,
    "bytes-fixed": bits.fixed,
    "bytes-accuracy": bits.accuracy,
    "bytes-speed": bits.speed,
    "int8-speed": latency.int8_speed,
    "int8-accuracy": latency.int8_accuracy,
    "int8-traps": latency.traps,
    "int8-ranges": latency.int8_ranges,
    "latency-statistics": latency.statistics,
    "public-counts": public.counts,
    "public-predictions": public.predictions,
    "public-files": public.files,
    "emulate-links": online.links,
    "emulate-lessons": online.lessons,
    "emulate-mutual": online.mutual,
}
"""Every name that a marker may have."""
