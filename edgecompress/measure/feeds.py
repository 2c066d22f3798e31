"""Random inputs for timing a file whose inputs may have free sizes. numpy only."""

from __future__ import annotations

import numpy as np

from edgecompress.errors import UsageError
from edgecompress.measure.runtime import DTYPES, Array, Feeds, Input, Runtime, Shapes


def random_feeds(
    loaded: Runtime, size: int | None, generator: np.random.Generator, shapes: Shapes | None = None
) -> Feeds:
    """Inputs for timing in batches of `size` (None: 1, or the file's own): standard normal,
    random pixels, or for other integers 0 and 1.

    `shapes` are those that a user gave. Raises `UsageError`, which names the option, where a
    size is free and nothing says what it is, and for a batch that the file does not accept.
    """
    unknown = set(shapes or {}) - {one.name for one in loaded.inputs}
    if unknown:
        raise UsageError(
            f"--shape {min(unknown)}: '{loaded.path.name}' has no such input: it has "
            f"{', '.join(one.name for one in loaded.inputs)}"
        )
    own = loaded.batch
    if size is not None and own is not None and size != own:
        raise UsageError(
            f"--batch-size {size}: '{loaded.path.name}' takes batches of {own} only: give "
            f"--batch-size {own}, or export it with a free batch"
        )
    sizes = _all_sizes(loaded, size or own or 1, shapes or {})
    return {one.name: _random(one, sizes[one.name], generator) for one in loaded.inputs}


def _all_sizes(loaded: Runtime, count: int, shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """The complete shape of each input. Raises `UsageError` with those that are open."""
    sizes = {one.name: _sizes(loaded, one, count, shapes) for one in loaded.inputs}
    free = [one for one in loaded.inputs if 0 in sizes[one.name]]
    if free:
        shown = " and ".join(
            f"'{one.name}' of shape "
            f"({', '.join(str(size) if size else 'free' for size in one.sizes)})"
            for one in free
        )
        example = ",".join(
            f"{name}={'x'.join(str(size or 224) for size in sizes[name])}"
            for name in [*shapes, *(one.name for one in free)]
        )
        raise UsageError(
            f"'{loaded.path.name}' reads {shown}: say the sizes, e.g. --shape {example}"
        )
    return sizes


def _sizes(loaded: Runtime, one: Input, count: int, shapes: Shapes) -> tuple[int, ...]:
    """The shape of an input, 0 where nothing says a size."""
    if one.name in shapes:
        return _asked(loaded, one, tuple(shapes[one.name]))
    if not one.sizes:
        return ()
    sizes = (one.sizes[0] or count, *one.sizes[1:])
    if 0 not in sizes:
        return sizes
    known = tuple(loaded.metadata.integers("image_shape") or ())
    if len(known) == 3 and one.type == "tensor(uint8)":
        known = (*known[1:], known[0])
    return (sizes[0], *known) if len(known) == len(one.sizes) - 1 else sizes


def _asked(loaded: Runtime, one: Input, sizes: tuple[int, ...]) -> tuple[int, ...]:
    fits = len(sizes) == len(one.sizes) and all(
        own in (0, size) for own, size in zip(one.sizes, sizes, strict=True)
    )
    if not fits:
        raise UsageError(
            f"--shape {one.name}={'x'.join(map(str, sizes))}: '{loaded.path.name}' reads "
            f"{one.sizes} there (0 is free)"
        )
    return sizes


def _random(one: Input, sizes: tuple[int, ...], generator: np.random.Generator) -> Array:
    """Random values of the type of an input."""
    dtype = DTYPES.get(one.type)
    if dtype is None:
        raise UsageError(
            f"input '{one.name}' is of type {one.type}: numbers are needed to measure a model"
        )
    kind = np.dtype(dtype).kind
    if kind == "f":
        # of a scalar numpy returns no array, and ONNX Runtime takes nothing else
        return np.asarray(generator.standard_normal(sizes, dtype=np.float32), dtype=dtype)
    if dtype is np.uint8:
        return np.asarray(generator.integers(0, 256, sizes, dtype=np.uint8))
    return np.asarray(generator.integers(0, 2, sizes)).astype(dtype)
