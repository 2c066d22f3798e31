"""How to train, and what is chosen when nobody says."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from edgecompress.data import DataSet
from edgecompress.data.images import Augmentation

SMALL_PARAMS = 1_000_000
"""Below this many parameters a plain network bears the learning rate of a normalised one."""


@dataclass(frozen=True)
class FitSettings:
    """How to train. `warmup` is the share of steps over which the rate rises; `clip` bounds the
    gradient's norm (None: unbounded).
    """

    epochs: int
    batch_size: int = 32
    learning_rate: float = 3e-4
    optimizer: str = "adamw"
    """`adamw`, `adam`, or `sgd` (momentum 0.9, Nesterov's unless `nesterov` is false)."""
    nesterov: bool = True
    weight_decay: float = 5e-4
    schedule: str = "linear"
    """After the warm-up the rate falls `linear`ly or as a half `cosine` to 0, or stays
    `constant`.
    """
    warmup: float = 0.15
    clip: float | None = 1.0
    dropout: float | None = None
    """Probability of every dropout layer during this training; None leaves each its own."""
    precision: str = "auto"
    """`fp32`, `bf16` (the forward pass under autocast), or `auto`: bf16 on GPUs that have it, fp32
    elsewhere.
    """
    augmentation: Augmentation | None = None
    """None: the data set's own."""
    view_seed: int = 0
    """Decides, with the epoch, how each image is augmented."""
    views: int | None = None
    """Views of every image that the epochs go through in turn; None: a new one each epoch."""
    frozen: tuple[str, ...] = ()
    """Modules that stay as they are: no gradients, no new statistics."""

    faster: tuple[tuple[str, float], ...] = ()
    """(prefix of a parameter's name, factor of its learning rate): such parameters have no weight
    decay either.
    """

    def view(self, epoch: int) -> int:
        """Number of the view that `epoch` (from 1) trains on."""
        return epoch - 1 if self.views is None else (epoch - 1) % self.views


def default_settings(
    model: nn.Module, data: DataSet, epochs: int | None = None, normalised: bool = True
) -> FitSettings:
    """Settings that train from scratch in minutes: fewer, slower epochs for a wide plain network
    (no normalisation) than for others.

    Up to 10,000 training images: 4 epochs at 3e-4 for plain networks of at least `SMALL_PARAMS`
    parameters, 12 at 1e-3 for others, without dropout, which slows a short run more than it helps.
    Above: 30 epochs, batches of 128, the network's own dropout.
    """
    large = len(data.train) > 10_000
    steady = normalised or sum(p.numel() for p in model.parameters()) < SMALL_PARAMS
    rate = 1e-3 if steady else 3e-4
    settings = FitSettings(
        epochs=30 if large else 12 if steady else 4,
        learning_rate=rate,
        dropout=None if large else 0.0,
    )
    settings = replace(settings, batch_size=128) if large else settings
    return settings if epochs is None else replace(settings, epochs=epochs)
