"""`edgecompress teacher serve` and `edgecompress student run`: distillation between two
machines.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgecompress.cli.console import (
    BatchSize,
    Data,
    Debug,
    Epochs,
    ExistOk,
    ImageSize,
    Json,
    Output,
    Quiet,
    Rate,
    Seed,
    Threads,
    print_json,
    print_line,
    stderr,
)

teacher_app = typer.Typer(
    help="The teacher's end of a lesson between two machines.", no_args_is_help=True
)
student_app = typer.Typer(
    help="The student's end of a lesson between two machines.", no_args_is_help=True
)

Ca = Annotated[Path | None, typer.Option("--tls-ca", help="certificate of the authority (PEM)")]
Cert = Annotated[Path | None, typer.Option("--tls-cert", help="own certificate (PEM)")]
Key = Annotated[Path | None, typer.Option("--tls-key", help="own key (PEM)")]
Insecure = Annotated[
    bool,
    typer.Option("--insecure", help="no TLS: everyone on the way can read and change what travels"),
]


Prune = Annotated[
    str | None, typer.Option("--prune", help="cut it while it trains: 50%, 2Mparams, 4MB")
]
Step = Annotated[
    str, typer.Option("--step", help="with --prune: share of channels that one cut removes")
]
Schedule = Annotated[
    str, typer.Option("--schedule", help="with --prune: when cuts are made: early, middle or late")
]


def _cutting(prune: str | None, step: str, schedule: str) -> Any:
    """How a network is cut while it trains; None where it is not."""
    from edgecompress import lesson as lessons
    from edgecompress.errors import UsageError
    from edgecompress.units import parse_amount, parse_share

    share = parse_share(step)
    if schedule not in ("early", "middle", "late"):
        raise UsageError(f"--schedule '{schedule}' is not known: allowed are early, middle, late")
    if prune is None:
        return None
    parse_amount(prune)
    return lessons.Cutting(prune, share, schedule)


def _check_output(root: Path, resume: bool, exist_ok: bool) -> None:
    """Raises `UsageError` for a folder in use."""
    from edgecompress.errors import UsageError

    if root.exists() and not root.is_dir():
        raise UsageError(f"output '{root}' is a file: give a folder with -o")
    if root.is_dir() and any(root.iterdir()) and not resume and not exist_ok:
        raise UsageError(
            f"output folder '{root}' is not empty: give another -o, --resume to go on, or "
            "--exist-ok to overwrite"
        )


def _end(result: dict[str, Any], root: Path, as_json: bool) -> None:
    """Say where the result is, and what a pruning came to; exit code 3 where it missed its
    amount.
    """
    if not as_json:
        if "params_before" in result:
            print_line(f"pruned:  {result['params']} of {result['params_before']} parameters left")
        if "floors_reached" in result:
            print_line(f"missed:  {result['floors_reached']}")
        print_line(f"result:  {root / 'result.json'}")
    if "floors_reached" in result:
        raise typer.Exit(3)


def _note(quiet: bool) -> Any:
    console = stderr()
    return (lambda text: None) if quiet else (lambda text: console.print(text, markup=False))


@teacher_app.command("serve")
def serve(
    model: Annotated[
        str, typer.Argument(help="a checkpoint (or run folder), or a name from edgecompress models")
    ],
    host: Annotated[str, typer.Option("--host", help="address to listen at")] = "0.0.0.0",
    port: Annotated[
        int, typer.Option("--port", help="0 takes a free one", min=0, max=65535)
    ] = 50051,
    train: Annotated[
        bool, typer.Option("--train", help="the teacher trains on the labels at the same time")
    ] = False,
    students: Annotated[
        int, typer.Option("--students", help="how many students the lesson has", min=1)
    ] = 1,
    wait: Annotated[str, typer.Option("--wait", help="how long to wait for them")] = "10min",
    prune: Prune = None,
    step: Step = "10%",
    schedule: Schedule = "early",
    tls_ca: Ca = None,
    tls_cert: Cert = None,
    tls_key: Key = None,
    insecure: Insecure = False,
    data: Data = "digits",
    image_size: ImageSize = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    learning_rate: Rate = None,
    seed: Seed = 0,
    threads: Threads = None,
    output: Output = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the lesson in -o")] = False,
    exist_ok: ExistOk = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Serve one lesson: tell students what this network says of each sample, until they are done.

    Example: edgecompress teacher serve runs/teacher --insecure
    """
    from edgecompress import lesson as lessons
    from edgecompress.online.secure import chosen
    from edgecompress.run.directory import default_root
    from edgecompress.units import parse_duration

    tls, timeout = chosen(tls_ca, tls_cert, tls_key, insecure), parse_duration(wait)
    root = output or default_root("teacher", model)
    _check_output(root, resume, exist_ok)
    asked = lessons.Lesson(data, image_size, epochs, batch_size, learning_rate, seed, threads)
    note = _note(quiet)
    result = lessons.serve_lesson(
        asked,
        model,
        f"{host}:{port}",
        tls,
        output=root,
        train=train,
        students=students,
        timeout=timeout,
        ready=lambda bound: note(f"listening at {host}:{bound}"),
        note=note,
        cutting=_cutting(prune, step, schedule),
        resume=resume,
    )
    if as_json:
        print_json(result)
    else:
        accuracy = (
            "not measured"
            if result["accuracy"] is None
            else f"accuracy {result['accuracy']:.2%} on the test split"
        )
        print_line(f"teacher: {accuracy}, {result['data_label']}")
    _end(result, root, as_json)


@student_app.command("run")
def run(
    model: Annotated[str, typer.Argument(help="a name from edgecompress models, or a checkpoint")],
    connect: Annotated[str, typer.Option("--connect", help="HOST:PORT of the teacher")],
    exchange: Annotated[
        str, typer.Option("--exchange", help="logits, features, weights, or inputs (images up)")
    ] = "logits",
    codec: Annotated[
        str, typer.Option("--codec", help="how logits travel: fp32, fp16, int8, top-k, soft")
    ] = "fp16",
    loss: Annotated[str, typer.Option("--loss", help="kl, softmax-mse or dkd")] = "kl",
    temperature: Annotated[float | None, typer.Option("--temperature")] = None,
    alpha: Annotated[
        float | None, typer.Option("--alpha", help="weight of the teacher beside the labels")
    ] = None,
    teacher_model: Annotated[
        str | None,
        typer.Option("--teacher-model", help="the teacher's network, for --exchange weights"),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option("--features", help="what is learned from maps: attention (default) or hint"),
    ] = None,
    feature_weight: Annotated[
        float | None,
        typer.Option("--feature-weight", help="of the maps beside the logits; 1", min=0),
    ] = None,
    mutual: Annotated[
        bool,
        typer.Option("--mutual", help="the teacher, which trains, learns from this student too"),
    ] = False,
    staleness: Annotated[
        int,
        typer.Option(
            "--staleness",
            help="with --mutual: steps by which what is learned from may be old",
            min=0,
        ),
    ] = 0,
    prune: Prune = None,
    step: Step = "10%",
    schedule: Schedule = "early",
    name: Annotated[
        str, typer.Option("--name", help="how the teacher knows this student")
    ] = "student",
    run_id: Annotated[
        str | None,
        typer.Option(
            "--run", help="a name of the lesson; a student that comes back gives it again"
        ),
    ] = None,
    keep_every: Annotated[
        int, typer.Option("--keep-every", help="steps between kept states", min=1)
    ] = 50,
    window: Annotated[
        int,
        typer.Option(
            "--window", help="steps under way at once, to hide the way there and back", min=1
        ),
    ] = 64,
    patience: Annotated[
        str, typer.Option("--patience", help="how long to look for a teacher that is away")
    ] = "60s",
    tls_ca: Ca = None,
    tls_cert: Cert = None,
    tls_key: Key = None,
    insecure: Insecure = False,
    data: Data = "digits",
    image_size: ImageSize = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    learning_rate: Rate = None,
    seed: Seed = 0,
    threads: Threads = None,
    output: Output = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the lesson in -o")] = False,
    exist_ok: ExistOk = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Learn from a teacher that is served elsewhere.

    Example: edgecompress student run student3 --connect 10.0.0.1:50051 --insecure
    """
    from edgecompress import lesson as lessons
    from edgecompress.errors import UsageError
    from edgecompress.online.secure import chosen
    from edgecompress.run.directory import default_root
    from edgecompress.units import parse_duration

    tls, longest = chosen(tls_ca, tls_cert, tls_key, insecure), parse_duration(patience)
    host, _, port = connect.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"--connect '{connect}' is no HOST:PORT: write it like 10.0.0.1:50051")
    if resume and output is None:
        raise UsageError("--resume without -o: name the folder of the lesson that was stopped")
    root = output or default_root("student", model)
    _check_output(root, resume, exist_ok)
    asked = lessons.Lesson(data, image_size, epochs, batch_size, learning_rate, seed, threads)
    cutting = _cutting(prune, step, schedule)
    learning = lessons.Learning(
        loss, temperature, alpha, features, feature_weight, mutual, staleness, cutting
    )
    note = _note(quiet)
    result = lessons.attend_lesson(
        asked,
        model,
        connect,
        tls,
        output=root,
        exchange=exchange,
        codec=codec,
        name=name,
        run=run_id,
        teacher_model=teacher_model,
        keep_every=keep_every,
        window=window,
        learning=learning,
        patience=longest,
        on_epoch=lambda row: note(
            f"epoch {row.epoch}: {row.validation_accuracy:.2%} on validation, {row.seconds:.1f} s"
        ),
        note=note,
        resume=resume,
    )
    if as_json:
        print_json(result)
    else:
        print_line(
            f"student: accuracy {result['accuracy']:.2%} on the test split of "
            f"{result['data_label']}"
        )
        print_line(
            f"{result['samples']} samples, {result['payload_bytes']} bytes of payload, "
            f"{result['bytes_per_sample']:.2f} a sample"
        )
    _end(result, root, as_json)
