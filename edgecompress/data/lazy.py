"""Images that stay on disk: decoded when a batch asks for them, by several threads, since a large
data set does not fit into memory.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

READERS = max(2, min(16, os.cpu_count() or 2))


TAIL = 1024
"""Bytes at the end of a file that stand for its content: compressed images differ there."""


class FilePixels:
    """Like a uint8 tensor (N, 3, side, side) for what the rest of the package asks of one: shape,
    rows by index, parts, digest.
    """

    dtype, device = torch.uint8, torch.device("cpu")

    def __init__(
        self,
        files: Sequence[Path],
        side: int,
        read: Callable[[Path], Tensor],
        places: Tensor | None = None,
    ) -> None:
        self.files, self.side, self.read = files, side, read
        self.places = torch.arange(len(files)) if places is None else places

    @property
    def shape(self) -> torch.Size:
        """(N, 3, side, side)."""
        return torch.Size((len(self.places), 3, self.side, self.side))

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Tensor:
        """The images at `index` (a slice or a tensor of numbers), decoded: (B, 3, side, side)."""
        chosen = self.places[index.cpu() if isinstance(index, Tensor) else index]
        with ThreadPoolExecutor(READERS) as pool:
            images = list(
                pool.map(self.read, [self.files[place] for place in chosen.reshape(-1).tolist()])
            )
        return (
            torch.stack(images)
            if images
            else torch.empty((0, 3, self.side, self.side), dtype=torch.uint8)
        )

    def rows(self, index: Tensor) -> FilePixels:
        """Those at `index`, still on disk."""
        return FilePixels(self.files, self.side, self.read, self.places[index])

    def split(self, size: int) -> Iterator[Tensor]:
        """All images in parts of `size`."""
        return (
            self[torch.arange(start, min(start + size, len(self)))]
            for start in range(0, len(self), size)
        )

    def to(self, device: torch.device) -> FilePixels:
        """Themselves: a batch is moved once it is decoded."""
        return self

    def digest(self) -> bytes:
        """SHA-256 of each file's name and folder, size and last bytes: the same for the same images
        on another machine.
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
    """The rows of `pixels` for each of `batches` (B,), in order; those of files are decoded one
    batch ahead.
    """
    if isinstance(pixels, Tensor):
        yield from (pixels[ids.to(pixels.device)] for ids in batches)
        return
    with ThreadPoolExecutor(1) as ahead:
        waiting = [ahead.submit(pixels.__getitem__, ids) for ids in batches[:1]]
        for number in range(len(batches)):
            ready = waiting.pop()
            if number + 1 < len(batches):
                waiting.append(ahead.submit(pixels.__getitem__, batches[number + 1]))
            yield ready.result()
