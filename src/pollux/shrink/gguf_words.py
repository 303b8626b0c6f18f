"""The tokenizer of a model as the metadata of a GGUF file: tokens with their types, merges, special ids and the chat template.

llama.cpp splits text before the merges by rules that it knows by name; a tokenizer that splits otherwise is refused.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
from gguf import GGUFWriter, TokenType

from pollux.generate.grammar import grammar
from pollux.shrink.export import TURNS
from pollux.tokens.vocabulary import Vocabulary

# What the tokens of calls and thoughts are in Gemma 4: llama.cpp spells them out, so that its parser of answers sees them.
SPELLED = {"<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>'}
GEMMA = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
BYTE = re.compile("<0x[0-9A-F]{2}>")


def describe(writer: GGUFWriter, vocabulary: Vocabulary, size: int) -> None:
    """Add the tokenizer to a file's metadata. size: ids of the file; those without text become unused tokens.

    Raises ValueError for a tokenizer that llama.cpp does not know.
    """
    data = json.loads(vocabulary.tokenizer.to_str())
    model = data["model"]
    name, split = _kind(data)
    writer.add_tokenizer_model(name)
    writer.add_tokenizer_pre(split)
    tokens = [f"<unused {i}>" for i in range(size)]  # the space keeps them apart from tokens of text, which have none
    types = [TokenType.UNUSED] * size
    for token, i in model["vocab"].items():
        tokens[i] = token
        types[i] = TokenType.BYTE if model["byte_fallback"] and BYTE.fullmatch(token) else TokenType.NORMAL
    for added in data["added_tokens"]:
        shown = added["content"] in SPELLED or not added["special"]
        tokens[added["id"]] = added["content"]
        types[added["id"]] = TokenType.USER_DEFINED if shown else TokenType.CONTROL
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    specials, stops = vocabulary.specials, vocabulary.stops
    writer.add_add_bos_token("<bos>" in specials)
    if "<bos>" in specials:
        writer.add_bos_token_id(specials["<bos>"])
    if "<pad>" in specials:
        writer.add_pad_token_id(specials["<pad>"])
    for add, stop in zip((writer.add_eos_token_id, writer.add_eot_token_id), stops, strict=False):
        add(stop)
    never = np.flatnonzero(~np.asarray(grammar(vocabulary, size, 0).outside))
    if len(never):
        writer.add_array("tokenizer.ggml.suppress_tokens", never.tolist())  # llama.cpp's own programs do not write these
    template = TURNS if vocabulary.template is None else vocabulary.template.source
    if template:
        writer.add_chat_template(template)


def _kind(data: dict[str, Any]) -> tuple[str, str]:
    """The names that llama.cpp has for the model and for the rule that splits text before it."""
    model, normalizer = data["model"], data["normalizer"]
    splits = [data["pre_tokenizer"]] if data["pre_tokenizer"] else []
    splits = [one for split in splits for one in split.get("pretokenizers", [split])]
    if model["type"] == "BPE" and model["byte_fallback"] and normalizer == GEMMA and all(x["pattern"] == {"String": " "} for x in splits):
        return "gemma4", "gemma4"
    if model["type"] == "BPE" and normalizer is None and [x["type"] for x in splits] == ["Digits", "ByteLevel"]:
        digits, level = splits
        if digits["individual_digits"] and level["use_regex"] and not level["add_prefix_space"]:
            return "gpt2", "smollm"
    raise ValueError("llama.cpp knows byte-level tokenizers trained with pollux and those of Gemma; this model folder has another")
