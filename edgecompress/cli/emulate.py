"""`sudo edgecompress emulate TOPOLOGY`."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict, cast

import typer

from edgecompress.cli.console import print_json, stderr
from edgecompress.cli.emulate_options import EmulateOptions
from edgecompress.cli.emulation import show, show_sweep
from edgecompress.cli.options import Given, options_of, verb
from edgecompress.errors import UnknownChoiceError, UsageError

if TYPE_CHECKING:
    from edgecompress.emulate.schema import EmulationResult, GraphRow
    from edgecompress.emulate.settings import Fault, Settings
    from edgecompress.emulate.topology import Graph
    from edgecompress.emulate.user import User

Results = Sequence[tuple[str, "EmulationResult"]]
"""The runs of a sweep with their names."""


@dataclass(frozen=True)
class Variant:
    """What the runs of a sweep differ in; `link` is the name of a profile."""

    link: str | None
    exchange: str
    codec: str
    name: str = "run"


class Described(TypedDict):
    """What a baseline must have in common with a run."""

    exchange: str
    codec: str | None
    graph: GraphRow


Topology = Annotated[
    Path, typer.Argument(help="a .py file with a mininet Topo, e.g. topologies/two_host.py")
]
Faults = Annotated[
    list[str] | None,
    typer.Option("--fault", help="link-down@10s:5s, kill-student@20s, loss=5%, ..."),
]
Sweep = Annotated[
    list[str] | None,
    typer.Option("--sweep", help="runs and one table: link=wifi,lte; codec=; exchange="),
]


@verb(options_of(EmulateOptions, "Emulation"))
def emulate(topology: Topology, given: Given, fault: Faults = None, sweep: Sweep = None) -> None:
    """Teacher and student on emulated hosts: links that are measured before they are used,
    distillation between them, traffic captured.

    Example: sudo edgecompress emulate topologies/two_host.py --epochs 4
    """
    from edgecompress.emulate.user import import_from_safe_folders

    if os.geteuid() == 0:
        import_from_safe_folders()
    from edgecompress.emulate import session
    from edgecompress.run.directory import default_root

    options = given.settings(EmulateOptions)
    before = _baseline(options.baseline)
    runs = _swept(sweep or [], Variant(options.link, options.exchange, options.codec))
    _check_runs(runs, options)
    faults, properties = _faults(fault or [])
    links = _links(runs, properties)
    session.need_root()
    user = session.invoking_user()
    graphs = [session.read_topology(topology, user, link) for link in links]
    if before is not None:
        _check_alike(before, _described(options, graphs[0]))
    names = {host.name for host in graphs[0].hosts} | {run.name for run in runs}
    root = options.output or default_root("emulate", topology.stem)
    with session.using(root, user):
        _empty(root, options, names)
    plan = _Emulation(topology, options, root, user, faults, before, frozenset(names))
    if len(runs) > 1:
        session.make_folder(root, user)
    results = [
        (run.name, plan.run(run, link, alone=len(runs) == 1))
        for run, link in zip(runs, links, strict=True)
    ]
    _show_results(results, root, options)
    _exit_with(results)


@dataclass(frozen=True)
class _Emulation:
    """What all runs of a sweep share."""

    topology: Path
    options: EmulateOptions
    root: Path
    user: User
    faults: tuple[Fault, ...]
    before: EmulationResult | None
    names: frozenset[str]
    """Folders that an earlier emulation may have left: hosts, and runs of a sweep."""

    def run(self, run: Variant, link: Mapping[str, object], *, alone: bool) -> EmulationResult:
        """Emulate one run, and write its report and what is worse than the baseline."""
        from edgecompress import files
        from edgecompress.emulate import session
        from edgecompress.emulate.report import write_report

        own = self.root.absolute() if alone else self.root.absolute() / run.name
        if not alone:
            self._note(f"run {run.name}")
        with session.using(own, self.user):
            if self.options.exist_ok and own.is_dir():
                _forget(own, set(self.names))
        result = session.emulate(self._settings(run, link, own), self._note)
        worse = _regressions(result, self.before, self.options.max_regression)
        if worse:
            result["regressions"] = worse
        with session.rights_of(self.user):
            if worse:
                files.write_json(own / "result.json", result)
            write_report(own, result)
        return result

    def _settings(self, run: Variant, link: Mapping[str, object], own: Path) -> Settings:
        from edgecompress.emulate.settings import Settings

        options = self.options
        return Settings(
            topology=self.topology,
            output=own,
            exchange=run.exchange,
            codec=run.codec,
            backend=options.backend,
            teacher=_absolute(options.teacher),
            student=_absolute(options.student),
            train_teacher=not options.fixed_teacher,
            insecure=options.insecure,
            keep_pcap=options.pcap,
            timeout_s=options.timeout,
            link=link,
            faults=self.faults,
            options=options.shared_options(),
            student_options=options.student_options(run.exchange),
            teacher_options=options.cut_options(options.prune_teacher),
        )

    @property
    def _note(self) -> Callable[[str], None]:
        silent = self.options.quiet or self.options.as_json
        console = stderr()
        return lambda text: None if silent else console.print(text, markup=False)


def _check_runs(runs: Sequence[Variant], options: EmulateOptions) -> None:
    """Raises `UsageError` for runs that cannot be."""
    from edgecompress.online.codec import CODECS, EXCHANGES

    for run in runs:
        chosen = (("exchange", run.exchange, EXCHANGES), ("codec", run.codec, CODECS))
        for name, value, allowed in chosen:
            if value not in allowed:
                raise UnknownChoiceError(f"--{name}", value, allowed)
        _check_ways(run.exchange, options)
    if options.features and all(run.exchange != "features" for run in runs):
        raise UsageError("--features belongs to --exchange features: give that too")
    if len(runs) > 1 and options.baseline is not None:
        raise UsageError("--baseline beside --sweep: a baseline is of one run")


def _faults(texts: Sequence[str]) -> tuple[tuple[Fault, ...], dict[str, float]]:
    """The faults, and the properties of every link that are given as faults."""
    from edgecompress.emulate.settings import parse_fault

    faults: list[Fault] = []
    properties: dict[str, float] = {}
    for text in texts:
        fault, more = parse_fault(text)
        properties |= more
        faults += [fault] if fault is not None else []
    return tuple(faults), properties


def _links(runs: Sequence[Variant], properties: Mapping[str, float]) -> list[dict[str, object]]:
    """The properties of all links in each run."""
    from edgecompress.emulate.topology import profile

    return [{**(profile(run.link) if run.link else {}), **properties} for run in runs]


def _described(options: EmulateOptions, graph: Graph) -> Described:
    codec = None if options.exchange == "weights" else options.codec
    return {"exchange": options.exchange, "codec": codec, "graph": graph.as_dict()}


def _empty(root: Path, options: EmulateOptions, names: set[str]) -> None:
    """Remove what an earlier emulation left in the folder of the results."""
    from edgecompress.run.directory import check_root

    check_root(root, resume=False, exist_ok=options.exist_ok)
    if options.exist_ok and root.is_dir():
        _forget(root, names)


def _show_results(results: Results, root: Path, options: EmulateOptions) -> None:
    alone = results[0][1] if len(results) == 1 else None
    if options.as_json:
        print_json(alone or {"schema": 1, "command": "emulate", "sweep": dict(results)})
    elif alone is not None:
        show(alone, root)
    else:
        show_sweep(results, root)


def _exit_with(results: Results) -> None:
    """Exit code 1 for an invalid run, 3 for a regression or a pruning that missed its amount."""
    if not all(result["valid"] for _, result in results):
        raise typer.Exit(1)
    lessons = [result["distill"] for _, result in results]
    roles = [
        row
        for lesson in lessons
        for row in (*lesson["teachers"].values(), *lesson["students"].values())
    ]
    missed = any("floors_reached" in row for row in roles)
    if missed or any(result.get("regressions") for _, result in results):
        raise typer.Exit(3)


def _check_ways(exchange: str, options: EmulateOptions) -> None:
    """Raises `UsageError` for ways of learning that exclude each other."""
    from edgecompress.online.codec import TRAINING

    if options.mutual and (exchange != "logits" or options.fixed_teacher):
        raise UsageError(
            "--mutual exchanges logits with a teacher that trains: drop --fixed-teacher and "
            "any other --exchange"
        )
    if options.staleness and not options.mutual:
        raise UsageError("--staleness belongs to mutual learning: give --mutual too")
    if options.prune_teacher is None:
        return
    if options.fixed_teacher or exchange not in TRAINING:
        raise UsageError(
            "--prune-teacher cuts a teacher that trains: drop --fixed-teacher, and use "
            "--exchange logits"
        )
    if exchange == "weights":
        raise UsageError(
            "--prune-teacher beside --exchange weights changes their shapes on the way: use "
            "--exchange logits"
        )


def _swept(texts: list[str], usual: Variant) -> list[Variant]:
    """The runs of a sweep, each with its name: all combinations of what `KEY=a,b,c` lists; one run
    without any.
    """
    known = [field.name for field in fields(usual) if field.name != "name"]
    axes: dict[str, list[str]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        if key not in known or not equals or not all(values.split(",")):
            raise UsageError(
                f"--sweep '{text}' is not known: write {', '.join(f'{name}=A,B' for name in known)}"
            )
        if key in axes:
            raise UsageError(
                f"--sweep {key} is given twice: list all values at once, "
                f"{key}={','.join(axes[key])},{values}"
            )
        axes[key] = values.split(",")
    chosen = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    runs = [replace(usual, **values, name="-".join(values.values()) or "run") for values in chosen]
    twice = [run.name for run in runs if sum(other.name == run.name for other in runs) > 1]
    if twice:
        raise UsageError(f"--sweep lists '{twice[0]}' twice: once is enough")
    return runs


def _absolute(name: str | None) -> str | None:
    return str(Path(name).absolute()) if name and Path(name).exists() else name


def _forget(root: Path, names: set[str]) -> None:
    """Remove what an earlier emulation left in this folder, in folders of these `names` too: kept
    states would be taken for this one's.

    Raises `UsageError` for a folder in use that no emulation of ours made.
    """
    import shutil

    from edgecompress.emulate.session import MARKER

    if any(root.iterdir()) and not (root / MARKER).is_file():
        raise UsageError(f"output folder '{root}' is not one of an emulation: give another -o")
    with contextlib.suppress(
        OSError, ValueError, KeyError, TypeError
    ):  # an earlier one may have had other hosts
        names = names | {
            host["name"]
            for host in json.loads((root / "result.json").read_text())["graph"]["hosts"]
        }
    for path in root.iterdir():
        made = path.name in names and ((path / "kept").is_dir() or (path / "result.json").is_file())
        if path.is_dir() and (made or (path / MARKER).is_file()):
            shutil.rmtree(path)
        elif path.suffix in (".log", ".pcap") or path.name in ("result.json", "report.html"):
            path.unlink()


def _baseline(path: Path | None) -> EmulationResult | None:
    """The result of an earlier emulation. Raises `UsageError` for any other file."""
    from edgecompress.emulate.user import invoking_user, rights_of

    if path is None:
        return None
    try:
        with rights_of(invoking_user()):
            result = json.loads(path.read_text(encoding="utf-8"))
        if result["command"] != "emulate" or not result["valid"]:
            raise KeyError("a valid result of emulate")
        for value in (result["distill"]["step_ms"]["p50"], result["distill"]["bytes_per_sample"]):
            if not 0 < value < float("inf"):
                raise ValueError(f"{value} is no number above 0")
        return cast("EmulationResult", result)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(
            f"baseline '{path}' is no valid result of an emulation ({error}): give the "
            "result.json of one"
        ) from error


def _check_alike(before: Mapping[str, object], now: Mapping[str, object]) -> None:
    """Raises `UsageError` for a baseline of another network, or another way to exchange."""
    then = json.loads(json.dumps({key: before.get(key) for key in now}))
    other = [key for key, value in json.loads(json.dumps(now)).items() if then[key] != value]
    if other:
        what = {"graph": "another topology or other links"}.get(
            other[0], f"{other[0]} {then[other[0]]}, this is {now[other[0]]}"
        )
        raise UsageError(f"the baseline was measured with {what}: compare like with like")


def _regressions(
    result: EmulationResult, before: EmulationResult | None, tolerance: float
) -> list[str]:
    """What is worse than the baseline by more than the tolerance: step latency, bytes a sample."""
    if before is None:
        return []
    new, old = result["distill"], before["distill"]
    pairs = (
        ("p50 of a step, ms", new["step_ms"]["p50"], old["step_ms"]["p50"]),
        ("bytes per sample", new["bytes_per_sample"], old["bytes_per_sample"]),
    )
    return [
        f"{name}: {now:.4g} against {then:.4g}, allowed {tolerance:.0%} more"
        for name, now, then in pairs
        if now > then * (1 + tolerance)
    ]
