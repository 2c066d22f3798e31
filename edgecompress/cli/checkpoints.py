"""Arguments that name a network: a model, a checkpoint, the folder of a run, a file of tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Checkpoint = Annotated[Path, typer.Argument(help="model.safetensors, or the folder of a run")]
Model = Annotated[
    str, typer.Argument(help="a name (edgecompress models), pkg.mod:factory or file.py:factory")
]
TensorsOf = Annotated[
    str | None,
    typer.Option(
        "--model", help="for a file of tensors (.pt, .safetensors): the network they belong to"
    ),
]
OwnCode = Annotated[
    str | None,
    typer.Option(
        "--model", help="your own code (file.py:factory) that builds the network, named again"
    ),
]


def checkpoint_in(path: Path) -> str:
    """Path of a checkpoint, or of the one in a run's folder."""
    return str(path / "model.safetensors" if path.is_dir() else path)


def named_checkpoint(path: Path, model: str | None) -> tuple[str, str]:
    """(path, model name) of a checkpoint, or of the one in a run's folder.

    Raises `UsageError` when it is built by the user's own code and `model` does not name that
    again, or when it names another model.
    """
    from edgecompress.checkpoint import read_manifest
    from edgecompress.errors import UsageError
    from edgecompress.models.registry import runs_user_code

    inner = checkpoint_in(path)
    name = read_manifest(Path(inner)).model.name
    if runs_user_code(name) and model != name:
        raise UsageError(
            f"'{inner}' is built by your own code '{name}': name it again to run it: --model {name}"
        )
    if model is not None and model != name:
        raise UsageError(
            f"checkpoint '{inner}' holds a {name}, not a {model}: leave --model out, or name {name}"
        )
    return inner, name


def _ours(path: Path) -> bool:
    """Is the file at `path` (or in that run's folder) a checkpoint with a manifest?"""
    from edgecompress.checkpoint import read_manifest
    from edgecompress.errors import UsageError

    try:
        read_manifest(Path(checkpoint_in(path)))
    except UsageError:
        return False
    return True


def source(path: Path, model: str | None) -> tuple[dict[str, object], str]:
    """(first stage, model name) for a checkpoint of ours, or, with `model`, for a file of tensors
    that somebody else saved.
    """
    if model is not None and not _ours(path):
        return {"stage": "train", "epochs": 0, "weights": str(path)}, model
    inner, name = named_checkpoint(path, model)
    return {"stage": "load", "checkpoint": inner}, name
