"""`edgecompress`: registers the verbs, and turns every error into one line and its exit code."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from typing import Annotated

import typer

from edgecompress import __version__, interrupts
from edgecompress.cli import (
    bench,
    compare,
    compress,
    distill,
    doctor,
    emulate,
    lists,
    merge,
    online,
    predict,
    prune,
    recipe,
    report,
    run,
    verbs,
)
from edgecompress.cli.console import print_error, print_line
from edgecompress.cli.grouped import GroupedCommand
from edgecompress.cli.mistakes import mistake
from edgecompress.errors import EdgecompressError, blamed, missing_kernel

app = typer.Typer(
    name="edgecompress",
    help="Make a network small enough for the device it must run on, and prove what it lost.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Every option may come from the environment: EDGECOMPRESS_LEARNING_RATE=0.01. Exit "
    "codes: 0 done, 1 failed, 2 bad input, 3 target missed or regression, 4 "
    "environment, 130 interrupted.",
)


def _print_version(asked: bool) -> None:
    if asked:
        print_line(f"edgecompress {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Make a network small enough for the device it must run on, and prove what it lost."""


app.command("compress", cls=GroupedCommand)(compress.compress)
app.command("run", cls=GroupedCommand)(run.run)
app.command("train", cls=GroupedCommand)(verbs.train)
app.command("merge", cls=GroupedCommand)(merge.merge)
app.command("compare", cls=GroupedCommand)(compare.compare)
app.command("distill", cls=GroupedCommand)(distill.distill)
app.command("prune", cls=GroupedCommand)(prune.prune)
app.command("shrink", cls=GroupedCommand)(verbs.shrink)
app.command("profile", cls=GroupedCommand)(verbs.profile)
app.command("export", cls=GroupedCommand)(verbs.export)
app.command("quantize", cls=GroupedCommand)(verbs.quantize)
app.command("bench", cls=GroupedCommand)(bench.bench)
app.command("emulate", cls=GroupedCommand)(emulate.emulate)
app.command("predict", cls=GroupedCommand)(predict.predict)
app.command("report", cls=GroupedCommand)(report.report)
app.command("doctor", cls=GroupedCommand)(doctor.doctor)
app.command("models", cls=GroupedCommand)(lists.models)
app.command("data", cls=GroupedCommand)(lists.data)
app.add_typer(recipe.app, name="recipe")
app.add_typer(online.teacher_app, name="teacher")
app.add_typer(online.student_app, name="student")


def main() -> None:
    """Entry point of the command `edgecompress`."""
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: list[str]) -> int:
    """Run one command and return its exit code; errors go to stderr as one line, with a traceback
    only under `--debug`.
    """
    debug = "--debug" in arguments or os.environ.get("EDGECOMPRESS_DEBUG", "") not in ("", "0")
    with interrupts.listening(signal.SIGINT):
        try:
            code = typer.main.get_command(app).main(
                args=arguments, prog_name="edgecompress", standalone_mode=False
            )
            if code == 130:  # newer versions of typer turn Ctrl-C into this code themselves
                raise KeyboardInterrupt
            return code if isinstance(code, int) else 0
        except (Exception, KeyboardInterrupt) as error:
            # Ctrl-C may come out of C++ code as any error
            if interrupts.asked() or isinstance(error, (typer.Abort, KeyboardInterrupt)):
                print_error("interrupted; whole files are kept, --resume goes on")
                return 130
            return _failed(error, debug)


def _failed(error: Exception, debug: bool) -> int:
    """Say what went wrong; the exit code of it."""
    if isinstance(error, BrokenPipeError):
        sys.stderr.close()
        return 1
    # a usage error of click, which newer versions of typer bring in a module of their own
    if type(error).__name__ == "NoArgsIsHelpError":
        print_line(str(error.format_message()))  # type: ignore[attr-defined]
        return 2
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        print_error(mistake(error))
        return int(error.exit_code)
    ours = isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("edgecompress")
    if debug or ours:
        traceback.print_exception(error)
    if isinstance(error, EdgecompressError):
        print_error(str(error))
        return error.exit_code
    if isinstance(error, ModuleNotFoundError):
        print_error(f"package '{error.name}' is not installed: run pip install 'edgecompress[all]'")
        return 4
    if missing_kernel(error) is not None:
        print_error(f"{blamed(error)}: choose another --device, or another operator")
        return 4
    text = " ".join(str(error).split()) or type(error).__name__
    print_error(f"{type(error).__name__}: {text}; run again with --debug for the traceback")
    return 1


if __name__ == "__main__":
    main()
