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
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import ModuleType

import torch
from torch import nn

from edgecompress.errors import EnvironmentMissingError, UnknownNameError, UsageError
from edgecompress.models import own
from edgecompress.models.cifar import Vgg8, densenet_cifar, mobilenet_v2_cifar
from edgecompress.models.own import runs_user_code
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
    "resnet8": partial(CifarResNet, (1, 1, 1), (16, 32, 64)),
    "resnet20": partial(CifarResNet, (3, 3, 3), (16, 32, 64)),
    "resnet20x2": partial(CifarResNet, (3, 3, 3), (32, 64, 128)),
    "mobilenet_v2-cifar": mobilenet_v2_cifar,
    "densenet-cifar": densenet_cifar,
    "vgg8-cifar": Vgg8,
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


def build(source: ModelSource) -> nn.Module:
    """A freshly initialised network: images (N, C, H, W) to logits (N, num_classes).

    Raises `UsageError` for an unknown name, a factory that cannot be called, or images that the
    network cannot read, and `EnvironmentMissingError` when its library is not installed.
    """
    name = source.name
    if name == "mlp":
        return Mlp(math.prod(source.image_shape), (100,), source.num_classes)
    if name in _OWN:
        return _OWN[name](num_classes=source.num_classes, in_channels=source.image_shape[0])
    prefix, _, rest = name.partition(":")
    if prefix == "timm":
        return _from_timm(rest, source)
    if runs_user_code(name):
        return own.build_own(name, _offered(source), model_names(), source.image_shape)
    return _from_torchvision(rest or name, source)


def blank(source: ModelSource) -> nn.Module:
    """The network of `build` with its parameters on the meta device: no memory, no initialisation.
    The user's own code is not called again where it was before.
    """
    if runs_user_code(source.name):
        known = seen(source)
        return own.structure(build(source)) if known is None else known.network
    try:
        with torch.device("meta"):
            return build(source)
    except (RuntimeError, NotImplementedError):  # a constructor that reads the values of tensors
        return own.structure(build(source))


_UNREADABLE = (RuntimeError, ValueError, AssertionError, IndexError, TypeError)
"""What networks raise for images of a shape that they do not read."""


def reads(source: ModelSource) -> bool:
    """Does the network run on images of its source's shape? Raises `UsageError` for an unknown
    name.
    """
    network = blank(source).eval()
    try:
        with torch.no_grad():
            network(torch.zeros(1, *source.image_shape, device="meta"))
    except _UNREADABLE:
        return False
    return True


def unreadable(source: ModelSource) -> str | None:
    """Why the network does not run on images of its source's shape; None where it does. What the
    meta device refuses is tried for real.
    """
    if reads(source):
        return None
    try:
        with torch.no_grad():
            build(source).eval()(torch.zeros(1, *source.image_shape))
    except _UNREADABLE as error:
        return (str(error) or type(error).__name__).splitlines()[0]
    return None


def seen(source: ModelSource) -> own.Seen | None:
    """What is known of a network of the user's own code that was built before in this process."""
    if not runs_user_code(source.name):
        return None
    return own.seen(source.name, _offered(source), model_names())


def remarks(source: ModelSource) -> tuple[str, ...]:
    """What was done to the network that the user's own code returned, a sentence each."""
    known = seen(source)
    return () if known is None else known.remarks


def _offered(source: ModelSource) -> dict[str, int]:
    return {"num_classes": source.num_classes, "in_channels": source.image_shape[0]}


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
