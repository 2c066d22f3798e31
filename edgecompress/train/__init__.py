"""The only training loop, and what it needs. Losses, penalties and after-epoch calls are received, never imported."""

from edgecompress.train.fit import Batch, FitResult, FitSettings, evaluate, fit

__all__ = ["Batch", "FitResult", "FitSettings", "evaluate", "fit"]
