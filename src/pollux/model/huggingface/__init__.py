"""Folders in the layout of Hugging Face transformers."""

from pollux.model.huggingface.config import model_config, sampling
from pollux.model.huggingface.names import Source, is_stacked, sources
from pollux.model.huggingface.write import check, config_json, tensors

__all__ = ["Source", "check", "config_json", "is_stacked", "model_config", "sampling", "sources", "tensors"]
