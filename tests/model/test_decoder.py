import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from reference import torch

from pollux.model import cache as caches
from pollux.model import decoder, family, params
from pollux.model.config import AttentionConfig, ExpertsConfig, FeedForwardConfig, LayerConfig, ModelConfig, SoftInputConfig
from pollux.tokens.sequence import Inputs, SoftBatch

rng = np.random.default_rng(0)
FEED_FORWARD = FeedForwardConfig(24)
ATTENTION = dict(
    rope=AttentionConfig(4, 2, 8),
    local=AttentionConfig(4, 1, 8, window=5),
    no_position_log_n=AttentionConfig(4, 4, 8, position="none", log_n_native=6),
    partial_rope=AttentionConfig(2, 1, 16, rope_fraction=0.25, value_norm=True, values_reuse_keys=True),
    soft_cap=AttentionConfig(2, 1, 8, soft_cap=3.0, scale=1.0),
    prior=AttentionConfig(2, 2, 8, gaussian_prior=True, qk_norm=False, bias=True),
    sinusoidal=AttentionConfig(2, 2, 8, position="sinusoidal"),
)


def model(*layers: LayerConfig, groups=2, tail=(), **kwargs) -> tuple[ModelConfig, dict]:
    config = ModelConfig("test", 50, 16, layers, groups, tail, **kwargs)
    generator = np.random.default_rng(1)

    def weight(spec: params.Spec) -> np.ndarray:
        mean, deviation = (0, (spec.fan_in or spec.shape[-2]) ** -0.5) if spec.init == "normal" else (spec.init, 0.1)
        return generator.normal(mean, deviation, spec.shape).astype(np.float32)

    return config, params.map_specs(weight, params.declare(config))


def kinds() -> dict[str, tuple]:
    made = {name: (LayerConfig(a, FEED_FORWARD),) for name, a in ATTENTION.items()}
    made["parallel"] = (LayerConfig(ATTENTION["rope"], FEED_FORWARD, parallel=True, layer_scale=True),)
    made["experts"] = (LayerConfig(ATTENTION["rope"], FEED_FORWARD, ExpertsConfig(4, 2, 8)),)
    made["cross"] = (LayerConfig(ATTENTION["rope"], FEED_FORWARD, cross_attention=AttentionConfig(2, 1, 8)),)
    made["local_global"] = (LayerConfig(ATTENTION["local"], FEED_FORWARD), LayerConfig(ATTENTION["no_position_log_n"], FEED_FORWARD))
    return made


@functools.partial(jax.jit, static_argnums=1)
def _run(weights, config, inputs: Inputs):
    return decoder.hidden(weights, config, inputs).hidden


@functools.partial(jax.jit, static_argnums=1)
def step(weights, config, cache, inputs: Inputs):
    return decoder.hidden(weights, config, inputs, cache)


def run(weights, config, inputs: Inputs, length: int = 24) -> np.ndarray:
    """Hidden states; rows are padded to one length, so that few shapes are compiled."""
    T = inputs.ids.shape[1]
    padded = jax.tree.map(lambda x: np.pad(x, ((0, 0), (0, length - T))), dataclasses.replace(inputs, soft={}))
    inputs = dataclasses.replace(padded, soft=inputs.soft)
    return np.asarray(_run(weights, config, inputs))[:, :T]


def text(rows) -> Inputs:
    ids = np.asarray(rows, np.int32)
    position = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
    zero = np.zeros_like(ids)
    return Inputs(ids, position, zero + 1, zero, zero, {})


def with_image(inputs: Inputs, at: range, features) -> Inputs:
    B = inputs.ids.shape[0]
    group = inputs.group.copy()
    group[:, list(at)] = 1
    coord = np.stack([np.arange(len(at)) // 2, np.arange(len(at)) % 2], -1)
    soft = SoftBatch(features, np.tile(np.arange(at.start, at.stop, dtype=np.int32), (B, 1)), np.tile(coord, (B, 1, 1)).astype(np.int32))
    return dataclasses.replace(inputs, group=group, soft={"image": soft})


def cut(inputs: Inputs, start: int, stop: int) -> Inputs:
    parts = {f: getattr(inputs, f)[:, start:stop] for f in ("ids", "position", "segment", "branch", "group")}
    return Inputs(**parts, soft=inputs.soft if start == 0 else {})


@pytest.mark.parametrize(("kind", "pieces"), [*((kind, (11,)) for kind in kinds()), ("local_global", (11, 14)), ("cross", (11, 14))])
def test_cached_decoding_equals_the_full_forward(kind, pieces):
    """The first pieces end at these positions, then every token is a piece of its own."""
    config, weights = model(*kinds()[kind], soft_inputs=(SoftInputConfig("image", 12, hidden=8, grid=4),))
    inputs = with_image(text(rng.integers(0, 50, (2, 20))), range(3, 9), rng.normal(size=(2, 6, 12)).astype(np.float32))
    expected = run(weights, config, inputs)
    cache = caches.empty(config, 2, 32, soft_slots=8)
    got = []
    ends = [*pieces, *range(pieces[-1] + 1, 21)]
    for start, stop in itertools.pairwise([0, *ends]):
        out = step(weights, config, cache, cut(inputs, start, stop))
        cache = out.cache
        got.append(out.hidden)
    np.testing.assert_allclose(np.concatenate(got, 1), expected, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("kind", ["local_global", "experts"])
def test_rows_of_different_length_decode_as_if_alone(kind):
    config, weights = model(*kinds()[kind])
    rows = rng.integers(0, 50, (2, 12))
    lengths = np.array([12, 7])
    padded = dataclasses.replace(text(rows), segment=(np.arange(12)[None] < lengths[:, None]).astype(np.int32))
    cache = step(weights, config, caches.empty(config, 2, 16), padded).cache
    new = dataclasses.replace(text([[3], [4]]), position=lengths[:, None].astype(np.int32))
    got = step(weights, config, cache, new).hidden
    for b, (length, token) in enumerate(zip(lengths, (3, 4), strict=True)):
        alone = run(weights, config, text([[*rows[b, :length], token]]))
        np.testing.assert_allclose(got[b, 0], alone[0, -1], rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("kind", kinds())
def test_a_packed_row_with_branches_equals_separate_rows(kind):
    config, weights = model(*kinds()[kind])
    layout = reference.packed_rows(rng)
    ids = rng.integers(0, 50, layout["segment"].shape).astype(np.int32)
    for b in range(2):
        packed = run(weights, config, Inputs(ids[b : b + 1], soft={}, **{name: array[b : b + 1] for name, array in layout.items()}))[0]
        for s in (1, 2):
            for at, chain in branches(layout, b, s):
                alone = dataclasses.replace(text(ids[b : b + 1, chain]), group=layout["group"][b : b + 1, chain])
                expected = run(weights, config, alone)[0, -len(at) :]
                np.testing.assert_allclose(packed[at], expected, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("kind", ["rope", "cross"])
def test_packed_rows_that_share_soft_slots_equal_separate_rows(kind):
    config, weights = model(*kinds()[kind], soft_inputs=(SoftInputConfig("image", 12, grid=4),))
    layout = reference.packed_rows(rng)
    ids = rng.integers(0, 50, (2, 24)).astype(np.int32)
    places = np.array([[2, 3, 4, 15, 16], [2, 3, 4, 17, 20]])  # in both documents of both rows
    features = rng.normal(size=(2, 5, 12)).astype(np.float32)
    coord = rng.integers(0, 4, (2, 5, 2)).astype(np.int32)
    order = rng.permutation(10)
    index = np.append((places + [[0], [24]]).reshape(10)[order], 48)[None]  # the last slot is not used
    slots = [np.append(x.reshape(10, -1)[order], np.ones((1, x.shape[-1]), x.dtype), 0)[None] for x in (features, coord)]
    shared = SoftBatch(slots[0], index.astype(np.int32), slots[1])
    packed = run(weights, config, Inputs(ids, soft={"image": shared}, **layout))
    for b in range(2):
        for s in (1, 2):
            for at, chain in branches(layout, b, s):
                index = np.array([[chain.tolist().index(place) if place in chain else 24 for place in places[b]]], np.int32)
                soft = {"image": SoftBatch(features[b : b + 1], index, coord[b : b + 1])}
                alone = dataclasses.replace(text(ids[b : b + 1, chain]), group=layout["group"][b : b + 1, chain], soft=soft)
                expected = run(weights, config, alone)[0, -len(at) :]
                np.testing.assert_allclose(packed[b, at], expected, rtol=1e-3, atol=2e-5)


def branches(layout, row, segment):
    """For each branch of a document: its places in the row, and those of all that it sees."""
    here = {x: np.flatnonzero((layout["segment"][row] == segment) & (layout["branch"][row] == x)) for x in (0, 1, 2, -1)}
    for x, at in here.items():
        if len(at):
            yield at, at if x <= 0 else np.concatenate([here[0], at])


def test_the_scan_equals_a_loop_over_layers():
    config, weights = model(*kinds()["local_global"], groups=2)
    inputs = text(rng.integers(0, 50, (2, 9)))
    unrolled = dataclasses.replace(config, num_groups=0, tail=config.pattern * 2)
    tail = tuple(jax.tree.map(lambda w, g=g: w[g], weights["groups"][i]) for g in range(2) for i in range(2))
    expected = run(weights | {"groups": (), "tail": tail}, unrolled, inputs)
    for unroll in (1, 2):
        got = jax.jit(lambda p, unroll=unroll: decoder.hidden(p, config, inputs, unroll=unroll).hidden)(weights)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_the_textbook_model_is_the_transformer_of_torch():
    attention = AttentionConfig(2, 2, 8, position="sinusoidal", qk_norm=False, bias=True)
    layer = LayerConfig(attention, FeedForwardConfig(20, "relu", gated=False, bias=True))
    config, weights = model(layer, norm="layer", norm_eps=1e-5, pre_norm=False)
    book = family.textbook()
    assert (book.norm, book.norm_eps, book.pre_norm, book.post_norm) == (config.norm, config.norm_eps, config.pre_norm, config.post_norm)
    assert dataclasses.replace(book.pattern[0].attention, num_heads=2, num_kv_heads=2, head_dim=8) == attention
    assert dataclasses.replace(book.pattern[0].feed_forward, hidden=20) == layer.feed_forward
    inputs = text(rng.integers(0, 50, (2, 9)))
    x = np.asarray(weights["embed"], np.float64)[inputs.ids] * 4
    angle = np.arange(9)[:, None] / 10000 ** (np.arange(0, 16, 2) / 16)
    x[..., 0::2] += np.sin(angle)
    x[..., 1::2] += np.cos(angle)
    x = torch.tensor(x)
    causal = torch.nn.Transformer.generate_square_subsequent_mask(9, dtype=torch.float64)
    for g in range(2):
        w = jax.tree.map(lambda v, g=g: torch.tensor(np.asarray(v[g], np.float64)), weights["groups"][0])
        layer = torch.nn.TransformerEncoderLayer(16, 2, 20, dropout=0.0, batch_first=True, dtype=torch.float64)
        a, f = w["attention"], w["feed_forward"]
        state = {
            "self_attn.in_proj_weight": torch.cat([a["q"].T, a["k"].T, a["v"].T]),
            "self_attn.in_proj_bias": torch.cat([a["q_bias"], a["k_bias"], a["v_bias"]]),
            "self_attn.out_proj.weight": a["o"].T,
            "self_attn.out_proj.bias": a["o_bias"],
            "linear1.weight": f["up"].T,
            "linear1.bias": f["up_bias"],
            "linear2.weight": f["down"].T,
            "linear2.bias": f["down_bias"],
        }
        for i, name in ((1, "attention_post_norm"), (2, "feed_forward_post_norm")):
            state |= {f"norm{i}.weight": w[name]["scale"], f"norm{i}.bias": w[name]["bias"]}
        layer.load_state_dict(state)
        x = layer(x, src_mask=causal)
    x = torch.nn.functional.layer_norm(
        x, (16,), *(torch.tensor(np.asarray(weights["final_norm"][k], np.float64)) for k in ("scale", "bias"))
    )
    np.testing.assert_allclose(run(weights, config, inputs), x.detach(), rtol=1e-3, atol=1e-4)


def test_a_parallel_block_adds_attention_and_feed_forward_of_the_same_norm():
    layer = LayerConfig(dataclasses.replace(ATTENTION["prior"], position="none"), FEED_FORWARD, parallel=True)
    config, weights = model(layer, groups=1, post_norm=False)
    inputs = text(rng.integers(0, 50, (1, 6)))
    w = jax.tree.map(lambda v: np.asarray(v, np.float64), weights)
    block = jax.tree.map(lambda v: v[0], w["groups"][0])
    x = w["embed"][inputs.ids] * 4
    h = reference.rms_norm(x, block["attention_pre_norm"]["scale"], 1e-6)
    a, f = block["attention"], block["feed_forward"]
    q, k, v = (torch.tensor(h @ a[n] + a[f"{n}_bias"]).reshape(1, 6, 2, 8) for n in "qkv")
    distance = np.arange(6)[:, None] - np.arange(6)[None]
    prior = torch.tensor(-(distance**2) / (2 * np.exp(2 * a["log_sigma"]))[:, None, None])[None]
    attended = reference.attention(q, k, v, np.tril(np.ones((1, 6, 6), bool)), 8**-0.5, bias=prior).numpy().reshape(1, 6, 16)
    y = x + attended @ a["o"] + a["o_bias"] + (reference.gelu(h @ f["gate"]) * (h @ f["up"])) @ f["down"]
    expected = reference.rms_norm(y, w["final_norm"]["scale"], 1e-6)
    np.testing.assert_allclose(run(weights, config, inputs), expected, rtol=1e-3, atol=1e-4)


def test_an_unknown_soft_input_is_refused_by_name():
    config, weights = model(*kinds()["rope"])
    inputs = with_image(text(rng.integers(0, 50, (1, 8))), range(2, 4), np.zeros((1, 2, 12), np.float32))
    with pytest.raises(ValueError, match="no input for image"):
        decoder.hidden(weights, config, inputs)


def test_logits_are_capped_and_float32():
    config, weights = model(*kinds()["rope"], logit_soft_cap=2.0)
    out = decoder.logits(weights, config, jnp.full((1, 16), 100.0, jnp.bfloat16))
    assert out.dtype == jnp.float32 and np.abs(out).max() <= 2.0 and np.abs(out).max() > 1.9


def test_cross_attention_starts_closed_and_reads_only_earlier_soft_tokens():
    layer = LayerConfig(ATTENTION["rope"], FEED_FORWARD, cross_attention=AttentionConfig(2, 1, 8))
    config = ModelConfig("test", 50, 16, (layer,), 1, soft_inputs=(SoftInputConfig("image", 12),))
    weights = params.init(config, jax.random.key(0))
    features = rng.normal(size=(1, 2, 12)).astype(np.float32)
    inputs = with_image(text(rng.integers(0, 50, (1, 8))), range(4, 6), features)
    plain = dataclasses.replace(config, pattern=(dataclasses.replace(layer, cross_attention=None),))
    np.testing.assert_allclose(run(weights, config, inputs), run(weights, plain, inputs), atol=1e-6)
    opened = jax.tree.map(lambda w: w, weights)
    opened["groups"][0]["cross_attention"]["gate"] = jnp.ones((1,))
    before = run(opened, config, inputs)
    after = run(opened, config, with_image(inputs, range(4, 6), features + 1))
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert np.abs(before[:, 4:] - after[:, 4:]).max() > 1e-3


def test_cross_attention_is_its_formula_over_the_soft_tokens_before():
    layer = LayerConfig(ATTENTION["rope"], FEED_FORWARD, cross_attention=AttentionConfig(2, 1, 8))
    config, weights = model(layer, groups=1, post_norm=False, soft_inputs=(SoftInputConfig("image", 12, in_norm=False),))
    block = weights["groups"][0]
    for part, name in (("attention", "o"), ("feed_forward", "down")):  # so that the stream is the embedding when it gets there
        block[part][name] = np.zeros_like(block[part][name])
    features = rng.normal(size=(1, 2, 12)).astype(np.float32)
    inputs = with_image(text(rng.integers(0, 50, (1, 8))), range(3, 5), features)
    w = jax.tree.map(lambda v: np.asarray(v, np.float64), weights)
    c = {name: value for name, value in jax.tree.map(lambda v: v[0], w["groups"][0]["cross_attention"]).items()}
    image = w["soft"]["image"]
    soft = reference.rms_norm(features @ image["out"], image["out_norm"]["scale"], 1e-6)
    x = w["embed"][inputs.ids] * 4
    x[:, 3:5] = soft
    h = reference.rms_norm(x, w["groups"][0]["cross_attention_pre_norm"]["scale"][0], 1e-6)
    q = reference.rms_norm((h @ c["q"]).reshape(1, 8, 2, 8), c["q_norm"], 1e-6)
    k = reference.rms_norm((soft @ c["k"]).reshape(1, 2, 1, 8), c["k_norm"], 1e-6)
    v = (soft @ c["v"]).reshape(1, 2, 1, 8)
    earlier = np.arange(8)[:, None] >= np.arange(3, 5)
    attended = reference.attention(*map(torch.tensor, (q, k, v)), earlier[None], 8**-0.5).numpy().reshape(1, 8, 16)
    expected = reference.rms_norm(x + np.tanh(c["gate"]) * (attended @ c["o"]), w["final_norm"]["scale"], 1e-6)
    np.testing.assert_allclose(run(weights, config, inputs), expected, rtol=1e-3, atol=1e-4)
