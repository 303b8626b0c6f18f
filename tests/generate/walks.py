"""Walks through constraints: a model that likes every id alike, and one that writes a given text; and a vocabulary like Gemma 4's."""

import functools

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

from pollux.tokens.template import Template
from pollux.tokens.vocabulary import Vocabulary

EXTRA = 9  # ids of a model beyond its vocabulary


def wander(constraint, vocabulary, seed, steps=2000, closing=0.3):
    """Ids drawn among those allowed; closing: how often one that may close something is preferred. None if it does not end in time."""
    rng, ids, closers = np.random.default_rng(seed), [], _closers(vocabulary)
    for _ in range(steps):
        allowed = constraint.allowed()
        ends = np.flatnonzero(allowed & closers)
        i = int(rng.choice(ends if len(ends) and rng.random() < closing else np.flatnonzero(allowed)))
        constraint.accept(i)
        if i in vocabulary.stops:
            return ids
        ids.append(i)
    return None


@functools.cache
def _closers(vocabulary):
    closers = np.zeros(vocabulary.size + EXTRA, bool)
    closers[[*vocabulary.stops, vocabulary.specials["</call>"]]] = True
    for i in range(vocabulary.code_offset):
        token = vocabulary.tokenizer.id_to_token(i)
        closers[i] |= set(token) <= set('"]}0123456789') or token == '<|"|>'
    return closers


def first_refused(constraint, ids):
    """The place of the first id that is not allowed; len(ids) if all are."""
    for place, i in enumerate(ids):
        if not constraint.allowed()[i]:
            return place
        constraint.accept(i)
    return len(ids)


def may_end(constraint, vocabulary):
    return bool(constraint.allowed()[list(vocabulary.stops)].all())


def must_end(constraint, vocabulary):
    return set(np.flatnonzero(constraint.allowed())) == set(vocabulary.stops)


def gemma_vocabulary():
    """Characters as tokens, bytes for all others, spaces as U+2581, and the special tokens of calls and thoughts; also an HTML tag."""
    special = ["<pad>", "<eos>", "<bos>", "<|turn>", "<turn|>", "<|tool_call>", "<tool_call|>", '<|"|>', "<|channel>", "<channel|>"]
    words = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *"\u2581abcdefghijklmnopqrstuvwxyz0123456789{}[]:,.-\"'\\/<>|!?", "<b>"]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], byte_fallback=True, fuse_unk=False))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in special])
    tokenizer.add_tokens([AddedToken("<b>", special=False, normalized=False)])
    ids = {word: i for i, word in enumerate(words)}
    ours = {"<pad>": "<pad>", "<bos>": "<bos>", "<call>": "<|tool_call>", "</call>": "<tool_call|>"}
    ours |= {"<thought>": "<|channel>", "</thought>": "<channel|>"}
    specials = {name: ids[theirs] for name, theirs in ours.items()}
    return Vocabulary(tokenizer, (), specials, (ids["<eos>"], ids["<turn|>"]), Template("", {word: ids[word] for word in special}, {}))
