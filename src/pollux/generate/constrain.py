"""Constraints on answers: JSON by a schema, one of several strings, function calls, each as a mask over the ids.

llguidance follows a grammar (schema_grammar.py writes those of schemas) over the bytes of the tokens, so that a token may span several
of its symbols. An answer may end only where the grammar can, and must where nothing else is possible; whether it gets there within its
tokens is not up to the grammar, so that an answer that runs out of them is cut as any other.
Shapes: V vocabulary of the model, which may be larger than that of its words.
"""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from tokenizers import Tokenizer

from pollux.generate.rules import Repeat, Rules, Symbol
from pollux.generate.schema_grammar import Values, reason
from pollux.generate.value_forms import Gemma, Json, literal
from pollux.tokens.calls import QUOTE, declared
from pollux.tokens.vocabulary import Vocabulary

_LIMITS = LLParserLimits(max_items_in_row=20_000, verbose_errors=False)  # objects of thousands of optional properties
MODES = ("AUTO", "ANY", "VALIDATED", "NONE")


class GrammarConstraint:
    """A place in a grammar: what generate/requests.py calls a Constraint. One object serves one answer, on one thread."""

    def __init__(self, start: LLMatcher, vocab_size: int):
        self._start, self._matcher, self._vocab_size = start, start.deep_copy(), vocab_size

    def fresh(self) -> GrammarConstraint:
        return GrammarConstraint(self._start, self._vocab_size)

    def copy(self) -> GrammarConstraint:
        """Another one at the same place."""
        made = object.__new__(GrammarConstraint)
        made.__dict__.update(self.__dict__, _matcher=self._matcher.deep_copy())
        return made

    def allowed(self) -> np.ndarray:
        """bool [V]. Raises ValueError where the grammar is too much work to follow."""
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        return np.unpackbits(mask, count=self._vocab_size, bitorder="little").view(bool)

    def accept(self, token: int) -> None:
        """Step over an id. Raises ValueError if it was not allowed."""
        if not self._matcher.consume_token(token):
            raise ValueError(f"the id {token} is not allowed here: {reason(self._matcher.get_error())}")

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ValueError(f"the constraint cannot be followed further: {reason(self._matcher.get_error())}")


def json_schema(schema: Any, vocabulary: Vocabulary, vocab_size: int) -> GrammarConstraint:
    """JSON that a JSON schema admits; True is any JSON. Raises ValueError that names the place in the schema which cannot be followed."""
    rules = Rules()
    return _constraint(rules.lark(Values(rules, Json(spaced=True)).rule(schema, "schema")), vocabulary, vocab_size)


def choice(strings: Sequence[str], vocabulary: Vocabulary, vocab_size: int) -> GrammarConstraint:
    """One of the strings and nothing else. Raises ValueError if there is none, or an empty one."""
    if not strings or not all(isinstance(text, str) and text for text in strings):
        raise ValueError(f"an answer is chosen from at least one text, none of them empty, not from {list(strings)!r:.80}")
    return _constraint(f"start: T\nT: {' | '.join(map(literal, strings))}\n", vocabulary, vocab_size)


def calls(
    tools: Sequence[Mapping[str, Any]],
    vocabulary: Vocabulary,
    vocab_size: int,
    mode: str = "AUTO",
    names: Sequence[str] | None = None,
    last: Collection[str] = (),
) -> GrammarConstraint:
    """Answers that call functions as they are declared, written the way the model writes calls (tokens/calls.py).

    tools: {"name", "description", "parameters"}, with a JSON schema of an object as parameters. mode: "AUTO" text and calls in any order;
    "VALIDATED" either text or calls; "ANY" calls only, one at least; "NONE" text only. names: the functions that may be called, all if
    None. last: functions after whose call no text may follow, because the model reads what they return before it goes on. Calls may follow
    each other, as a model asks for several at once. Raises ValueError for an unknown mode or name, for a schema
    that cannot be followed and for a model that does not write calls.
    """
    if mode not in MODES:
        raise ValueError(f"the mode of function calling is {mode!r} but must be one of {', '.join(MODES)}")
    functions = {tool["name"]: tool for tool in map(declared, tools)}
    unknown = sorted(set(names or ()) - set(functions))
    if unknown:
        raise ValueError(f"{', '.join(unknown)} may be called but is not declared; declared are {', '.join(functions) or 'no functions'}")
    chosen = [functions[name] for name in functions if names is None or name in names] if mode != "NONE" else []
    if mode == "ANY" and not chosen:
        raise ValueError("a function must be called, but there is none that may be")
    rules = Rules()
    text, made = _text(rules, vocabulary), {tool["name"]: rules.rule([_call(rules, tool, vocabulary)]) for tool in chosen}
    call = rules.rule([one] for one in made.values())
    before_text = rules.rule([[rules.rule([one] for name, one in made.items() if name not in last), Repeat(text, 0, 1)]])
    at_the_end = rules.rule([[rules.rule([one] for name, one in made.items() if name in last), Repeat(call, 0, None)]])
    starts: dict[str, list[list[Symbol]]] = {
        "AUTO": [[Repeat(text, 0, 1), Repeat(before_text, 0, None), Repeat(at_the_end, 0, 1)]],
        "VALIDATED": [[Repeat(text, 0, 1)], [Repeat(call, 1, None)]],
        "ANY": [[Repeat(call, 1, None)]],
        "NONE": [[Repeat(text, 0, 1)]],
    }
    return _constraint(rules.lark(rules.rule(starts[mode if chosen else "NONE"])), vocabulary, vocab_size)


def _text(rules: Rules, vocabulary: Vocabulary) -> str:
    """Text that is no call, and drawings, whose digits generate/grammar.py puts in order; of a model that came from elsewhere also the
    special tokens that do not end its turn or belong to calls."""
    specials = vocabulary.specials
    alternatives: list[list[Symbol]] = [[rules.terminal("/(?s:.)+/")]]
    if vocabulary.template is not None:
        kept = {*vocabulary.stops, *(specials[name] for name in ("<call>", "</call>") if name in specials)}
        others = sorted(vocabulary.special_ids - kept)
        alternatives += [[f"<[{','.join(map(str, others))}]>"]] if others else []
    elif vocabulary.code_levels:
        digits = rules.rule([[f"<[{vocabulary.code_offset}-{vocabulary.size - 1}]>"]])
        alternatives.append([f"<[{specials['<draw>']}]>", Repeat(digits, 0, None), f"<[{specials['</draw>']}]>"])
    return rules.rule([[Repeat(rules.rule(alternatives), 1, None)]])


def _call(rules: Rules, tool: Mapping[str, Any], vocabulary: Vocabulary) -> list[Symbol]:
    name, schema = tool["name"], tool.get("parameters") or {"type": "object", "properties": {}}
    specials, quote = vocabulary.specials, vocabulary.tokenizer.token_to_id(QUOTE)
    if not isinstance(schema, Mapping) or schema.get("type", "object") != "object":
        raise ValueError(f"{name}.parameters must be the schema of an object, not {schema!r:.80}")
    if "<call>" not in specials:
        raise ValueError("this model has no tokens to write function calls with")
    args = {"type": "object"} | dict(schema)
    if vocabulary.template is None:
        head = f'{{"name":{json.dumps(name, ensure_ascii=False)},"args":'
        written = [literal(head), Values(rules, Json(spaced=False)).rule(args, f"{name}.parameters"), '"}"']
    elif quote is not None:
        written = [literal(f"call:{name}"), Values(rules, Gemma(quote)).rule(args, f"{name}.parameters")]
    else:
        raise ValueError(f"this model has no token {QUOTE} to write function calls with")
    return [f"<[{specials['<call>']}]>", *written, f"<[{specials['</call>']}]>"]


def _constraint(lark: str, vocabulary: Vocabulary, vocab_size: int) -> GrammarConstraint:
    tokenizer = _tokenizer(vocabulary, vocab_size)
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(lark), log_level=0, limits=_LIMITS)
    if matcher.is_error():
        raise ValueError(f"this constraint cannot be followed: {reason(matcher.get_error())}")
    return GrammarConstraint(matcher, vocab_size)


class _Words:
    """What llguidance asks of a tokenizer: the bytes of every id, which are special, and how a text is split."""

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary, vocab_size: int):
        if not vocabulary.stops:
            raise ValueError("this model has no id that ends its turn, so that a constraint could not end either")
        self._tokenizer = vocabulary.tokenizer  # without the vocabulary itself, by which the cache finds this
        self.eos_token_id = vocabulary.stops[0]
        self.tokens = _token_bytes(vocabulary.tokenizer, vocab_size)
        no_text = {i for i, token in enumerate(self.tokens) if not token}
        no_text |= {i for i in [vocabulary.tokenizer.token_to_id(QUOTE)] if i is not None}
        self.special_token_ids = sorted(i for i in vocabulary.special_ids | no_text if i < vocab_size)
        for i in self.special_token_ids:
            self.tokens[i] = f"<[{i}]>".encode()

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids


def _token_bytes(tokenizer: Tokenizer, vocab_size: int) -> list[bytes]:
    """The text of every id; b"" for those that have none, such as codes of images. Raises ValueError for an unknown kind of tokenizer."""
    state = json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder is not None else {}
    kinds = {part["type"] for part in state.get("decoders", [state]) if part}
    if not kinds & {"ByteLevel", "ByteFallback"}:
        raise ValueError(f"answers of this tokenizer cannot be constrained: its decoder is {', '.join(sorted(kinds)) or 'none'}")
    added = {i: token.content for i, token in tokenizer.get_added_tokens_decoder().items()}
    tokens = [b""] * vocab_size
    for text, i in tokenizer.get_vocab(with_added_tokens=True).items():
        if i >= vocab_size:
            continue
        if "ByteLevel" in kinds:
            tokens[i] = text.encode() if i in added else bytes(_BYTES[character] for character in text)
        elif len(text) == 6 and text.startswith("<0x") and text.endswith(">") and i not in added:
            tokens[i] = bytes.fromhex(text[3:5])
        else:
            tokens[i] = text.replace("\u2581", " ").encode()
    return tokens


def _byte_characters() -> dict[str, int]:
    """The bytes by the characters that stand for them in byte-level tokenizers: visible ones for themselves, others from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTES = _byte_characters()
_tokenizers: weakref.WeakKeyDictionary[Vocabulary, dict[int, LLTokenizer]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def _tokenizer(vocabulary: Vocabulary, vocab_size: int) -> LLTokenizer:
    """llguidance's tokenizer, which takes seconds for a large vocabulary and is made once."""
    with _lock:
        made = _tokenizers.setdefault(vocabulary, {})
        if vocab_size not in made:
            made[vocab_size] = LLTokenizer(TokenizerWrapper(_Words(vocabulary, vocab_size)), eos_token=list(vocabulary.stops))
        return made[vocab_size]
