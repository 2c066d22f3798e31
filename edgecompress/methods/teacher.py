"""A fixed teacher: what it says of the training images, computed once for each view of them and
kept, in memory and on disk.

A table on disk is found by what decides its values: the teacher's tensors and what it says of a few
images (so its code counts too), the pixels, the augmentation and its seed, the view, how the
teacher reads pixels, and k. Another teacher or data set therefore never finds it. The teacher is in
eval mode, has no gradients, and is not changed; `untouched` proves it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from edgecompress import files
from edgecompress.data import DataSet, Preprocess
from edgecompress.data.images import Augmentation
from edgecompress.errors import EdgecompressError
from edgecompress.methods.distill import Target, TopK
from edgecompress.train.batches import Batch, compact

TABLES_IN_MEMORY = 4
CACHE_LIMIT = 2 * 10**9
"""Bytes that the tables of all teachers may take on disk; the oldest go first."""


def digest(model: nn.Module) -> str:
    """SHA-256 (hex) of every tensor that `model` stores, by name: BatchNorm's statistics too."""
    hashed = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        hashed.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        hashed.update(
            tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return hashed.hexdigest()


class FixedTeacher:
    """Answers `teacher(batch)` with the logits (B, K) of `model`, or its k largest (`TopK` at
    `temperature`), for training batches.
    """

    def __init__(
        self,
        model: nn.Module,
        data: DataSet,
        device: torch.device,
        *,
        preprocess: Preprocess | None = None,
        augmentation: Augmentation | None = None,
        view_seed: int = 0,
        top_k: int | None = None,
        temperature: float = 4.0,
        folder: Path | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> None:
        self.model, self.data, self.device = model.to(device).eval(), data, device
        self.preprocess = preprocess or data.preprocess
        self.augmentation = data.augmentation if augmentation is None else augmentation
        self.view_seed, self.top_k, self.temperature, self.folder, self.on_step = (
            view_seed,
            top_k,
            temperature,
            folder,
            on_step,
        )
        self.digest = digest(model)
        self.fill = torch.tensor([round(255 * m) for m in data.preprocess.mean])
        self.probe = self._probe()
        self.computed, self.read = 0, 0
        self._tables: dict[int, dict[str, Tensor]] = {}
        self._pixels = data.training_key()["pixels"]

    def __call__(self, batch: Batch) -> Target:
        """What the teacher says of `batch`."""
        view = batch.view if self.augmentation.active else 0
        table = self._tables.get(view)
        if table is None:
            if self.folder is not None and len(self._tables) >= TABLES_IN_MEMORY:
                self._tables.pop(next(iter(self._tables)))  # it stays on disk
            table = self._tables[view] = self._table(view)
        rows = {name: values[batch.ids].to(batch.images.device) for name, values in table.items()}
        if "logits" in rows:
            return rows["logits"]
        return TopK(rows["values"], rows["indices"].long(), rows["rest"])

    def untouched(self) -> str:
        """The digest of the teacher, which must still be the one it began with. Raises
        `EdgecompressError` when it is not.
        """
        now = digest(self.model)
        if (
            now != self.digest
            or self.model.training
            or any(p.grad is not None for p in self.model.parameters())
        ):
            raise EdgecompressError(
                "the teacher changed while its student learned: this is a bug of "
                "edgecompress, please report it"
            )
        return now

    def key(self, view: int) -> dict[str, object]:
        """What decides the values of a table, as JSON values."""
        augmented = self.augmentation.active
        kept = None if self.top_k is None else {"k": self.top_k, "temperature": self.temperature}
        return {
            "schema": 2,
            "teacher": self.digest,
            "probe": self.probe,
            "pixels": self._pixels,
            "preprocess": self.preprocess.as_dict(),
            "kept": kept,
            "fill": self.fill.tolist() if self.augmentation.cutout else None,
            "augmentation": asdict(self.augmentation),
            "view_seed": self.view_seed if augmented else None,
            "view": view,
        }

    @torch.no_grad()
    def _probe(self) -> str:
        """What the teacher says of a few images, as SHA-256 (hex): its code decides its answers
        too, not only its tensors.
        """
        pixels = self.data.train.pixels[:8].to(self.device)
        said = self.model(compact(self.preprocess(pixels))).float().cpu()
        rounded = (said * 1000).round().to(torch.int64)
        return hashlib.sha256(rounded.numpy().tobytes()).hexdigest()

    def _table(self, view: int) -> dict[str, Tensor]:
        text = json.dumps(self.key(view), sort_keys=True)
        path = (
            self.folder / f"{hashlib.sha256(text.encode()).hexdigest()}.safetensors"
            if self.folder is not None
            else None
        )
        stored = _read(path, text, len(self.data.train)) if path is not None else None
        if stored is not None:
            self.read += 1
            return stored
        table = self._compute(view)
        self.computed += 1
        if path is not None:
            with files.whole(path) as temporary:
                save_file(table, temporary, {"key": text})
            _forget_oldest(path.parent)
        return table

    @torch.no_grad()
    def _compute(self, view: int, size: int = 256) -> dict[str, Tensor]:
        """One pass of the teacher over the training split as `view` shows it."""
        split, data = self.data.train, self.data
        shown = self.augmentation.view(len(split), data.native_shape[1:], self.view_seed, view)
        parts = []
        for number, ids in enumerate(torch.arange(len(split)).split(size)):
            pixels = shown(split.pixels[ids].to(self.device), ids, self.fill)
            parts.append(self.model(compact(self.preprocess(pixels))).float().cpu())
            if self.on_step is not None:
                self.on_step(number + 1, -(-len(split) // size))
        logits = torch.cat(parts).contiguous()
        return (
            {"logits": logits}
            if self.top_k is None
            else _largest(logits, self.top_k, self.temperature)
        )


def _largest(logits: Tensor, k: int, temperature: float) -> dict[str, Tensor]:
    """The `TopK` of `logits` (N, K) as tensors to store."""
    values, indices = logits.topk(min(k, logits.shape[1]), 1)
    rest = (logits / temperature).scatter(1, indices, float("-inf")).logsumexp(1)
    return {
        "values": values.contiguous(),
        "indices": indices.to(torch.int32).contiguous(),
        "rest": rest,
    }


def _read(path: Path, key: str, count: int) -> dict[str, Tensor] | None:
    """The table at `path` if it is whole and is the one that `key` describes."""
    try:
        with safe_open(path, "pt") as opened:
            if (opened.metadata() or {}).get("key") != key:
                return None
            table = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is no dict)
    except (OSError, SafetensorError):
        return None
    return table if all(len(values) == count for values in table.values()) else None


def _forget_oldest(folder: Path) -> None:
    """Remove the oldest tables until all of them take at most `CACHE_LIMIT` bytes."""
    found = sorted((p.stat().st_mtime, p.stat().st_size, p) for p in folder.glob("*.safetensors"))
    total = sum(size for _, size, _ in found)
    for _, size, path in found[:-1]:
        if total <= CACHE_LIMIT:
            return
        path.unlink(missing_ok=True)
        total -= size
