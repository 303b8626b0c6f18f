import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import gelu, torch
from reference import rms_norm as rms_norm_64

from pollux.model.config import ExpertsConfig, FeedForwardConfig
from pollux.model.experts import balance_loss, experts, route
from pollux.model.layers import activation, feed_forward, layer_norm, rms_norm, sinusoids
from pollux.model.matmul import matmul

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
