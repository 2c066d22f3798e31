"""Plots as inline SVG (matplotlib)."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from edgecompress.run.schema import HistoryRow
from edgecompress.run.sections import ProfileSection
from edgecompress.units import format_size

if TYPE_CHECKING:
    from edgecompress.report.curve import Point, Teacher

STYLE = {
    "svg.hashsalt": "edgecompress",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
}
"""For the time of a plot; what the caller has set for plots of their own stays."""
BLUE, ORANGE, GREEN, GREY = "#2563eb", "#ea580c", "#16a34a", "#94a3b8"
LIGHT_GREY = "#e2e8f0"

History = Sequence[HistoryRow]
"""The rows of a run's `history.csv`, one per epoch."""


def svg(figure: Figure) -> str:
    """The figure as an `<svg>` element."""
    buffer = io.StringIO()
    figure.tight_layout()
    figure.set_layout_engine(None)  # what it leaves would draw everything once more
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


@rc_context(STYLE)
def complexity(history: History, score: str = "accuracy") -> str:
    """Training and validation loss, validation score, and seconds per epoch, over all epochs of a
    run; the chosen epochs and the cuts are marked.
    """
    epochs = range(1, len(history) + 1)
    figure = Figure(figsize=(10, 2.8))
    losses, scores, seconds = figure.subplots(1, 3)
    _draw_losses(losses, history)
    _draw_scores(scores, history, score)
    seconds.bar(epochs, [row["seconds"] for row in history], color=GREY)
    seconds.set(title="seconds per epoch", xlabel="epoch")
    if len({row["params"] for row in history}) > 1:
        _draw_sizes(seconds.twinx(), history)
    for axis in (losses, scores, seconds):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        _mark_stages(axis, history)
    return svg(figure)


def _draw_losses(axis: Axes, history: History) -> None:
    epochs = range(1, len(history) + 1)
    axis.plot(epochs, [row["train_loss"] for row in history], color=BLUE, label="training")
    axis.plot(epochs, [row["validation_loss"] for row in history], color=ORANGE, label="validation")
    axis.set(title="loss", xlabel="epoch")
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False)


def _draw_scores(axis: Axes, history: History, score: str) -> None:
    numbered = list(enumerate(history, start=1))
    scores = [100 * row["validation_accuracy"] for row in history]
    chosen = [epoch for epoch, row in numbered if row["chosen"]]
    axis.plot(range(1, len(history) + 1), scores, color=GREEN)
    axis.plot(
        chosen,
        [scores[epoch - 1] for epoch in chosen],
        "o",
        color=GREEN,
        markerfacecolor="white",
        label="chosen epoch of a stage",
    )
    axis.set(title=f"validation {score}, %", xlabel="epoch")
    axis.legend(frameon=False, loc="lower right")
    for epoch, row in numbered:
        if row.get("cut"):
            axis.axvline(epoch, color=ORANGE, linewidth=0.8, linestyle=":", zorder=0)


def _draw_sizes(axis: Axes, history: History) -> None:
    epochs = range(1, len(history) + 1)
    axis.plot(epochs, [row["params"] / 1e6 for row in history], color=ORANGE)
    axis.set_ylim(bottom=0)
    axis.set_ylabel("million parameters", color=ORANGE)


def _mark_stages(axis: Axes, history: History) -> None:
    """A line wherever a new stage begins."""
    previous = None
    for epoch, row in enumerate(history, start=1):
        if previous is not None and row["stage"] != previous:
            axis.axvline(epoch - 0.5, color=LIGHT_GREY, linewidth=1, zorder=0)
        previous = row["stage"]


@rc_context(STYLE)
def curve(points: Sequence[Point], teacher: Teacher, score: str = "accuracy") -> str:
    """Score against bytes of the file, with 95 % intervals, beside the teacher's."""
    figure = Figure(figsize=(7, 3.6))
    axis = figure.subplots()
    bytes_of = [point["bytes"] for point in points]
    scores = [100 * point["score"] for point in points]
    if all("ci95" in point for point in points):
        lows = [100 * (p["score"] - p["ci95"][0]) for p in points]
        highs = [100 * (p["ci95"][1] - p["score"]) for p in points]
        axis.errorbar(bytes_of, scores, [lows, highs], color=BLUE, marker="o", capsize=3)
    else:
        axis.plot(bytes_of, scores, color=BLUE, marker="o")
    for point, value in zip(points, scores, strict=True):
        label = f"{point['target']} {point['format']}"
        axis.annotate(label, (point["bytes"], value), (6, -12), textcoords="offset points")
    axis.axhline(100 * teacher["score"], color=GREY, linestyle="--", label="teacher in fp32")
    axis.set_xscale("log")
    axis.set_xticks(bytes_of, [format_size(size) for size in bytes_of])
    axis.set_xticks([], minor=True)
    axis.margins(x=0.2)
    axis.set(title=f"test {score}, %", xlabel="bytes of the file")
    axis.legend(frameon=False, loc="lower right")
    return svg(figure)


CONTROLS = {
    "gradual": ("unpruned", "pruned while training", "without cuts"),
    "distill": ("control", "distilled", "without the teacher"),
}
"""For each stage that trains: the stage that it is compared with, and the names of the two
curves.
"""


@rc_context(STYLE)
def control(history: History, score: str = "accuracy") -> str:
    """A training against its control: validation score and seconds per epoch; empty without a
    control.
    """
    stages = {row["stage"] for row in history}
    trained = next((name for name in CONTROLS if {name, CONTROLS[name][0]} <= stages), None)
    if trained is None:
        return ""
    compared, trained_label, compared_label = CONTROLS[trained]
    curves = ((compared, GREY, compared_label), (trained, BLUE, trained_label))
    figure = Figure(figsize=(10, 2.8))
    scores, seconds = figure.subplots(1, 2)
    for stage, colour, label in curves:
        rows = [row for row in history if row["stage"] == stage]
        epochs = [row["epoch"] for row in rows]
        accuracy = [100 * row["validation_accuracy"] for row in rows]
        scores.plot(epochs, accuracy, color=colour, label=label)
        seconds.plot(epochs, [row["seconds"] for row in rows], color=colour, label=label)
    scores.set(title=f"validation {score}, %", xlabel="epoch")
    seconds.set(title="seconds per epoch", xlabel="epoch")
    seconds.set_ylim(bottom=0)
    for axis in (scores, seconds):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    scores.legend(frameon=False, loc="lower right")
    return svg(figure)


@rc_context(STYLE)
def sparsity_curve(profile: ProfileSection) -> str:
    """Accuracy against the share of weights at zero; the level up to which it holds is marked."""
    levels = [0.0, *(100 * level for level in profile["levels"])]
    accuracy = [100 * value for value in (profile["unpruned"], *profile["accuracy"])]
    least = 100 * (profile["unpruned"] - profile["tolerance"])
    holds_to = profile["holds_to"]
    figure = Figure(figsize=(6, 2.8))
    axis = figure.subplots()
    axis.plot(levels, accuracy, "o-", color=BLUE, markersize=3)
    axis.axhline(least, color=GREY, linewidth=0.8, linestyle="--")
    axis.axvline(100 * holds_to, color=ORANGE, linewidth=1, label=f"holds up to {holds_to:.0%}")
    axis.set(title="validation accuracy, %", xlabel="weights at zero, %")
    axis.set_ylim(0, 100)
    axis.legend(frameon=False, loc="lower left")
    return svg(figure)


@rc_context(STYLE)
def sparsity_bars(profile: ProfileSection) -> str:
    """One small bar chart per level: the share of each layer's weights at zero, layers in the order
    from the input.
    """
    levels = profile["levels"]
    columns = 5
    rows = -(-len(levels) // columns)
    figure = Figure(figsize=(11, 1.7 * rows + 0.4))
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for place, axis in enumerate(axes.flat):
        if place < len(levels):
            shares = {name: values[place] for name, values in profile["layers"].items()}
            _draw_shares(axis, shares, levels[place])
        else:
            axis.set_visible(False)
    return svg(figure)


def _draw_shares(axis: Axes, shares: Mapping[str, float], level: float) -> None:
    places = range(len(shares))
    labels = list(shares) if len(shares) <= 20 else [""] * len(shares)
    axis.bar(places, [100 * share for share in shares.values()], color=BLUE, width=0.85)
    axis.axhline(100 * level, color=ORANGE, linewidth=0.8)
    axis.set_title(f"{level:.0%}", fontsize=8)
    axis.set_ylim(0, 100)
    axis.set_xticks(places, labels, rotation=90, fontsize=5)


@rc_context(STYLE)
def boxes(results: Mapping[str, Sequence[float]], title: str, floor: float | None = None) -> str:
    """One box per strategy over its results (whiskers: 1.5 quartile ranges); a dashed line at
    `floor`, a lower bound.
    """
    figure = Figure(figsize=(7, 3))
    axis = figure.subplots()
    axis.boxplot(
        list(results.values()),
        showmeans=True,
        medianprops={"color": BLUE},
        meanprops={"marker": "x", "markeredgecolor": ORANGE},
    )
    axis.set_xticks(range(1, len(results) + 1), list(results))
    if floor is not None:
        axis.axhline(floor, color=GREY, linewidth=0.8, linestyle="--")
    axis.set_title(title)
    return svg(figure)


@rc_context(STYLE)
def widths(kept: Mapping[str, Sequence[int]]) -> str:
    """Channels kept (blue) of those before the first cut (grey), one bar per group."""
    names = list(kept)
    figure = Figure(figsize=(10, 1.2 + 0.18 * min(len(names), 70)))
    axis = figure.subplots()
    places = range(len(names))
    axis.barh(places, [kept[name][0] for name in names], color=LIGHT_GREY)
    axis.barh(places, [kept[name][1] for name in names], color=BLUE)
    axis.set_yticks(list(places), names if len(names) <= 70 else [""] * len(names))
    axis.invert_yaxis()
    axis.set(title="channels of each group: before (grey) and after (blue)")
    return svg(figure)
