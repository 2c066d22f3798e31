"""The result of a run as text: tables on stdout, those of `--verbose` on stderr."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgecompress.cli.console import print_json, print_line, stderr, stdout, table
from edgecompress.proportions import interval, sure
from edgecompress.units import format_count

if TYPE_CHECKING:
    from edgecompress.measure.cost import LayerRow
    from edgecompress.pipeline import Outcome
    from edgecompress.run.schema import ConstantRow, RunResult, StageRecord
    from edgecompress.run.sections import (
        AutoSection,
        CompareSection,
        ContestSection,
        FrozenSection,
        ProfileSection,
    )


def show(outcome: Outcome, *, as_json: bool, verbose: bool) -> None:
    """Print the result of a run."""
    from edgecompress.run.result import written

    result = outcome.result
    if result is None:
        return
    if as_json:
        print_json(written(result))
        return
    if verbose and result.get("layers"):
        columns = ["layer", "widths", "parameters", "share", "MACs", "share"]
        stderr().print(table("layers", columns, layer_rows(result["layers"])))
    if "student" in result:
        show_sides(result)
    else:
        show_stages(result)
    show_sections(result, verbose=verbose)
    for line in outcome.missed:
        print_line(f"target missed: {line}; the best file so far is kept")
    print_line(f"file:   {outcome.root / result['artifact']}")
    print_line(f"report: {outcome.root / 'report.html'}")


def show_sides(result: RunResult) -> None:
    """Teacher and student side by side, and why this format ships."""
    from edgecompress.report.html import comparison, sides

    title = f"{result['model']} trained on {result['data_label']}, {result['format']}"
    console = stdout()
    console.print(table(title, ["", *sides(result), "ratio"], comparison(result)))
    if "ci95" in result["student"]:
        console.print("(in parentheses: 95 % intervals)", markup=False)
    console.print(result["format_reason"], markup=False)


def show_stages(result: RunResult) -> None:
    """A row for each stage."""
    from edgecompress.run.result import score_name

    rows = [(row["name"], _sure(row), format_count(row["params"])) for row in result["stages"]]
    title = f"{result['model']} on {result['data_label']}, {result['command']}"
    columns = ["stage", f"validation {score_name(result)}", "parameters"]
    stdout().print(table(title, columns, rows))


def _sure(row: StageRecord) -> str:
    return sure(row["accuracy"], row.get("ci95"))


def show_sections(result: RunResult, *, verbose: bool) -> None:
    """What the stages report of themselves."""
    if verbose and "frozen" in result and result["frozen"]["reasons"]:
        show_frozen(result["frozen"])
    if verbose and (weights := shipped_weights(result)):
        columns = ["layer", "bits", "storage", "bytes"]
        stdout().print(table(f"weights in {result['format']}", columns, weights))
    if "auto" in result:
        show_field(result["auto"])
    if "contest" in result:
        show_contest(result["contest"])
    if "distill" in result and result["distill"]["teacher"]:
        from edgecompress.report.html import distillation

        columns = ["", "parameters", "weights in fp32", "accuracy"]
        stdout().print(table("distillation", columns, distillation(result)))
    if result.get("constant_channels") and (result["command"] == "shrink" or verbose):
        show_constant_channels(result["constant_channels"])
    if "compare" in result:
        show_comparison(result["compare"])
    if "profile" in result:
        show_profile(result["profile"], verbose=verbose)
    left_alone = result["gradual"]["left_alone"] if "gradual" in result else {}
    for name, reason in left_alone.items():
        print_line(f"left alone: {name}: {reason}")


def shipped_weights(result: RunResult) -> list[tuple[str, ...]]:
    """A row for each weight of the file that ships, where it has integers."""
    return [
        (row["layer"], str(row["bits"]), row["storage"], f"{row['bytes']:,}")
        for form in result.get("formats", [])
        if form["format"] == result.get("format")
        for row in form.get("weights", [])
    ]


def show_field(section: AutoSection) -> None:
    """A row for each network that competed to be the one that was compressed."""
    rows = [
        (
            f"{row['model']} (won)" if row["model"] == section["winner"] else row["model"],
            format_count(row["params"]),
            format_count(row["macs"]),
            str(row["epochs"]),
            sure(row["accuracy"], row["ci95"]),
        )
        for row in section["rows"]
    ]
    columns = ["network, cut to the target", "parameters", "MACs", "epochs", "validation"]
    stdout().print(table("networks in short trainings", columns, rows))


def show_contest(section: ContestSection) -> None:
    """A row for each format that competed for the bytes of the target."""
    rows = [
        (
            row["format"] + (" (won)" if row["format"] == section["winner"] else ""),
            format_count(row["params"]),
            str(row["epochs"]),
            sure(row["accuracy"], row.get("ci95")),
        )
        for row in section["rows"]
    ]
    title = f"short trainings in the formats that fit, validation, n {section['n']}"
    columns = ["format", "parameters", "epochs", "accuracy"]
    stdout().print(table(title, columns, rows))


def show_frozen(frozen: FrozenSection) -> None:
    """A row for each reason why something cannot be cut, with the lines of code that call it."""
    lines = frozen.get("lines", {})
    rows = [
        (reason, f"{share:.1%}", ", ".join(lines.get(reason, [])))
        for reason, share in frozen["reasons"].items()
    ]
    stderr().print(table("what cannot be cut", ["reason", "parameters", "lines"], rows))


def show_constant_channels(channels: Sequence[ConstantRow]) -> None:
    """A row for each group: its constant and unread channels, and why some of them stayed."""
    rows = [(row["group"], *(str(n) for n in _counts(row)), row["reason"]) for row in channels]
    columns = ["group", "channels", "constant", "unread", "removed", "why not all"]
    stdout().print(table("channels that never change or are never read", columns, rows))


def _counts(row: ConstantRow) -> tuple[int, int, int, int]:
    """All channels of a group, and those that are constant, unread and removed."""
    return row["size"], row["constant"], row["unread"], row["removed"]


def show_comparison(section: CompareSection) -> None:
    """Print the results of strategies, and the student against each other one."""
    keys = ("min", "median", "mean", "max", "std")
    rows = [
        (name, *(f"{values[key]:.4f}" for key in keys))
        for name, values in section["summary"].items()
    ]
    title = f"{section['score']}, {section['repeats']} results of {section['budget']} epochs each"
    stdout().print(table(title, ["strategy", *keys], rows))
    for name, row in section["student_against"].items():
        print_line(
            f"student against {name}: p = {row['p']:.3g} ({row['test']}), effect "
            f"{row['effect']:+.2f}"
        )


def layer_rows(layers: Sequence[LayerRow]) -> list[tuple[str, ...]]:
    """Rows of the table of layers: widths, parameters and MACs before and after."""

    def pair(values: list[int]) -> tuple[str, str]:
        old, new = values
        return f"{format_count(old)} -> {format_count(new)}", f"{new / old:.2f}" if old else "-"

    return [
        (
            row["layer"],
            f"{row['inputs'][0]}x{row['outputs'][0]} -> {row['inputs'][1]}x{row['outputs'][1]}",
            *pair(row["params"]),
            *pair(row["macs"]),
        )
        for row in layers
    ]


def show_profile(profile: ProfileSection, *, verbose: bool) -> None:
    """Print a sparsity profile: accuracy at each level, with `verbose` the share of each layer too,
    and where it stops to hold.
    """
    shown = range(len(profile["levels"])) if verbose else range(1, len(profile["levels"]), 2)
    levels = [f"{profile['levels'][i]:.0%}" for i in shown]
    accuracy = ("validation accuracy", *(f"{profile['accuracy'][i]:.1%}" for i in shown))
    layers = [
        (name, *(f"{shares[i]:.0%}" for i in shown)) for name, shares in profile["layers"].items()
    ]
    rows = [accuracy, *layers]
    if "n" in profile:
        count = profile["n"]
        bounds = [interval(round(profile["accuracy"][i] * count), count) for i in shown]
        sure_of = (f"{100 * low:.0f} to {100 * high:.0f}" for low, high in bounds)
        rows.insert(1, (f"95 %, n {count}", *sure_of))
    title = "share of each layer's weights at zero"
    stdout().print(table(title, ["global level", *levels], rows))
    within = f"within {100 * profile['tolerance']:g} point(s) of {profile['unpruned']:.2%}"
    print_line(
        f"accuracy holds up to {profile['holds_to']:.0%} of all weights at zero ({within}, "
        "on validation)"
    )
