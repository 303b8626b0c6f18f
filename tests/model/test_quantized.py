"""Quantised weights: bytes, values and products against float64 formulas, for every set of instructions that this processor has."""

import ctypes
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pollux.model import decoder, family, folder, native, params
from pollux.model.quantized import Quantized, pack, products
from pollux.model.rounding import encode, matrices, nearest
from pollux.tokens.sequence import Inputs

INSTRUCTIONS = {"scalar": 0, "avx2": 1, "avx512": 2, "neon": 3}
BITS = (4, 8)


def values_by_layout(packed: np.ndarray, bits: int, K: int, N: int) -> np.ndarray:
    """The weights [K, N], read byte by byte as native/product.h describes the layout."""
    out = np.zeros((K, N))
    for n in range(N):
        for k in range(K):
            block = packed[n // 16, k // 32]
            scale = block[-32:].view(np.float16)[n % 16]
            inner = k % 32
            row, half = (inner % 16 // 4, inner // 16) if bits == 4 else (inner // 4, 0)
            byte = int(block[64 * row + 4 * (n % 16) + inner % 4])
            code = (byte >> 4 * half) & 15 if bits == 4 else byte
            out[k, n] = (code - 2 ** (bits - 1)) * float(scale)
    return out


def rounded(x: np.ndarray) -> np.ndarray:
    """Activations [M, K] as the kernels read them: 127 steps up to the largest of every 32, in float64."""
    M, K = x.shape
    groups = np.pad(x, ((0, 0), (0, -K % 32))).reshape(M, -1, 32)
    most = np.abs(groups).max(-1, keepdims=True)
    inverse = np.divide(np.float32(127), most, out=np.zeros_like(most), where=most > 0)
    return (np.rint(groups * inverse) * (most.astype(np.float64) / 127)).reshape(M, -1)[:, :K]


def quantized(weight: np.ndarray, bits: int) -> Quantized:
    return Quantized(jnp.asarray(pack(*nearest(weight, bits), bits)), *weight.shape)


def run_kernel(x: np.ndarray, w: Quantized, instructions: int) -> np.ndarray:
    library = native.products()
    if library is None:
        pytest.skip("no C++ compiler is here to build the kernels")
    x, packed = np.ascontiguousarray(x, np.float32), np.asarray(w.packed)
    y = np.full((len(x), w.outputs), np.nan, np.float32)
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in (x, packed, y)]
    sizes = [ctypes.c_int64(size) for size in (len(x), w.inputs, w.outputs)]
    if library.pollux_product(*pointers, *sizes, w.bits, instructions):
        return np.empty(0)
    return y


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", [(64, 32), (40, 21), (7, 3)])
def test_bytes_are_laid_out_as_described(bits, shape):
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    w = quantized(weight, bits)
    by_layout = values_by_layout(np.asarray(w.packed), bits, *shape)
    np.testing.assert_array_equal(np.asarray(w.dense()), by_layout.astype(np.float32))
    np.testing.assert_array_equal(np.asarray(w.rows(jnp.arange(shape[1]), jnp.float32)), by_layout.T.astype(np.float32))
    assert np.abs(by_layout - weight).max() < np.abs(weight).max() / (7 if bits == 4 else 120)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize("shape", [(1, 64, 16), (3, 100, 37), (9, 320, 64), (20, 33, 15), (70, 4096, 32)])
def test_kernels_equal_float64_products_of_the_rounded_activations(bits, instructions, shape):
    M, K, N = shape
    rng = np.random.default_rng(K)
    x, w = rng.standard_normal((M, K)).astype(np.float32), quantized(rng.standard_normal((K, N)).astype(np.float32), bits)
    y = run_kernel(x, w, INSTRUCTIONS[instructions])
    if not y.size:
        assert instructions != "scalar"
        return  # these instructions belong to another processor
    exact = rounded(x) @ values_by_layout(np.asarray(w.packed), bits, K, N) if K < 1000 else rounded(x) @ np.asarray(w.dense(), np.float64)
    np.testing.assert_allclose(y, exact, rtol=0, atol=1e-6 * np.abs(exact).max())


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_kernels_hold_for_extreme_values(bits, instructions):
    K, N = 64, 16
    for sign in (1, -1):
        ends = np.full((K, N), sign, np.float32)
        ends[::2] *= -1
        x = np.stack([ends[:, 0], -ends[:, 0], np.zeros(K), np.full(K, 1e-30), np.full(K, 1e30), np.eye(K)[40] * 1e4 + 1e-4]).astype(
            np.float32
        )
        w = quantized(ends, bits)
        y = run_kernel(x, w, INSTRUCTIONS[instructions])
        if not y.size:
            return
        exact = rounded(x) @ np.asarray(w.dense(), np.float64)
        np.testing.assert_allclose(y, exact, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_a_broken_activation_is_not_rounded_away(instructions):
    w = quantized(np.ones((64, 16), np.float32), 4)
    for bad in (np.nan, np.inf, -np.inf):
        x = np.ones((2, 64), np.float32)
        x[1, 40] = bad
        y = run_kernel(x, w, INSTRUCTIONS[instructions])
        if y.size:
            assert np.isfinite(y[0]).all() and not np.isfinite(y[1]).any()


@pytest.mark.parametrize("bits", BITS)
def test_several_products_in_one_call_find_their_layer_of_a_stack(bits):
    rng = np.random.default_rng(1)
    stacks = [rng.standard_normal((3, 96, n)).astype(np.float32) for n in (48, 20)]
    x = rng.standard_normal((2, 5, 96)).astype(np.float32)
    weights = [
        Quantized(jnp.stack([quantized(one, bits).packed for one in stack]), 96, stack.shape[2]).layer(jnp.int32(2)) for stack in stacks
    ]
    for y, stack in zip(jax.jit(products)(x, weights), stacks, strict=True):
        exact = x.astype(np.float64) @ np.asarray(quantized(stack[2], bits).dense(), np.float64)
        np.testing.assert_allclose(y, exact, atol=0.02 * np.abs(exact).max())


def test_the_gradient_passes_through_the_exact_weights():
    rng = np.random.default_rng(2)
    w, g = quantized(rng.standard_normal((64, 48)).astype(np.float32), 4), rng.standard_normal((3, 48))
    gradient = jax.grad(lambda x: jnp.sum(w.product(x) * g))(jnp.ones((3, 64)))
    np.testing.assert_allclose(gradient, g @ np.asarray(w.dense(), np.float64).T, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def model():
    config = dataclasses.replace(family.tiny(300), soft_inputs=())
    weights = params.init(config, jax.random.key(0))
    chosen = matrices(config)

    def shrink(path, leaf):
        name = folder.tensor_name(path)
        if name not in chosen:
            return leaf
        inputs, outputs = params.matrix(chosen[name])
        array = np.asarray(leaf)
        array = array.T if name == "embed" else array
        packed = [pack(*nearest(one, 4), 4) for one in array.reshape(-1, inputs, outputs)]
        return Quantized(jnp.asarray(np.stack(packed).reshape(*array.shape[:-2], *packed[0].shape)), inputs, outputs)

    return config, jax.tree_util.tree_map_with_path(shrink, weights)


def dense(weights):
    def expand(path, leaf):
        if not isinstance(leaf, Quantized):
            return leaf
        return leaf.dense().T if folder.tensor_name(path) == "embed" else leaf.dense()

    return jax.tree_util.tree_map_with_path(expand, weights, is_leaf=lambda leaf: isinstance(leaf, Quantized))


def logits(weights, config, unroll):
    ids = np.arange(24).reshape(2, 12) * 7 % config.vocab_size
    zero, one = np.zeros_like(ids), np.ones_like(ids)
    inputs = Inputs(ids, np.tile(np.arange(12), (2, 1)), one, zero, zero, {})
    return decoder.logits(weights, config, decoder.hidden(weights, config, inputs, unroll=unroll).hidden)


@pytest.mark.parametrize("unroll", [1, 2])
def test_a_quantised_model_is_the_model_of_its_dense_weights(model, monkeypatch, unroll):
    config, weights = model
    exact = logits(dense(weights), config, unroll)
    rounded_activations = jax.jit(logits, static_argnums=(1, 2))(weights, config, unroll)
    monkeypatch.setattr(native, "products", lambda: None)
    np.testing.assert_allclose(logits(weights, config, unroll), exact, rtol=1e-4, atol=1e-4)
    error = np.linalg.norm(rounded_activations - exact) / np.linalg.norm(exact)
    assert error < 0.03


def test_a_quantised_folder_loads_as_the_same_model(model, tmp_path):
    config, weights = model
    folder.save(tmp_path, weights, config)
    loaded = folder.load_params(tmp_path, config)
    assert folder.hash_params(loaded) == folder.hash_params(weights)
    assert jax.tree.structure(loaded) == jax.tree.structure(weights)
    with pytest.raises(ValueError, match=r"embed\.q4 is uint8 of shape .* config.json wants"):
        folder.load_params(tmp_path, dataclasses.replace(config, vocab_size=400))


def test_codes_of_eight_bits_leave_out_the_one_that_kernels_cannot_have():
    assert encode(np.array([-1e9, 1e9]), np.ones(2), 8).tolist() == [1, 255]
