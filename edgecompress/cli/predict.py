"""`edgecompress predict model.onnx IMAGE...` or `--data NAME`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypedDict, final

import typer

from edgecompress.cli.console import (
    Debug,
    ImageSize,
    Json,
    SkipBad,
    Threads,
    print_json,
    print_line,
)
from edgecompress.errors import UsageError

if TYPE_CHECKING:
    from edgecompress.measure.runtime import Array, Runtime


class _Scored(TypedDict):
    model: str
    data: str
    split: str
    images: int


@final
class Accuracy(_Scored):
    """Accuracy 0..1 of a file on the `images` samples of a split."""

    accuracy: float


@final
class RegressionScore(_Scored):
    """The score of a regression on the `images` samples of a split; `metric_name`: r2."""

    metric: float
    metric_name: str
    loss: float


class Label(TypedDict):
    """The most probable class, and its probability 0..1."""

    label: str
    probability: float


Prediction = TypedDict(
    "Prediction",
    {"image": str, "label": str, "probability": float, "heads": list[Label], "class": str},
    total=False,
)
"""What a file says of an image: label and probability, or those of each of several `heads`; `class`
is the folder of the image, where folders name classes.
"""


class _Predictions(TypedDict):
    model: str
    predictions: list[Prediction]


class Predictions(_Predictions, total=False):
    """What a file says of images; of those in folders of classes, the accuracy 0..1 and their
    number.
    """

    accuracy: float
    images: int


def predict(
    model: Annotated[Path, typer.Argument(help="an .onnx file that edgecompress wrote")],
    images: Annotated[
        list[Path] | None,
        typer.Argument(help="image files; or a folder of them, in a sub-folder a class: accuracy"),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", help="accuracy on the test split of this data")
    ] = None,
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
    if data is None and image_size is not None:
        raise UsageError(
            "--image-size is about --data: of images the file itself says how it reads them"
        )
    loaded = runtime.load(model, threads=threads)
    if images and loaded.metadata.get("task") == "regression":
        raise UsageError(
            f"'{model}' answers with numbers, not classes, and reads no images: give --data"
        )
    if data is not None:
        result = accuracy_on(loaded, data, image_size, skip_bad)
        name = "accuracy" if "accuracy" in result else "R²"
        score = result["accuracy"] if "accuracy" in result else result["metric"]
        print_json(result) if as_json else print_line(
            f"{name} {score:.4f} on {result['images']} test samples of {data}"
        )
        return
    folders = [path for path in images or [] if path.is_dir()]
    if folders and len(images or []) > 1:
        raise UsageError(
            f"'{folders[0]}' is a folder beside other images: give one folder, or image files"
        )
    files = (
        _files(folders[0], loaded, skip_bad) if folders else [(path, None) for path in images or []]
    )
    if folders and loaded.metadata.get("heads"):
        raise UsageError(
            f"'{model}' has several heads, and a folder's classes are of one: give images, "
            "or --data A+B"
        )
    rows = [_label(loaded, path, wanted) for path, wanted in files]
    scored = [row["label"] == row["class"] for row in rows if "class" in row]
    found: Predictions = {"model": str(model), "predictions": rows}
    if scored:
        found["accuracy"] = sum(scored) / len(scored)
        found["images"] = len(scored)
    if as_json:
        print_json(found)
        return
    if scored:
        print_line(f"accuracy {found['accuracy']:.4f} on {len(scored)} images of {folders[0]}")
        return
    for row in rows:
        alone: Label = {"label": row["label"], "probability": row["probability"]}
        heads = row.get("heads", [alone])
        said = [f"{head['label']} ({head['probability']:.1%})" for head in heads]
        print_line(f"{row['image']}: {', '.join(said)}")


def accuracy_on(
    loaded: Runtime, name: str, image_size: int | None, skip_bad: bool
) -> Accuracy | RegressionScore:
    """Accuracy (of a regression R² as `metric`, and `loss`) of a loaded file on the test split of
    the data called `name`.

    Images are read as the file's metadata say.
    """
    import torch

    from edgecompress.data import load_data
    from edgecompress.measure.runtime import check_finite

    said = loaded.metadata
    side = (said.get("image_shape") or loaded.input_shape)[-1]
    size = image_size or said.get("resize") or (side if ":" in name else None)
    data = load_data(name, image_size=size, skip_bad=skip_bad)
    if "mean" not in said and not loaded.reads_pixels:
        raise UsageError(
            f"'{loaded.path}' has no input normalisation in its metadata: how it reads "
            f"'{name}' is not known; export it anew"
        )
    if said.get("classes") not in (None, list(data.classes)):
        raise UsageError(
            f"'{loaded.path}' has classes {said['classes'][:4]}..., data '{name}' has "
            f"{list(data.classes)[:4]}..."
        )
    preprocess = data.preprocess
    if "resize" in said and image_size is None:
        scale = said.get("scale", 255)
        preprocess = replace(preprocess, resize=said["resize"], crop=said["crop"], scale=scale)
    preprocess = replace(
        preprocess,
        mean=tuple(said.get("mean", preprocess.mean)),
        std=tuple(said.get("std", preprocess.std)),
    )
    split = data.test

    def read(part: torch.Tensor) -> Array:
        return (
            part.permute(0, 2, 3, 1).contiguous().numpy()
            if loaded.reads_pixels
            else preprocess(part).numpy()
        )

    outputs = torch.from_numpy(
        check_finite(loaded.run_all(read(part) for part in split.pixels.split(32)))
    )
    if outputs.ndim != 2:
        raise UsageError(
            f"'{loaded.path}' gives outputs of shape {tuple(outputs.shape[1:])} a sample: a "
            "number for each class is needed"
        )
    found: _Scored = {
        "model": str(loaded.path),
        "data": name,
        "split": "test",
        "images": len(split),
    }
    score = data.task.score(outputs, split.labels)
    if data.task.metric == "accuracy":
        return {**found, "accuracy": score}
    return {
        **found,
        "metric": score,
        "metric_name": data.task.metric,
        "loss": float(data.task.loss(outputs, split.labels)),
    }


def _files(folder: Path, loaded: Runtime, skip_bad: bool) -> list[tuple[Path, str | None]]:
    """The images of a folder, each with its class where they stand in a sub-folder a class (then
    all of them must be the file's).
    """
    from PIL import Image, UnidentifiedImageError

    suffixes = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")
    known = loaded.metadata.get("classes") or []
    classes = sorted(
        path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    foreign = [path.name for path in classes if path.name not in known]
    if foreign:
        raise UsageError(
            f"folder '{folder}' has a class '{foreign[0]}', which '{loaded.path}' does not "
            f"know: it knows {', '.join(known[:8])}"
        )
    found: list[tuple[Path, str | None]] = []
    for place in classes or [folder]:
        label = place.name if classes else None
        found += [
            (path, label) for path in sorted(place.rglob("*")) if path.suffix.lower() in suffixes
        ]
    if not found:
        raise UsageError(f"folder '{folder}' holds no image: allowed are {', '.join(suffixes)}")
    if not skip_bad:
        return found
    good: list[tuple[Path, str | None]] = []
    for path, label in found:
        try:
            with Image.open(path) as opened:
                opened.load()
            good.append((path, label))
        except (OSError, UnidentifiedImageError):
            print_line(f"skipped {path}: no readable image", sys.stderr)
    if not good:
        raise UsageError(
            f"folder '{folder}' holds no image that can be read: all {len(found)} were skipped"
        )
    return good


def _statistics(loaded: Runtime, key: Literal["mean", "std"]) -> Array:
    import numpy as np

    values = loaded.metadata.get(key)
    if values is None:
        raise UsageError(
            f"'{loaded.path}' has no input normalisation in its metadata: export it with "
            "edgecompress"
        )
    return np.asarray(values, dtype=np.float32).reshape(1, -1, 1, 1)


def _normalised(pixels: Array, mean: Array, std: Array) -> Array:
    """uint8 (N, C, H, W) to float32, as in training."""
    import numpy as np

    return (pixels.astype(np.float32) / np.float32(255) - mean) / std


def _label(loaded: Runtime, path: Path, wanted: str | None) -> Prediction:
    """What the file says of the image at `path`, whose class is `wanted` where one is known."""
    said = _said(loaded, path, _logits(loaded, path))
    if wanted is not None:
        said["class"] = wanted
    return said


def _logits(loaded: Runtime, path: Path) -> Array:
    """The outputs (K,) for the image at `path`."""
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    shape = loaded.metadata.get("image_shape") or loaded.input_shape
    if len(shape) != 3:
        raise UsageError(
            f"'{loaded.path}' reads inputs of shape {tuple(shape)}, which are no images"
        )
    channels, height, width = shape
    if not all((channels, height, width)) and not loaded.reads_pixels:
        raise UsageError(
            f"'{loaded.path}' does not say the size of its images: export it with edgecompress"
        )
    try:
        with Image.open(path) as opened:
            if opened.mode.startswith(("I", "F")):
                raise UsageError(
                    f"image '{path}' has more than 8 bits a pixel (mode {opened.mode}): give "
                    "an 8-bit image"
                )
            image = opened.convert("RGB" if channels == 3 else "L")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UsageError(f"image '{path}' cannot be read: give a PNG or JPEG file") from error
    if loaded.reads_pixels:
        pixels = np.asarray(image).reshape(image.height, image.width, channels)
        outputs: Array = loaded.run(pixels[None])[0].astype(np.float64)
        return outputs
    shorter = loaded.metadata.get("resize")
    scale = max(height / image.height, width / image.width)
    scale = max(scale, shorter / min(image.size)) if shorter else scale
    image = image.resize(
        (max(width, round(image.width * scale)), max(height, round(image.height * scale))),
        Image.Resampling.BILINEAR,
    )
    left, top = (image.width - width) // 2, (image.height - height) // 2
    pixels = np.asarray(image.crop((left, top, left + width, top + height)))
    batch = pixels.reshape(height, width, channels).transpose(2, 0, 1)[None]
    normalised = _normalised(batch, _statistics(loaded, "mean"), _statistics(loaded, "std"))
    logits: Array = loaded.run(normalised)[0].astype(np.float64)
    return logits


def _said(loaded: Runtime, path: Path, logits: Array) -> Prediction:
    """The label of `logits` (K,) with its probability; of a file with several heads, each
    head's.
    """
    import numpy as np

    from edgecompress.measure.runtime import check_finite

    check_finite(logits)
    classes = loaded.metadata.get("classes") or [str(i) for i in range(len(logits))]
    sizes = loaded.metadata.get("heads") or [len(logits)]
    heads: list[Label] = []
    for part, names in zip(
        np.split(logits, np.cumsum(sizes)[:-1]), _split(classes, sizes), strict=True
    ):
        shares = np.exp(part - part.max())
        shares /= shares.sum()
        heads.append({"label": names[int(shares.argmax())], "probability": float(shares.max())})
    if len(heads) > 1:
        return {"image": str(path), "heads": heads}
    (only,) = heads
    return {"image": str(path), "label": only["label"], "probability": only["probability"]}


def _split(names: list[str], sizes: list[int]) -> list[list[str]]:
    """`names` in parts of the given sizes."""
    ends = [sum(sizes[: n + 1]) for n in range(len(sizes))]
    return [names[end - size : end] for end, size in zip(ends, sizes, strict=True)]
