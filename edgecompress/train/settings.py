"""How to train, and the defaults."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from edgecompress.data import DataSet
from edgecompress.data.images import Augmentation

SMALL_PARAMS = 1_000_000
"""With fewer parameters than this, a plain network tolerates the learning rate of a normalised
one.
"""
LARGE_SPLIT = 10_000
"""With more training images than this, the defaults are those of a large data set."""


@dataclass(frozen=True)
class FitSettings:
    """How to train."""

    epochs: int
    batch_size: int = 32
    learning_rate: float = 3e-4
    """The peak, after the warm-up."""
    optimizer: str = "adamw"
    """`adamw`, `adam`, or `sgd` (momentum 0.9, Nesterov's unless `nesterov` is false)."""
    nesterov: bool = True
    weight_decay: float = 5e-4
    norm_decay: bool = True
    """Have biases and the parameters of normalisations weight decay too?"""
    bias_rate: float = 1.0
    """Learning rate of biases, as a factor of the others'."""
    schedule: str = "linear"
    """After the warm-up the rate falls to 0 `linear`ly or along half a `cosine`, is `constant`, or
    falls in steps (`multistep`).
    """
    milestones: tuple[int, ...] = ()
    """With `multistep`: the epochs after which the rate is multiplied by `gamma`."""
    gamma: float = 0.1
    warmup: float = 0.15
    """Share of the steps over which the rate rises to its peak."""
    clip: float | None = 1.0
    """Bound of the gradient's norm; None: unbounded."""
    average: float = 0.0
    """Time constant of an exponential average of the weights, which is validated and kept in their
    place, as a share of the steps; 0: none.
    """
    dropout: float | None = None
    """Probability of every dropout layer during this training; None: each layer's own."""
    precision: str = "auto"
    """`fp32`, `bf16` (the forward pass under autocast), or `auto`: bf16 on GPUs that support it,
    fp32 elsewhere.
    """
    augmentation: Augmentation | None = None
    """None: the data set's own."""
    view_seed: int = 0
    """Decides, with the epoch, how each image is augmented."""
    views: int | None = None
    """Number of views of every image that the epochs cycle through; None: a new one per epoch."""
    frozen: tuple[str, ...] = ()
    """Names of frozen modules: no gradients, no new statistics."""
    faster: tuple[tuple[str, float], ...] = ()
    """(prefix of a parameter's name, factor of its learning rate). Such parameters have no weight
    decay.
    """
    elastic: bool = False
    """May `epochs` be fitted to a time?"""
    time_s: float | None = None
    """Seconds that the training may take: as many epochs as fit, in place of `epochs`."""

    def view(self, epoch: int) -> int:
        """Number (from 0) of the view that `epoch` (from 1) trains on."""
        return epoch - 1 if self.views is None else (epoch - 1) % self.views


SGD_RATE = 100
"""Learning rate of SGD over that of Adam for the same network."""


def default_settings(
    model: nn.Module,
    data: DataSet,
    epochs: int | None = None,
    normalised: bool = True,
    optimizer: str = "adamw",
) -> FitSettings:
    """Settings that train from scratch in minutes: a wide plain network (not `normalised`) gets
    fewer epochs and a lower learning rate.

    Up to `LARGE_SPLIT` training images: 4 epochs at 3e-4 for plain networks of at least
    `SMALL_PARAMS` parameters, 12 at 1e-3 for others, without dropout, which slows a short run more
    than it helps. Above: 30 epochs, batches of 128, the network's own dropout. SGD has `SGD_RATE`
    times the learning rate.
    """
    steady = normalised or sum(p.numel() for p in model.parameters()) < SMALL_PARAMS
    rate = (1e-3 if steady else 3e-4) * (SGD_RATE if optimizer == "sgd" else 1)
    if len(data.train) > LARGE_SPLIT:
        settings = FitSettings(epochs=30, batch_size=128, learning_rate=rate, optimizer=optimizer)
    else:
        short = 12 if steady else 4
        settings = FitSettings(short, learning_rate=rate, optimizer=optimizer, dropout=0.0)
    return settings if epochs is None else replace(settings, epochs=epochs)
