"""The one vocabulary: special tokens, text, and after them the digits of image codes.

The special tokens always have the first ids, so that every part of the code, and every model, agrees on them. Text written by a
person can never become a special token, even if it spells one.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

SPECIALS = (
    "<pad>", "<bos>", "<eos>", "<end_of_turn>", "<user>", "<model>", "<system>", "<tool>",
    "<image>", "</image>", "<image_soft>", "<audio>", "</audio>", "<audio_soft>", "<video>", "</video>", "<video_soft>",
    "<draw>", "</draw>", "<call>", "</call>", "<response>", "</response>",
)  # fmt: skip
SPECIAL_IDS = {name: i for i, name in enumerate(SPECIALS)}

FILE = "tokenizer.json"


class Vocabulary:
    """Text ids as in `tokenizer.json`; digit j of an image code with value v has id code_offset + sum(code_levels[:j]) + v.

    Raises ValueError if the tokenizer does not have SPECIALS as its first ids.
    """

    def __init__(self, tokenizer: Tokenizer, code_levels: Iterable[int] = ()):
        for name, i in SPECIAL_IDS.items():
            if tokenizer.token_to_id(name) != i:
                raise ValueError(f"the tokenizer gives {name} the id {tokenizer.token_to_id(name)}, it must be {i}: train it with pollux")
        tokenizer.encode_special_tokens = True  # "<bos>" in a text is five characters of text
        self.tokenizer = tokenizer
        self.code_levels = tuple(code_levels)
        self.code_offset = tokenizer.get_vocab_size()
        self.size = self.code_offset + sum(self.code_levels)
        self._digit_offsets = self.code_offset + np.cumsum((0, *self.code_levels))

    def __reduce__(self):  # a pickled tokenizer forgets encode_special_tokens, and worker processes are sent a pickle
        return Vocabulary, (self.tokenizer, self.code_levels)

    def encode_text(self, text: str) -> list[int]:
        """Ids of a text, never a special one; `decode` is the exact inverse. Raises ValueError if it is not valid Unicode."""
        try:
            return self.tokenizer.encode(text, add_special_tokens=False).ids
        except TypeError as error:
            raise ValueError(f"text must be a string of valid Unicode (no lone surrogates), got {text!r:.80}") from error

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; special tokens are spelled out, image codes have no text. Bytes that are not UTF-8 become U+FFFD."""
        return self.tokenizer.decode([int(i) for i in ids if i < self.code_offset], skip_special_tokens=False)

    def code_ids(self, codes: np.ndarray) -> np.ndarray:
        """int32 codes [L, digits] -> int32 ids [L * digits], the digits of one code in a row."""
        return (codes + self._digit_offsets[:-1]).reshape(-1).astype(np.int32)

    def codes(self, ids: np.ndarray) -> np.ndarray:
        """Inverse of `code_ids`. Raises ValueError if the ids are not whole codes with every digit in its place."""
        digits = len(self.code_levels)
        if digits == 0 or len(ids) % digits:
            raise ValueError(f"{len(ids)} image-code ids are not whole codes of {digits} digits")
        rows = np.asarray(ids, np.int32).reshape(-1, digits)
        if (rows < self._digit_offsets[:-1]).any() or (rows >= self._digit_offsets[1:]).any():
            raise ValueError("image-code ids are out of order: each digit of a code has its own range of ids")
        return (rows - self._digit_offsets[:-1]).astype(np.int32)

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json` into the folder; the code levels belong to the image codec beside it."""
        self.tokenizer.save(str(Path(folder) / FILE))

    @classmethod
    def load(cls, folder: str | Path, code_levels: Iterable[int] = ()) -> Vocabulary:
        """Read `tokenizer.json` from a model folder. Raises FileNotFoundError or ValueError naming the file."""
        path = Path(folder) / FILE
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist: a folder with a vocabulary holds a {FILE}")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing more precise
            raise ValueError(f"{path} is damaged: {error}") from error
        return cls(tokenizer, code_levels)
