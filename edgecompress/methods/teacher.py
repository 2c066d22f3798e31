"""A fixed teacher: its logits for the training images, computed once for each view of them and
cached, in memory and on disk.

A table on disk is addressed by what decides its values: the teacher's tensors and its logits for a
few images (so that its code counts too), the pixels, the augmentation and its seed, the view, how
the teacher reads pixels, and k. A different teacher or data set therefore never finds it. The
teacher is in eval mode, has no gradients, and is not changed; `untouched` verifies it.
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
from edgecompress.methods.sources import Target, TopK
from edgecompress.train.batches import Batch
from edgecompress.train.modes import autocast_for, outputs_of

Table = dict[str, Tensor]
"""The teacher's answers to the N training images of one view: `logits` (N, K), or the fields of a
`TopK` with N rows.
"""

TABLES_IN_MEMORY = 4
CACHE_LIMIT = 2 * 10**9
"""Bytes that the tables of all teachers may take on disk; the oldest are removed first."""
CHUNK = 256
"""Images per forward pass."""


def digest(model: nn.Module) -> str:
    """SHA-256 (hex) of every tensor in the state of `model`, with its name: BatchNorm's statistics
    too.
    """
    hashed = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        hashed.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        hashed.update(raw.numpy().tobytes())
    return hashed.hexdigest()


class FixedTeacher:
    """A source of the logits (B, K) of `model`, or of its `top_k` largest (`TopK` at
    `temperature`), for training batches of `data`.

    `preprocess` is how the teacher reads pixels, `augmentation` and `view_seed` decide the views;
    the defaults are those of `data`. It computes in `precision`, as its student does. Tables are
    cached in `folder`, if given. `computed` and `read` count the tables computed, and read from
    there. `on_step(step, steps)` shows the progress.
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
        precision: str = "fp32",
        folder: Path | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> None:
        self.model = model.to(device).eval()
        self.data = data
        self.device = device
        self.preprocess = preprocess or data.preprocess
        self.augmentation = data.augmentation if augmentation is None else augmentation
        self.view_seed = view_seed
        self.top_k = top_k
        self.temperature = temperature
        self.autocast = autocast_for(precision, device)
        self.folder = folder
        self.on_step = on_step

        self.fill = data.fill  # (C,)
        self.digest = digest(model)
        self.probe = self._probe()
        self._pixels = data.training_key()["pixels"]

        self.computed = 0
        self.read = 0
        self._tables: dict[int, Table] = {}

    def logits(self, batch: Batch) -> Target:
        """The teacher's logits (B, K), or the largest, for `batch`."""
        table = self._table(batch.view if self.augmentation.active else 0)
        rows = {name: values[batch.ids].to(batch.images.device) for name, values in table.items()}
        if "logits" in rows:
            return rows["logits"]
        return TopK(rows["values"], rows["indices"].long(), rows["rest"])

    def untouched(self) -> str:
        """The digest of the teacher, which must still be the one it started with. Raises
        `EdgecompressError` if it is not.
        """
        now = digest(self.model)
        has_gradients = any(p.grad is not None for p in self.model.parameters())
        if now != self.digest or self.model.training or has_gradients:
            raise EdgecompressError(
                "the teacher changed while its student learned: this is a bug of "
                "edgecompress, please report it"
            )
        return now

    def key(self, view: int) -> dict[str, object]:
        """What decides the values of the table of `view`, as JSON values."""
        top_k = None if self.top_k is None else {"k": self.top_k, "temperature": self.temperature}
        return {
            "schema": 2,
            "teacher": self.digest,
            "probe": self.probe,
            "pixels": self._pixels,
            "preprocess": self.preprocess.as_dict(),
            "kept": top_k,
            "fill": self.fill.tolist() if self.augmentation.cutout else None,
            "augmentation": asdict(self.augmentation),
            "view_seed": self.view_seed if self.augmentation.active else None,
            "view": view,
        }

    @torch.no_grad()
    def _probe(self) -> str:
        """The teacher's logits for a few images, as SHA-256 (hex): its answers depend on its code,
        not only on its tensors.
        """
        pixels = self.data.train.pixels[:8].to(self.device)
        logits = self._answers(pixels)
        rounded = (logits * 1000).round().to(torch.int64)
        return hashlib.sha256(rounded.numpy().tobytes()).hexdigest()

    def _answers(self, pixels: Tensor) -> Tensor:
        """The teacher's logits (B, K) for uint8 `pixels` (B, C, H, W), float32 on the CPU."""
        with self.autocast():
            logits = outputs_of(self.model, self.preprocess(pixels))
        return logits.float().cpu()

    def _table(self, view: int) -> Table:
        """The table of `view`, from memory, from disk, or computed."""
        if view in self._tables:
            return self._tables[view]
        if self.folder is None:
            self._tables[view] = self._computed(view)
            return self._tables[view]
        if len(self._tables) >= TABLES_IN_MEMORY:
            self._tables.pop(next(iter(self._tables)))  # it stays on disk
        self._tables[view] = self._cached(view, self.folder)
        return self._tables[view]

    def _cached(self, view: int, folder: Path) -> Table:
        """The table of `view` in `folder`, which is written there if it is not."""
        key = json.dumps(self.key(view), sort_keys=True)
        path = folder / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"
        stored = _read(path, key, len(self.data.train))
        if stored is not None:
            self.read += 1
            return stored
        table = self._computed(view)
        with files.whole(path) as temporary:
            save_file(table, temporary, {"key": key})
        _remove_oldest(folder)
        return table

    @torch.no_grad()
    def _computed(self, view: int) -> Table:
        """The table of one pass of the teacher over the training split in `view`."""
        split = self.data.train
        height_and_width = self.data.native_shape[1:]
        shown = self.augmentation.view(len(split), height_and_width, self.view_seed, view)
        parts = []
        for number, ids in enumerate(torch.arange(len(split)).split(CHUNK), start=1):
            pixels = shown(split.pixels[ids].to(self.device), ids, self.fill)  # (B, C, H, W) uint8
            parts.append(self._answers(pixels))
            if self.on_step is not None:
                self.on_step(number, -(-len(split) // CHUNK))
        self.computed += 1
        logits = torch.cat(parts).contiguous()  # (N, K)
        if self.top_k is None:
            return {"logits": logits}
        return largest(logits, self.top_k, self.temperature)


def largest(logits: Tensor, k: int, temperature: float) -> Table:
    """The `TopK` of `logits` (N, K) at `temperature` as a table: `values` and `indices` (N, k), the
    indices as int32, and `rest` (N,).
    """
    values, indices = logits.topk(min(k, logits.shape[1]), 1)  # (N, k) each
    rest = (logits / temperature).scatter(1, indices, float("-inf")).logsumexp(1)  # (N,)
    return {
        "values": values.contiguous(),
        "indices": indices.to(torch.int32).contiguous(),
        "rest": rest,
    }


def _read(path: Path, key: str, count: int) -> Table | None:
    """The table at `path` if it is complete, of `count` rows, and the one that `key` describes."""
    try:
        with safe_open(path, "pt") as opened:
            if (opened.metadata() or {}).get("key") != key:
                return None
            names = list(opened.keys())
            table = {name: opened.get_tensor(name) for name in names}
    except (OSError, SafetensorError):
        return None
    return table if all(len(values) == count for values in table.values()) else None


def _remove_oldest(folder: Path) -> None:
    """Remove the oldest tables until all of them take at most `CACHE_LIMIT` bytes; the newest
    remains.
    """
    tables = sorted((p.stat().st_mtime, p.stat().st_size, p) for p in folder.glob("*.safetensors"))
    total = sum(size for _, size, _ in tables)
    for _, size, path in tables[:-1]:
        if total <= CACHE_LIMIT:
            return
        path.unlink(missing_ok=True)
        total -= size
