import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from reference import torch

from pollux.model import dot_attention, native
from pollux.model.attention import Positions, gaussian_prior, log_n_scale, rope_angles, rotate, visible
from pollux.model.dot_attention import additive_mask, attend, attend_within

rng = np.random.default_rng(0)


@pytest.fixture(params=["kernels", "formula"])
def path(request, monkeypatch):
    """Both ways to compute attention on a CPU; without a C++ compiler the first is the second."""
    if request.param == "formula":
        monkeypatch.setattr(native, "attention", lambda: None)


def positions(rows) -> Positions:
    T = rows["segment"].shape[1]
    index = np.broadcast_to(np.arange(T, dtype=np.int32), rows["segment"].shape)
    return Positions(index, rows["position"], rows["segment"], rows["branch"], rows["group"])


@pytest.mark.parametrize("window", [0, 1, 3, 7])
def test_visibility_of_packed_documents_branches_and_groups_follows_the_rules(window):
    rows = reference.packed_rows(rng)
    got = np.asarray(visible(positions(rows), positions(rows), window))
    np.testing.assert_array_equal(got, reference.mask(rows, window))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("variant", ["plain", "soft_cap", "prior"])
def test_attention_and_its_gradient_equal_the_naive_reference(kv_heads, variant, path):
    B, T, N, H = 2, 24, 4, 8
    rows = reference.packed_rows(rng, B, T)
    mask = reference.mask(rows, 5)
    arrays = [rng.normal(size=(B, T, n, H)) for n in (N, kv_heads, kv_heads)]
    g = rng.normal(size=(B, T, N, H))
    bias = rng.normal(size=(B, N, T, T)) if variant == "prior" else None
    cap = 2.0 if variant == "soft_cap" else 0.0

    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    expected = reference.attention(*tensors, mask, 0.3, cap, None if bias is None else torch.tensor(bias))
    expected.backward(torch.tensor(g))

    def ours(q, k, v):
        return attend(q, k, v, additive_mask(jnp.asarray(mask)), 0.3, cap, None if bias is None else jnp.float32(bias))

    out, pull = jax.vjp(jax.jit(ours), *map(jnp.float32, arrays))
    np.testing.assert_allclose(out, expected.detach(), rtol=1e-4, atol=1e-5)
    for got, tensor in zip(pull(jnp.float32(g)), tensors, strict=True):
        np.testing.assert_allclose(got, tensor.grad, rtol=1e-4, atol=1e-5)


SHAPES = [  # B, T, S, N, K, H, what is visible
    (1, 1, 1, 1, 1, 1, "all"),
    (2, 33, 31, 2, 1, 8, "causal"),
    (1, 70, 200, 6, 3, 20, "causal"),
    (2, 64, 64, 2, 2, 48, "window"),
    (1, 5, 1100, 3, 1, 16, "all"),  # more keys than scores are held at once
    (1, 40, 1300, 1, 1, 64, "far apart"),
    (1, 96, 96, 1, 1, 256, "random"),
    (2, 1, 77, 6, 2, 20, "causal"),  # few queries
    (1, 2, 70, 4, 1, 128, "window"),
    (2, 1, 300, 5, 1, 72, "random"),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_attention_of_odd_shapes_equals_the_naive_reference(shape, path):
    B, T, S, N, K, H, kind = shape
    rng = np.random.default_rng(SHAPES.index(shape))
    t, s = np.arange(T)[:, None] + S - T, np.arange(S)[None]
    mask = {
        "all": s >= 0,
        "causal": s <= t,
        "window": (s <= t) & (s > t - 9),
        "far apart": (s < 3) | (s > S - 40),
        "random": rng.random((T, S)) < 0.3,
    }[kind]
    mask = np.broadcast_to(mask, (B, T, S))
    arrays = [rng.normal(size=(B, *x, H)) for x in ((T, N), (S, K), (S, K))]
    arrays[0] *= 10  # scores up to some hundreds: the largest one comes in any block
    g = rng.normal(size=(B, T, N, H))
    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    expected = reference.attention(*tensors, mask, 0.3)
    expected.backward(torch.tensor(g))
    out, pull = jax.vjp(jax.jit(lambda *x: attend(*x, additive_mask(jnp.asarray(mask)), 0.3)), *map(jnp.float32, arrays))
    np.testing.assert_allclose(out, expected.detach(), rtol=1e-4, atol=1e-4)
    for got, tensor in zip(pull(jnp.float32(g)), tensors, strict=True):
        np.testing.assert_allclose(got, tensor.grad, rtol=1e-4, atol=1e-4 * float(tensor.grad.abs().max()) + 1e-5)


@pytest.mark.parametrize("T", [3, 20])
def test_attention_may_be_mapped_over_an_axis(T, path):
    q = jnp.float32(rng.normal(size=(3, 1, T, 2, 8)))
    mask = additive_mask(jnp.tri(T, dtype=bool)[None])

    def value(x):
        return jnp.sum(attend(x, x, x, mask, 0.3) ** 2)

    mapped, slopes = jax.vmap(jax.value_and_grad(value))(q)
    np.testing.assert_allclose(mapped, [value(x) for x in q], rtol=1e-5)
    np.testing.assert_allclose(slopes, [jax.grad(value)(x) for x in q], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("T", [1, 20])
def test_attention_over_a_stack_of_layers_reads_the_one_that_is_named(T, path):
    q, stack = jnp.float32(rng.normal(size=(2, T, 4, 8))), jnp.float32(rng.normal(size=(3, 2, 30, 2, 8)))
    mask = additive_mask(jnp.ones((2, T, 30), bool))
    expected = attend(q, stack[1], 2 * stack[1], mask, 0.3)
    np.testing.assert_allclose(attend(q, stack, 2 * stack, mask, 0.3, index=jnp.int32(1)), expected, rtol=1e-5, atol=1e-6)


def test_attention_within_segments_and_its_gradient_equal_the_naive_reference(monkeypatch, path):
    monkeypatch.setattr(dot_attention, "QUERIES", 4)
    monkeypatch.setattr(dot_attention, "WINDOW", 3)
    lengths = ([1, 9, 2, 7, 1, 1, 1], [22], [3, 3, 3, 3, 3, 3, 3, 1])
    segment = np.stack([np.repeat(np.arange(len(row)), row) for row in lengths])
    B, T, N, K, H = *segment.shape, 4, 2, 8
    arrays = [rng.normal(size=(B, T, n, H)) for n in (N, K, K)]
    g = rng.normal(size=(B, T, N, H))
    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    expected = reference.attention(*tensors, segment[:, :, None] == segment[:, None], 0.3)
    expected.backward(torch.tensor(g))
    out, pull = jax.vjp(jax.jit(lambda q, k, v: attend_within(q, k, v, jnp.asarray(segment), 0.3)), *map(jnp.float32, arrays))
    np.testing.assert_allclose(out, expected.detach(), rtol=1e-4, atol=1e-5)
    for got, tensor in zip(pull(jnp.float32(g)), tensors, strict=True):
        np.testing.assert_allclose(got, tensor.grad, rtol=1e-4, atol=1e-5)


def test_a_query_that_sees_nothing_gets_zeros_and_no_gradient(path):
    q = jnp.float32(rng.normal(size=(1, 3, 2, 4)))
    out, pull = jax.vjp(lambda q, k, v: attend(q, k, v, additive_mask(jnp.zeros((1, 3, 3), bool)), 1.0), q, q, q)
    assert not np.any(out)
    assert all(np.all(np.isfinite(g)) and not np.any(g) for g in pull(jnp.ones_like(q)))


def test_rope_is_its_formula_and_scores_depend_on_distance_only():
    H, base = 8, 100.0
    x, p = rng.normal(size=(1, 3, 1, H)), np.array([[0, 5, 11]])
    expected = np.zeros_like(x)
    for t in range(3):
        for i in range(H // 2):
            angle = p[0, t] * base ** (-2 * i / H)
            a, b = x[0, t, 0, i], x[0, t, 0, i + H // 2]
            expected[0, t, 0, i], expected[0, t, 0, i + H // 2] = (
                a * np.cos(angle) - b * np.sin(angle),
                b * np.cos(angle) + a * np.sin(angle),
            )
    np.testing.assert_allclose(rotate(jnp.float32(x), rope_angles(jnp.asarray(p), H, base, 1.0)), expected, rtol=1e-4, atol=1e-5)
    q, k = (np.tile(rng.normal(size=H), (1, 3, 1, 1)) for _ in range(2))
    turned = [
        np.einsum(
            "h,h",
            *(np.asarray(rotate(jnp.float32(z), rope_angles(jnp.asarray(p + s), H, base, 1.0)))[0, t, 0] for z, t in ((q, 2), (k, 1))),
        )
        for s in (0, 40)
    ]
    np.testing.assert_allclose(*turned, rtol=1e-4)


def test_partial_rope_leaves_the_tail_without_position():
    cos, sin = rope_angles(jnp.asarray([[9]]), 16, 100.0, 0.25)
    np.testing.assert_array_equal(np.asarray(sin)[0, 0, 2:], 0)
    np.testing.assert_array_equal(np.asarray(cos)[0, 0, 2:], 1)
    np.testing.assert_allclose(np.asarray(sin)[0, 0, :2], np.sin([9.0, 9 * 100 ** (-2 / 16)]), rtol=1e-5)


def test_gaussian_prior_is_its_formula():
    sigma = np.array([0.7, 3.0])
    i, j = np.arange(5)[:, None], np.arange(5)[None]
    expected = np.stack([-((i - j) ** 2) / (2 * s**2) for s in sigma])
    position = jnp.arange(5)[None]
    np.testing.assert_allclose(gaussian_prior(jnp.log(jnp.float32(sigma)), position, position)[0], expected, rtol=1e-5)


def test_log_n_scale_is_one_up_to_the_native_length_and_grows_with_log_n_beyond():
    p = np.array([0, 1, 99, 199, 9999])
    expected = [1, 1, 1, np.log(200) / np.log(100), np.log(10_000) / np.log(100)]
    np.testing.assert_allclose(log_n_scale(jnp.asarray(p), 100), expected, rtol=1e-6)
