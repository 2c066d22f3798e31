"""Import torchvision, also where its compiled operators do not load (a CUDA build of it next to a
CPU build of torch).

The import then fails because the schemas of `torchvision::nms` and `::qnms` are missing. Declaring
them is enough for its models.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch
from torch import nn

from edgecompress.errors import EnvironmentMissingError, UsageError

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_libraries: list[torch.library.Library] = []
"""Keeps the declarations alive: they end with the last reference to their library."""


def torchvision() -> ModuleType:
    """The torchvision package. Raises `EnvironmentMissingError` when it is not installed."""
    try:
        return importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            raise
        raise EnvironmentMissingError(
            "torchvision is not installed: run pip install 'edgecompress[train]'"
        ) from error
    except (RuntimeError, OSError, ImportError):
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        library.define(schema)
    _libraries.append(library)
    return importlib.import_module("torchvision")


def vgg16_nobias(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """torchvision's VGG16 without biases, with the same layer names: images (N, 3, H, W) to logits
    (N, num_classes). The teacher of García González (2022), listing D.1.

    Raises `UsageError` unless `in_channels` is 3.
    """
    if in_channels != 3:
        raise UsageError(
            f"model 'vgg16-nobias' reads RGB, the data has {in_channels} channel(s): use RGB images"
        )
    model: nn.Module = torchvision().models.vgg16(weights=None, num_classes=num_classes)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_parameter("bias", None)
    return model
