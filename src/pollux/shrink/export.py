"""A model folder in the layout of another program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pollux.generate.model import Model
from pollux.model import folder, huggingface
from pollux.model.config import PatchTower, VisionTower
from pollux.model.quantized import require_plain
from pollux.tokens.huggingface import MEDIA_IDS
from pollux.tokens.template import Template
from pollux.tokens.vocabulary import SPECIALS, Vocabulary

# How a model of this project writes turns of text (tokens/interleave.py), as a chat template.
TURNS = """<bos>{%- for message in messages -%}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
<{{ role }}>
{%- if message['content'] is string -%}{{ message['content'] }}
{%- else -%}{%- for part in message['content'] -%}{{ part['text'] }}{%- endfor -%}{%- endif -%}
<end_of_turn>
{%- endfor -%}
{%- if add_generation_prompt -%}<model>{%- endif -%}"""


def to_transformers(model: Model, out: Path) -> None:
    """Write `out` so that transformers opens it, with equal logits. Raises ValueError naming what the model has and Gemma 4 has not.

    Pictures that a model draws have no place there: a model with a codec is written without it, its code ids stay.
    """
    require_plain(model.params)
    ids = _token_ids(model.vocabulary)
    data = huggingface.config_json(model.config, ids)
    out.mkdir(parents=True, exist_ok=True)
    data["dtype"] = str(model.params["embed"].dtype)
    folder.save_tensors(out, huggingface.tensors(folder.named(model.params), model.config, data))
    _write(out / "config.json", data)
    if model.vocabulary is not None:
        _write_words(model.vocabulary, ids, out)
    _write(out / "generation_config.json", _generation(model, ids))
    image = next((soft.tower for soft in model.config.soft_inputs if soft.name == "image"), None)
    if image is not None:
        pool = image.pool if isinstance(image, VisionTower) else 3
        assert isinstance(image, VisionTower | PatchTower)
        patch = model.tokens_config.image.patch // pool
        kind = "Gemma4UnifiedImageProcessor" if isinstance(image, PatchTower) else "Gemma4ImageProcessor"
        sizes: dict[str, Any] = {"patch_size": patch, "pooling_kernel_size": pool}
        told = {"image_processor_type": kind, "max_soft_tokens": model.tokens_config.image.max_tokens}
        processors = {"image_processor": sizes | told}
        if any(soft.name == "video" for soft in model.config.soft_inputs):
            clips = model.tokens_config.video
            told = {"video_processor_type": kind.replace("Image", "Video"), "max_soft_tokens": clips.max_tokens}
            processors["video_processor"] = sizes | told | {"num_frames": clips.max_frames}
        _write(out / "processor_config.json", processors)


def _token_ids(vocabulary: Vocabulary | None) -> dict[str, Any]:
    """Special ids by their names in config.json."""
    if vocabulary is None:
        return {}
    names = {"pad_token_id": "<pad>", "bos_token_id": "<bos>"} | MEDIA_IDS
    ids: dict[str, Any] = {theirs: vocabulary.specials[ours] for theirs, ours in names.items() if ours in vocabulary.specials}
    return ids | {"eos_token_id": list(vocabulary.stops)}


def _write_words(vocabulary: Vocabulary, ids: dict[str, Any], out: Path) -> None:
    vocabulary.tokenizer.save(str(out / "tokenizer.json"))
    template = vocabulary.template or Template(TURNS, {name: i for i, name in enumerate(SPECIALS)}, {})
    (out / "chat_template.jinja").write_text(template.source)
    names = {f"{name}_token": f"{name}_token_id" for name in ("pad", "bos", "eos")}
    ends = {name: vocabulary.tokenizer.id_to_token(_first(ids[i])) for name, i in names.items() if i in ids}
    _write(out / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **ends})


def _generation(model: Model, ids: dict[str, Any]) -> dict[str, Any]:
    sampling = model.sampling
    chosen: dict[str, Any] = {"do_sample": sampling.temperature > 0}
    if sampling.temperature > 0:
        chosen |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
    return chosen | {name: i for name, i in ids.items() if name in ("bos_token_id", "eos_token_id", "pad_token_id")}


def _first(ids: int | list[int]) -> int:
    return ids[0] if isinstance(ids, list) else ids


def _write(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False))
