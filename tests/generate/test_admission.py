"""Who gets pages and when: contexts, priorities, long prompts, and what becomes of those for whom there are none."""

import dataclasses

import pytest

from pollux.generate.engine import Engine
from pollux.generate.rows import longer
from pollux.generate.sampler import Sampling
from pollux.generate.settings import EngineSettings

GREEDY = Sampling(temperature=0, max_output_tokens=8)


@pytest.fixture(scope="module")
def model(make_model):
    return make_model([dict(num_kv_heads=1, window=5), dict(position="none", log_n_native=4)], [{}, {}])


def engine_of(model, **settings):
    return Engine(model.params, model.config, model.vocabulary, model.codec, None, EngineSettings(**{"chunk": 64} | settings))


def pages_used(engine):
    return sum(len(pool) - pool.available for pool in engine._batch.dispatcher.memory.ledger.pools.values())


def run(engine):
    while engine._batch.busy:
        engine._batch.step()


def of_length(model, tokens):
    """A prompt of exactly so many tokens."""
    whole = model.prompt("the star " * tokens)
    cut = {name: getattr(whole, name)[:tokens] for name in ("ids", "target", "position", "branch", "group", "modality", "pool")}
    return dataclasses.replace(whole, **cut)


@pytest.mark.parametrize("tokens", [63, 64, 65])
def test_the_next_turn_finds_all_pages_wherever_the_prompt_ended(model, tokens):
    engine, prompt = engine_of(model), of_length(model, tokens)
    (result,) = engine.generate([prompt], [Sampling(seed=1, max_output_tokens=70)])
    assert len(result.ids) == 70
    follow_up = longer(prompt, [*result.ids.tolist(), 20, 21])
    assert engine.generate([follow_up], [GREEDY])[0].usage.cached == (tokens + 69) // 32 * 32
