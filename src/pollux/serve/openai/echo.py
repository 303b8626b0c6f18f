"""The prompt of a completion repeated before its answer, with how likely the model finds each of its tokens if that is asked for.

Prompts may be ids. What the tokenizer puts before every text, such as <bos>, is read before them too, but not shown.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from pollux.serve.prepare import Plan, beginning


@dataclass(frozen=True)
class Echo:
    """text: of the prompt. logprobs: as in OpenAI's answers, None if not asked for; a token with nothing before it has none."""

    text: str
    logprobs: dict[str, Any] | None


def echo(plan: Plan, prompt: str | tuple[int, ...], top: int | None) -> Echo:
    """top: most probable tokens in the place of each; None for no log-probabilities. Blocks."""
    served = plan.served
    vocabulary = served.model.vocabulary
    assert vocabulary is not None, "a model without words has read no prompt"
    ids, before = plan.request.prompt.ids.tolist(), beginning(served)
    first = 0 if isinstance(prompt, tuple) and prompt[: len(before)] == before else len(before)
    text = prompt if isinstance(prompt, str) else vocabulary.decode(ids[first:])
    if top is None:
        return Echo(text, None)
    with served.beside:
        found = served.model.likelihood(plan.request.prompt, top)
    words = [vocabulary.decode([i]) for i in ids[first:]]
    chosen: list[float | None] = [None, *map(float, found.logprobs)]
    likely: list[dict[str, float] | None] = [None]
    for top_ids, top_logprobs in zip(found.top_ids.tolist(), found.top_logprobs.tolist(), strict=True):
        place: dict[str, float] = {}
        for i, logprob in zip(top_ids, top_logprobs, strict=True):
            place.setdefault(vocabulary.decode([i]), logprob)  # pieces of letters look alike; the most probable one counts
        likely.append(place)
    offsets = list(itertools.accumulate(map(len, words), initial=0))[:-1]
    return Echo(text, {"tokens": words, "token_logprobs": chosen[first:], "top_logprobs": likely[first:], "text_offset": offsets})
