"""Data sets with three splits (train, validation, test) of uint8 images; the split does not depend
on the seed of a run.
"""

from edgecompress.data.images import DataSet, Images
from edgecompress.data.preprocess import Preprocess
from edgecompress.data.registry import data_names, load_data, reconstructing

__all__ = ["DataSet", "Images", "Preprocess", "data_names", "load_data", "reconstructing"]
