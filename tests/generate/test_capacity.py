"""How large a server's cache is if nobody says."""

import dataclasses

import pytest

from pollux.generate.capacity import MOST_ON_CPU, SPARE, cache_tokens, free_bytes
from pollux.generate.memory import PAGE
from pollux.generate.model import Model
from pollux.generate.requests import Request
from pollux.generate.sampler import Sampling
from pollux.generate.settings import EngineSettings
from pollux.model.params import kv_bytes_per_token


@pytest.fixture
def long_model(model):
    """Conversations of up to 8,192 tokens."""
    config = dataclasses.replace(model.config, max_positions=8192)
    return Model(model.params, config, model.tokens_config, model.vocabulary, model.codec)


def test_a_cache_has_room_for_its_rows_and_no_more(long_model):
    for rows in (1, 3):
        assert 0 <= rows * (8192 + SPARE) - cache_tokens(long_model, rows, free=1 << 50) < PAGE
    assert cache_tokens(long_model, 64, free=1 << 50) == MOST_ON_CPU
    long_model.config = dataclasses.replace(long_model.config, max_positions=2 * MOST_ON_CPU)
    assert cache_tokens(long_model, 64, free=1 << 50) >= 2 * MOST_ON_CPU  # one conversation always fits if memory allows it


def test_a_cache_takes_an_eighth_of_the_free_memory_at_most(long_model):
    size = sum(kv_bytes_per_token(long_model.config, 4).values())
    assert cache_tokens(long_model, 64, free=8 * size * 5000) == 5000 // PAGE * PAGE
    rounded = Model(long_model.params, long_model.config, vocabulary=long_model.vocabulary, kv_cache_dtype="int8")
    assert cache_tokens(rounded, 64, free=8 * size * 5000) == 20000 // PAGE * PAGE
    with pytest.raises(ValueError, match="no room"):
        cache_tokens(long_model, 64, free=8 * size * 1000)


def test_the_longest_conversation_fits_into_the_cache(long_model):
    tokens = cache_tokens(long_model, 1, free=1 << 50)
    engine = long_model.engine(EngineSettings(max_rows=1, cache_tokens=tokens, longest=min(8192, tokens - SPARE)))
    prompt = long_model.prompt("a")
    engine.submit(Request(prompt, Sampling(max_output_tokens=8192 - len(prompt))))
    with pytest.raises(ValueError, match="more than the 8192 there is room for"):
        engine.submit(Request(prompt, Sampling(max_output_tokens=8193 - len(prompt))))


def test_the_free_memory_is_asked_of_the_machine():
    assert free_bytes() > 1 << 20
