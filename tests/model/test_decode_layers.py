"""The native step through all layers against the same step in JAX, from random keys and values in pages."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pollux.model import cache as caches
from pollux.model import decode_layers, decoder, native, params
from pollux.model.config import AttentionConfig, ExpertsConfig, FeedForwardConfig, LayerConfig, ModelConfig
from pollux.model.low_rank import LowRank
from pollux.tokens.sequence import Inputs

pytestmark = pytest.mark.skipif(native.compiler() is None, reason="no C++ compiler is here to build the kernels")

PAGE = 4
MHA = AttentionConfig(3, 3, 8)
FEED_FORWARD = FeedForwardConfig(24)


def config(*layers: LayerConfig, groups=2, tail=(), d_model=16, **kwargs) -> ModelConfig:
    return ModelConfig("test", 50, d_model, layers, groups, tail, **kwargs)


COVERED = dict(
    quick_start=config(
        LayerConfig(dataclasses.replace(MHA, window=6), FeedForwardConfig(40, "relu2", gated=False)),
        LayerConfig(AttentionConfig(4, 2, 8, position="none", log_n_native=6), FeedForwardConfig(24, "relu", gated=False)),
        post_norm=False,
    ),
    odd_sizes=config(LayerConfig(AttentionConfig(6, 2, 10, window=5), FeedForwardConfig(37)), d_model=19),
    wide=config(LayerConfig(AttentionConfig(8, 1, 32), FeedForwardConfig(200, "silu")), groups=1, d_model=144),
    partial_rope=config(
        LayerConfig(AttentionConfig(2, 1, 16, rope_fraction=0.25, value_norm=True, values_reuse_keys=True, scale=1.0), FEED_FORWARD)
    ),
    parallel_scaled=config(LayerConfig(dataclasses.replace(MHA, qk_norm=False), FEED_FORWARD, parallel=True, layer_scale=True)),
    tail=config(
        LayerConfig(AttentionConfig(2, 2, 8, position="sinusoidal", window=3), FEED_FORWARD),
        tail=(
            LayerConfig(AttentionConfig(9, 1, 8, rope_base=100.0), FeedForwardConfig(8, "silu", gated=False)),
            LayerConfig(MHA, FEED_FORWARD),
        ),
    ),
    tail_alone=config(groups=0, tail=(LayerConfig(MHA, FEED_FORWARD),)),
)
NOT_COVERED = dict(
    soft_cap=config(LayerConfig(dataclasses.replace(MHA, soft_cap=3.0), FEED_FORWARD)),
    prior=config(LayerConfig(dataclasses.replace(MHA, gaussian_prior=True), FEED_FORWARD)),
    bias=config(LayerConfig(dataclasses.replace(MHA, bias=True), FEED_FORWARD)),
    feed_forward_bias=config(LayerConfig(MHA, dataclasses.replace(FEED_FORWARD, bias=True))),
    experts=config(LayerConfig(MHA, FEED_FORWARD, ExpertsConfig(4, 2, 8))),
    cross=config(LayerConfig(MHA, FEED_FORWARD, cross_attention=AttentionConfig(2, 1, 8))),
    shared=config(groups=0, tail=(LayerConfig(MHA, FEED_FORWARD), LayerConfig(dataclasses.replace(MHA, shares_kv=True), FEED_FORWARD))),
    layer_norm=config(LayerConfig(MHA, FEED_FORWARD), norm="layer"),
    post_norm_only=config(LayerConfig(MHA, FEED_FORWARD), pre_norm=False),
    per_layer=config(LayerConfig(MHA, FEED_FORWARD), per_layer_width=4, per_layer_vocab=50),
    large=config(LayerConfig(MHA, FeedForwardConfig(2048)), d_model=1024),
)


def weights_of(c: ModelConfig) -> dict:
    generator = np.random.default_rng(1)

    def weight(spec: params.Spec) -> np.ndarray:
        mean, deviation = (0, (spec.fan_in or spec.shape[-2]) ** -0.5) if spec.init == "normal" else (spec.init, 0.1)
        return generator.normal(mean, deviation, spec.shape).astype(np.float32)

    return params.map_specs(weight, params.declare(c))


def cache_of(c: ModelConfig, rows: int, slots: int, **kwargs) -> caches.Cache:
    """Random keys and values in pages that rows hold in no order; of each kind there is a page that nobody has."""
    generator = np.random.default_rng(2)
    windows = {layer.attention.window for layer in c.layers}
    width = {w: caches.ring(w, PAGE, 1) if w else slots // PAGE for w in windows}
    pages = {w: rows * width[w] + 1 for w in windows}
    empty = caches.paged(c, pages, PAGE, 1, rows if any(layer.cross_attention for layer in c.layers) else 0, **kwargs)
    filled = jax.tree.map(lambda x: generator.normal(size=x.shape).astype(x.dtype) if x.ndim >= 4 else x, empty)
    tables = {w: 1 + generator.permutation(pages[w] - 1).astype(np.int32).reshape(rows, -1) for w in windows}
    return filled.view(tables, None)


def inputs_of(position, segment=None) -> Inputs:
    position = np.asarray(position, np.int32)[:, None]
    zero = np.zeros_like(position)
    segment = zero + 1 if segment is None else np.asarray(segment, np.int32)[:, None]
    return Inputs(np.random.default_rng(3).integers(0, 50, position.shape).astype(np.int32), position, segment, zero, zero, {})


def step(c: ModelConfig, weights, inputs: Inputs, cache: caches.Cache) -> decoder.Output:
    return jax.jit(functools.partial(decoder.hidden, config=c))(weights, inputs=inputs, cache=cache)


def plain_step(monkeypatch, *args) -> decoder.Output:
    with monkeypatch.context() as patch:
        patch.setattr(decoder, "covers", lambda *_: False)
        return step(*args)


def is_covered(c: ModelConfig, weights, cache, dtype=jnp.float32, tokens=1) -> bool:
    return decode_layers.covers(weights, c, cache, tokens, dtype)


@pytest.mark.parametrize("rows", [1, 7, 64])
@pytest.mark.parametrize("name", COVERED)
def test_the_native_step_equals_the_one_in_jax(name, rows, monkeypatch):
    """From the first token to rings that were filled several times; the last row's table is full but for one token."""
    c, slots = COVERED[name], 40
    weights, cache = weights_of(c), cache_of(c, rows, slots)
    position = np.random.default_rng(4).integers(0, slots, rows)
    position[-1] = slots - 1
    if rows > 1:
        position[0] = 0
    segment = np.ones(rows) if rows == 1 else np.arange(rows) % 5 != 2
    assert is_covered(c, weights, cache)
    got = step(c, weights, inputs_of(position, segment), cache)
    wanted = plain_step(monkeypatch, c, weights, inputs_of(position, segment), cache)
    active = segment > 0
    np.testing.assert_allclose(got.hidden[active], wanted.hidden[active], rtol=1e-4, atol=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), got.cache, wanted.cache)
    assert jax.tree.structure(got.cache) == jax.tree.structure(wanted.cache)


def test_a_token_beyond_the_table_is_read_but_not_kept(monkeypatch):
    c = config(LayerConfig(MHA, FEED_FORWARD))
    weights, cache = weights_of(c), cache_of(c, 2, 8)
    got = step(c, weights, inputs_of([8, 11]), cache)
    jax.tree.map(np.testing.assert_array_equal, got.cache, cache)
    np.testing.assert_allclose(got.hidden, plain_step(monkeypatch, c, weights, inputs_of([8, 11]), cache).hidden, rtol=1e-4, atol=2e-5)


def test_inactive_rows_neither_read_nor_write():
    c = COVERED["quick_start"]
    weights, cache = weights_of(c), cache_of(c, 6, 16)
    active = np.array([1, 0, 1, 0, 0, 1])

    def spoilt(own: caches.LayerCache) -> caches.LayerCache:
        pages = own.table[active == 0].reshape(-1)
        k, v = (np.array(x) for x in (own.k, own.v))
        k[:, pages] = v[:, pages] = np.nan
        return dataclasses.replace(own, k=k, v=v)

    poisoned = dataclasses.replace(cache, groups=tuple(map(spoilt, cache.groups)))
    inputs = inputs_of([3, 4, 5, 6, 7, 8], active)
    got, clean = step(c, weights, inputs, poisoned), step(c, weights, inputs, cache)
    np.testing.assert_array_equal(got.hidden, clean.hidden)
    assert np.isfinite(got.hidden).all()
    for before, after in zip(poisoned.groups, got.cache.groups, strict=True):
        others = before.table[active == 0].reshape(-1)
        assert np.isnan(after.k[:, others]).all()
        assert np.isnan(after.v[:, others]).all()


@pytest.mark.parametrize("name", ["quick_start", "odd_sizes", "wide"])
def test_a_row_has_the_same_bits_alone_and_in_company(name):
    c = COVERED[name]
    weights, cache = weights_of(c), cache_of(c, 64, 40)
    inputs = inputs_of(np.random.default_rng(5).integers(0, 40, 64))
    together = step(c, weights, inputs, cache)
    for rows in ([5], [63], [1, 2], [0, 9, 30], list(range(10, 23)), list(range(20, 64))):
        some = jax.tree.map(lambda x, rows=rows: x[np.array(rows)], inputs)
        view = cache.view({own.window: np.asarray(own.table)[rows] for own in cache.groups}, None)
        alone = step(c, weights, some, view)
        np.testing.assert_array_equal(alone.hidden, together.hidden[np.array(rows)])


@pytest.mark.parametrize("name", NOT_COVERED)
def test_other_models_take_the_general_way(name):
    c = NOT_COVERED[name]
    cache = cache_of(c, 1, 8)
    assert not is_covered(c, params.abstract(c), cache)


def test_other_numbers_and_longer_steps_take_the_general_way():
    c = config(LayerConfig(MHA, FEED_FORWARD))
    weights, cache = weights_of(c), cache_of(c, 1, 8)
    assert is_covered(c, weights, cache)
    assert not is_covered(c, weights, None)
    assert not is_covered(c, weights, cache, tokens=2)
    assert not is_covered(c, weights, cache, dtype=jnp.bfloat16)
    assert not is_covered(c, jax.tree.map(lambda x: x.astype(jnp.bfloat16), weights), cache)
    assert not is_covered(c, weights, cache_of(c, 1, 8, kv_cache_dtype="int8"))
    q = weights["groups"][0]["attention"]["q"]
    weights["groups"][0]["attention"]["q"] = LowRank(q, q[..., :2], q[:, :2], 1.0)
    assert not is_covered(c, weights, cache)


def test_the_cache_is_not_copied():
    c = COVERED["tail"]
    weights, inputs, cache = weights_of(c), inputs_of([3]), cache_of(c, 1, 4096)

    @functools.partial(jax.jit, donate_argnames="cache")
    def steps(weights, inputs, cache):
        return jax.lax.fori_loop(0, 3, lambda _, own: decoder.hidden(weights, c, inputs, own).cache, cache)

    compiled = steps.lower(weights, inputs, cache).compile()
    assert compiled.as_text().count('custom_call_target="pollux_decode_layers"') == 1
    largest = max(x.nbytes for x in jax.tree.leaves(cache))
    assert compiled.memory_analysis().temp_size_in_bytes < largest


def test_a_page_that_does_not_exist_is_an_error():
    c = config(LayerConfig(MHA, FEED_FORWARD))
    cache = cache_of(c, 2, 8)
    wrong = cache.view({0: np.array([[1, 2], [3, 99]], np.int32)}, None)
    with pytest.raises(Exception, match="pollux_decode_layers: weights, tables and pages"):
        step(c, weights_of(c), inputs_of([1, 1]), wrong).hidden.block_until_ready()
