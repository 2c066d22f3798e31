"""Tables of merging networks."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from docs.scripts.markdown import table
from docs.scripts.results.files import percent, read

STRATEGIES = {
    "student": "two networks merged (student)",
    "bo3": "best of three",
    "one": "one network",
    "distilled": "distilled from the same two",
}
TESTS = {"wilcoxon": "Wilcoxon", "mann-whitney": "Mann-Whitney"}


def sine() -> str:
    """Test loss of the four strategies on the sine problem."""
    result = read("merge")["sine"]
    rows = []
    for key, name in STRATEGIES.items():
        summary, against = result["summary"][key], result["student_against"].get(key)
        losses = [
            f"{summary[statistic]:.3f}" for statistic in ("median", "mean", "std", "min", "max")
        ]
        test = f"p = {_p(against['p'])} ({TESTS[against['test']]})" if against else ""
        rows.append((name, *losses, test))
    return table(
        ["strategy", "median", "mean", "std", "min", "max", "student against it"],
        rows,
    )


def _p(value: float) -> str:
    """9.08e-11 as `9e-11`."""
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def resnet20() -> str:
    """Test accuracy of the four strategies with ResNet-20."""
    result = read("merge")["resnet20"]
    rows = [
        (
            name,
            ", ".join(percent(accuracy, 2) for accuracy in result["results"][key]),
            percent(result["summary"][key]["mean"], 2),
        )
        for key, name in STRATEGIES.items()
    ]
    return table(["strategy", "repeats", "mean"], rows)


CHOICES = ("gates", "random", "first parent", "l1", "taylor")
MODES = {
    "gates, a draw a batch": "gates, one draw per batch",
    "gates, a draw a sample": "gates, one draw per sample",
    "average of the weights": "average of the weights (statistics repaired)",
    "average after matching": "average after matching (statistics repaired)",
}


def modes() -> str:
    """Ways to merge two LeNet-5, means over the seeds."""
    rows = read("merge")["modes"]["rows"]
    names = list(dict.fromkeys(row["mode"] for row in rows))
    body = [_mode(name, [row for row in rows if row["mode"] == name]) for name in names]
    best = {row["seed"]: row["best_parent_test_accuracy"] for row in rows}
    body.append(("the best parent", "", percent(statistics.fmean(best.values())), ""))
    columns = ["", "validation after the cut", "test after fine-tuning", "merging, s"]
    return table(columns, body)


def _mode(name: str, rows: Sequence[Mapping[str, Any]]) -> tuple[str, str, str, str]:
    seconds = statistics.fmean(row["merging_s"] for row in rows)
    return (
        MODES.get(name, name),
        percent(statistics.fmean(row["after_cut"] for row in rows)),
        percent(statistics.fmean(row["test_accuracy"] for row in rows)),
        f"{seconds:.1f}" if seconds else "-",
    )


def selection() -> str:
    """Validation after the cut by each choice, over pairs: mean, and how often gates were above."""
    rows = read("merge")["selection"]["rows"]
    body = []
    for schedule in dict.fromkeys(row["schedule"] for row in rows):
        own = [row for row in rows if row["schedule"] == schedule]
        cuts = [{one["choice"]: one["accuracy"] for one in row["selection"]} for row in own]
        best_drawn = [max(row["selection"][1]["draws"]) for row in own]
        above = sum(cut["gates"] > drawn for cut, drawn in zip(cuts, best_drawn, strict=True))
        body.append(
            (
                schedule,
                percent(statistics.fmean(row["gated"] for row in own)),
                *(percent(statistics.fmean(cut[name] for cut in cuts)) for name in CHOICES),
                f"{above} of {len(own)}",
                f"{sum(row['decided'] for row in own)} of {len(own)}",
            )
        )
    columns = ["schedule", "before the cut", *CHOICES, "gates above all random draws", "decided"]
    return table(columns, body)


def cost() -> str:
    """A training step with gates, against a plain step of the same wide network."""
    rows = [
        (
            row["model"],
            str(row["batch"]),
            f"{row['ratio']['batch']:.2f}x",
            f"{row['ratio']['sample']:.2f}x",
        )
        for row in read("merge")["cost"]["rows"]
    ]
    return table(["network", "batch", "one draw per batch", "one draw per sample"], rows)
