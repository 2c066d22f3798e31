"""`edgecompress predict model.onnx IMAGE...` or `--data NAME`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgecompress.cli.console import Debug, ImageSize, Json, SkipBad, Threads, print_json, print_line
from edgecompress.errors import UsageError

if TYPE_CHECKING:
    from edgecompress.measure.runtime import Array, Runtime


def predict(
    model: Annotated[Path, typer.Argument(help="an .onnx file that edgecompress wrote")],
    images: Annotated[list[Path] | None, typer.Argument(help="image files")] = None,
    data: Annotated[str | None, typer.Option("--data", help="accuracy on the test split of this data")] = None,
    image_size: ImageSize = None,
    skip_bad: SkipBad = False,
    threads: Threads = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Labels and probabilities of images, or the accuracy on a data set's test split."""
    from edgecompress.measure import runtime

    if bool(images) == (data is not None):
        raise UsageError("predict needs images or --data, not both: give IMAGE... or --data digits")
    loaded = runtime.load(model, threads=threads)
    if data is not None:
        result = accuracy_on(loaded, data, image_size, skip_bad)
        print_json(result) if as_json else print_line(f"accuracy {result['accuracy']:.4f} on {result['images']} test images of {data}")
        return
    rows = [_label(loaded, path) for path in images or []]
    if as_json:
        print_json({"model": str(model), "predictions": rows})
        return
    for row in rows:
        print_line(f"{row['image']}: {row['label']} ({row['probability']:.1%})")


def accuracy_on(loaded: Runtime, name: str, image_size: int | None, skip_bad: bool) -> dict[str, Any]:
    """Accuracy of a loaded file on the test split of the data called `name`, read as the file's metadata say."""
    from edgecompress.data import Preprocess, load_data
    from edgecompress.measure import runtime

    said = loaded.metadata
    size = image_size or said.get("resize") or (loaded.input_shape[-1] if name.startswith("folder:") else None)
    data = load_data(name, image_size=size, skip_bad=skip_bad)
    if said.get("classes") not in (None, list(data.classes)):
        raise UsageError(f"'{loaded.path}' has classes {said['classes'][:4]}..., data '{name}' has {list(data.classes)[:4]}...")
    preprocess = Preprocess.from_dict(said) if "resize" in said and image_size is None else data.preprocess
    preprocess = replace(preprocess, mean=tuple(said.get("mean", preprocess.mean)), std=tuple(said.get("std", preprocess.std)))
    split = data.test
    logits = loaded.run_all(preprocess(part).numpy() for part in split.pixels.split(32))
    return {
        "model": str(loaded.path), "data": name, "split": "test", "images": len(split),
        "accuracy": runtime.accuracy(logits, split.labels.numpy()),
    }  # fmt: skip


def _statistics(loaded: Runtime, key: str) -> Array:
    import numpy as np

    values = loaded.metadata.get(key)
    if values is None:
        raise UsageError(f"'{loaded.path}' has no input normalisation in its metadata: export it with edgecompress")
    return np.asarray(values, dtype=np.float32).reshape(1, -1, 1, 1)


def _normalised(pixels: Array, mean: Array, std: Array) -> Array:
    """uint8 (N, C, H, W) to float32, as in training."""
    import numpy as np

    return (pixels.astype(np.float32) / np.float32(255) - mean) / std


def _label(loaded: Runtime, path: Path) -> dict[str, Any]:
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    channels, height, width = loaded.input_shape
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB" if channels == 3 else "L")
    except (OSError, UnidentifiedImageError) as error:
        raise UsageError(f"image '{path}' cannot be read: give a PNG or JPEG file") from error
    shorter = loaded.metadata.get("resize")
    scale = max(height / image.height, width / image.width)
    scale = max(scale, shorter / min(image.size)) if shorter else scale
    image = image.resize((max(width, round(image.width * scale)), max(height, round(image.height * scale))), Image.Resampling.BILINEAR)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    pixels = np.asarray(image.crop((left, top, left + width, top + height)))
    batch = pixels.reshape(height, width, channels).transpose(2, 0, 1)[None]
    logits = loaded.run(_normalised(batch, _statistics(loaded, "mean"), _statistics(loaded, "std")))[0].astype(np.float64)
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    classes = loaded.metadata.get("classes") or [str(i) for i in range(len(shares))]
    best = int(shares.argmax())
    return {"image": str(path), "label": classes[best], "probability": float(shares[best])}
