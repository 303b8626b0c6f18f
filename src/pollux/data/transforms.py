"""Noise that makes learning harder on purpose. Every choice follows from the random generator given, and so from the run's position."""

from __future__ import annotations

import dataclasses

import numpy as np

from pollux.content import Document, Image
from pollux.tokens.sequence import Batch
from pollux.tokens.vocabulary import SPECIAL_IDS, SPECIALS, Vocabulary

MARKERS = [SPECIAL_IDS[name] for name in ("<bos>", "<end_of_turn>", "<user>", "<model>", "<system>", "<tool>")]


def drop_prompt(document: Document, share: float, generator: np.random.Generator) -> Document:
    """With probability `share`, leaves of a drawing document only the turn that draws, `<bos> <model> <draw> ...` as tokens.

    So a model also learns to draw without a request, which classifier-free guidance (Ho & Salimans 2022) subtracts.
    A drawing document has no branches and ends with a model turn that holds an Image; any other is returned as it is.
    """
    if document.branches or not document.contents or generator.random() >= share:
        return document
    last = document.contents[-1]
    draws = last.role == "model" and any(isinstance(part, Image) for part in last.parts)
    return Document((last,)) if draws else document


def corrupt_inputs(batch: Batch, share: float, vocabulary: Vocabulary, generator: np.random.Generator) -> Batch:
    """Replaces each text token inside a model turn by a random text token with probability `share`, as input; targets stay.

    Then the words before say less about the next one and the media in the prompt say more (word dropout, Bowman et al. 2016).
    Raises ValueError for a vocabulary with a chat template, whose model turns cannot be told from their ids.
    """
    if vocabulary.template is not None:
        raise ValueError("input_corruption needs a model whose turns are written as this project writes them: set it to 0")
    ids = batch.inputs.ids
    is_marker = np.isin(ids, MARKERS)
    last_marker = np.maximum.accumulate(np.where(is_marker, np.arange(ids.shape[1]), 0), axis=1)
    in_model_turn = np.take_along_axis(ids, last_marker, axis=1) == SPECIAL_IDS["<model>"]
    is_text = (ids >= len(SPECIALS)) & (ids < vocabulary.code_offset)
    replaced = in_model_turn & is_text & (generator.random(ids.shape) < share)
    random_ids = generator.integers(len(SPECIALS), vocabulary.code_offset, ids.shape, np.int32)
    return dataclasses.replace(batch, inputs=dataclasses.replace(batch.inputs, ids=np.where(replaced, random_ids, ids)))
