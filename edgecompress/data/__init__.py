"""Data sets: three splits (train, validation, test) of uint8 images, split independently of the
run's seed.
"""

from edgecompress.data.images import DataSet, Images
from edgecompress.data.preprocess import Preprocess
from edgecompress.data.registry import data_names, load_data

__all__ = ["DataSet", "Images", "Preprocess", "data_names", "load_data"]
