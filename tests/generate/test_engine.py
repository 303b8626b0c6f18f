"""Cached, batched, chunked generation against the plain forward pass, and answers that do not depend on company or on streaming."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from pollux.content import Image, Text
from pollux.generate import batch
from pollux.generate.engine import Engine
from pollux.generate.prompts import plain
from pollux.generate.sampler import Sampling
from pollux.generate.settings import EngineSettings
from pollux.model import decoder
from pollux.model.config import AttentionConfig, ExpertsConfig
from pollux.tokens.pack import single
from pollux.tokens.vocabulary import SPECIAL_IDS

VARIANTS = {
    "window smaller than the prompt, then global without position and log-n queries": (
        [dict(num_kv_heads=1, window=5), dict(position="none", log_n_native=4)],
        [{}, {}],
    ),
    "multi-head parallel block, then values that are keys with a Gaussian prior": (
        [dict(num_kv_heads=4), dict(values_reuse_keys=True, gaussian_prior=True, rope_fraction=0.5)],
        [dict(parallel=True), dict(layer_scale=True)],
    ),
    "experts, then cross-attention": (
        [{}, dict(window=5)],
        [dict(experts=ExpertsConfig(4, 2, 16)), dict(cross_attention=AttentionConfig(4, 2, 8))],
    ),
}


PICTURE = Image(np.random.default_rng(0).integers(0, 255, (16, 24, 3), np.uint8))


def _text_ids(vocabulary, also=()):
    """bool [V], the ids that a model may write as text."""
    allowed = np.zeros(vocabulary.size + 9, bool)
    allowed[len(SPECIAL_IDS) : vocabulary.code_offset] = True
    allowed[[SPECIAL_IDS[name] for name in ("<eos>", "<end_of_turn>", "<call>", "</call>", *also)]] = True
    return allowed


def _longer(sequence, ids):
    """The sequence with plain ids after it."""
    tail = plain([0, *ids])
    fields = ("target", "branch", "group", "modality", "pool")
    joined = {name: np.concatenate([getattr(sequence, name), getattr(tail, name)[1:]]) for name in fields}
    all_ids = np.concatenate([sequence.ids, np.array(ids, np.int32)])
    return dataclasses.replace(sequence, ids=all_ids, position=np.arange(len(all_ids), dtype=np.int32), **joined)


@functools.partial(jax.jit, static_argnums=1)
def _forward(params, config, inputs):
    return decoder.logits(params, config, decoder.hidden(params, config, inputs).hidden)


def _greedy_by_full_forwards(model, prompt, steps):
    """The definition: run the whole sequence anew for every token and take the best that a text may hold."""
    allowed = _text_ids(model.vocabulary)
    ids = []
    for _ in range(steps):
        sequence = _longer(prompt, ids)
        scores = np.asarray(_forward(model.params, model.config, single(sequence, 64).inputs))[0, len(sequence) - 1]
        ids.append(int(np.where(allowed, scores, -np.inf).argmax()))
        if ids[-1] in (SPECIAL_IDS["<eos>"], SPECIAL_IDS["<end_of_turn>"]):
            break
    return ids


@pytest.mark.parametrize("name, pictures", [(name, i > 0) for i, name in enumerate(VARIANTS)])
def test_cached_greedy_generation_equals_greedy_by_full_forwards(name, pictures, make_model, monkeypatch):
    monkeypatch.setattr(batch, "FIRST_TOKENS", 1)  # the cache outgrows its first size
    model = make_model(*VARIANTS[name])
    prompts = [model.prompt([PICTURE, text] if pictures else text) for text in ("what colour", "a", "the circle")]
    results = Engine(model.params, model.config, model.vocabulary).generate(prompts, [Sampling(temperature=0, max_output_tokens=20)] * 3)
    for prompt, result in zip(prompts, results, strict=True):
        assert result.ids.tolist() == _greedy_by_full_forwards(model, prompt, 20)


def test_a_row_of_a_batch_gives_what_it_gives_alone(model):
    texts = ["a", "the big red circle is left", "blue"]
    together = model.generate_many(texts, seeds=[5, 6, 7], temperature=1.3, max_output_tokens=30)
    for text, seed, result in zip(texts, [5, 6, 7], together, strict=True):
        alone = model.generate(text, seed=seed, temperature=1.3, max_output_tokens=30)
        assert alone.ids.tolist() == result.ids.tolist()
        np.testing.assert_allclose(alone.logprobs, result.logprobs, atol=1e-4)


def test_results_come_in_the_order_of_the_prompts(model):
    texts = ["the star", "a", "the circle"]
    singly = [model.generate(text, max_output_tokens=5).text for text in texts]
    one_by_one = model.engine(EngineSettings(max_rows=1)).generate(
        [model.prompt(text) for text in texts], [Sampling(max_output_tokens=5)] * 3
    )
    assert [result.text for result in one_by_one] == singly


def test_logprobs_are_those_of_the_model(model):
    prompt, result = model.prompt("what colour"), model.generate("what colour", seed=4, max_output_tokens=6)
    scores = model.logits([*prompt.ids, *result.ids]).astype(np.float64)[len(prompt) - 1 : -1]
    scores[:, ~_text_ids(model.vocabulary, also=["<draw>"])] = -np.inf
    expected = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    np.testing.assert_allclose(result.logprobs, expected[np.arange(len(result.ids)), result.ids], atol=1e-4)


def test_the_same_seed_gives_the_same_text_and_another_seed_another(model):
    texts = [model.generate("the circle", seed=seed, max_output_tokens=12).text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    many = model.generate_many(["the circle"] * 3, seeds=[1, 1, 2], max_output_tokens=12)
    assert [result.text for result in many] == texts


def test_max_output_tokens_is_kept_exactly(model):
    for limit in (1, 16, 17):
        result = model.generate("what", seed=4, max_output_tokens=limit)
        assert len(result.ids) == limit and result.finish_reason == "length"


def test_end_of_turn_ends_the_answer(biased_to):
    result = biased_to("<end_of_turn>").generate("what", seed=1, max_output_tokens=40)
    assert result.finish_reason == "stop" and result.ids[-1] == SPECIAL_IDS["<end_of_turn>"]
    assert SPECIAL_IDS["<end_of_turn>"] not in result.ids[:-1]


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_a_stop_string_cuts_the_text_before_it(model, seed):
    free = model.generate("the star is", seed=seed, max_output_tokens=40)
    stop = free.text[11:14]
    result = model.generate("the star is", seed=seed, max_output_tokens=40, stop=[stop, "never written"])
    assert result.text == free.text[: free.text.index(stop)] and result.finish_reason == "stop"
    assert len(result.ids) < len(free.ids)


@pytest.mark.parametrize("settings", [dict(), dict(stop=("qz", "e", "the"))], ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_a_stream_adds_up_to_the_generated_answer(model, seed, settings):
    result = model.generate("a big", seed=seed, max_output_tokens=30, **settings)
    stream = model.stream("a big", seed=seed, max_output_tokens=30, **settings)
    pieces = list(stream)
    assert "".join(piece.text for piece in pieces if isinstance(piece, Text)) == result.text
    assert stream.result.ids.tolist() == result.ids.tolist() and stream.result.usage == result.usage
    if not settings:
        assert len(pieces) > 1
