"""Folders in the layout of Hugging Face transformers."""

from pollux.model.huggingface.config import model_config, sampling
from pollux.model.huggingface.names import Source, sources

__all__ = ["Source", "model_config", "sampling", "sources"]
