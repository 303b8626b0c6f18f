"""Every filter and penalty against a float64 numpy formula and Hugging Face's processors; draws against known distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from scipy.stats import chisquare

from pollux.generate.sampler import Sampling, _kept, advance, most_probable, sample, sampler_state

VOCABULARY = 23
draw = jax.jit(sample)
count = jax.jit(advance)
kept = jax.jit(_kept)


def _logits(rows=4, seed=0):
    return np.random.default_rng(seed).normal(0, 2, (rows, VOCABULARY)).astype(np.float32)


def _softmax(logits):
    e = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _expected(logits, sampling, prompt=(), output=()):
    """The distribution of the next token by the textbook formulas, one row, with a sort, in float64."""
    x = logits.astype(np.float64).copy()
    for token in set(prompt) | set(output):
        x[token] = x[token] / sampling.repetition_penalty if x[token] > 0 else x[token] * sampling.repetition_penalty
    for token in set(output):
        x[token] -= sampling.presence_penalty + sampling.frequency_penalty * list(output).count(token)
    p = _softmax(x / sampling.temperature)
    best = p.max()
    order = np.argsort(-p)
    if sampling.top_k:
        p[order[sampling.top_k :]] = 0
    p /= p.sum()
    share = np.cumsum(p[order])
    p[order[1:][share[:-1] >= sampling.top_p]] = 0
    full = _softmax(x / sampling.temperature)
    p[full < sampling.min_p * best] = 0
    return p / p.sum()


def _draws(logits, sampling, n, prompt=(), output=()):
    """n draws for one row of logits, each from the random stream of another seed."""
    rows = [Sampling(**{**sampling.__dict__, "seed": seed}) for seed in range(n)]
    state = sampler_state(rows, [np.array(prompt, np.int32)] * n, VOCABULARY)
    for token in output:
        state = count(state, np.full(n, token), np.ones(n, bool))
    return np.asarray(draw(np.broadcast_to(logits, (n, VOCABULARY)), state)[0])


SETTINGS = {
    "plain": dict(),
    "temperature": dict(temperature=0.6),
    "top_k": dict(top_k=5),
    "top_p": dict(top_p=0.8),
    "min_p": dict(min_p=0.1),
    "top_k then top_p on what is left": dict(top_k=6, top_p=0.7, temperature=1.4),
    "all": dict(top_k=8, top_p=0.9, min_p=0.05, temperature=1.3, repetition_penalty=1.7, presence_penalty=0.4, frequency_penalty=0.3),
    "repetition": dict(repetition_penalty=2.0),
    "presence": dict(presence_penalty=1.5),
    "frequency": dict(frequency_penalty=0.8),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_draws_follow_the_distribution_of_the_formulas(name):
    sampling, prompt, output, n = Sampling(**SETTINGS[name]), (1, 4), (7, 7, 7, 2), 6000
    logits = _logits(1)[0]
    logits[[7, 1]] = 3.0, 2.5
    p = _expected(logits, sampling, prompt, output)
    counts = np.bincount(_draws(logits, sampling, n, prompt, output), minlength=VOCABULARY)
    assert counts[p == 0].sum() == 0
    often = p * n >= 5
    observed = np.append(counts[often], counts[~often].sum())
    wanted = np.append(p[often] * n, p[~often].sum() * n)
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    assert chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 1e-3


@pytest.mark.parametrize(
    "settings",
    [
        dict(top_k=3),
        dict(top_k=100),
        dict(top_p=0.5),
        dict(top_p=0.95),
        dict(top_p=1e-6),
        dict(min_p=0.3),
        dict(min_p=1.0),
        dict(top_k=7, top_p=0.6),
    ],
    ids=str,
)
def test_filters_keep_the_same_tokens_as_hugging_face(settings):
    torch = pytest.importorskip("torch")
    processors = pytest.importorskip("transformers.generation.logits_process")
    logits = _logits(50, seed=3)
    reference = torch.from_numpy(logits)
    if "top_k" in settings:
        reference = processors.TopKLogitsWarper(settings["top_k"])(None, reference)
    if "top_p" in settings:
        reference = processors.TopPLogitsWarper(settings["top_p"])(None, reference)
    if "min_p" in settings:
        reference = processors.MinPLogitsWarper(settings["min_p"])(None, reference)
    state = sampler_state([Sampling(**settings)] * 50, [np.array([], np.int32)] * 50, VOCABULARY)
    np.testing.assert_array_equal(np.asarray(kept(scipy.special.softmax(logits, -1), state)), np.isfinite(reference.numpy()))


def test_temperature_zero_takes_the_best_token_and_rows_keep_their_own_settings():
    logits = _logits(3)
    rows = [Sampling(temperature=0), Sampling(temperature=1, top_k=1), Sampling(temperature=0, repetition_penalty=1e6)]
    best = logits.argmax(-1)
    ids, _ = draw(logits, sampler_state(rows, [best[[0]], best[[1]], best[[2]]], VOCABULARY))
    assert (np.asarray(ids)[:2] == best[:2]).all()
    without = logits[2].copy()
    without[best[2]] = -np.inf
    assert ids[2] == without.argmax()


def test_logprobs_are_those_of_the_given_logits():
    logits = _logits(4)
    logits[:, :3] = -np.inf
    rows = [Sampling(temperature=t, top_k=4, presence_penalty=1.0) for t in (0, 0.3, 1, 3)]
    ids, logprobs = draw(logits, sampler_state(rows, [np.array([5])] * 4, VOCABULARY))
    np.testing.assert_allclose(logprobs, np.log(_softmax(logits)[np.arange(4), ids]), rtol=1e-5)


def test_a_row_draws_the_same_tokens_alone_and_in_a_batch():
    logits = _logits(3)
    rows = [Sampling(seed=seed, top_p=0.9) for seed in (11, 12, 13)]

    def stream(logits, rows):
        state, drawn = sampler_state(rows, [np.array([], np.int32)] * len(rows), VOCABULARY), []
        for _ in range(12):
            ids, _ = draw(logits, state)
            state = count(state, ids, np.ones(len(rows), bool))
            drawn.append(np.asarray(ids))
        return np.stack(drawn, 1)

    together = stream(logits, rows)
    for row in range(3):
        np.testing.assert_array_equal(stream(logits[row : row + 1], rows[row : row + 1])[0], together[row])
    assert len({tuple(x) for x in stream(logits[:1].repeat(3, 0), rows).tolist()}) == 3, "other seeds draw other tokens"


def test_tokens_that_are_not_counted_are_not_penalized():
    state = sampler_state([Sampling(temperature=0, frequency_penalty=100.0)] * 2, [np.array([], np.int32)] * 2, VOCABULARY)
    logits = _logits(1).repeat(2, 0)
    best = int(logits[0].argmax())
    ids, _ = draw(logits, count(state, np.array([best, best]), np.array([True, False])))
    assert ids[0] != best and ids[1] == best


@pytest.mark.parametrize(
    "name, value",
    [
        ("temperature", -1),
        ("top_p", 0),
        ("top_k", -2),
        ("min_p", 1.5),
        ("repetition_penalty", 0),
        ("stop", "word"),
        ("stop", ("",)),
        ("seed", -1),
    ],
)
def test_a_wrong_setting_is_named(name, value):
    with pytest.raises(ValueError, match=name):
        Sampling(**{name: value})


def test_the_most_probable_id_is_the_first_of_the_largest():
    scores = np.random.default_rng(0).integers(0, 40, (50, 300)).astype(np.float32)  # with ties
    scores[7] = -np.inf
    np.testing.assert_array_equal(most_probable(jnp.asarray(scores)), scores.argmax(-1))
    assert most_probable(jnp.full((2, 5), jnp.nan)).tolist() == [4, 4]  # an id that exists
