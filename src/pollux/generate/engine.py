"""Batches of prompts -> answers: fits prompts into a few compiled shapes, keeps the cache large enough and drives the dispatches.

Shapes are powers of two (rows, prompt length, cache slots, soft tokens), so that few programs are compiled however prompts vary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from pollux.generate.answer import Answer, Result
from pollux.generate.decode import CHUNK, State, decode, filled, grow
from pollux.generate.drafter import Drafter
from pollux.generate.grammar import grammar
from pollux.generate.prompts import bucket, padded_inputs, plain, unconditional_prompt
from pollux.generate.sampler import Sampling, sampler_state
from pollux.generate.speculate import Speculation, speculate
from pollux.model.cache import CacheDtype
from pollux.model.config import ModelConfig
from pollux.model.params import Params
from pollux.tokens import sequence as tokens
from pollux.tokens.interleave import PictureCodec, count
from pollux.tokens.vocabulary import Vocabulary

MAX_ROWS = 64
MAX_SLOTS = 2**17  # cache slots of a batch, rows x length
MAX_SCORES = 2**25  # pairs of positions that a prefill compares in one head, rows x length^2
FIRST_SLOTS = 256  # a cache starts with room for this length, unless the answers cannot become so long, and doubles when it is full
STREAM_STEPS = 4  # steps a dispatch while somebody watches


class Engine:
    """Generates with one model. Prompts are sequences as `encode_prompt` makes them. A drafter makes it faster, but for guided batches.
    `kv_cache_dtype` keeps keys and values in 8 bits each."""

    def __init__(
        self,
        params: Params,
        config: ModelConfig,
        vocabulary: Vocabulary,
        codec: PictureCodec | None = None,
        drafter: Drafter | None = None,
        kv_cache_dtype: CacheDtype | None = None,
    ):
        if vocabulary.size > config.vocab_size:
            raise ValueError(f"the vocabulary has {vocabulary.size} ids but model {config.name!r} only {config.vocab_size}")
        self.params, self.config, self.vocabulary, self.codec = params, config, vocabulary, codec
        self.drafter, self.kv_cache_dtype = drafter, kv_cache_dtype
        num_codes = 0 if codec is None else codec.encode(np.zeros((1, *codec.size, 3), np.uint8)).shape[1]
        self._grammar = grammar(vocabulary, config.vocab_size, num_codes)

    def generate(self, prompts: Sequence[tokens.Sequence], samplings: Sequence[Sampling]) -> list[Result]:
        """One result a prompt, in order. A result does not depend on the other prompts. Prompts of like length share a batch."""
        order = sorted(range(len(prompts)), key=lambda i: (samplings[i].guidance != 1, len(prompts[i])))
        results: dict[int, Result] = {}
        while order:
            length = bucket(max(len(prompts[i]) for i in order[:MAX_ROWS]))
            slots = bucket(max(len(prompts[i]) + samplings[i].max_output_tokens for i in order[:MAX_ROWS]))
            rows = max(1, min(MAX_ROWS, MAX_SLOTS // slots, MAX_SCORES // length**2))
            batch, order = order[:rows], order[rows:]
            answers = self._answers(prompts, samplings, batch)
            for _ in self._run([prompts[i] for i in batch], answers, CHUNK):
                pass
            results |= {i: answer.result() for i, answer in zip(batch, answers, strict=True)}
        return [results[i] for i in range(len(prompts))]

    def stream(self, prompt: tokens.Sequence, sampling: Sampling) -> Iterator[Answer]:
        """The growing answer to one prompt, after every few tokens; the same tokens as `generate`."""
        answers = self._answers([prompt], [sampling], [0])
        for _ in self._run([prompt], answers, STREAM_STEPS):
            yield answers[0]

    def _answers(self, prompts: Sequence[tokens.Sequence], samplings: Sequence[Sampling], batch: Sequence[int]) -> list[Answer]:
        return [Answer(samplings[i], count(prompts[i]), self.vocabulary, self.codec) for i in batch]

    def _run(self, prompts: Sequence[tokens.Sequence], answers: Sequence[Answer], steps: int) -> Iterator[None]:
        """Extend the answers, dispatch by dispatch, until all have ended."""
        samplings = [answer.sampling for answer in answers]
        drafter = self._chosen_drafter(samplings)
        spare = drafter.length if drafter else 0  # tokens that a dispatch may write beyond its steps
        used = max(map(len, prompts))
        most = _longest(prompts, samplings)
        slots = bucket(min(most, max(used + CHUNK + spare, FIRST_SLOTS)))
        state = self._start(prompts, samplings, slots)
        spare_rows = bucket(len(prompts)) - len(prompts)
        while not all(answer.finish_reason for answer in answers):
            if min(used + steps + spare, most) > slots:
                slots *= 2
                state = self._grow(state, slots)
            ended = np.array([bool(answer.finish_reason) for answer in answers] + [True] * spare_rows)
            state, *columns = self._dispatch(state, ended, steps)
            columns = [np.asarray(column).tolist() for column in columns]
            used += max(sum(i >= 0 for i in ids) for ids in columns[0])
            for answer, *row in zip(answers, *columns, strict=False):
                answer.extend(*row)
            yield

    def _dispatch(self, state: State | Speculation, ended: np.ndarray, steps: int) -> tuple:
        """The new state, then [B, n] ids, log-probabilities and, after speculation, origins."""
        if isinstance(state, Speculation):
            assert self.drafter is not None
            return speculate(self.params, self.config, self.drafter, self._grammar, state, ended, np.int32(steps))
        return decode(self.params, self.config, self._grammar, state, ended, np.int32(steps))

    def _grow(self, state: State | Speculation, slots: int) -> State | Speculation:
        if isinstance(state, Speculation):
            assert self.drafter is not None
            return state.grow(self.config, self.drafter, slots)
        return replace(state, cache=grow(self.config, state.cache, slots))

    def _chosen_drafter(self, samplings: Sequence[Sampling]) -> Drafter | None:
        return None if any(sampling.guidance != 1 for sampling in samplings) else self.drafter

    def _start(self, prompts: Sequence[tokens.Sequence], samplings: Sequence[Sampling], slots: int) -> State | Speculation:
        """Prefill everything but the last token of each prompt; rows beyond the prompts stay empty."""
        rows, most = bucket(len(prompts)), _longest(prompts, samplings)
        spare = rows - len(prompts)  # they start ended
        prompts, samplings = [*prompts, *[plain([0])] * spare], [*samplings, *[Sampling(temperature=0)] * spare]
        packed = list(prompts)
        position = np.array([len(prompt) - 1 for prompt in prompts], np.int32)
        guided = any(s.guidance != 1 for s in samplings)
        if guided:
            nothing = unconditional_prompt(self.vocabulary)
            packed += [nothing] * rows
            position = np.concatenate([position, np.full(rows, len(nothing), np.int32)])
        inputs = padded_inputs(packed)
        inputs.segment[np.arange(rows), position[:rows]] = 0  # the last token is for the first step
        words = [prompt.ids[prompt.ids < self.vocabulary.code_offset] for prompt in prompts]  # penalties leave image codes alone
        drafter = self._chosen_drafter(samplings)
        state = State(
            cache=filled(self.params, self.config, inputs, slots, drafter.length if drafter else 0, self.kv_cache_dtype),
            sampler=sampler_state(samplings, words, self.config.vocab_size),
            token=np.array([prompt.ids[-1] for prompt in prompts], np.int32),
            position=position,
            drawing=np.zeros(rows, np.int32),
            left=np.array([s.max_output_tokens for s in samplings], np.int32),
            guidance=np.array([[s.guidance] for s in samplings], np.float32),
        )
        return Speculation(state, drafter.start(prompts, inputs, slots, bucket(most))) if drafter else state


def _longest(prompts: Sequence[tokens.Sequence], samplings: Sequence[Sampling]) -> int:
    """Tokens of the longest prompt with its answer, if that takes all tokens it may."""
    return max(len(prompt) + sampling.max_output_tokens for prompt, sampling in zip(prompts, samplings, strict=True))
