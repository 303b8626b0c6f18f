"""Training the text tokenizer: byte-level BPE, lossless on any Unicode text because every byte is in its alphabet.

Digits are never merged, so that a number is read and written place by place.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pollux.tokens.vocabulary import SPECIALS

MINIMUM_SIZE = len(SPECIALS) + 256


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train on texts; ids are SPECIALS, then the 256 bytes, then merges in order of frequency.

    The result is smaller than `vocab_size` if the texts run out of pairs to merge. Raises ValueError if `vocab_size` has no
    room for the special tokens and the bytes.
    """
    if vocab_size < MINIMUM_SIZE:
        raise ValueError(f"vocab_size {vocab_size} is too small: {len(SPECIALS)} special tokens and 256 bytes need {MINIMUM_SIZE}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
