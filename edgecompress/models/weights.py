"""Pretrained weights: `imagenet` (torchvision's own download) or a file of tensors. A head with
another number of classes keeps its fresh initialisation.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlparse

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from edgecompress.download import fetch
from edgecompress.errors import EnvironmentMissingError, UsageError
from edgecompress.files import cache_dir
from edgecompress.files import digest as file_digest
from edgecompress.models.registry import ModelSource, build
from edgecompress.models.vision import torchvision


def load_weights(source: ModelSource, weights: str) -> nn.Module:
    """A network built from `source` with the tensors of `weights`: `imagenet`, or a .safetensors or
    .pt file of tensors.

    Tensors that the network does not have (the biases, for `vgg16-nobias`) are ignored. The last
    layer keeps its fresh initialisation when that in the file has another number of classes.

    Raises `UsageError` when other tensors do not fit, and `EnvironmentMissingError` when `imagenet`
    is not on disk and cannot be downloaded.
    """
    path = imagenet_file(source.name) if weights == "imagenet" else Path(weights)
    model = build(source)
    load_into_(model, read_tensors(path), str(path))
    return model


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors (...) by name from a .safetensors file, or from a .pt file that holds only tensors
    (`weights_only`).

    Raises `UsageError` for a missing or damaged file, and for one that would have to be unpickled.
    """
    if not path.is_file():
        raise UsageError(f"weights '{path}' do not exist: give a .safetensors or .pt file")
    try:
        if path.suffix == ".safetensors":
            stored: dict[str, Tensor] = load_file(path)
            return _without_masks(_unwrapped(stored))
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling refuses in many ways; each means the same to the user
        if isinstance(error, (SafetensorError, OSError)):
            raise UsageError(
                f"weights '{path}' cannot be read: {str(error).splitlines()[0]}; replace it"
            ) from error
        raise UsageError(
            f"weights '{path}' need unpickling, which can run code: save the state dict with "
            "safetensors"
        ) from error
    tensors = _state_dict(loaded)
    if tensors is None:
        raise UsageError(f"weights '{path}' hold no state dict: save model.state_dict()")
    return _without_masks(_unwrapped(tensors))


def _state_dict(loaded: object) -> dict[str, Tensor] | None:
    """The tensors by name in what a file holds: a state dict, or that of a training's checkpoint
    (`{"state_dict": ..., "epoch": 3}`).
    """
    if not isinstance(loaded, dict):
        return None
    if loaded and all(isinstance(value, Tensor) for value in loaded.values()):
        return loaded
    inner = (_state_dict(loaded[key]) for key in _NESTED if key in loaded)
    return next((tensors for tensors in inner if tensors is not None), None)


_NESTED = ("state_dict", "model_state_dict", "model")
"""Where the checkpoints of trainings keep a network."""
_WRAPPERS = ("module.", "_orig_mod.")
"""What `DataParallel` and `torch.compile` put before each name."""


def _unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the names that they have in the network itself."""
    for prefix in _WRAPPERS:
        if tensors and all(name.startswith(prefix) for name in tensors):
            return _unwrapped({name.removeprefix(prefix): t for name, t in tensors.items()})
    return tensors


def _without_masks(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the masks of `torch.nn.utils.prune` multiplied in: `weight_orig` and
    `weight_mask` become `weight`.
    """
    plain = dict(tensors)
    for key in tensors:
        name = key.removesuffix("_orig")
        if name != key and f"{name}_mask" in tensors:
            plain[name] = plain.pop(key) * plain.pop(f"{name}_mask")
    return plain


def load_into_(model: nn.Module, tensors: dict[str, Tensor], path: str) -> None:
    """Load `tensors` (...) by name, read from `path`, into `model`, in place; only the last layer
    may differ in its number of classes.

    Raises `UsageError` naming the first tensor that does not fit.
    """
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


def imagenet_file(name: str) -> Path:
    """The file of torchvision's default ImageNet weights for `name`: from our cache, from torch's,
    or downloaded into ours.

    Raises `UsageError` for a model without ImageNet weights, and `EnvironmentMissingError` with the
    file to place and where, when it cannot be downloaded.
    """
    url = _imagenet_url(name)
    filename = Path(urlparse(url).path).name
    cached = cache_dir() / "weights" / filename
    for path in (cached, Path(torch.hub.get_dir()) / "checkpoints" / filename):
        if path.is_file():
            return path
    arriving = cached.with_suffix(".unchecked")
    try:
        fetch(url, arriving)
    except OSError as error:
        raise EnvironmentMissingError(
            f"weights 'imagenet' for {name} cannot be downloaded here: place the file "
            f"{filename} (from {url}) at {cached}"
        ) from error
    checked(arriving, filename)
    arriving.replace(cached)
    return cached


def checked(path: Path, filename: str) -> None:
    """Raises `UsageError`, and removes `path`, where it has not the digest that torchvision puts
    into `filename`: resnet18-f37072fd.pth begins with SHA-256 f37072fd.
    """
    prefix = filename.rpartition("-")[2].split(".")[0]
    digest = file_digest(path)
    if not digest.startswith(prefix):
        path.unlink()
        raise UsageError(
            f"{filename} arrived with SHA-256 {digest[: len(prefix)]}..., not {prefix}...: it was "
            "damaged or replaced on the way; try again"
        )


def _imagenet_url(name: str) -> str:
    base = name.removeprefix("torchvision:").removesuffix("-nobias")
    try:
        return str(torchvision().models.get_model_weights(base).DEFAULT.url)
    except ValueError as error:
        raise UsageError(
            f"model '{name}' has no ImageNet weights: use --weights FILE, or a torchvision model"
        ) from error
