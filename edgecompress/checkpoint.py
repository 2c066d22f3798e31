"""Checkpoints: one safetensors file whose metadata holds a manifest. Never pickle.

The manifest names what the network is built from, and for each layer the attributes in which it
differs from a fresh one (widths after a shrink, the output size of a folded pool). A fresh process
builds the network, sets them, and puts the stored tensors in place.
"""

from __future__ import annotations

import json
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from edgecompress import files
from edgecompress.data import DataSet, Preprocess
from edgecompress.data.preprocess import PreprocessValues
from edgecompress.data.task import Reconstruction
from edgecompress.errors import EdgecompressError, UsageError
from edgecompress.models.own import runs_user_code
from edgecompress.models.registry import ModelSource, blank

_KEY = "edgecompress"


Attributes = dict[str, Any]
"""Integers among the attributes of a module, and lists of them: some decide its shape."""


class Notes(TypedDict, total=False):
    """What a checkpoint notes of the data that its network reads: name, digest (SHA-256, hex),
    classes, `task` where it reconstructs its input, and how pixels become that.
    """

    data: str
    data_name: str
    data_digest: str
    classes: list[str]
    task: str
    preprocess: PreprocessValues


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself. `layers` are attributes that differ from a fresh
    network.
    """

    model: ModelSource
    layers: dict[str, Attributes] = field(default_factory=dict)
    notes: Notes = field(default_factory=Notes)
    unstored: tuple[str, ...] = ()
    """Tensors that the network's own state dict does not hold: non-persistent buffers, and plain
    attributes of its modules.
    """


def _attributes(module: nn.Module) -> Attributes:
    return {
        name: list(value) if isinstance(value, (tuple, list)) else value
        for name, value in vars(module).items()
        if not name.startswith("_") and _is_number(value)
    }


def _is_number(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        plain = all(part is None or isinstance(part, (int, float, str)) for part in value)
        return plain and any(type(part) is int for part in value)
    return type(value) is int


def save(path: Path, model: nn.Module, source: ModelSource, notes: Notes | None = None) -> None:
    """Write `model`, which was built from `source` and perhaps shrunk, to `path`, whole or not at
    all.
    """
    fresh = dict(blank(source).named_modules())
    changed = {}
    for name, module in model.named_modules():
        known = _attributes(fresh[name]) if name in fresh else {}
        # a number that it gets while it runs is made anew
        new = {k: v for k, v in _attributes(module).items() if k in known and known[k] != v}
        if new:
            changed[name] = new
    stored = model.state_dict()
    unstored = {k: v for k, v in _unstored(model).items() if k not in stored}
    manifest = {
        "schema": 1,
        "model": asdict(source),
        "layers": changed,
        "notes": notes or {},
        "unstored": sorted(unstored),
    }
    tensors = {
        name: value.detach().cpu().contiguous().clone()
        for name, value in {**stored, **unstored}.items()
    }
    with files.whole(path) as temporary:
        try:
            save_file(tensors, temporary, {_KEY: json.dumps(manifest)})
        except SafetensorError as error:
            raise EdgecompressError(
                f"cannot write '{path}': {error}; free the space or choose another -o"
            ) from error


def _unstored(model: nn.Module) -> dict[str, torch.Tensor]:
    """Buffers and plain tensor attributes of the modules of `model`, by name."""
    plain = {
        f"{name}.{attribute}" if name else attribute: value
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if isinstance(value, torch.Tensor)
    }
    return {**dict(model.named_buffers(remove_duplicate=False)), **plain}


def read_manifest(path: Path) -> Manifest:
    """The manifest of the checkpoint at `path`. Raises `UsageError` for anything that is not one of
    ours.
    """
    if not path.is_file():
        raise UsageError(
            f"checkpoint '{path}' does not exist: give a model.safetensors that edgecompress wrote"
        )
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt", ".pkl") and (
        zipfile.is_zipfile(path) or _pickled(path)
    ):
        raise UsageError(
            f"'{path}' is a pickle, which can run code: load it yourself and save it with "
            "safetensors"
        )
    try:
        with safe_open(path, "pt") as opened:
            metadata = opened.metadata() or {}
        raw = json.loads(metadata[_KEY])
        model = raw["model"]
        channels, height, width = model["image_shape"]
        source = ModelSource(
            model["name"], int(model["num_classes"]), (int(channels), int(height), int(width))
        )
        unstored = tuple(raw.get("unstored", ()))
        return Manifest(source, raw["layers"], raw["notes"], unstored)
    except KeyError as error:
        raise UsageError(
            f"'{path}' has no manifest ({error}): give a model.safetensors that edgecompress wrote"
        ) from error
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"'{path}' is no checkpoint: {str(error).splitlines()[0]}; give a model.safetensors"
        ) from error


def notes_for(data: DataSet) -> Notes:
    """What a checkpoint notes of the data that its network reads: label and name (`--data`),
    digest, classes, and how pixels become its input.
    """
    notes: Notes = {
        "data": data.label,
        "data_name": data.name,
        "data_digest": data.digest(),
        "classes": list(data.classes),
        "preprocess": data.preprocess.as_dict(),
    }
    if isinstance(data.task, Reconstruction):
        notes["task"] = "reconstruction"
    return notes


def preprocess_of(manifest: Manifest) -> Preprocess | None:
    """How the network of a checkpoint reads pixels, where it says so."""
    values = manifest.notes.get("preprocess")
    return None if values is None else Preprocess.from_dict(values)


def _pickled(path: Path) -> bool:
    with open(path, "rb") as stream:
        return stream.read(1) == b"\x80"


def load(path: Path, allow_code: str | None = None) -> tuple[nn.Module, Manifest]:
    """The network of the checkpoint at `path`, in eval mode on the CPU, and its manifest.

    A network built by the user's own `file.py:factory` runs that code only when `allow_code` names
    it again. Raises `UsageError` when the file is no checkpoint, its tensors do not fit the
    network, or a parameter is not finite.
    """
    manifest = read_manifest(path)
    name = manifest.model.name
    if runs_user_code(name) and allow_code != name:
        raise UsageError(
            f"'{path}' is built by your own code '{name}': name it again to run it: --model {name}"
        )
    model = blank(manifest.model)
    modules = dict(model.named_modules())
    for layer, attributes in manifest.layers.items():
        if layer not in modules:
            raise UsageError(
                f"'{path}' has a layer '{layer}' that {name} lacks: it was written for "
                "another version of the model"
            )
        for key, value in attributes.items():
            known = getattr(modules[layer], key, None)
            if not _is_number(known) or not _is_number(value):
                raise UsageError(
                    f"'{path}' sets '{key}' of '{layer}': only numbers that {name} has can be set"
                )
            kind = list if isinstance(known, list) else tuple
            setattr(modules[layer], key, kind(value) if isinstance(value, list) else value)
    tensors = load_file(path)
    unstored = {name: tensors.pop(name) for name in manifest.unstored if name in tensors}
    _place(model, tensors, str(path))
    _place_unstored(model, unstored, str(path))
    broken = next(
        (key for key, value in model.named_parameters() if not bool(torch.isfinite(value).all())),
        None,
    )
    if broken is not None:
        raise UsageError(
            f"checkpoint '{path}': tensor '{broken}' holds values that are not finite: train "
            "that network again"
        )
    return model.eval(), manifest


def _place(model: nn.Module, tensors: dict[str, torch.Tensor], path: str) -> None:
    """Put stored tensors where the parameters and buffers of `model` (on meta) are; a bias that was
    added is registered.
    """
    expected = model.state_dict()
    missing = [k for k in expected if k not in tensors]
    extra = [k for k in tensors if k not in expected and not k.endswith(".bias")]
    if missing or extra:
        raise UsageError(
            f"'{path}' does not fit {type(model).__name__}: missing {missing[:3]}, unknown "
            f"{extra[:3]}"
        )
    empty = dict(model.named_parameters(remove_duplicate=False))
    placed: dict[nn.Parameter | None, nn.Parameter] = {}  # by what stood there: ties stay tied
    for key, tensor in tensors.items():
        owner_name, _, leaf = key.rpartition(".")
        owner = model.get_submodule(owner_name)
        if leaf in owner._buffers:
            owner._buffers[leaf] = tensor
            continue
        old = empty.get(key)
        if old is not None and old.dim() != tensor.dim():
            raise UsageError(
                f"'{path}' has '{key}' of shape {tuple(tensor.shape)}, the model has "
                f"{tuple(old.shape)}: wrong model"
            )
        learns = old.requires_grad if old is not None else tensor.is_floating_point()
        parameter = placed.setdefault(old, nn.Parameter(tensor, learns))
        if old is None or not torch.equal(parameter, tensor):
            parameter = nn.Parameter(tensor, learns)
        owner._parameters[leaf] = parameter


def _place_unstored(model: nn.Module, tensors: dict[str, torch.Tensor], path: str) -> None:
    """Put tensors that no state dict holds where they were, as buffers or as plain attributes."""
    for key, tensor in tensors.items():
        owner_name, _, leaf = key.rpartition(".")
        owner = model.get_submodule(owner_name)
        if leaf in owner._buffers:
            owner._buffers[leaf] = tensor
        elif isinstance(vars(owner).get(leaf), torch.Tensor):
            setattr(owner, leaf, tensor)
        # what a network without it keeps while it runs, it makes anew
    for name, value in _unstored(model).items():
        if value.is_meta:
            raise UsageError(
                f"'{path}' lacks '{name}', which {type(model).__name__} does not store: train or "
                "save that network again"
            )
