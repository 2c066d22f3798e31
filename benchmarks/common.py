"""What all benchmarks share: their options, the description of a run, and the result files.

Every script takes --smoke (the same code at a size that runs in seconds) and --output. Results of
the full size go to benchmarks/results/; those of --smoke go to a temporary folder, so that they
never replace a published figure.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from edgecompress.files import write_bytes
from edgecompress.measure import machine

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SEED = 0
SMOKE_IMAGES = Path()
"""Stands for an image folder that `--smoke` writes itself."""

Row = dict[str, Any]
"""A JSON object: one row of a result, or one of its parts."""

T = TypeVar("T")
_SMOKE: list[bool] = []
"""Not empty in a run of smoke size."""


@dataclass(frozen=True)
class Bench:
    """One call of a script: its name, the folder of its results, and whether it runs at smoke
    size.
    """

    script: str
    folder: Path
    smoke: bool = False

    def size(self, full: T, smoke: T) -> T:
        """The value for the size of this run."""
        return smoke if self.smoke else full

    def described(self, *options: object) -> Row:
        """The command with `options`, the hardware and the versions: what every result names."""
        return {"command": self.command(*options), **self.machine()}

    def machine(self) -> Row:
        """The hardware and the versions."""
        return {"hardware": machine.hardware(), "versions": machine.versions()}

    def command(self, *options: object) -> str:
        """The command that repeats this run."""
        words = ["python", f"benchmarks/{self.script}.py", *options]
        return " ".join(map(str, [*words, "--smoke"] if self.smoke else words))

    def store(self, name: str = "", /, **parts: Any) -> None:
        """Put `parts` into the result file `name`.json (default: the script's name), which keeps
        the parts that it had.
        """
        text = json.dumps({**self.known(name), **parts}, indent=1) + "\n"
        write_bytes(self.folder / f"{name or self.script}.json", text.encode())

    def known(self, name: str = "", /) -> Row:
        """The parts that the result file `name`.json has (default: the script's name)."""
        path = self.folder / f"{name or self.script}.json"
        return dict(json.loads(path.read_text())) if path.is_file() else {}

    def images(self, given: Path, work: Path) -> Path:
        """The image folder `given`; at smoke size, where none is given, a small one below `work`.

        Exits with a message where a run of full size has no images.
        """
        if given != SMOKE_IMAGES:
            return given.expanduser().resolve()
        if not self.smoke:
            raise SystemExit(f"{self.script}.py: no image folder: give DIR with train/ and test/")
        return digits_folder(work / "digits")


def parser(text: str | None) -> argparse.ArgumentParser:
    """A parser with the options that all scripts share; `text` is the script's docstring."""
    options = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--smoke", action="store_true", help="the same code in seconds")
    options.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="folder of the results; default: benchmarks/results, with --smoke a temporary folder",
    )
    return options


def add_images(options: argparse.ArgumentParser, name: str) -> None:
    """Option `name` DIR, an image folder; DIR may be left out with --smoke."""
    options.add_argument(
        name,
        type=Path,
        nargs="?",
        const=SMOKE_IMAGES,
        metavar="DIR",
        help="CIFAR-10 (JPEG) with train/ and test/, one folder per class",
    )


def bench_of(file: str, arguments: argparse.Namespace) -> Bench:
    """The run that `arguments` describe, of the script `file`."""
    folder = arguments.output or RESULTS
    if arguments.smoke and arguments.output is None:
        folder = Path(tempfile.mkdtemp(prefix="edgecompress-smoke-"))
        print(f"results: {folder}", flush=True)
    if arguments.smoke:
        _SMOKE.append(True)
    return Bench(Path(file).stem, folder, arguments.smoke)


def edgecompress(*arguments: object, exits: Sequence[int] = (0,)) -> Row:
    """Run a command of the package in a process of its own (at smoke size in this one, which has
    imported what it needs); what it prints as JSON, with its exit code as `exit`.

    Exits with the command's own message when its exit code is not among `exits`.
    """
    words = [str(argument) for argument in arguments]
    if _SMOKE:
        code, printed, errors = _here(words)
    else:
        command = [sys.executable, "-m", "edgecompress", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
        code, printed, errors = done.returncode, done.stdout, done.stderr
    if code not in exits:
        raise SystemExit(f"edgecompress {' '.join(words)}: exit {code}: {errors}")
    return {**(json.loads(printed) if "--json" in words else {}), "exit": code}


def _here(words: list[str]) -> tuple[int, str, str]:
    """The exit code of a command, and what it prints."""
    from edgecompress.cli.app import run_command

    out, err, folder = io.StringIO(), io.StringIO(), Path.cwd()
    os.chdir(ROOT)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = run_command(words)
    finally:
        os.chdir(folder)
    return code, out.getvalue(), err.getvalue()


def subset(folder: Path, images: int, work: Path) -> Path:
    """A folder of links to the first `images` training images of each class of `folder`, and to
    all its test images.
    """
    target = work / "cifar10-jpeg"
    for split, most in (("train", images), ("test", None)):
        for label in sorted(path for path in (folder / split).iterdir() if path.is_dir()):
            (target / split / label.name).mkdir(parents=True, exist_ok=True)
            for path in sorted(label.iterdir())[:most]:
                link = target / split / label.name / path.name
                if not link.is_symlink():
                    link.symlink_to(path.resolve())
    return target


def digits_folder(folder: Path, train: int = 8, test: int = 2) -> Path:
    """Write `train` and `test` images of each digit as PNG into `folder`; returns it."""
    from edgecompress.data import load_data

    data = load_data("digits")
    for split, images, count in (("train", data.train, train), ("test", data.test, test)):
        for label in range(10):
            chosen = images.rows((images.labels == label).nonzero()[:count, 0])
            _write_images(folder / split / f"digit{label}", chosen.pixels)
    return folder


def _write_images(folder: Path, pixels: Any) -> None:
    """Write `pixels` (N, 3, H, W) uint8 as PNG files into `folder`."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(pixels):
        Image.fromarray(one.permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
