"""Arguments that name a network: a model, a checkpoint, the folder of a run, a file of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgecompress.cli.options import Given

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


def onnx_in(path: Path) -> Path:
    """An ONNX file, or the one that ships in a run's folder.

    Raises `UsageError` for a folder without one.
    """
    from edgecompress.errors import UsageError

    if not path.is_dir():
        return path
    for name in ("model.onnx", "model-fp32.onnx"):
        if (path / name).is_file():
            return path / name
    raise UsageError(
        f"folder '{path}' holds no model.onnx: give an .onnx file, or write one with "
        f"edgecompress export {path}"
    )


def named_checkpoint(path: Path, model: str | None) -> tuple[str, str]:
    """(path, model name) of a checkpoint, or of the one in a run's folder.

    Raises `UsageError` when it is built by the user's own code and `model` does not name that
    again, or when it names another model.
    """
    from edgecompress.checkpoint import read_manifest
    from edgecompress.errors import UsageError
    from edgecompress.models.own import runs_user_code

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


def trained_on(path: Path, given: Given) -> dict[str, object]:
    """Data, image size and normalisation of the run that left the checkpoint at `path` (or in that
    run's folder), for those options that were not given; nothing for a file that does not say.

    Raises `UsageError` when the data were a folder that is not where it was.
    """
    from edgecompress.checkpoint import preprocess_of, read_manifest
    from edgecompress.data.preprocess import IMAGENET

    if not _ours(path):
        return {}
    manifest = read_manifest(Path(checkpoint_in(path)))
    preprocess = preprocess_of(manifest)
    if preprocess is None:
        return {}
    values = _data_of(manifest.notes, path, given)
    if "image_size" not in given and "resize" not in given:
        _, height, width = manifest.model.image_shape
        name = str(values.get("data", given["data"]))
        if preprocess.crop is not None:
            values["image_size"] = preprocess.crop
            if preprocess.resize != preprocess.crop:
                values["resize"] = preprocess.resize
        elif height == width and name.partition(":")[0] in OF_MANY_SIZES:
            values["image_size"] = height
    if "task" not in given and "task" in manifest.notes:
        values["task"] = manifest.notes["task"]
    if "normalize" not in given and (preprocess.mean, preprocess.std) == IMAGENET:
        values["normalize"] = "imagenet"
    return values


def _is_here(name: str) -> bool:
    """Is the folder or the file of the data there, where it has one?"""
    kind, _, place = name.partition(":")
    return kind not in ("folder", "npz") or Path(place).expanduser().exists()


OF_MANY_SIZES = ("folder", "imagenette", "imagewoof")
"""Data whose images are brought to one size when they are read."""


def _data_of(notes: Mapping[str, object], path: Path, given: Given) -> dict[str, object]:
    """The data that a checkpoint notes, where none was given."""
    from edgecompress.errors import UsageError

    name = notes.get("data_name")
    if "data" in given or not isinstance(name, str):
        return {}
    for part in [name] if _is_here(name) else name.split("+"):
        if not _is_here(part):
            kind = part.partition(":")[0]
            raise UsageError(
                f"'{path}' was trained on '{part}', which is not here: give --data {kind}:PATH"
            )
    return {"data": name}
