"""`sudo edgecompress emulate TOPOLOGY`."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from edgecompress.cli.console import (
    BatchSize,
    Data,
    Debug,
    Epochs,
    ExistOk,
    Json,
    Output,
    Quiet,
    Rate,
    Seed,
    print_json,
    print_line,
    stderr,
    stdout,
    table,
)


def emulate(
    topology: Annotated[
        Path, typer.Argument(help="a .py file with a mininet Topo, e.g. topologies/two_host.py")
    ],
    link: Annotated[
        str | None,
        typer.Option("--link", help="every link like this: ethernet, wifi, lte, 3g or satellite"),
    ] = None,
    exchange: Annotated[
        str, typer.Option("--exchange", help="logits, features, weights, or inputs (images up)")
    ] = "logits",
    codec: Annotated[
        str, typer.Option("--codec", help="how logits travel: fp32, fp16, int8, top-k, soft")
    ] = "fp16",
    teacher: Annotated[
        str | None,
        typer.Option("--teacher", help="a checkpoint or a name; default: the topology's"),
    ] = None,
    student: Annotated[
        str | None,
        typer.Option("--student", help="a name or a checkpoint; default: the topology's"),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option("--features", help="with --exchange features: attention (default) or hint"),
    ] = None,
    mutual: Annotated[
        bool, typer.Option("--mutual", help="teacher and student learn from each other")
    ] = False,
    staleness: Annotated[
        int,
        typer.Option(
            "--staleness",
            help="with --mutual: steps by which what is learned from may be old",
            min=0,
        ),
    ] = 0,
    prune_teacher: Annotated[
        str | None,
        typer.Option("--prune-teacher", help="cut it while it trains: 50%, 2Mparams, 4MB"),
    ] = None,
    prune_student: Annotated[
        str | None, typer.Option("--prune-student", help="cut every student while it trains")
    ] = None,
    step: Annotated[
        str, typer.Option("--step", help="when pruning: share of channels that one cut removes")
    ] = "10%",
    schedule: Annotated[
        str, typer.Option("--schedule", help="when cuts are made: early, middle or late")
    ] = "early",
    fixed_teacher: Annotated[
        bool,
        typer.Option("--fixed-teacher", help="it stands still; else it trains at the same time"),
    ] = False,
    backend: Annotated[
        str, typer.Option("--backend", help="of links with delay or loss: auto, netem, wirefilter")
    ] = "auto",
    fault: Annotated[
        list[str] | None,
        typer.Option("--fault", help="link-down@10s:5s, kill-student@20s, loss=5%, ..."),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option("--baseline", help="result.json of an earlier run to hold this one against"),
    ] = None,
    max_regression: Annotated[
        str, typer.Option("--max-regression", help="how much slower, or larger, it may be")
    ] = "10%",
    sweep: Annotated[
        list[str] | None,
        typer.Option("--sweep", help="runs and one table: link=wifi,lte; codec=; exchange="),
    ] = None,
    window: Annotated[
        int,
        typer.Option(
            "--window", help="steps under way at once, to hide the way there and back", min=1
        ),
    ] = 64,
    keep_every: Annotated[
        int, typer.Option("--keep-every", help="steps between kept states", min=1)
    ] = 50,
    timeout: Annotated[
        str, typer.Option("--timeout", help="the longest a lesson may take")
    ] = "30min",
    pcap: Annotated[bool, typer.Option("--pcap", help="keep the captures")] = False,
    insecure: Annotated[bool, typer.Option("--insecure", help="no TLS between the hosts")] = False,
    data: Data = "digits",
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    learning_rate: Rate = None,
    seed: Seed = 0,
    output: Output = None,
    exist_ok: ExistOk = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Teacher and student on emulated hosts: links that are measured before they are used,
    distillation between them, traffic captured.

    Example: sudo edgecompress emulate topologies/two_host.py --epochs 4
    """
    from edgecompress import files
    from edgecompress.emulate import session
    from edgecompress.emulate import topology as topologies
    from edgecompress.errors import UsageError
    from edgecompress.online.codec import CODECS, EXCHANGES
    from edgecompress.run.directory import check_root, default_root
    from edgecompress.units import parse_amount, parse_duration, parse_share

    if backend not in ("auto", "netem", "wirefilter", "none"):
        raise UsageError(
            f"--backend '{backend}' is not known: allowed are auto, netem, wirefilter, none"
        )
    tolerance = parse_share(max_regression)
    before = _baseline(baseline)
    runs = _swept(sweep or [], {"link": link, "codec": codec, "exchange": exchange})
    for run in runs:
        for name, allowed in (("exchange", EXCHANGES), ("codec", CODECS)):
            if run[name] not in allowed:
                raise UsageError(
                    f"--{name} '{run[name]}' is not known: allowed are {', '.join(allowed)}"
                )
        _check_ways(run["exchange"], mutual, staleness, fixed_teacher, prune_teacher)
    for amount in (prune_teacher, prune_student):
        if amount is not None:
            parse_amount(amount)
    if schedule not in ("early", "middle", "late"):
        raise UsageError(f"--schedule '{schedule}' is not known: allowed are early, middle, late")
    if features not in (None, "attention", "hint"):
        raise UsageError(f"--features '{features}' is not known: allowed are attention, hint")
    if features is not None and all(run["exchange"] != "features" for run in runs):
        raise UsageError("--features belongs to --exchange features: give that too")
    parse_share(step)
    if len(runs) > 1 and baseline is not None:
        raise UsageError("--baseline beside --sweep: a baseline is of one run")
    faults, more = [], dict[str, Any]()
    for text in fault or []:
        found, properties = session.parse_fault(text)
        more |= properties
        faults += [found] if found is not None else []
    links = {name: dict(topologies.profile(name)) for name in {run["link"] for run in runs} if name}
    longest = parse_duration(timeout)
    session.need_root()
    user = session.invoking_user()
    graphs = [
        session.read_topology(topology, user, {**links.get(run["link"], {}), **more})
        for run in runs
    ]
    if before is not None:
        _check_alike(
            before,
            {
                "exchange": exchange,
                "codec": None if exchange == "weights" else codec,
                "graph": graphs[0].as_dict(),
            },
        )
    root = output or default_root("emulate", topology.stem)
    check_root(root, resume=False, exist_ok=exist_ok)
    names = {host.name for host in graphs[0].hosts} | {run["name"] for run in runs}
    if exist_ok and root.is_dir():
        _forget(root, names)
    shared = ["--data", data, "--seed", str(seed)]
    for name, value in (
        ("--epochs", epochs),
        ("--batch-size", batch_size),
        ("--learning-rate", learning_rate),
    ):
        shared += [name, str(value)] if value is not None else []
    cuts: tuple[str, ...] = ("--step", step, "--schedule", schedule)
    students: tuple[str, ...] = ("--window", str(window), "--keep-every", str(keep_every))
    students += ("--mutual", "--staleness", str(staleness)) if mutual else ()
    students += ("--prune", prune_student, *cuts) if prune_student is not None else ()
    teachers = ("--prune", prune_teacher, *cuts) if prune_teacher is not None else ()
    console = stderr()

    def note(text: str) -> None:
        if not (quiet or as_json):
            console.print(text, markup=False)

    if len(runs) > 1:
        session.make_folder(root, user)
    results = []
    for run in runs:
        own = root.absolute() if len(runs) == 1 else root.absolute() / run["name"]
        if len(runs) > 1:
            note(f"run {run['name']}")
        by_maps = ("--features", features) if features and run["exchange"] == "features" else ()
        if exist_ok and own.is_dir():
            _forget(own, names)
        settings = session.Settings(
            topology,
            own,
            run["exchange"],
            run["codec"],
            backend,
            _absolute(teacher),
            _absolute(student),
            not fixed_teacher,
            insecure,
            pcap,
            longest,
            {**links.get(run["link"], {}), **more},
            tuple(faults),
            tuple(shared),
            students + by_maps,
            teachers,
        )
        result = session.emulate(settings, note)
        worse = _regressions(result, before, tolerance)
        if worse:
            result["regressions"] = worse
            files.write_json(own / "result.json", result)
            os.chown(own / "result.json", user.uid, user.gid)
        _report(result, own)
        results.append((run["name"], result))
    told: dict[str, Any] = (
        results[0][1]
        if len(runs) == 1
        else {"schema": 1, "command": "emulate", "sweep": dict(results)}
    )
    if as_json:
        print_json(told)
    elif len(runs) == 1:
        _show(told, root)
    else:
        _show_sweep(results, root)
    if not all(result["valid"] for _, result in results):
        raise typer.Exit(1)
    roles = [
        row
        for _, result in results
        for kind in ("teachers", "students")
        for row in result["distill"][kind].values()
    ]
    if any(result.get("regressions") for _, result in results) or any(
        "floors_reached" in row for row in roles
    ):
        raise typer.Exit(3)


def _check_ways(
    exchange: str, mutual: bool, staleness: int, fixed_teacher: bool, prune_teacher: str | None
) -> None:
    """Raises `UsageError` for ways of learning that exclude each other."""
    from edgecompress.errors import UsageError
    from edgecompress.online.codec import TRAINING

    if mutual and (exchange != "logits" or fixed_teacher):
        raise UsageError(
            "--mutual exchanges logits with a teacher that trains: drop --fixed-teacher and "
            "any other --exchange"
        )
    if staleness and not mutual:
        raise UsageError("--staleness belongs to mutual learning: give --mutual too")
    if prune_teacher is not None and (fixed_teacher or exchange not in TRAINING):
        raise UsageError(
            "--prune-teacher cuts a teacher that trains: drop --fixed-teacher, and use "
            "--exchange logits"
        )
    if prune_teacher is not None and exchange == "weights":
        raise UsageError(
            "--prune-teacher beside --exchange weights changes their shapes on the way: use "
            "--exchange logits"
        )


def _swept(texts: list[str], usual: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs of a sweep, each with its name: all combinations of what `KEY=a,b,c` lists; one run
    without any.
    """
    import itertools

    from edgecompress.errors import UsageError

    axes: dict[str, list[str]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        if key not in usual or not equals or not all(values.split(",")):
            raise UsageError(
                f"--sweep '{text}' is not known: write {', '.join(f'{name}=A,B' for name in usual)}"
            )
        if key in axes:
            raise UsageError(
                f"--sweep {key} is given twice: list all values at once, "
                f"{key}={','.join(axes[key])},{values}"
            )
        axes[key] = values.split(",")
    chosen = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    runs = [{**usual, **values, "name": "-".join(values.values()) or "run"} for values in chosen]
    twice = [run["name"] for run in runs if sum(other["name"] == run["name"] for other in runs) > 1]
    if twice:
        raise UsageError(f"--sweep lists '{twice[0]}' twice: once is enough")
    return runs


def _show_sweep(results: list[tuple[str, dict[str, Any]]], root: Path) -> None:
    rows = []
    for name, result in results:
        lesson, traffic = result["distill"], result["traffic"]
        accuracy = max(row["accuracy"] for row in lesson["students"].values())
        rows.append(
            (
                name,
                f"{accuracy:.2%}",
                f"{lesson['step_ms']['p50']:.1f}",
                f"{lesson['wait_ms']['p50']:.1f}",
                f"{lesson['bytes_per_sample']:.2f}",
                f"{traffic['captured_bytes']}",
                str(traffic["retransmissions"]),
                f"{result['wall_s']:.1f}",
                "yes" if result["valid"] else "no",
            )
        )
    columns = [
        "run",
        "best student",
        "step, ms",
        "waiting",
        "bytes a sample",
        "bytes on the wire",
        "sent again",
        "seconds",
        "valid",
    ]
    stdout().print(table("sweep", columns, rows))
    print_line(f"results: {root}/*/result.json")


def _report(result: dict[str, Any], root: Path) -> None:
    """`report.html`, the user's like everything else."""
    from edgecompress.report.emulation import write_report

    write_report(root, result)
    whose = root.stat()
    os.chown(root / "report.html", whose.st_uid, whose.st_gid)


def _absolute(name: str | None) -> str | None:
    return str(Path(name).absolute()) if name and Path(name).exists() else name


def _forget(root: Path, names: set[str]) -> None:
    """Remove what an earlier emulation left in this folder, in folders of these `names` too: kept
    states would be taken for this one's.

    Raises `UsageError` for a folder in use that no emulation of ours made: what is in it will be
    given to the user.
    """
    import shutil

    from edgecompress.emulate.session import MARKER
    from edgecompress.errors import UsageError

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


def _baseline(path: Path | None) -> dict[str, Any] | None:
    from edgecompress.errors import UsageError

    if path is None:
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["command"] != "emulate" or not found["valid"]:
            raise KeyError("a valid result of emulate")
        for value in (found["distill"]["step_ms"]["p50"], found["distill"]["bytes_per_sample"]):
            if not 0 < value < float("inf"):
                raise ValueError(f"{value} is no number above 0")
        return dict(found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"baseline '{path}' is no valid result of an emulation ({error}): give the "
            "result.json of one"
        ) from error


def _check_alike(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises `UsageError` for a baseline of another network, or another way to exchange."""
    from edgecompress.errors import UsageError

    then = json.loads(json.dumps({key: before.get(key) for key in now}))
    other = [key for key, value in json.loads(json.dumps(now)).items() if then[key] != value]
    if other:
        what = {"graph": "another topology or other links"}.get(
            other[0], f"{other[0]} {then[other[0]]}, this is {now[other[0]]}"
        )
        raise UsageError(f"the baseline was measured with {what}: compare like with like")


def _regressions(
    result: dict[str, Any], before: dict[str, Any] | None, tolerance: float
) -> list[str]:
    """What is worse than the baseline by more than the tolerance: step latency, bytes a sample."""
    if before is None:
        return []
    new, old = result["distill"], before["distill"]
    pairs = (
        ("p50 of a step, ms", new["step_ms"]["p50"], old["step_ms"]["p50"]),
        ("bytes a sample", new["bytes_per_sample"], old["bytes_per_sample"]),
    )
    return [
        f"{name}: {now:.4g} against {then:.4g}, allowed {tolerance:.0%} more"
        for name, now, then in pairs
        if now > then * (1 + tolerance)
    ]


def _show(result: dict[str, Any], root: Path) -> None:
    rows = []
    for link in result["links"]:
        asked, found = link["configured"], link["measured"]
        rows.append(
            (
                f"{link['a']} - {link['b']}",
                link["backend"],
                *(
                    _pair(asked[a], found[m])
                    for a, m in (
                        ("bw_mbps", "bw_mbps"),
                        ("delay_ms", "rtt_ms"),
                        ("loss_pct", "loss_pct"),
                    )
                ),
            )
        )
    stdout().print(
        table(
            "links: asked / measured",
            ["link", "by", "Mbit/s", "delay each way / round trip, ms", "loss, %"],
            rows,
        )
    )
    traffic, lesson = result["traffic"], result["distill"]
    seen = (
        f"captured {traffic['packets']} frames, {traffic['captured_bytes']} bytes (the kernel "
        f"counted {traffic['counter_bytes']}"
    )
    print_line(
        f"{seen}, dropped {traffic['kernel_dropped']}); {traffic['goodput_mbps']:.3g} Mbit/s "
        "of payload"
    )
    print_line(f"{traffic['retransmissions']} retransmissions, {len(result['faults'])} faults")
    told = (
        f"{lesson['samples']} samples in {lesson['steps']} steps, "
        f"{lesson['bytes_per_sample']:.2f} bytes a sample"
    )
    told += f" ({result['codec'] or result['exchange']})"
    print_line(
        f"{told}; a step {lesson['step_ms']['p50']:.1f} ms (p50), of it waiting "
        f"{lesson['wait_ms']['p50']:.1f}"
    )
    for name, row in {**lesson["teachers"], **lesson["students"]}.items():
        cut = (
            f", {row['params']} of {row['params_before']} parameters left"
            if "params_before" in row
            else ""
        )
        print_line(f"{name}: {row['accuracy']:.2%} on test ({row['model']}{cut})")
        if "floors_reached" in row:
            print_line(f"{name}: {row['floors_reached']}")
    for reason in result["reasons"]:
        print_line(f"invalid: {reason}")
    for line in result.get("regressions", []):
        print_line(f"regression: {line}")
    print_line(f"result: {root / 'result.json'}")
    print_line(f"report: {root / 'report.html'}")


def _pair(asked: float | None, found: float | None) -> str:
    return f"{'-' if asked is None else f'{asked:g}'} / {'-' if found is None else f'{found:.4g}'}"
