"""Speculation writes what plain decoding writes: token by token where nothing is random, in distribution where something is."""

import dataclasses
from collections import Counter
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from scipy.stats import binomtest, chisquare

from pollux.content import Image, Text
from pollux.generate import batch
from pollux.generate.drafter import Draft, DraftModel, LookUp
from pollux.generate.engine import Engine
from pollux.generate.model import Model
from pollux.generate.sampler import Sampling, probabilities, sampler_state
from pollux.generate.settings import EngineSettings
from pollux.generate.speculate import accept
from pollux.model import cache as caches
from pollux.model import decoder
from pollux.model.config import AttentionConfig, ExpertsConfig
from pollux.tokens.sequence import Inputs
from pollux.tokens.vocabulary import SPECIAL_IDS

PICTURE = Image(np.random.default_rng(0).integers(0, 255, (16, 24, 3), np.uint8))
TEXTS = ["what colour", "a", "the circle is left of the small blue star"]
RING = ([dict(window=5)], [{}])
WINDOWED = ([dict(num_kv_heads=1, window=5), dict(position="none", log_n_native=4)], [{}, {}])
MIXED = ([{}, dict(window=5)], [dict(experts=ExpertsConfig(4, 2, 16)), dict(cross_attention=AttentionConfig(4, 2, 8))])


def _noisy(model, share):
    """The parameters of a model that often, but not always, prefers the same tokens."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: (x + share * np.abs(x).mean() * rng.normal(size=x.shape)).astype(np.float32), model.params)


def _engine(model, drafter=None, rows=64):
    return Engine(model.params, model.config, model.vocabulary, model.codec, drafter, EngineSettings(max_rows=rows))


def _assert_same(plain, drafted):
    for one, other in zip(plain, drafted, strict=True):
        assert one.ids.tolist() == other.ids.tolist() and one.finish_reason == other.finish_reason
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)


def _total(results, name):
    return sum(getattr(result.usage, name) for result in results)


@pytest.mark.parametrize(
    "variant, share, lookup",
    [
        pytest.param(RING, 0.12, False, id="a ring that turns over"),
        pytest.param(WINDOWED, 0.08, False, id="a ring, then a global layer", marks=pytest.mark.slow),
        pytest.param(WINDOWED, 0.0, True, id="a ring, then a global layer, look-up", marks=pytest.mark.slow),
        pytest.param(MIXED, 0.3, False, id="experts and cross-attention", marks=pytest.mark.slow),
        pytest.param(MIXED, 0.0, True, id="experts and cross-attention, look-up", marks=pytest.mark.slow),
    ],
)
def test_greedy_ids_are_those_of_plain_decoding(variant, share, lookup, make_model, monkeypatch):
    model = make_model(*variant)
    drafter = LookUp() if lookup else DraftModel(_noisy(model, share), model.config)
    contents = [*TEXTS, [PICTURE, "a big red circle"], "blue", "the star", "red", [PICTURE, PICTURE]]
    prompts = [model.prompt(one) for one in contents]
    samplings = [Sampling(temperature=0, max_output_tokens=n) for n in (60, 60, 60, 60, 1, 2, 5, 8)]
    samplings[1] = Sampling(temperature=0, max_output_tokens=60, repetition_penalty=1.2, frequency_penalty=0.2)
    plain = _engine(model).generate(prompts, samplings)
    monkeypatch.setattr(batch, "FIRST_TOKENS", 1)  # the caches outgrow their first size
    drafted = _engine(model, drafter).generate(prompts, samplings)
    _assert_same(plain, drafted)
    assert _total(drafted, "accepted") > 20 and _total(drafted, "rejected") > 10, "a test of both needs both"
    for usage in (result.usage for result in drafted):
        cut = usage.accepted + usage.rounds - usage.output_tokens  # a round that max_output_tokens ended has no token of its own
        assert cut in (0, 1) and usage.rejected <= usage.rounds


def test_look_up_writes_what_the_same_seed_writes_without_it_drawings_too(biased_to):
    artist = biased_to("<draw>")
    samplings = [
        Sampling(temperature=1.2, top_k=8, top_p=0.9, min_p=0.02, seed=1, max_output_tokens=48),
        Sampling(temperature=0.7, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.3, seed=2, max_output_tokens=48),
        Sampling(temperature=0, frequency_penalty=0.3, max_output_tokens=48),
        Sampling(temperature=0, max_output_tokens=48),
    ]
    prompts = [artist.prompt(text) for text in ("a big", "blue", "the star", "a big star and a big star")]
    drafted = _engine(artist, LookUp()).generate(prompts, samplings)
    _assert_same(_engine(artist).generate(prompts, samplings), drafted)
    assert _total(drafted, "accepted") > 20 and _total(drafted, "rejected") > 5 and sum(len(result.images) for result in drafted) > 3


@pytest.mark.slow
def test_a_row_of_a_batch_and_a_stream_give_what_the_row_gives_alone(model):
    drafted = Model(model.params, model.config, model.tokens_config, model.vocabulary, draft="lookup")
    drafted._drafter = DraftModel(_noisy(model, 0.3), model.config)
    settings = dict(temperature=1.3, max_output_tokens=30)
    for text, seed, result in zip(TEXTS, [5, 6, 7], drafted.generate_many(TEXTS, seeds=[5, 6, 7], **settings), strict=True):
        alone = drafted.generate(text, seed=seed, **settings)
        stream = drafted.stream(text, seed=seed, **settings)
        assert "".join(piece.text for piece in stream if isinstance(piece, Text)) == result.text
        assert result.ids.tolist() == alone.ids.tolist() == stream.result.ids.tolist()
        assert result.usage == alone.usage == stream.result.usage and result.usage.accepted


@pytest.mark.slow
def test_guided_drawings_are_decoded_plainly(biased_to):
    artist = biased_to("<draw>")
    prompt, sampling = artist.prompt("a big red one"), Sampling(temperature=0, guidance=20.0, max_output_tokens=30)
    plain, drafted = (_engine(artist, drafter).generate([prompt], [sampling])[0] for drafter in (None, LookUp()))
    assert drafted.ids.tolist() == plain.ids.tolist() and drafted.usage.rounds == 0 and drafted.images


def _distribution(logits, sampling, prompt, output, allowed):
    """The distribution of the next token, by the formulas, in float64."""
    x = np.where(allowed, logits.astype(np.float64), -np.inf)
    for token in set(prompt) | set(output):
        x[token] = x[token] / sampling.repetition_penalty if x[token] > 0 else x[token] * sampling.repetition_penalty
    for token in set(output):
        x[token] -= sampling.frequency_penalty * list(output).count(token)
    p = scipy.special.softmax(x / sampling.temperature)
    p[np.argsort(-p)[sampling.top_k :]] = 0
    return p / p.sum()


def _continuations(model, prompt, sampling):
    """{ids: probability} of all answers to a prompt, each token by a forward pass over all tokens before it."""
    allowed = np.zeros(model.config.vocab_size, bool)
    allowed[len(SPECIAL_IDS) : model.vocabulary.code_offset] = True
    allowed[[SPECIAL_IDS[name] for name in ("<eos>", "<end_of_turn>", "<call>", "</call>", "<draw>")]] = True
    found, ended = {(): 1.0}, {}
    for _ in range(sampling.max_output_tokens):
        found, shorter = {}, found
        for ids, probability in shorter.items():
            p = _distribution(model.logits([*prompt, *ids])[-1], sampling, prompt, ids, allowed)
            longer = {(*ids, int(i)): probability * p[i] for i in np.flatnonzero(p)}
            ended |= {ids: p for ids, p in longer.items() if ids[-1] in model.vocabulary.stops}
            found |= {ids: p for ids, p in longer.items() if ids[-1] not in model.vocabulary.stops}
    return found | ended


def test_answers_have_exactly_the_distribution_of_the_target(biased_to):
    samples = 2048
    target = biased_to("<end_of_turn>")
    sampling = Sampling(temperature=1.5, top_k=4, repetition_penalty=1.2, frequency_penalty=0.4, max_output_tokens=3)
    prompt = target.prompt("the star")
    expected = _continuations(target, prompt.ids.tolist(), sampling)
    drafter = DraftModel(_noisy(target, 0.5), target.config, length=2)
    rows = [dataclasses.replace(sampling, seed=seed) for seed in range(samples)]
    rows[0] = dataclasses.replace(sampling, temperature=0)
    greedy, *results = _engine(target, drafter, 256).generate([prompt] * samples, rows)
    assert min(_total(results, "accepted"), _total(results, "rejected")) > samples / 4, "a test of both needs both"
    written = Counter(tuple(result.ids.tolist()) for result in results)
    assert set(written) <= set(expected) and min(map(len, written)) < 3
    _assert_drawn_from([expected[ids] for ids in expected], [written[ids] for ids in expected])
    assert {tuple(greedy.ids.tolist())} == set(_continuations(target, prompt.ids.tolist(), dataclasses.replace(sampling, top_k=1)))


def _assert_drawn_from(probabilities, counts):
    """Chi-square test of how often each outcome occurred; the rare ones are taken together."""
    p, n = np.array(probabilities) / np.sum(probabilities), np.array(counts)
    often = p * n.sum() >= 5
    observed, wanted = (np.append(x[often], x[~often].sum()) for x in (n, p * n.sum()))
    assert often.sum() > 1 and observed[wanted == 0].sum() == 0
    assert chisquare(observed[wanted > 0], wanted[wanted > 0]).pvalue > 1e-3


ROWS, LENGTH, WORDS = 20_000, 3, 12


@pytest.fixture(scope="module")
def judged():
    """p, q float64 [LENGTH + 1, WORDS], and what `accept` made of drafts from q: ids, number kept, tokens."""
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(WORDS), LENGTH + 1), rng.dirichlet(np.ones(WORDS), LENGTH + 1)
    ids = np.stack([rng.choice(WORDS, ROWS, p=row) for row in q[:LENGTH]], 1).astype(np.int32)
    number, tokens = _accept(p, q, ids)
    return p, q, ids, number, tokens


def _accept(p, q, ids):
    state = sampler_state([Sampling(seed=seed) for seed in range(ROWS)], [np.array([], np.int32)] * ROWS, WORDS)
    state = state.__class__(**state.__dict__ | {"drawn": np.tile(np.arange(LENGTH + 1, dtype=np.int32), (ROWS, 1))})
    probs = [np.broadcast_to(x.astype(np.float32), (ROWS, *x.shape)) for x in (p, q[:LENGTH])]
    number, tokens = jax.jit(accept)(probs[0], Draft(ids, np.full(ROWS, LENGTH, np.int32), probs[1]), state)
    return np.asarray(number), np.asarray(tokens)


def test_a_draft_is_accepted_with_probability_min_1_p_over_q(judged):
    p, q, ids, number, _ = judged
    for token in range(WORDS):
        drafted = ids[:, 0] == token
        share = min(1, p[0, token] / q[0, token])
        assert binomtest(int((number[drafted] > 0).sum()), int(drafted.sum()), share).pvalue > 1e-4
    assert number.max() == LENGTH and number.min() == 0


def test_a_rejected_draft_is_replaced_from_what_p_has_over_q(judged):
    p, q, _, number, tokens = judged
    for i in range(LENGTH):
        replaced = tokens[number == i, i]
        _assert_drawn_from(np.maximum(p[i] - q[i], 0), np.bincount(replaced, minlength=WORDS))
    _assert_drawn_from(p[LENGTH], np.bincount(tokens[number == LENGTH, LENGTH], minlength=WORDS))


def test_every_token_of_a_round_has_the_distribution_p(judged):
    p, _, _, number, tokens = judged
    for i in range(LENGTH + 1):
        _assert_drawn_from(p[i], np.bincount(tokens[number >= i, i], minlength=WORDS))


def test_tokens_of_a_round_are_as_many_as_the_formula_says():
    rng = np.random.default_rng(1)
    p, q = rng.dirichlet(np.ones(WORDS)), rng.dirichlet(np.ones(WORDS))
    ids = rng.choice(WORDS, (ROWS, LENGTH), p=q).astype(np.int32)
    number, _ = _accept(np.tile(p, (LENGTH + 1, 1)), np.tile(q, (LENGTH, 1)), ids)
    alpha = np.minimum(p, q).sum()
    written = number + 1
    assert abs(written.mean() - (1 - alpha ** (LENGTH + 1)) / (1 - alpha)) < 4 * written.std() / ROWS**0.5


def test_probabilities_are_what_the_filters_leave():
    sampling, logits = Sampling(temperature=0.7, top_k=5), np.random.default_rng(2).normal(0, 2, (1, 23)).astype(np.float32)
    state = sampler_state([sampling, Sampling(temperature=0)], [np.array([], np.int32)] * 2, 23)
    drawn, greedy = np.asarray(jax.jit(probabilities)(np.tile(logits, (2, 1)), state))
    np.testing.assert_allclose(drawn, _distribution(logits[0], sampling, (), (), np.ones(23, bool)), atol=1e-6)
    np.testing.assert_array_equal(greedy, np.arange(23) == logits.argmax())


def test_tokens_that_were_taken_back_leave_no_trace_in_a_ring(make_model):
    model, length, spare = make_model(*WINDOWED), 40, 4
    rng = np.random.default_rng(3)
    ids = rng.integers(30, 300, (2, length)).astype(np.int32)
    forward = jax.jit(lambda params, inputs, cache: decoder.hidden(params, model.config, inputs, cache))
    column = np.arange(length, dtype=np.int32)

    def inputs(ids, position, segment):
        zero = np.zeros_like(ids)
        return Inputs(ids, position, segment.astype(np.int32), zero, zero, {})

    expected = np.asarray(forward(model.params, inputs(ids, np.tile(column, (2, 1)), np.ones_like(ids)), None).hidden)
    cache, done = caches.empty(model.config, 2, 64, jnp.float32, spare=spare), np.array([0, 0])
    while done.min() < length:
        right = rng.integers(1, spare + 2, 2)  # tokens of this pass that stay; those after them are wrong
        step = np.arange(spare + 1)
        position = done[:, None] + step
        here = np.where(position < length, np.take_along_axis(ids, np.minimum(position, length - 1), 1), 0)
        wrong = rng.integers(30, 300, here.shape)
        stays = (step < right[:, None]) & (position < length)
        read = np.where(stays, here, wrong).astype(np.int32)
        out = forward(model.params, inputs(read, position.astype(np.int32), np.ones_like(here)), cache)
        cache = out.cache
        for row in range(2):
            np.testing.assert_allclose(np.asarray(out.hidden)[row, stays[row]], expected[row, position[row, stays[row]]], atol=1e-4)
        done = done + stays.sum(1)


def _look_up(history, length):
    """The longest, then the latest earlier place that ends in the same two or three tokens, and what followed, told as a loop."""
    for size in (3, 2):
        for end in range(len(history) - 1, size - 1, -1):
            if history[end - size : end] == history[-size:] and len(history) >= size:
                period = len(history) - end
                return [history[end + i % period] for i in range(length)]
    return []


def test_look_up_proposes_what_followed_the_longest_and_latest_match():
    rng = np.random.default_rng(4)
    found = 0
    drafter = LookUp(length=4)
    propose = jax.jit(lambda history, last: drafter.draft(history, None, SimpleNamespace(position=last), jnp.full(len(history), 4))[1])
    sizes = rng.integers(1, 20, 200)
    rows = [rng.integers(0, rng.integers(2, 6), size).tolist() for size in sizes]
    history = np.full((200, 32), -1, np.int32)
    for row, ids in zip(history, rows, strict=True):
        row[: len(ids)] = ids
    draft = propose(history, sizes - 1)
    for ids, number, drafted in zip(rows, np.asarray(draft.number), np.asarray(draft.ids).tolist(), strict=True):
        expected = _look_up(ids, 4)
        assert drafted[:number] == expected
        found += bool(expected)
    assert 50 < found < 200
