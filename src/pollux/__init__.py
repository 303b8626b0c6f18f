"""pollux: natively multimodal models, from training to use. `pollux.load(folder)` opens one; what it reads is in pollux.content."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from pollux.generate.model import Model
    from pollux.model.cache import CacheDtype

__all__ = ["load"]


def load(
    folder: str | Path,
    dtype: Any = None,
    adapter: str | Path | None = None,
    draft: Model | str | Path | None = None,
    kv_cache_dtype: CacheDtype | None = None,
) -> Model:
    """Open a model folder, with weights as stored or as `dtype` (for example "bfloat16"); see pollux.generate.model.Model.

    adapter: what LoRA training wrote beside its model (adapter.safetensors), merged into the weights of the folder it began with.
    draft: the folder of a smaller model with the same vocabulary, or "lookup", to write the same from fewer passes.
    kv_cache_dtype: "int8" or "float8" keeps the keys and values of what was read and written in 8 bits each.

    A folder without a tokenizer still gives logits on ids. Raises ValueError that says what the folder lacks.
    """
    from pollux.generate import model  # here, so that `import pollux` stays light

    return model.load(folder, dtype, adapter, draft, kv_cache_dtype)
