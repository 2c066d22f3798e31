"""Networks by name: our own, torchvision's, timm's, and the user's factories.

vgg16, resnet18, ...            torchvision's own classes, with a head for the data's classes
resnet20, resnet18-cifar, ...   ours, for 32×32 images
vgg16-nobias                    torchvision's VGG16 without biases (the teacher of García
                                González, 2022); accepts VGG16's weights
torchvision:NAME, timm:NAME     NAME from that library
pkg.mod:factory, file.py:factory   the user's, called as factory(num_classes=...,
                                in_channels=...) or with those arguments that it accepts
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from edgecompress.errors import EnvironmentMissingError, UnknownNameError, UsageError, blamed
from edgecompress.models.resnet import CifarResNet
from edgecompress.models.small import LeNet, Mlp
from edgecompress.models.students import Student
from edgecompress.models.vision import torchvision, vgg16_nobias


@dataclass(frozen=True)
class ModelSource:
    """What a network is built from: its name, the number of classes, and the shape (C, H, W) of its
    input images.
    """

    name: str
    num_classes: int
    image_shape: tuple[int, int, int]


_OWN: dict[str, Callable[..., nn.Module]] = {
    "student1": partial(Student, 1),
    "student2": partial(Student, 2),
    "student3": partial(Student, 3),
    "resnet20": partial(CifarResNet, (3, 3, 3), (16, 32, 64)),
    "resnet18-cifar": partial(CifarResNet, (2, 2, 2, 2), (64, 128, 256, 512)),
    "lenet5": LeNet,
    "vgg16-nobias": vgg16_nobias,
}


def _torchvision_names() -> list[str]:
    models = torchvision().models
    return list(models.list_models(module=models))


def model_names() -> list[str]:
    """Every name that `build` knows without a prefix."""
    return sorted([*_OWN, "mlp", *_torchvision_names()])


def runs_user_code(name: str) -> bool:
    """True for `file.py:factory` and `pkg.mod:factory`: building them executes the user's code."""
    head, _, rest = name.partition(":")
    return bool(rest) and head not in ("torchvision", "timm")


def build(source: ModelSource) -> nn.Module:
    """A freshly initialised network: images (N, C, H, W) to logits (N, num_classes).

    Raises `UsageError` for an unknown name, a factory that cannot be called, or images that the
    network cannot read, and `EnvironmentMissingError` when its library is not installed.
    """
    model = _built(source)
    other = next(((n, p) for n, p in model.named_parameters() if p.dtype in _OTHER_FLOATS), None)
    if other is not None:
        raise UsageError(
            f"model '{source.name}' has {str(other[1].dtype).removeprefix('torch.')} in "
            f"'{other[0]}': networks are trained and exported in float32; build it without "
            ".double() or .half(), and give --quantize fp16 for a file in half precision"
        )
    return model


_OTHER_FLOATS = (torch.float64, torch.float16, torch.bfloat16)


def _built(source: ModelSource) -> nn.Module:
    """The network, of any type."""
    name = source.name
    if name == "mlp":
        return Mlp(math.prod(source.image_shape), (100,), source.num_classes)
    if name in _OWN:
        return _OWN[name](num_classes=source.num_classes, in_channels=source.image_shape[0])
    prefix, _, rest = name.partition(":")
    if prefix == "timm":
        return _from_timm(rest, source)
    if rest and prefix != "torchvision":
        return _from_factory(prefix, rest, source)
    return _from_torchvision(rest or name, source)


SMALL_IMAGES = 32
"""Side of the images of the CIFAR family, the students and LeNet."""
IMAGENET_IMAGES = 224
INCEPTION_IMAGES = 299


def default_image_size(name: str) -> int:
    """Side in pixels of the images that the network called `name` is made for: 32 for networks of
    small images, what timm's configuration says, else ImageNet's 224 (also for the user's own).
    """
    if name == "mlp" or (name in _OWN and name != "vgg16-nobias"):
        return SMALL_IMAGES
    prefix, _, rest = name.partition(":")
    if prefix == "timm":
        return _timm_image_size(rest)
    return INCEPTION_IMAGES if (rest or name) == "inception_v3" else IMAGENET_IMAGES


def _timm_image_size(name: str) -> int:
    known = _timm(name).models.get_pretrained_cfg(name, allow_unregistered=True)
    return int(known.input_size[-1]) if known is not None else IMAGENET_IMAGES


def _timm(name: str) -> ModuleType:
    """The package timm, which the model `name` needs. Raises `EnvironmentMissingError` without."""
    torchvision()  # timm imports it, which fails beside a CPU build of torch unless it was mended
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise EnvironmentMissingError(
            f"model 'timm:{name}' needs timm: run pip install 'edgecompress[zoo]'"
        ) from error


def _from_torchvision(name: str, source: ModelSource) -> nn.Module:
    if name not in _torchvision_names():
        raise UnknownNameError("model", name, model_names())
    if source.image_shape[0] != 3:
        raise UsageError(
            f"model '{name}' reads RGB, the data has {source.image_shape[0]} channel(s): use "
            "RGB images"
        )
    # without the auxiliary classifiers, which have outputs of their own in training
    auxiliary = name in ("googlenet", "inception_v3")
    options = {"aux_logits": False, "init_weights": True} if auxiliary else {}
    model = torchvision().models.get_model(
        name, weights=None, num_classes=source.num_classes, **options
    )
    if not isinstance(model, nn.Module):
        raise UsageError(f"torchvision returned no module for '{name}'")
    return model


def _from_timm(name: str, source: ModelSource) -> nn.Module:
    timm = _timm(name)
    if name not in timm.list_models():
        raise UnknownNameError("model", f"timm:{name}", [f"timm:{n}" for n in timm.list_models()])
    model = timm.create_model(
        name, pretrained=False, num_classes=source.num_classes, in_chans=source.image_shape[0]
    )
    if not isinstance(model, nn.Module):
        raise UsageError(f"timm returned no module for '{name}'")
    return model


def _from_factory(where: str, attribute: str, source: ModelSource) -> nn.Module:
    """What the user's factory returns, called with those of our arguments that it accepts."""
    factory = getattr(_module(where), attribute, None)
    if not callable(factory):
        raise UsageError(
            f"'{where}' has no callable '{attribute}': name a function or class that returns "
            "a torch.nn.Module"
        )
    offered = {"num_classes": source.num_classes, "in_channels": source.image_shape[0]}
    parameters = inspect.signature(factory).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    try:
        model = factory(**{k: v for k, v in offered.items() if takes_all or k in parameters})
    except Exception as error:  # whatever the user's code raises
        raise UsageError(f"'{where}:{attribute}' cannot be built: {blamed(error)}") from error
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"'{where}:{attribute}' returned a {type(model).__name__}: a torch.nn.Module is needed"
        )
    return model


_files: dict[tuple[Path, bytes], ModuleType] = {}
"""Modules by path and content: a file that has not changed is one module, so that all networks
built from it are of one class.
"""


def _module(where: str) -> ModuleType:
    """The module called `where`, or the Python file at that path."""
    torchvision()  # so that the user's own import of it works with a CPU build of torch
    if not where.endswith(".py"):
        try:
            return importlib.import_module(where)
        except ImportError as error:
            raise UnknownNameError(
                "model", where, model_names(), f"(or is the package '{where}' not installed?)"
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
