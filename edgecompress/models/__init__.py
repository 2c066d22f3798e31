"""Networks by name, and their pretrained weights."""

from edgecompress.models.registry import ModelSource, build, model_names

__all__ = ["ModelSource", "build", "model_names"]
