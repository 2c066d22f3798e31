"""Networks of the user's own code, `file.py:factory` and `pkg.mod:factory`.

The function is called once for each network that is trained, never only to look at one: its
structure is remembered. What it returns is kept, pretrained weights included; wrappers
(`DataParallel`) and reparametrizations (weight norm, spectral norm, the masks of
`torch.nn.utils.prune`) are resolved into plain tensors, and said.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from edgecompress.core.symbolic import computed_tensors
from edgecompress.errors import EnvironmentMissingError, UnknownNameError, UsageError, blamed
from edgecompress.models.outputs import single_output_
from edgecompress.models.vision import torchvision


@dataclass(frozen=True)
class Seen:
    """A network that was built: its structure, the shape of its output for one image (1, ...), and
    what was done to it, a sentence each.
    """

    network: nn.Module
    output: tuple[int, ...]
    remarks: tuple[str, ...]


def runs_user_code(name: str) -> bool:
    """True for `file.py:factory` and `pkg.mod:factory`: building them executes the user's code."""
    head, _, rest = name.partition(":")
    return bool(rest) and head not in ("torchvision", "timm")


def build_own(
    name: str, offered: Mapping[str, int], known: Iterable[str], shape: tuple[int, ...]
) -> nn.Module:
    """What the user's factory `name` returns, called with those arguments `offered` that it
    accepts. It has read one image of `shape` (C, H, W). `known` are names that an unknown package
    may have meant.

    Raises `UsageError` for code that does not run, returns no module, or one that cannot read the
    image, and `EnvironmentMissingError` for a package that is missing.
    """
    factory, arguments = _call(name, offered, known)
    try:
        model = factory(**arguments)
    except Exception as error:  # whatever the user's code raises
        raise UsageError(f"'{name}' cannot be built: {blamed(error)}") from error
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model.module
    if not isinstance(model, nn.Module):
        raise UsageError(f"'{name}' returned a {type(model).__name__}: a torch.nn.Module is needed")
    training = [module for module in model.modules() if module.training]
    formats = {p.dtype for p in model.parameters() if p.is_floating_point()} - {torch.float32}
    if formats:
        model.float()
    try:
        output, chosen = single_output_(model, torch.zeros(1, *shape))
    except UsageError:
        raise
    except Exception as error:  # whatever the user's code raises
        size = "x".join(map(str, shape))
        raise UsageError(
            f"model '{name}' cannot read an image of {size}: {blamed(error)}"
        ) from error
    converted = [
        f"weights in {str(kind).removeprefix('torch.')} became float32" for kind in formats
    ]
    resolved = (*converted, *resolve_reparametrizations_(model), *([chosen] if chosen else []))
    for module in training:
        module.training = True
    _seen[_key(factory, arguments)] = Seen(structure(model), tuple(output.shape), resolved)
    return model


def seen(name: str, offered: Mapping[str, int], known: Iterable[str]) -> Seen | None:
    """What is known of the network that the user's factory returned before in this process; None
    where it was not called yet.
    """
    entry = _seen.get(_key(*_call(name, offered, known)))
    return None if entry is None else replace(entry, network=copy.deepcopy(entry.network))


def structure(model: nn.Module) -> nn.Module:
    """A copy of `model` whose parameters and stored buffers are on the meta device. Tensors that no
    state dict holds keep their values.
    """
    stored = model.state_dict(keep_vars=True)
    memo: dict[int, object] = {
        id(tensor): tensor.detach().clone() for tensor in computed_tensors(model)
    }
    for tensor in [*model.parameters(), *stored.values()]:
        if not isinstance(tensor, torch.Tensor):
            continue
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = (
            nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
        )
    return copy.deepcopy(model, memo)


def resolve_reparametrizations_(model: nn.Module) -> tuple[str, ...]:
    """Make every weight that is computed from other tensors a plain parameter of the same value, in
    place; a sentence for each kind.
    """
    kinds: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        for tensor in list(getattr(module, "parametrizations", {})):
            parametrize.remove_parametrizations(module, tensor, leave_parametrized=True)
            kinds.setdefault("parametrizations", []).append(f"{name}.{tensor}")
        for hook in list(module._forward_pre_hooks.values()):
            kind = type(hook).__name__
            if isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)
            elif kind in _OLD_HOOKS:
                getattr(torch.nn.utils, _OLD_HOOKS[kind])(module, hook.name)
            else:
                continue
            kinds.setdefault(_WORDS.get(kind, "pruning masks"), []).append(name)
    return tuple(
        f"{kind} of {len(names)} tensor(s) were resolved into plain weights, first '{names[0]}'"
        for kind, names in kinds.items()
    )


_OLD_HOOKS = {"WeightNorm": "remove_weight_norm", "SpectralNorm": "remove_spectral_norm"}
_WORDS = {"WeightNorm": "weight norms", "SpectralNorm": "spectral norms"}

_Key = tuple[Callable[..., Any], tuple[tuple[str, int], ...]]
_seen: dict[_Key, Seen] = {}
"""What is known of each network that was built, by its factory and arguments."""


def _key(factory: Callable[..., Any], arguments: Mapping[str, int]) -> _Key:
    return factory, tuple(sorted(arguments.items()))


def _call(
    name: str, offered: Mapping[str, int], known: Iterable[str]
) -> tuple[Callable[..., Any], dict[str, int]]:
    """The factory `name`, and the arguments that it takes."""
    where, _, attribute = name.partition(":")
    factory = getattr(_module(where, known), attribute, None)
    if not callable(factory):
        raise UsageError(
            f"'{where}' has no callable '{attribute}': name a function or class that returns "
            "a torch.nn.Module"
        )
    parameters = inspect.signature(factory).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return factory, {k: v for k, v in offered.items() if takes_all or k in parameters}


_files: dict[tuple[Path, bytes], ModuleType] = {}
"""Modules by path and content: a file that has not changed is one module, so that all networks
built from it are of one class.
"""


def _module(where: str, known: Iterable[str]) -> ModuleType:
    """The module called `where`, or the Python file at that path."""
    torchvision()  # so that the user's own import of it works with a CPU build of torch
    if not where.endswith(".py"):
        try:
            return importlib.import_module(where)
        except ImportError as error:
            raise UnknownNameError(
                "model", where, known, f"(or is the package '{where}' not installed?)"
            ) from error
    path = Path(where)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UsageError(f"model file '{where}' does not exist: give file.py:factory")
    key = (path.resolve(), path.read_bytes())
    if key not in _files:
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except ModuleNotFoundError as error:
            raise EnvironmentMissingError(
                f"model file '{where}' needs the package '{error.name}': install it here"
            ) from error
        except (Exception, SystemExit) as error:
            raise UsageError(f"model file '{where}' cannot be run: {blamed(error)}") from error
        _files[key] = module
    return _files[key]
