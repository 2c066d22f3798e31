"""The training loop, and what it needs. Losses, penalties and callbacks are passed in, never
imported.
"""

from edgecompress.train.batches import Batch, evaluate
from edgecompress.train.fit import FitResult, Learner, fit, fit_together
from edgecompress.train.settings import FitSettings

__all__ = ["Batch", "FitResult", "FitSettings", "Learner", "evaluate", "fit", "fit_together"]
