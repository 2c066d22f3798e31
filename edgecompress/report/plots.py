"""Plots as inline SVG (matplotlib)."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt

matplotlib.rcParams.update({"svg.hashsalt": "edgecompress", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False})
BLUE, ORANGE, GREEN, GREY = "#2563eb", "#ea580c", "#16a34a", "#94a3b8"


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.tight_layout()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def complexity(history: Sequence[Mapping[str, Any]]) -> str:
    """Training and validation loss, validation accuracy, and seconds an epoch, over all epochs of a run; chosen epochs are marked."""
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
        "o", color=GREEN, markerfacecolor="white", label="chosen epoch of a stage",
    )  # fmt: skip
    middle.set(title="validation accuracy, %", xlabel="epoch")
    middle.legend(frameon=False, loc="lower right")
    right.bar(epochs, [r["seconds"] for r in history], color=GREY)
    right.set(title="seconds an epoch", xlabel="epoch")
    for axis in (left, middle, right):
        stage = None
        for epoch, row in zip(epochs, history, strict=True):
            if stage is not None and row["stage"] != stage:
                axis.axvline(epoch - 0.5, color="#e2e8f0", linewidth=1, zorder=0)
            stage = row["stage"]
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
