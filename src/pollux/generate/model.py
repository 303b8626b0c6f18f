"""The model as a person uses it: everything of one model folder in one object, contents in, text and pictures out."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pollux.content import Content, Document, Part, Text, to_contents
from pollux.generate.answer import Result
from pollux.generate.decode import cache_dtype
from pollux.generate.drafter import Drafter, DraftModel, LookUp
from pollux.generate.engine import Engine
from pollux.generate.likelihood import Likelihood, likelihood
from pollux.generate.prompts import padded_inputs, plain
from pollux.generate.requests import Piece
from pollux.generate.sampler import Sampling
from pollux.generate.settings import EngineSettings
from pollux.media import Limits
from pollux.model import decoder, folder, huggingface, low_rank
from pollux.model.cache import DTYPES, CacheDtype
from pollux.model.config import ModelConfig
from pollux.model.params import Params, count
from pollux.model.quantized import is_quantized
from pollux.tokens import sequence as tokens
from pollux.tokens.codec import Codec
from pollux.tokens.config import TokensConfig
from pollux.tokens.huggingface import is_folder
from pollux.tokens.interleave import count as count_modalities
from pollux.tokens.interleave import encode, encode_prompt
from pollux.tokens.vocabulary import Vocabulary

SAMPLING_FILE = "generation_config.json"


class Model:
    """A model with its vocabulary and image codec. `contents` is anything that `pollux.content.to_contents` accepts:
    a string, a PIL image, a path, a part, a Content or a list of these. A string is always text, a path is a pathlib.Path.

    `sampling` are the defaults of generate, stream and generate_many; their keywords are the fields of `Sampling`.

    `draft` lets them write the same from fewer passes of the model (speculate.py), which is faster if the model is large: a smaller
    Model that reads and writes the same tokens, or "lookup", which guesses that what was said before is said again. Guided drawings
    are made without it. Raises ValueError if the draft does not fit.

    `kv_cache_dtype` "int8" or "float8" keeps keys and values in 8 bits and a scale for each vector of a head: longer texts in the same
    memory. A draft's own cache stays as it is.
    """

    def __init__(
        self,
        params: Params,
        config: ModelConfig,
        tokens_config: TokensConfig | None = None,
        vocabulary: Vocabulary | None = None,
        codec: Codec | None = None,
        sampling: Sampling = Sampling(),
        limits: Limits = Limits(),
        draft: Model | str | None = None,
        kv_cache_dtype: CacheDtype | None = None,
    ):
        if kv_cache_dtype not in (None, *DTYPES):
            raise ValueError(f"kv_cache_dtype is {kv_cache_dtype!r} but must be one of {', '.join(DTYPES)}, or None")
        self.params, self.config, self.tokens_config = params, config, tokens_config or TokensConfig()
        self.vocabulary, self.codec, self.sampling, self.limits = vocabulary, codec, sampling, limits
        self.kv_cache_dtype = kv_cache_dtype
        self._drafter = self._checked_draft(draft)

    def generate(self, contents: Any, **sampling: Any) -> Result:
        """The model's answer. Keywords: max_output_tokens, max_thought_tokens, temperature, top_p, top_k, min_p, seed, stop, guidance,
        penalties.

        Two more are for the prompt: `tools`, declarations of the functions that the model may call, each {"name", "description",
        "parameters"} with a JSON schema as parameters, and, if its chat template reads it, `enable_thinking`, whether it thinks first.
        Raises ValueError for a wrong setting, an unreadable file or a model without a tokenizer.
        """
        return self.generate_many([contents], **sampling)[0]

    def generate_many(self, contents: Sequence[Any], seeds: Sequence[int] | None = None, **sampling: Any) -> list[Result]:
        """Answers to many prompts in shared batches; each is what `generate` alone would give. seeds: one a prompt, instead of `seed`."""
        variables = _take_variables(sampling)
        chosen = self._sampling(sampling)
        samplings = [chosen] * len(contents) if seeds is None else [dataclasses.replace(chosen, seed=seed) for seed in seeds]
        if len(samplings) != len(contents):
            raise ValueError(f"{len(contents)} prompts need as many seeds, got {len(samplings)}")
        return self._engine.generate([self.prompt(one, **variables) for one in contents], samplings)

    def stream(self, contents: Any, **sampling: Any) -> Stream:
        """The answer of `generate` part by part while it is written."""
        variables = _take_variables(sampling)
        return Stream(self._engine.stream(self.prompt(contents, **variables), self._sampling(sampling)))

    def engine(self, settings: EngineSettings = EngineSettings()) -> Engine:
        """An engine of its own for many requests at once, which serves what `generate` would answer."""
        settings = dataclasses.replace(settings, kv_cache_dtype=self.kv_cache_dtype)
        return Engine(self.params, self.config, self._words, self.codec, self._drafter, settings)

    def prompt(self, contents: Any, **variables: Any) -> tokens.Sequence:
        """The sequence that the model continues: the contents and the opening of a model turn. variables: `tools` and `enable_thinking`,
        as in `generate`."""
        return encode_prompt(to_contents(contents), self._words, self.tokens_config, self.codec, self.limits, variables)

    def count_tokens(self, contents: Any) -> dict[str, int]:
        """Tokens of the prompt per modality, its markers included, for example {"text": 12, "image": 11}."""
        return count_modalities(self.prompt(contents))

    def logits(self, contents_or_ids: Any) -> np.ndarray:
        """float32 [T, V]; row t predicts token t + 1, so the last row is about the first token of the answer.

        The T tokens are those of `prompt(contents)`, or the ids themselves (list or integer array [T]), which need no tokenizer.
        """
        ids = _as_ids(contents_or_ids)
        sequence = self.prompt(contents_or_ids) if ids is None else plain(self._checked(ids))
        return np.asarray(_logits(self.params, self.config, padded_inputs([sequence]))[0, : len(sequence)])

    def likelihood(self, sequence: tokens.Sequence, top: int = 0) -> Likelihood:
        """How likely the model finds the tokens of a sequence, with the `top` most probable ones in the place of each."""
        return likelihood(self.params, self.config, sequence, top)

    def embed(self, contents: Any, longest: int | None = None) -> np.ndarray:
        """Unit vector float32 [D]: the mean final hidden state of the content's tokens, without markers. Media and the text that
        describes them lie close together if the model was trained with aligned pairs.

        Raises ValueError for more than `longest` tokens, which would take the memory of their number squared.
        """
        sequence = self._content_sequence(to_contents(contents))
        if longest is not None and len(sequence) > longest:
            raise ValueError(f"the contents have {len(sequence)} tokens, but at most {longest} can be embedded")
        carries = ~np.isin(sequence.ids, list(self._words.special_ids)) & (sequence.modality == tokens.Modality.TEXT)
        for soft in sequence.soft.values():
            carries[soft.index] = True
        if not carries.any():
            raise ValueError("there is nothing to embed: the contents hold no text and no media")
        states = _hidden(self.params, self.config, padded_inputs([sequence]))
        mean = np.asarray(states[0, : len(sequence)], np.float32)[carries].mean(0)
        return mean / np.linalg.norm(mean)

    def save(self, path: str | Path) -> None:
        """Write a model folder that `load` reads back: weights, config, sampling defaults, and tokenizer and codec if there are."""
        folder.save(path, self.params, self.config, self.tokens_config)
        (Path(path) / SAMPLING_FILE).write_text(json.dumps(dataclasses.asdict(self.sampling), indent=1))
        if self.vocabulary is not None:
            self.vocabulary.save(path)
        if self.codec is not None:
            self.codec.save(path)

    def __repr__(self) -> str:
        draws = "no drawing" if self.codec is None else "draws {}x{}".format(*self.codec.size)
        reads = ", ".join(["text", *(s.name for s in self.config.soft_inputs)])
        words = "no tokenizer" if self.vocabulary is None else f"{self.vocabulary.size:,} ids"
        weights = f"{count(self.config):,} parameters{', quantised,' * is_quantized(self.params)} {cache_dtype(self.params)}"
        return f"<pollux model {self.config.name!r}: {weights}, reads {reads}, {draws}, {words}>"

    @property
    def _words(self) -> Vocabulary:
        if self.vocabulary is None:
            raise ValueError("this model folder has no tokenizer.json, so it only gives logits on ids")
        return self.vocabulary

    @functools.cached_property
    def _engine(self) -> Engine:
        return self.engine()

    def _checked_draft(self, draft: Model | str | None) -> Drafter | None:
        if draft is None:
            return None
        if draft == "lookup":
            return LookUp()
        if not isinstance(draft, Model):
            raise ValueError(f'draft is {draft!r} but must be a Model or "lookup"')
        for what, ours, theirs in (
            ("ids", self.config.vocab_size, draft.config.vocab_size),
            ("words", *(m.vocabulary and m.vocabulary.tokenizer.get_vocab() for m in (self, draft))),
            ("image codes", *(m.vocabulary and m.vocabulary.code_levels for m in (self, draft))),
            ("ways to read media", self.tokens_config, draft.tokens_config),
            ("inputs", *({s.name for s in m.config.soft_inputs} for m in (self, draft))),
        ):
            if ours != theirs:
                raise ValueError(f"{draft.config.name!r} cannot draft for {self.config.name!r}: their {what} differ")
        return DraftModel(draft.params, draft.config)

    def _sampling(self, settings: dict[str, Any]) -> Sampling:
        unknown = sorted(set(settings) - {f.name for f in dataclasses.fields(Sampling)})
        if unknown:
            raise ValueError(f"there is no sampling setting {', '.join(unknown)}; there are {', '.join(Sampling.__dataclass_fields__)}")
        if "stop" in settings:
            stop = settings["stop"]
            settings = settings | {"stop": (stop,) if isinstance(stop, str) else tuple(stop)}
        return dataclasses.replace(self.sampling, **settings)

    def _checked(self, ids: np.ndarray) -> np.ndarray:
        if ids.size == 0 or ids.min() < 0 or ids.max() >= self.config.vocab_size:
            raise ValueError(f"ids must be 1 or more integers in [0, {self.config.vocab_size})")
        return ids

    def _content_sequence(self, contents: tuple[Content, ...]) -> tokens.Sequence:
        """Text alone as running text and media in their turn, the two sides of the contrastive loss."""
        if all(isinstance(part, Text) for content in contents for part in content.parts):
            contents = tuple(Content("", content.parts) for content in contents)
        return encode(Document(contents), self._words, self.tokens_config, self.codec, self.limits)


class Stream:
    """Iterates over the parts of an answer as they are written, text in pieces; `result` is there once it has ended."""

    def __init__(self, pieces: Iterator[Piece]):
        self._pieces = pieces
        self.result: Result | None = None

    def __iter__(self) -> Iterator[Part]:
        for piece in self._pieces:
            self.result = piece.result
            yield from piece.parts


def load(
    path: str | Path,
    dtype: Any = None,
    adapter: str | Path | None = None,
    draft: Model | str | Path | None = None,
    kv_cache_dtype: CacheDtype | None = None,
    progress: Callable[[float], None] | None = None,
) -> Model:
    """The model of a folder, with weights as stored or as `dtype` (for example "bfloat16"), an adapter (a file) merged into them.

    draft: as Model takes it, or the folder of the smaller model. kv_cache_dtype: as Model takes it. progress: called while the weights
    are read, with the share of them that is there.
    A folder without a tokenizer still gives logits on ids. Raises ValueError that says what the folder lacks.
    """
    path = Path(path)
    config, tokens_config = folder.load_config(path)
    codec = Codec.load(path) if (path / "codec.json").is_file() else None
    vocabulary = Vocabulary.load(path, codec.levels if codec else ()) if (path / "tokenizer.json").is_file() else None
    if isinstance(draft, str | Path) and draft != "lookup":
        draft = load(draft, dtype)
    params = folder.load_params(path, config, dtype, progress)
    if adapter is not None:
        params = low_rank.merge(low_rank.attach(params, *low_rank.load_adapters(adapter)))
    model = Model(params, config, tokens_config, vocabulary, codec, draft=draft, kv_cache_dtype=kv_cache_dtype)
    if (path / SAMPLING_FILE).is_file():
        try:
            settings = json.loads((path / SAMPLING_FILE).read_text())
            model.sampling = model._sampling(huggingface.sampling(settings) if is_folder(path) else settings)
        except ValueError as error:
            raise ValueError(f"{path / SAMPLING_FILE}: {error}") from error
    return model


@functools.partial(jax.jit, static_argnames=("config",))
def _hidden(params: Params, config: ModelConfig, inputs: tokens.Inputs) -> jax.Array:
    return decoder.hidden(params, config, inputs, dtype=cache_dtype(params)).hidden


@functools.partial(jax.jit, static_argnames=("config",))
def _logits(params: Params, config: ModelConfig, inputs: tokens.Inputs) -> jax.Array:
    return decoder.logits(params, config, decoder.hidden(params, config, inputs, dtype=cache_dtype(params)).hidden).astype(jnp.float32)


def _take_variables(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that are for the chat template, taken out of the others."""
    taken = {name: settings.pop(name) for name in ("tools", "enable_thinking") if name in settings}
    return {name: value for name, value in taken.items() if value is not None}


def _as_ids(x: Any) -> np.ndarray | None:
    """Ids, if x is a list or one-dimensional array of integers."""
    if isinstance(x, list | tuple) and x and all(isinstance(i, int | np.integer) for i in x):
        return np.array(x, np.int64)
    if isinstance(x, np.ndarray | jax.Array) and x.ndim == 1 and np.issubdtype(x.dtype, np.integer):
        return np.asarray(x)
    return None
