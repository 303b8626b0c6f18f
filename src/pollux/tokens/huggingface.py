"""How a folder in the layout of Hugging Face transformers writes text and media: its tokenizer, chat template and processors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pollux.tokens.config import AudioTokens, ImageTokens, TokensConfig, VideoTokens
from pollux.tokens.template import Template
from pollux.tokens.vocabulary import Vocabulary

TEMPLATE = "chat_template.jinja"
MAX_SOUND = 750  # tokens, 30 s
MEDIA_IDS = {  # our names by theirs in config.json
    "image_token_id": "<image_soft>",
    "boi_token_id": "<image>",
    "eoi_token_id": "</image>",
    "audio_token_id": "<audio_soft>",
    "boa_token_id": "<audio>",
    "eoa_token_index": "</audio>",
    "video_token_id": "<video_soft>",
}
_SPANS = {"<call>": "<|tool_call>", "</call>": "<tool_call|>", "<thought>": "<|channel>", "</thought>": "<channel|>"}


def is_folder(folder: Path) -> bool:
    """Does config.json say "model_type", as transformers writes it?"""
    data = _json(folder / "config.json")
    return isinstance(data, dict) and "model_type" in data


def vocabulary(folder: Path, tokenizer: Tokenizer) -> Vocabulary:
    """The tokenizer of the folder with its special tokens, the ids that end a turn, and the chat template."""
    data = _json(folder / "config.json")
    text = data.get("text_config", data)
    specials = {ours: data[theirs] for theirs, ours in MEDIA_IDS.items() if data.get(theirs) is not None}
    specials |= {ours: i for ours, name in _SPANS.items() if (i := tokenizer.token_to_id(name)) is not None}
    specials |= {name: text[f"{name[1:-1]}_token_id"] for name in ("<pad>", "<bos>") if text.get(f"{name[1:-1]}_token_id") is not None}
    stops = _many(_json(folder / "generation_config.json").get("eos_token_id")) or _many(text.get("eos_token_id"))
    placeholders = {tokenizer.id_to_token(specials[f"<{kind}_soft>"]): kind for kind in ("image", "audio", "video")
                    if f"<{kind}_soft>" in specials}  # fmt: skip
    variables = {f"{name}_token": tokenizer.id_to_token(i) for name in ("bos", "eos", "pad")
                 for i in _many(text.get(f"{name}_token_id"))[:1]}  # fmt: skip
    template = Template(
        _template(folder),
        {token.content: i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special},
        {name: kind for name, kind in placeholders.items() if name is not None},
        tuple(tokenizer.encode("").ids),
        variables,
    )
    return Vocabulary(tokenizer, (), specials, stops, template)


def tokens_config(folder: Path) -> TokensConfig:
    """How media become tokens. As in transformers, a clip is silent; its sound can be given beside it."""
    data = _json(folder / "config.json")
    images = _json(folder / "processor_config.json").get("image_processor") or _json(folder / "preprocessor_config.json")
    videos = _json(folder / "processor_config.json").get("video_processor") or _json(folder / "video_preprocessor_config.json")
    vision, audio, config = data.get("vision_config"), data.get("audio_config"), TokensConfig()
    if vision is not None:
        side = vision["patch_size"] * vision["pooling_kernel_size"]
        two_way = data["text_config"].get("use_bidirectional_attention") == "vision"
        image = ImageTokens(side, side, images.get("max_soft_tokens", 280), two_way=two_way, fill=True, unit=True)
        budget = videos.get("max_soft_tokens", 70)
        frames = VideoTokens(
            0, videos.get("num_frames", 32), side, side, budget, difference=False, sound=False, two_way=False, pictures=True
        )
        config = replace(config, image=image, video=frames)
    if audio is not None and audio["model_type"] == "gemma4_unified_audio":
        config = replace(config, audio=AudioTokens("raw", frame=audio["audio_embed_dim"], max_tokens=MAX_SOUND))
    elif audio is not None:
        config = replace(config, audio=AudioTokens("usm_mel", window=320, max_tokens=MAX_SOUND))
    return config


def _template(folder: Path) -> str:
    if (folder / TEMPLATE).is_file():
        return (folder / TEMPLATE).read_text()
    for name in ("processor_config.json", "tokenizer_config.json", "chat_template.json"):
        if isinstance(source := _json(folder / name).get("chat_template"), str):
            return source
    return ""


def _json(path: Path) -> dict[str, Any]:
    """The object of a file, empty if there is none. Raises ValueError if it is damaged."""
    try:
        return json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _many(ids: int | list[int] | None) -> list[int]:
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
