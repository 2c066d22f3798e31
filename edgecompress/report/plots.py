"""Plots as inline SVG (matplotlib)."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

matplotlib.rcParams.update(
    {
        "svg.hashsalt": "edgecompress",
        "svg.fonttype": "none",
        "font.size": 9,
        "axes.spines.top": False,
    }
)
BLUE, ORANGE, GREEN, GREY = "#2563eb", "#ea580c", "#16a34a", "#94a3b8"


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.tight_layout()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def complexity(history: Sequence[Mapping[str, Any]], score: str = "accuracy") -> str:
    """Training and validation loss, validation accuracy, and seconds an epoch, over all epochs of a
    run; chosen epochs are marked.
    """
    epochs = range(1, len(history) + 1)
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 2.8))
    left.plot(epochs, [r["train_loss"] for r in history], color=BLUE, label="training")
    left.plot(epochs, [r["validation_loss"] for r in history], color=ORANGE, label="validation")
    left.set(title="loss", xlabel="epoch")
    left.set_ylim(bottom=0)
    left.legend(frameon=False)
    accuracy = [100 * r["validation_accuracy"] for r in history]
    middle.plot(epochs, accuracy, color=GREEN)
    middle.plot(
        [e for e, r in zip(epochs, history, strict=True) if r["chosen"]],
        [a for a, r in zip(accuracy, history, strict=True) if r["chosen"]],
        "o",
        color=GREEN,
        markerfacecolor="white",
        label="chosen epoch of a stage",
    )
    middle.set(title=f"validation {score}, %", xlabel="epoch")
    middle.legend(frameon=False, loc="lower right")
    right.bar(epochs, [r["seconds"] for r in history], color=GREY)
    right.set(title="seconds an epoch", xlabel="epoch")
    if len({r["params"] for r in history}) > 1:
        size = right.twinx()
        size.plot(epochs, [r["params"] / 1e6 for r in history], color=ORANGE)
        size.set_ylim(bottom=0)
        size.set_ylabel("million parameters", color=ORANGE)
    for epoch, row in zip(epochs, history, strict=True):
        if row.get("cut"):
            middle.axvline(epoch, color=ORANGE, linewidth=0.8, linestyle=":", zorder=0)
    for axis in (left, middle, right):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        stage = None
        for epoch, row in zip(epochs, history, strict=True):
            if stage is not None and row["stage"] != stage:
                axis.axvline(epoch - 0.5, color="#e2e8f0", linewidth=1, zorder=0)
            stage = row["stage"]
    return _svg(figure)


CONTROLS = {
    "gradual": ("unpruned", "pruned while training", "without cuts"),
    "distill": ("control", "distilled", "without the teacher"),
}
"""For each stage that trains: the stage that it is compared with, and what the two curves are
called.
"""


def control(history: Sequence[Mapping[str, Any]], score: str = "accuracy") -> str:
    """A training against its control: validation accuracy and seconds an epoch; nothing where there
    was no control.
    """
    stages = {row["stage"] for row in history}
    pair = next(
        ((stage, *CONTROLS[stage]) for stage in CONTROLS if {stage, CONTROLS[stage][0]} <= stages),
        None,
    )
    if pair is None:
        return ""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 2.8))
    for stage, colour, label in ((pair[1], GREY, pair[3]), (pair[0], BLUE, pair[2])):
        rows = [r for r in history if r["stage"] == stage]
        left.plot(
            [r["epoch"] for r in rows],
            [100 * r["validation_accuracy"] for r in rows],
            color=colour,
            label=label,
        )
        right.plot(
            [r["epoch"] for r in rows], [r["seconds"] for r in rows], color=colour, label=label
        )
    left.set(title=f"validation {score}, %", xlabel="epoch")
    right.set(title="seconds an epoch", xlabel="epoch")
    right.set_ylim(bottom=0)
    for axis in (left, right):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.legend(frameon=False, loc="lower right")
    return _svg(figure)


def sparsity_curve(profile: Mapping[str, Any]) -> str:
    """Accuracy against the share of weights at zero; the level up to which it holds is marked."""
    figure, axis = plt.subplots(figsize=(6, 2.8))
    levels = [0.0, *(100 * level for level in profile["levels"])]
    axis.plot(
        levels,
        [100 * a for a in (profile["unpruned"], *profile["accuracy"])],
        "o-",
        color=BLUE,
        markersize=3,
    )
    axis.axhline(
        100 * (profile["unpruned"] - profile["tolerance"]),
        color=GREY,
        linewidth=0.8,
        linestyle="--",
    )
    axis.axvline(
        100 * profile["holds_to"],
        color=ORANGE,
        linewidth=1,
        label=f"holds up to {profile['holds_to']:.0%}",
    )
    axis.set(title="validation accuracy, %", xlabel="weights at zero, %")
    axis.set_ylim(0, 100)
    axis.legend(frameon=False, loc="lower left")
    return _svg(figure)


def sparsity_bars(profile: Mapping[str, Any]) -> str:
    """A small bar chart a level: the share of each layer's weights at zero, layers from the input
    on.
    """
    names, count = list(profile["layers"]), len(profile["levels"])
    columns = 5
    lines = -(-count // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(11, 1.7 * lines + 0.4), sharex=True, sharey=True, squeeze=False
    )
    for place, axis in enumerate(axes.flat):
        if place >= count:
            axis.set_visible(False)
            continue
        axis.bar(
            range(len(names)),
            [100 * profile["layers"][n][place] for n in names],
            color=BLUE,
            width=0.85,
        )
        axis.axhline(100 * profile["levels"][place], color=ORANGE, linewidth=0.8)
        axis.set_title(f"{profile['levels'][place]:.0%}", fontsize=8)
        axis.set_ylim(0, 100)
        axis.set_xticks(
            range(len(names)),
            names if len(names) <= 20 else [""] * len(names),
            rotation=90,
            fontsize=5,
        )
    return _svg(figure)


def boxes(results: Mapping[str, Sequence[float]], title: str, floor: float | None = None) -> str:
    """A box a strategy over its results (whiskers: 1.5 quartile ranges); a dashed line at `floor`,
    below which nothing can be.
    """
    figure, axis = plt.subplots(figsize=(7, 3))
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
    return _svg(figure)


def widths(kept: Mapping[str, Sequence[int]]) -> str:
    """Channels kept (blue) of those before the first cut (grey), a bar a group."""
    names = list(kept)
    figure, axis = plt.subplots(figsize=(10, 1.2 + 0.18 * min(len(names), 70)))
    places = range(len(names))
    axis.barh(places, [kept[n][0] for n in names], color="#e2e8f0")
    axis.barh(places, [kept[n][1] for n in names], color=BLUE)
    axis.set_yticks(list(places), names if len(names) <= 70 else [""] * len(names))
    axis.invert_yaxis()
    axis.set(title="channels of each group: before (grey) and after (blue)")
    return _svg(figure)
