"""Images that stay on disk and are decoded batch by batch, by several threads: for data sets that
do not fit into memory.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

READERS = max(2, min(16, os.cpu_count() or 2))
"""Threads that decode."""

TAIL = 1024
"""Bytes at the end of a file that stand for its content: compressed images differ there."""


class FilePixels:
    """Image files with the interface of a uint8 tensor (N, 3, side, side) that the package uses:
    shape, rows by index, parts, digest.

    `read` decodes one file to (3, side, side); `places` (N,) are the indices of the images in
    `files`, by default all.
    """

    dtype = torch.uint8
    device = torch.device("cpu")

    def __init__(
        self,
        files: Sequence[Path],
        side: int,
        read: Callable[[Path], Tensor],
        places: Tensor | None = None,
    ) -> None:
        self.files = files
        self.side = side
        self.read = read
        self.places = torch.arange(len(files)) if places is None else places

    @property
    def shape(self) -> torch.Size:
        """(N, 3, side, side)."""
        return torch.Size((len(self.places), 3, self.side, self.side))

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: slice | Tensor) -> Tensor:
        """The images at `index`, a slice or (B,) int64, decoded: uint8 (B, 3, side, side)."""
        chosen = self.places[index.cpu() if isinstance(index, Tensor) else index]
        files = [self.files[place] for place in chosen.reshape(-1).tolist()]
        if not files:
            return torch.empty((0, 3, self.side, self.side), dtype=torch.uint8)
        with ThreadPoolExecutor(READERS) as pool:
            return torch.stack(list(pool.map(self.read, files)))

    def rows(self, index: Tensor) -> FilePixels:
        """The images at `index` (B,), still on disk."""
        return FilePixels(self.files, self.side, self.read, self.places[index])

    def split(self, size: int) -> Iterator[Tensor]:
        """All images, decoded in parts of `size`: (size, 3, side, side) each, the last smaller."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def to(self, device: torch.device) -> FilePixels:
        """Unchanged: a batch is moved once it is decoded."""
        return self

    def digest(self) -> bytes:
        """SHA-256 over each file's folder and name, size and last bytes: the same on every machine
        for the same images.
        """
        hashed = hashlib.sha256()
        for place in self.places.tolist():
            path = self.files[place]
            size = path.stat().st_size
            with path.open("rb") as file:
                file.seek(max(0, size - TAIL))
                hashed.update(f"{path.parent.name}/{path.name} {size} ".encode() + file.read(TAIL))
        return hashed.digest()


def fetched(pixels: Tensor | FilePixels, batches: Sequence[Tensor]) -> Iterator[Tensor]:
    """The rows (B, C, H, W) of `pixels` (N, C, H, W) for each of `batches`, indices (B,), in order.
    Images on disk are decoded one batch ahead.
    """
    if isinstance(pixels, Tensor):
        yield from (pixels[ids.to(pixels.device)] for ids in batches)
        return
    if not batches:
        return
    with ThreadPoolExecutor(1) as decoder:
        pending = decoder.submit(pixels.__getitem__, batches[0])
        for following in batches[1:]:
            ready = pending
            pending = decoder.submit(pixels.__getitem__, following)
            yield ready.result()
        yield pending.result()
