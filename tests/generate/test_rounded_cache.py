"""A KV cache of 8 bits: its codes, what it costs the next token, and that batches, rings and drafts treat it as any other."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pollux.generate.model import Model
from pollux.model import cache as caches
from pollux.model import decoder, family, params
from pollux.model.dot_attention import Rounded, attend
from pollux.tokens.sequence import Inputs

CONFIG = dataclasses.replace(family.tiny(300), soft_inputs=())


@pytest.fixture(scope="module")
def weights():
    return params.init(CONFIG, jax.random.key(0))


@pytest.mark.parametrize(("dtype", "step"), [(jnp.int8, 1 / 254), (jnp.float8_e4m3fn, 1 / 16)])
def test_every_vector_is_kept_to_half_a_step_of_its_own_scale(dtype, step):
    x = np.random.default_rng(0).standard_normal((2, 5, 3, 16)).astype(np.float32) * np.logspace(-3, 3, 5)[:, None, None].astype(np.float32)
    x[0, 0, 0] = 0
    got = np.asarray(Rounded.of(jnp.asarray(x), dtype).astype(jnp.float32))
    largest = np.abs(x).max(-1, keepdims=True)
    bound = step * (largest if dtype == jnp.int8 else np.maximum(np.abs(x), largest * 2**-14))
    assert (np.abs(got - x) <= 1.001 * bound + 1e-12).all()


@pytest.mark.parametrize("queries", [1, 2, 40])  # few queries have a kernel of their own
@pytest.mark.parametrize("dtype", [jnp.int8, jnp.float8_e4m3fn])
@pytest.mark.parametrize("stacked", [False, True])
def test_attention_to_codes_is_attention_to_their_values(queries, dtype, stacked):
    rng = np.random.default_rng(1)
    q = jnp.asarray(rng.standard_normal((2, queries, 6, 20)), jnp.float32)
    k, v = (Rounded.of(jnp.asarray(rng.standard_normal((3, 2, 45, 2, 20)), jnp.float32), dtype) for _ in range(2))
    mask = jnp.where(jnp.asarray(rng.random((2, queries, 45)) < 0.7), 0.0, -1e30).at[1, 0].set(-1e30)
    k_values, v_values = (np.asarray(x.astype(jnp.float32), np.float64)[1] for x in (k, v))
    scores = np.einsum("btkgh,bskh->bkgts", np.asarray(q, np.float64).reshape(2, queries, 2, 3, 20), k_values) * 0.3
    p = np.exp(scores) * (np.asarray(mask) == 0)[:, None, None]
    expected = np.einsum("bkgts,bskh->btkgh", p / np.maximum(p.sum(-1, keepdims=True), 1e-30), v_values).reshape(2, queries, 6, 20)
    out = jax.jit(lambda q, k, v, i: attend(q, k, v, mask, 0.3, index=i if stacked else None))(
        q, *((k, v) if stacked else (k[1], v[1])), jnp.int32(1)
    )
    np.testing.assert_allclose(out, expected, atol=2e-6)


@pytest.mark.parametrize(("rounded", "tolerance"), [("int8", 0.03), ("float8", 0.15)])
@pytest.mark.parametrize("pieces", [(20,), (1,) * 20, (150, 1, 1), (3, 140, 5)])  # beyond the window of 128 too
def test_logits_through_a_rounded_cache_are_close_to_those_of_the_whole_text(weights, rounded, tolerance, pieces):
    ids = np.random.default_rng(2).integers(0, 300, (2, sum(pieces)))

    def inputs(start, stop):
        zero = np.zeros((2, stop - start), np.int32)
        return Inputs(ids[:, start:stop], np.tile(np.arange(start, stop), (2, 1)), zero + 1, zero, zero, {})

    exact = decoder.logits(weights, CONFIG, decoder.hidden(weights, CONFIG, inputs(0, ids.shape[1])).hidden)
    cache, at, close = caches.empty(CONFIG, 2, 256, kv_cache_dtype=rounded), 0, []
    assert cache.kv_cache_dtype == rounded and caches.empty(CONFIG, 2, 256).kv_cache_dtype is None
    step = jax.jit(lambda cache, inputs: decoder.hidden(weights, CONFIG, inputs, cache))
    for size in pieces:
        out = step(cache, inputs(at, at + size))
        cache, at = out.cache, at + size
        close.append(decoder.logits(weights, CONFIG, out.hidden))
    error = np.concatenate(close, 1) - exact
    assert 0 < np.linalg.norm(error) < tolerance * np.linalg.norm(exact)


def test_a_model_generates_and_grows_with_a_rounded_cache(make_model):
    plain = make_model(({"window": 16}, {}), ({}, {}))
    small, drafted = (
        Model(plain.params, plain.config, plain.tokens_config, plain.vocabulary, plain.codec, draft=draft, kv_cache_dtype="int8")
        for draft in (None, "lookup")
    )
    prompts, settings = ["a big red circle", "what colour is the small blue star?"], dict(max_output_tokens=300, temperature=0)
    together = small.generate_many(prompts, **settings)
    assert [result.text for result in together] == [small.generate(prompt, **settings).text for prompt in prompts]
    assert together[0].text[:3] == plain.generate(prompts[0], **settings).text[:3]  # the first tokens are clear, later ones drift
    assert drafted.generate(prompts[0], **settings).text == together[0].text
    with pytest.raises(ValueError, match="kv_cache_dtype is 'int4' but must be one of int8, float8"):
        Model(plain.params, plain.config, kv_cache_dtype="int4")
