"""The product of a low-rank leaf and its gradients against the formula in float64, over plain, stacked and other leaves."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pollux.model.low_rank import LowRank, attach, load_adapters, merge, save_adapters
from pollux.model.matmul import matmul
from pollux.model.weight import Weight

K, N, R, SCALE = 12, 20, 3, 1.75


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Steps(Weight):
    """int8 steps of a size for each column: another leaf type."""

    steps: jax.Array
    size: jax.Array

    @property
    def shape(self):
        return self.steps.shape

    def product(self, x):
        return (x @ self.steps.astype(x.dtype)) * self.size.astype(x.dtype)

    def dense(self, dtype):
        return (self.steps * self.size[..., None, :]).astype(dtype)


def parts(*stack: int):
    """x [2, 5, K], W [..., K, N], A [..., K, R], B [..., R, N] in float64."""
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape) for shape in ((2, 5, K), (*stack, K, N), (*stack, K, R), (*stack, R, N))]


def single(*arrays):
    return [jnp.asarray(x, jnp.float32) for x in arrays]


def test_product_and_gradients_are_those_of_the_formula():
    x, w, a, b = parts()
    g = np.random.default_rng(1).normal(size=(2, 5, N))

    def f(x, w, a, b):
        return jnp.sum(matmul(x, LowRank(w, a, b, SCALE)) * single(g)[0])

    np.testing.assert_allclose(matmul(single(x)[0], LowRank(*single(w, a, b), SCALE)), x @ (w + SCALE * a @ b), rtol=1e-4, atol=1e-4)
    d_x, d_w, d_a, d_b = jax.jit(jax.grad(f, (0, 1, 2, 3)))(*single(x, w, a, b))
    rows, d_rows = x.reshape(-1, K), g.reshape(-1, N)
    np.testing.assert_allclose(d_x, g @ (w + SCALE * a @ b).T, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(d_w, rows.T @ d_rows, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(d_a, SCALE * rows.T @ d_rows @ b.T, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(d_b, SCALE * (rows @ a).T @ d_rows, rtol=1e-4, atol=1e-4)


def test_a_stack_of_any_leaf_type_is_scanned_and_multiplied_out():
    x, w, a, b = parts(4)
    steps = np.clip(np.round(w * 30), -127, 127).astype(np.int8)
    size = np.linspace(0.01, 0.05, 4 * N).reshape(4, N)
    expected = np.einsum("btk,lkn->lbtn", x, steps * size[:, None] + SCALE * a @ b)
    leaf = LowRank(Steps(jnp.asarray(steps), *single(size)), *single(a, b), SCALE)
    _, scanned = jax.jit(lambda leaf: jax.lax.scan(lambda _, one: (None, matmul(single(x)[0], one)), None, leaf))(leaf)
    np.testing.assert_allclose(scanned, expected, rtol=1e-4, atol=1e-4)
    merged = merge({"final_norm": {"scale": jnp.ones(2)}, "here": [leaf]})["here"][0]
    np.testing.assert_allclose(np.einsum("btk,lkn->lbtn", x, merged), expected, rtol=1e-4, atol=1e-4)


def test_a_merge_is_rounded_once_to_the_dtype_of_the_base():
    _, w, a, b = parts()
    w = np.asarray(w, jnp.bfloat16)
    merged = merge({"w": LowRank(jnp.asarray(w), *single(a, b), SCALE)})["w"]
    assert merged.dtype == jnp.bfloat16
    exact = w.astype(np.float64) + SCALE * a @ b
    assert np.all(np.abs(np.asarray(merged, np.float64) - exact) <= np.abs(exact) * 2.0**-8 * 1.01)


def test_adapters_in_a_file_find_their_weights_again(tmp_path):
    _, w, a, b = single(*parts(2))
    params = {"groups": ({"attention": {"q": w, "k": w}},), "embed": w}
    adapters = {"groups.0.attention.q": {"a": a, "b": b}}
    save_adapters(tmp_path / "adapter.safetensors", adapters, SCALE)
    attached = attach(params, *load_adapters(tmp_path / "adapter.safetensors"))
    leaf = attached["groups"][0]["attention"].pop("q")
    assert leaf.base is w and leaf.scale == SCALE and not any(isinstance(x, Weight) for x in jax.tree.leaves(attached))
    np.testing.assert_array_equal(leaf.a, a)
    np.testing.assert_array_equal(leaf.b, b)
    with pytest.raises(ValueError, match=r"another model: this one has no groups\.0\.attention\.q"):
        attach({"embed": w}, adapters, SCALE)
    with pytest.raises(ValueError, match=r"its groups\.0\.attention\.q is \(2, 12, 20\), that of this one \(2, 12, 21\)"):
        attach({"groups": ({"attention": {"q": jnp.zeros((2, 12, 21))}},)}, adapters, SCALE)
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(ValueError, match="text is not a file of adapters"):
        load_adapters(tmp_path / "text")
