"""A model as one GGUF file, which llama.cpp and what is built on it open: f16, or blocks of 32 weights in 8 or 4 bits.

Tensors are converted and written one after the other, by the package gguf of the makers of llama.cpp.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Quantization

from pollux.generate.model import Model
from pollux.model import folder
from pollux.model.quantized import require_plain
from pollux.shrink import gguf_architecture, gguf_words

Type = Literal["f16", "q8_0", "q4_0"]


def to_gguf(model: Model, out: Path, kind: Type) -> None:
    """Write the text part of a model to the file `out`.

    Raises ValueError naming what the model has and llama.cpp has not, or a tensor with values beyond f16.
    """
    require_plain(model.params)
    if model.vocabulary is None:
        raise ValueError("a GGUF file holds the tokenizer, and this model folder has no tokenizer.json")
    part = out.with_name(out.name + ".part")
    writer = gguf.GGUFWriter(part, gguf_architecture.architecture(model.config))
    writer.add_name(model.config.name)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind.upper()}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    gguf_architecture.describe(writer, model.config)
    # A file knows no pictures: the ids of their codes, which follow those of text, are left out.
    size = model.vocabulary.code_offset if model.vocabulary.code_levels else model.config.vocab_size
    gguf_words.describe(writer, model.vocabulary, size)
    params = folder.named(model.params)
    params["embed"] = params["embed"][:size]
    if not model.config.tied:
        params["unembed"] = params["unembed"][:, :size]
    chosen = {}
    for name, array in gguf_architecture.tensors(params, model.config):
        chosen[name] = _type(name, array.shape, kind, model.config.tied and model.config.post_norm)
        stored = gguf.quant_shape_to_byte_shape(array.shape, chosen[name])
        writer.add_tensor_info(name, stored, np.dtype(np.uint8), math.prod(stored), chosen[name])
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, array in gguf_architecture.tensors(params, model.config):
            writer.write_tensor_data(_converted(name, array, chosen[name]))
        writer.close()
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)


def _type(name: str, shape: tuple[int, ...], kind: Type, tied: bool) -> Quantization:
    """How a tensor is kept, as llama.cpp's own quantisation does."""
    if len(shape) < 2 or not name.endswith(".weight") or name.endswith("ffn_gate_inp.weight"):
        return Quantization.F32
    if shape[-1] % 32 or name == "per_layer_model_proj.weight":
        return Quantization.F16
    if kind == "q4_0" and name == ("token_embd.weight" if tied else "output.weight"):
        return Quantization.Q8_0  # llama.cpp takes 6 bits for the logits, which the package gguf reads but does not write
    return Quantization[kind.upper()]


def _converted(name: str, array: np.ndarray, kind: Quantization) -> np.ndarray:
    with np.errstate(over="ignore"):
        data = gguf.quantize(np.asarray(array, np.float32, order="C"), kind)
    if kind == Quantization.F16 and not np.isfinite(data).all():
        raise ValueError(f"{name} has values that f16 cannot hold, so this model cannot be written as GGUF")
    return data
