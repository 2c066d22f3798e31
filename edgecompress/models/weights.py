"""Pretrained weights: `imagenet` (torchvision's own download) or a file of tensors. A head of
another width is replaced.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlparse

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from edgecompress.errors import EnvironmentMissingError, UsageError
from edgecompress.files import cache_dir
from edgecompress.models.registry import ModelSource, build
from edgecompress.models.vision import torchvision


def load_weights(source: ModelSource, weights: str) -> nn.Module:
    """A network built from `source` with the tensors of `weights`: `imagenet`, or a .safetensors or
    .pt file of tensors.

    Tensors that the network has no place for (the biases, for `vgg16-nobias`) are left out. The
    last layer keeps its fresh initialisation when the file's has another number of classes. Raises
    `UsageError` when other tensors do not fit, `EnvironmentMissingError` when `imagenet` is not on
    disk and cannot be downloaded.
    """
    path = imagenet_file(source.name) if weights == "imagenet" else Path(weights)
    return place(build(source), read_tensors(path), str(path))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors file, or from a .pt file that holds nothing but tensors
    (`weights_only`).
    """
    if not path.is_file():
        raise UsageError(f"weights '{path}' do not exist: give a .safetensors or .pt file")
    try:
        if path.suffix == ".safetensors":
            stored: dict[str, Tensor] = load_file(path)
            return _without_masks(stored)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling refuses in many ways; each means the same to the user
        if isinstance(error, (SafetensorError, OSError)):
            raise UsageError(
                f"weights '{path}' cannot be read: {str(error).splitlines()[0]}; give a whole file"
            ) from error
        raise UsageError(
            f"weights '{path}' need unpickling, which can run code: save the state dict with "
            "safetensors"
        ) from error
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise UsageError(f"weights '{path}' hold no state dict: save model.state_dict()")
    return _without_masks(loaded)


def _without_masks(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the masks of torch.nn.utils.prune multiplied in: `weight_orig` and
    `weight_mask` become `weight`.
    """
    plain = dict(tensors)
    for key in tensors:
        name = key.removesuffix("_orig")
        if name != key and f"{name}_mask" in tensors:
            plain[name] = plain.pop(key) * plain.pop(f"{name}_mask")
    return plain


def place(model: nn.Module, tensors: dict[str, Tensor], path: str) -> nn.Module:
    """`model` with `tensors` in place; only the last layer may differ in its number of classes."""
    expected = model.state_dict()
    last = [n for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]
    wrong = [
        key
        for key, tensor in expected.items()
        if (key not in tensors or tensors[key].shape != tensor.shape)
        and not key.startswith(f"{last}.")
        and not key.endswith("num_batches_tracked")
    ]
    if wrong:
        raise UsageError(
            f"weights '{path}' do not fit {type(model).__name__}: {len(wrong)} tensors "
            f"differ, first '{wrong[0]}'"
        )
    fitting = {k: v for k, v in tensors.items() if k in expected and v.shape == expected[k].shape}
    model.load_state_dict(fitting, strict=False)
    return model


def imagenet_file(name: str) -> Path:
    """The file of torchvision's default ImageNet weights for `name`: from our cache, torch's cache,
    or downloaded into ours.

    Raises `EnvironmentMissingError` with the file to place and where, when there is no network.
    """
    models = torchvision().models
    try:
        url = models.get_model_weights(
            name.removeprefix("torchvision:").removesuffix("-nobias")
        ).DEFAULT.url
    except ValueError as error:
        raise UsageError(
            f"model '{name}' has no ImageNet weights: use --weights FILE, or a torchvision model"
        ) from error
    filename = Path(urlparse(url).path).name
    wanted = cache_dir() / "weights" / filename
    for path in (wanted, Path(torch.hub.get_dir()) / "checkpoints" / filename):
        if path.is_file():
            return path
    try:
        wanted.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(
            url, str(wanted), hash_prefix=filename.rpartition("-")[2].split(".")[0], progress=False
        )
    except (OSError, RuntimeError) as error:
        raise EnvironmentMissingError(
            f"weights 'imagenet' for {name} cannot be downloaded here: place the file "
            f"{filename} (from {url}) at {wanted}"
        ) from error
    return wanted
