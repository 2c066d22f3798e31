"""What an image classifier in ONNX says of images: numpy and Pillow only, so that a device without
torch predicts too.

Shapes: pixels (N, C, H, W) uint8, or (N, height, width, C) for a file that reads decoded images;
logits (N, K).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from typing_extensions import NotRequired, TypedDict

from edgecompress import pictures
from edgecompress.errors import UsageError
from edgecompress.measure.runtime import Array, Runtime


class HeadLabel(TypedDict):
    """The class that one head finds most probable."""

    label: str
    probability: float


Prediction = TypedDict(
    "Prediction",
    {
        "image": str,
        "label": NotRequired[str],
        "probability": NotRequired[float],
        "heads": NotRequired[list[HeadLabel]],
        "class": NotRequired[str],
    },
)
"""What a file says of one image: a label, or one per head; `class` is the folder it stands in."""


@dataclass(frozen=True)
class Classifier:
    """A file that classifies images: how it reads them, and its classes.

    `mean` and `std` (1, C, 1, 1) are None for a file that reads decoded pixels.
    """

    loaded: Runtime
    channels: int
    height: int
    width: int
    resize: int | None
    mean: Array | None
    std: Array | None

    def predict(self, path: Path) -> Prediction:
        """The label of the image at `path`. Raises `UsageError` for one that cannot be read."""
        batch = self._batch(self._image(path))
        outputs = self.loaded.run_finite(batch)
        if outputs.ndim != 2 or outputs.dtype.kind != "f":
            raise UsageError(
                f"'{self.loaded.path}' gives {outputs.dtype} outputs of shape "
                f"{outputs.shape[1:]} per image: a score for each class is needed; export it "
                "without what follows the last layer"
            )
        return self._said(path, outputs[0].astype(np.float64))

    def _image(self, path: Path) -> Image.Image:
        try:
            return pictures.read(path, "RGB" if self.channels == 3 else "L")
        except pictures.UNREADABLE as error:
            reason = str(error) if type(error) is ValueError else "no image that can be decoded"
            raise UsageError(
                f"image '{path}' cannot be read ({reason}): give a PNG or JPEG file"
            ) from error

    def _batch(self, image: Image.Image) -> Array:
        """One image as the file reads it."""
        if self.mean is None or self.std is None:
            return np.asarray(image).reshape(1, image.height, image.width, self.channels)
        pixels = np.asarray(self._cropped(image)).reshape(self.height, self.width, self.channels)
        batch = pixels.transpose(2, 0, 1)[None].astype(np.float32)
        normalised: Array = (batch / np.float32(255) - self.mean) / self.std
        return normalised

    def _cropped(self, image: Image.Image) -> Image.Image:
        """The shorter side resized, and the central part of the file's size cut out."""
        scale = max(self.height / image.height, self.width / image.width)
        if self.resize is not None:
            scale = max(scale, self.resize / min(image.size))
        width = max(self.width, round(image.width * scale))
        height = max(self.height, round(image.height * scale))
        resized = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - self.width) // 2, (height - self.height) // 2
        return resized.crop((left, top, left + self.width, top + self.height))

    def _said(self, path: Path, logits: Array) -> Prediction:
        """The most probable class of `logits` (K,); of a file with several heads, each head's."""
        sizes = self._head_sizes(len(logits))
        names = self._classes(len(logits))
        ends = np.cumsum(sizes)
        heads: list[HeadLabel] = []
        for part, end in zip(np.split(logits, ends[:-1]), ends, strict=True):
            shares = np.exp(part - part.max())
            shares /= shares.sum()
            best = int(shares.argmax())
            label = names[int(end) - len(part) + best]
            heads.append({"label": label, "probability": float(shares[best])})
        if len(heads) > 1:
            return {"image": str(path), "heads": heads}
        (head,) = heads
        return {"image": str(path), "label": head["label"], "probability": head["probability"]}

    def _classes(self, count: int) -> list[str]:
        """The names of the `count` classes; numbers where the file has none."""
        names = self.loaded.metadata.texts("classes")
        if names is None:
            return [str(number) for number in range(count)]
        if len(names) != count:
            raise UsageError(
                f"'{self.loaded.path}' has {count} outputs, but its metadata name {len(names)} "
                "classes: export it anew"
            )
        return names

    def _head_sizes(self, count: int) -> list[int]:
        sizes = self.loaded.metadata.integers("heads") or [count]
        if sum(sizes) != count or min(sizes) < 1:
            raise UsageError(
                f"'{self.loaded.path}' has {count} outputs, but its metadata name heads of "
                f"{sizes}: export it anew"
            )
        return sizes


def classifier(loaded: Runtime) -> Classifier:
    """How a loaded file reads images, from its metadata.

    Raises `UsageError` for a file that reads none, or that does not say how.
    """
    shape = tuple(loaded.metadata.integers("image_shape") or loaded.input_shape)
    if len(shape) != 3:
        raise UsageError(f"'{loaded.path}' reads inputs of shape {shape}, which are no images")
    channels, height, width = shape
    if channels not in (1, 3):
        hint = "channels last: export it with channels first" if width in (1, 3) else "export it"
        raise UsageError(
            f"'{loaded.path}' reads inputs of shape {shape}: images (1 or 3, height, "
            f"width) are needed ({hint})"
        )
    if loaded.reads_pixels:
        return Classifier(loaded, channels, height, width, None, None, None)
    if not height or not width:
        raise UsageError(
            f"'{loaded.path}' does not say the size of its images: export it with edgecompress"
        )
    mean, std = (statistics(loaded, key, channels) for key in ("mean", "std"))
    resize = loaded.metadata.integer("resize")
    return Classifier(loaded, channels, height, width, resize, mean, std)


def statistics(loaded: Runtime, key: str, channels: int) -> Array:
    """`mean` or `std` (1, C, 1, 1) in the metadata of a file.

    Raises `UsageError` where it is missing or has not one number per channel.
    """
    values = loaded.metadata.numbers(key)
    if values is None:
        raise UsageError(
            f"'{loaded.path}' has no input normalisation in its metadata: export it with "
            "edgecompress"
        )
    if len(values) != channels or (key == "std" and min(values) <= 0):
        raise loaded.metadata.wrong(key, f" for images of {channels} channel(s)")
    return np.asarray(values, dtype=np.float32).reshape(1, -1, 1, 1)
