"""The one vocabulary: special tokens, text, and after them the digits of image codes.

In models of this project the special tokens always have the first ids. A folder in the layout of Hugging Face brings its own: then
`specials` says which of them plays which part, and a chat template (template.py) says how turns are written. Text written by a person
can never become a special token, even if it spells one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from pollux.tokens.template import Template

SPECIALS = (
    "<pad>", "<bos>", "<eos>", "<end_of_turn>", "<user>", "<model>", "<system>", "<tool>",
    "<image>", "</image>", "<image_soft>", "<audio>", "</audio>", "<audio_soft>", "<video>", "</video>", "<video_soft>",
    "<draw>", "</draw>", "<call>", "</call>", "<response>", "</response>",
)  # fmt: skip
SPECIAL_IDS = {name: i for i, name in enumerate(SPECIALS)}

FILE = "tokenizer.json"
TEMPLATE_FILE = "template.json"  # special tokens and chat template of a model that came from elsewhere


class Vocabulary:
    """Text ids as in `tokenizer.json`; digit j of an image code with value v has id code_offset + sum(code_levels[:j]) + v.

    specials: ids by the names in SPECIALS. stops: ids that end a turn. template: how turns are written, if not by SPECIALS.
    Raises ValueError if the tokenizer does not have SPECIALS as its first ids and nothing else is said.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        code_levels: Iterable[int] = (),
        specials: Mapping[str, int] | None = None,
        stops: Iterable[int] = (SPECIAL_IDS["<eos>"], SPECIAL_IDS["<end_of_turn>"]),
        template: Template | None = None,
    ):
        for name, i in SPECIAL_IDS.items() if specials is None else ():
            if tokenizer.token_to_id(name) != i:
                raise ValueError(f"the tokenizer gives {name} the id {tokenizer.token_to_id(name)}, it must be {i}: train it with pollux")
        tokenizer.encode_special_tokens = True  # "<bos>" in a text is five characters of text
        self.tokenizer, self.template = tokenizer, template
        self.specials, self.stops = dict(SPECIAL_IDS if specials is None else specials), tuple(stops)
        self._given = specials
        added = [i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special]
        self.special_ids = frozenset(range(len(SPECIALS)) if specials is None else [*self.specials.values(), *self.stops, *added])
        self.code_levels = tuple(code_levels)
        self.code_offset = tokenizer.get_vocab_size()
        self.size = self.code_offset + sum(self.code_levels)
        self._digit_offsets = self.code_offset + np.cumsum((0, *self.code_levels))

    def __reduce__(self):  # a pickled tokenizer forgets encode_special_tokens, and worker processes are sent a pickle
        return Vocabulary, (self.tokenizer, self.code_levels, self._given, self.stops, self.template)

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
        """Write `tokenizer.json` into the folder, and a chat template if there is one; the code levels belong to the image codec."""
        self.tokenizer.save(str(Path(folder) / FILE))
        if self.template is not None:
            told = {"specials": self.specials, "stops": self.stops, "template": asdict(self.template)}
            (Path(folder) / TEMPLATE_FILE).write_text(json.dumps(told, ensure_ascii=False, indent=1))

    @classmethod
    def load(cls, folder: str | Path, code_levels: Iterable[int] = ()) -> Vocabulary:
        """Read `tokenizer.json` and what belongs to it from a model folder. Raises FileNotFoundError or ValueError naming the file."""
        from pollux.tokens import huggingface  # which needs this class

        path = Path(folder) / FILE
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist: a folder with a vocabulary holds a {FILE}")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing more precise
            raise ValueError(f"{path} is damaged: {error}") from error
        if huggingface.is_folder(Path(folder)):
            return huggingface.vocabulary(Path(folder), tokenizer)
        if not (Path(folder) / TEMPLATE_FILE).is_file():
            return cls(tokenizer, code_levels)
        try:
            told = json.loads((Path(folder) / TEMPLATE_FILE).read_text())
            template = Template(**told["template"] | {"start": tuple(told["template"]["start"])})
            return cls(tokenizer, code_levels, told["specials"], told["stops"], template)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{Path(folder) / TEMPLATE_FILE} is damaged: {error}") from error
