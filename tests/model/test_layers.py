import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from reference import gelu
from reference import rms_norm as rms_norm_64

from pollux.model.config import AttentionConfig, ExpertsConfig, FeedForwardConfig, LayerConfig, ModelConfig, SoftInputConfig
from pollux.model.experts import balance_loss, experts, route
from pollux.model.layers import activation, embed_soft, feed_forward, layer_norm, rms_norm, sinusoids
from pollux.model.matmul import matmul
from pollux.model.params import init
from pollux.tokens.sequence import SoftBatch

rng = np.random.default_rng(0)


def test_rms_norm_is_its_formula():
    x, scale = rng.normal(size=(3, 5, 16)) * 7, rng.normal(size=16)
    np.testing.assert_allclose(rms_norm(jnp.float32(x), jnp.float32(scale), 1e-6), rms_norm_64(x, scale, 1e-6), rtol=2e-6, atol=2e-6)


def test_layer_norm_is_its_formula():
    x, scale, bias = rng.normal(size=(3, 5, 16)) + 4, rng.normal(size=16), rng.normal(size=16)
    mean = x.mean(-1, keepdims=True)
    expected = scale * (x - mean) / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-5) + bias
    np.testing.assert_allclose(layer_norm(*map(jnp.float32, (x, scale, bias)), 1e-5), expected, rtol=1e-5, atol=1e-5)


def test_sinusoids_are_their_formula():
    position, d = np.array([[0, 1, 7, 500]]), 10
    expected = np.zeros((1, 4, d))
    for t, p in enumerate(position[0]):
        for i in range(d // 2):
            expected[0, t, 2 * i], expected[0, t, 2 * i + 1] = np.sin(p / 10000 ** (2 * i / d)), np.cos(p / 10000 ** (2 * i / d))
    np.testing.assert_allclose(sinusoids(jnp.asarray(position), d), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["gelu", "silu", "relu", "relu2"])
def test_activations_are_those_of_torch(name):
    x = rng.normal(size=100) * 3
    t = torch.tensor(x)
    functions = torch.nn.functional
    expected = {"gelu": lambda: functions.gelu(t, approximate="tanh"), "silu": lambda: functions.silu(t)}
    expected |= {"relu": lambda: functions.relu(t), "relu2": lambda: functions.relu(t) ** 2}
    np.testing.assert_allclose(activation(name, jnp.float32(x)), expected[name]().numpy(), rtol=1e-5, atol=1e-6)


def test_feed_forwards_are_their_formulas():
    x = rng.normal(size=(2, 3, 8))
    w = {k: rng.normal(size=s) for k, s in dict(up=(8, 12), gate=(8, 12), down=(12, 8), up_bias=(12,), down_bias=(8,)).items()}
    params = jax.tree.map(jnp.float32, w)
    gated = feed_forward(params, FeedForwardConfig(12), jnp.float32(x))
    np.testing.assert_allclose(gated, (gelu(x @ w["gate"]) * (x @ w["up"])) @ w["down"], rtol=1e-4, atol=1e-4)
    relu = feed_forward(params, FeedForwardConfig(12, "relu", gated=False, bias=True), jnp.float32(x))
    expected = np.maximum(0, x @ w["up"] + w["up_bias"]) @ w["down"] + w["down_bias"]
    np.testing.assert_allclose(relu, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("hidden", [0, 7])
def test_soft_tokens_and_their_gradients_are_norm_linear_norm_of_torch(kind, hidden):
    F, D = 6, 4
    layer = LayerConfig(AttentionConfig(1, 1, 4), FeedForwardConfig(4))
    config = ModelConfig("test", 8, D, (layer,), 1, norm=kind)
    shapes = {"in_norm": F, "out_norm": D}
    w = {name: {part: rng.normal(size=n) for part in ("scale", "bias")[: 2 if kind == "layer" else 1]} for name, n in shapes.items()}
    w |= {"out": rng.normal(size=(hidden or F, D))} | ({"hidden": rng.normal(size=(F, hidden))} if hidden else {})
    x, g = rng.normal(size=(2, 3, F)), rng.normal(size=(2, 3, D))
    t = jax.tree.map(lambda a: torch.tensor(a, requires_grad=True), w)

    def norm(x, p):
        functions, size = torch.nn.functional, x.shape[-1:]
        return functions.layer_norm(x, size, **_named(p), eps=1e-6) if kind == "layer" else functions.rms_norm(x, size, p["scale"], 1e-6)

    y = norm(torch.tensor(x), t["in_norm"])
    y = torch.nn.functional.gelu(y @ t["hidden"], approximate="tanh") if hidden else y
    expected = norm(y @ t["out"], t["out_norm"])
    expected.backward(torch.tensor(g))
    batch = SoftBatch(jnp.float32(x), jnp.zeros((2, 3), jnp.int32), jnp.zeros((2, 3, 2), jnp.int32))
    soft = SoftInputConfig("image", F, hidden)
    out, pull = jax.vjp(lambda p: embed_soft(p, config, soft, batch, jnp.float32), jax.tree.map(jnp.float32, w))
    np.testing.assert_allclose(out, expected.detach(), rtol=1e-4, atol=1e-4)
    jax.tree.map(lambda got, tensor: np.testing.assert_allclose(got, tensor.grad, rtol=1e-3, atol=1e-3), pull(jnp.float32(g))[0], t)


def _named(norm_params):
    return {"weight": norm_params["scale"], "bias": norm_params["bias"]}


def test_gradient_of_matmul_is_that_of_torch():
    x, w, g = rng.normal(size=(2, 3, 5)), rng.normal(size=(5, 4)), rng.normal(size=(2, 3, 4))
    xt, wt = torch.tensor(x, requires_grad=True), torch.tensor(w, requires_grad=True)
    (xt @ wt).backward(torch.tensor(g))
    _, pull = jax.vjp(matmul, jnp.float32(x), jnp.float32(w))
    dx, dw = pull(jnp.float32(g))
    np.testing.assert_allclose(dx, xt.grad, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(dw, wt.grad, rtol=1e-5, atol=1e-5)


def expert_params(E, D, F):
    shapes = dict(router=(D, E), gate=(E, D, F), up=(E, D, F), down=(E, F, D))
    return {k: rng.normal(size=s) for k, s in shapes.items()}


@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_dropless_experts_equal_a_dense_loop(top_k):
    B, T, D, E, F = 2, 7, 6, 5, 9
    w, x = expert_params(E, D, F), rng.normal(size=(B, T, D))
    expected = np.zeros_like(x)
    for b in range(B):
        for t in range(T):
            scores = np.exp(x[b, t] @ w["router"])
            probabilities = scores / scores.sum()
            chosen = np.argsort(-probabilities)[:top_k]
            for e in chosen:
                y = (gelu(x[b, t] @ w["gate"][e]) * (x[b, t] @ w["up"][e])) @ w["down"][e]
                expected[b, t] += probabilities[e] / probabilities[chosen].sum() * y
    config = ExpertsConfig(E, top_k, F)
    out, _ = jax.jit(lambda p, x: experts(p, config, x, jnp.ones((B, T))))(jax.tree.map(jnp.float32, w), jnp.float32(x))
    np.testing.assert_allclose(out, expected, rtol=1e-3, atol=1e-3)


def test_balance_loss_is_one_when_even_and_counts_real_tokens_only():
    probabilities = jnp.full((8, 4), 0.25)
    chosen = jnp.arange(8)[:, None] % 4
    assert np.isclose(balance_loss(probabilities, chosen, jnp.ones(8)), 1.0)
    collapsed = jnp.eye(4)[jnp.zeros(8, int)]
    assert np.isclose(balance_loss(collapsed, jnp.zeros((8, 1), int), jnp.ones(8)), 4.0)
    half = jnp.concatenate([probabilities[:4], collapsed[:4]])
    ids = jnp.concatenate([chosen[:4], jnp.zeros((4, 1), int)])
    assert np.isclose(balance_loss(half, ids, jnp.arange(8) < 4), 1.0)


def test_router_weights_sum_to_one():
    weights, chosen, _ = route(jnp.float32(rng.normal(size=(6, 5))), jnp.float32(rng.normal(size=(9, 6))), 3)
    np.testing.assert_allclose(np.sum(weights, -1), 1, rtol=1e-6)
    assert all(len(set(row)) == 3 for row in np.asarray(chosen).tolist())


def test_the_stem_is_the_convolution_of_torch_inside_each_patch():
    soft = SoftInputConfig("image", 10 * 10 * 3, stem=((4, 2, 5), (3, 1, 7)), in_norm=False)
    assert soft.stem_sides() == (10, 4, 2)
    config = ModelConfig("stem", 8, 6, (), 0, soft_inputs=(soft,))
    params = init(config, jax.random.key(0))["soft"]["image"]
    features = rng.normal(size=(2, 3, 300))
    x = torch.tensor(features.reshape(6, 10, 10, 3)).permute(0, 3, 1, 2)
    for i, (kernel, stride, channels) in enumerate(soft.stem):
        w = torch.tensor(np.asarray(params[f"stem_{i}"], np.float64)).reshape(kernel, kernel, -1, channels).permute(3, 2, 0, 1)
        x = torch.relu(torch.nn.functional.conv2d(x, w, stride=stride)) ** 2
    y = x.permute(0, 2, 3, 1).reshape(2, 3, -1).numpy() @ np.asarray(params["out"], np.float64)
    expected = rms_norm_64(y, np.asarray(params["out_norm"]["scale"], np.float64), config.norm_eps)
    batch = SoftBatch(jnp.float32(features), np.zeros((2, 3), np.int32), np.zeros((2, 3, 2), np.int32))
    np.testing.assert_allclose(embed_soft(params, config, soft, batch, jnp.float32), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"features": 301}, "not a square patch"), ({"in_norm": True}, "in_norm"), ({"stem": ((11, 1, 4),)}, "does not fit")],
)
def test_a_stem_that_does_not_fit_its_patch_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SoftInputConfig("image", 300, stem=((4, 2, 5),), in_norm=False), **change)
