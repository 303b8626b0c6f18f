"""Distillation on what the student itself writes (Agarwal et al. 2024, Gu et al. 2024): it answers prompts of the mixture, and is drawn to
what the teacher expects at every token of its own answers, so that it learns to go on from its own mistakes.

Which steps do this, the prompts and the answers follow from seed, step and the parameters before the step, so such a run resumes bit for
bit as any other. Answers are drawn at temperature 1, and no gradient goes through the drawing. What the run would else have read in such
a step is passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from pollux.data.mixture import Mixture
from pollux.generate.engine import Engine
from pollux.generate.sampler import Sampling
from pollux.media import MediaError
from pollux.model.params import Params
from pollux.tokens.interleave import encode_prompt
from pollux.tokens.pack import Packer, sizes
from pollux.tokens.sequence import Batch, Modality, Sequence
from pollux.tokens.vocabulary import Vocabulary
from pollux.train.config import TrainConfig
from pollux.train.reading import reads_own_answers, stack
from pollux.train.samples import split
from pollux.train.step import State, make_step

if TYPE_CHECKING:
    from pollux.tokens.codec import Codec

GIVE_UP = 1000  # prompts of a step that are too long
_WHAT = 3  # what a random generator is for; the data use 0 and 1, reading.py 2
WORK = ("loss", "grad_norm", "rate_factor", "tokens", "text_targets", "draw_targets")


class OnPolicy:
    """The share `distill.on_policy` of the steps, whose batches the student writes. Answers have at most `distill.answer_tokens`."""

    def __init__(self, config: TrainConfig, mixture: Mixture, vocabulary: Vocabulary, codec: Codec | None):
        self._config, self._mixture, self._vocabulary, self._codec = config, mixture, vocabulary, codec

    def due(self, step: int) -> bool:
        return reads_own_answers(self._config, step)

    def batch(self, step: int, params: Params) -> Batch:
        """Leaves [A, ...]: prompts, and as targets what the student with these parameters goes on with.

        Raises ValueError if no prompt leaves room for an answer.
        """
        generator = np.random.default_rng((self._config.seed, _WHAT, step))
        chosen = [self._prompts(generator) for _ in range(self._config.accumulation)]
        prompts = [prompt for one in chosen for prompt in one]
        room = self._config.distill.answer_tokens
        samplings = [Sampling(max_output_tokens=room, seed=int(seed)) for seed in generator.integers(2**31, size=len(prompts))]
        results = iter(Engine(params, self._config.model, self._vocabulary, self._codec).generate(prompts, samplings))
        return stack([self._packed(self._continued(prompt, next(results).ids) for prompt in one) for one in chosen])

    def _prompts(self, generator: np.random.Generator) -> list[Sequence]:
        """As many as a batch has room for if every answer takes all the room it may."""
        packer = self._packer()
        prompts: list[Sequence] = []
        answer = np.zeros(self._config.distill.answer_tokens, np.int32)
        for _ in range(GIVE_UP):
            position, branch = generator.integers(2**40), generator.random()
            try:
                document = self._mixture.document(int(position))
                if document.branches:
                    document = replace(document, branches=(document.branches[int(branch * len(document.branches))],))
                prompt = encode_prompt(split(document)[0], self._vocabulary, self._config.tokens, self._codec, self._config.data.limits)
            except MediaError:
                continue
            whole = self._continued(prompt, answer)
            if sizes(whole) <= packer.capacities.limits:
                if not packer.add(whole):
                    return prompts
                prompts.append(prompt)
        if not prompts:
            raise ValueError(f"no prompt leaves room for an answer of distill.answer_tokens {len(answer)}: lower it or enlarge the batch")
        return prompts

    def _packed(self, sequences: Iterator[Sequence]) -> Batch:
        packer = self._packer()
        for sequence in sequences:
            packer.add(sequence)  # shorter ones can fall into other rows, so that in rare cases the last one finds no room
        return packer.take()

    def _packer(self) -> Packer:
        config = self._config
        return Packer(config.rows, config.row_length, config.targets_per_row, config.soft_per_batch, config.tokens)

    def _continued(self, prompt: Sequence, ids: np.ndarray) -> Sequence:
        """The prompt, of which nothing is a target, and these ids after it, all of them targets."""
        more = np.zeros(len(ids), np.int32)
        added = {
            "ids": ids,
            "position": prompt.position[-1] + 1 + np.arange(len(ids), dtype=np.int32),
            "modality": np.where(ids >= self._vocabulary.code_offset, Modality.DRAW, Modality.TEXT).astype(np.int8),
            "branch": more,
            "group": more,
            "pool": more.astype(np.int8),
        }
        whole: dict[str, Any] = {name: np.concatenate([getattr(prompt, name), new]) for name, new in added.items()}
        return replace(prompt, target=np.repeat(np.array([0, 1], np.float32), [len(prompt), len(ids)]), **whole)


def make_own_step(config: TrainConfig) -> Callable[..., tuple[State, dict[str, jax.Array]]]:
    """`make_step` for batches that the student wrote: the KL alone, which is called own_kl, for there is no right token."""
    step = make_step(replace(config, distill=replace(config.distill, weight=1.0)))

    def own_step(*arguments) -> tuple[State, dict[str, jax.Array]]:
        state, metrics = step(*arguments)
        return state, {name: metrics[name] for name in WORK} | {"own_kl": metrics["kl"]}

    return own_step
