"""Weights of 4 or 8 bits: a leaf type of the parameter tree, with its packing, its exact values and its products.

A weight [K, N] has one float16 scale for every 32 inputs of an output: w = (code - zero) * scale, codes of b bits, zero = 2^(b-1). That is
4.5 or 8.5 bits a weight. `packed` holds them in the order in which the CPU kernels read them (native/product.h): blocks of 16 outputs x
32 inputs, scales included; both are padded with zeros. A leading axis stacks layers or experts.

On a CPU with a C++ compiler the products also round the activations, to 8 bits in groups of 32; elsewhere XLA multiplies with the
exact values.
Shapes: K inputs, N outputs, G groups of 32 inputs, M rows of activations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pollux.model import native
from pollux.model.weight import Stacked

INPUTS, OUTPUTS = 32, 16  # of a block
SCALE_BYTES = 2 * OUTPUTS


def block_bytes(bits: int) -> int:
    return INPUTS * OUTPUTS * bits // 8 + SCALE_BYTES


def _bits(packed: jax.Array) -> int:
    return {block_bytes(bits): bits for bits in (4, 8)}[packed.shape[-1]]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Quantized(Stacked):
    """A quantised matrix [inputs, outputs], or a stack of them; an embedding table [V, D] is one of D inputs and V outputs."""

    packed: jax.Array  # uint8 [..., N/16, G, block_bytes(bits)]
    inputs: int = field(metadata={"static": True})
    outputs: int = field(metadata={"static": True})
    index: jax.Array | None = None  # int32 scalar: this member of the stack

    def __post_init__(self):
        if hasattr(self.packed, "shape"):  # not while JAX rebuilds trees of other things
            wanted = packed_shape(self.inputs, self.outputs, self.bits)
            assert self.packed.shape[-3:] == wanted, (self.packed.shape, wanted)

    @property
    def bits(self) -> int:
        return _bits(self.packed)

    @property
    def shape(self) -> tuple[int, ...]:
        lead = self.packed.shape[:-3] if self.index is None else self.packed.shape[1:-3]
        return (*lead, self.inputs, self.outputs)

    def layer(self, index: jax.Array) -> Quantized:
        """One member of the stack, without a copy: the kernels find it by its index."""
        return replace(self, index=jnp.asarray(index, jnp.int32))

    def product(self, x: jax.Array) -> jax.Array:
        return products(x, (self,))[0]

    def dense(self, dtype=jnp.float32) -> jax.Array:
        """The exact values [..., K, N], rounded to dtype."""
        packed = self.packed if self.index is None else self.packed[self.index]
        return unpack(packed, self.inputs, self.outputs).astype(dtype)

    def rows(self, ids: jax.Array, dtype) -> jax.Array:
        """Rows of the table [outputs, inputs]: ids int [...] -> [..., inputs]."""
        blocks = self.packed[ids // OUTPUTS]  # [..., G, bytes]
        whole = _unpack_blocks(blocks, self.bits)  # [..., G, 32, 16]
        lane = jnp.take_along_axis(whole, (ids % OUTPUTS)[..., None, None, None], -1)[..., 0]
        return lane.reshape(*ids.shape, -1)[..., : self.inputs].astype(dtype)


def is_quantized(params: Any) -> bool:
    """Whether a tree of parameters holds quantised weights."""
    return any(isinstance(leaf, Quantized) for leaf in jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, Quantized)))


def require_plain(params: Any) -> None:
    """Raises ValueError if a tree of parameters holds quantised weights, which other programs cannot read."""
    if is_quantized(params):
        raise ValueError("the model holds weights quantised in a layout of pollux alone: export a folder that is not quantised")


def packed_shape(inputs: int, outputs: int, bits: int) -> tuple[int, int, int]:
    return -(-outputs // OUTPUTS), -(-inputs // INPUTS), block_bytes(bits)


def pack(codes: np.ndarray, scales: np.ndarray, bits: int) -> np.ndarray:
    """Codes uint8 [..., K, N] and float16 scales [..., ceil(K/32), N] -> uint8 [..., N/16, G, block_bytes(bits)]."""
    *lead, K, N = codes.shape
    blocks, G, _ = packed_shape(K, N, bits)
    codes = _pad(codes, G * INPUTS, blocks * OUTPUTS, 1 << (bits - 1))
    scales = np.ascontiguousarray(np.moveaxis(_pad(scales, G, blocks * OUTPUTS, 0).reshape(*lead, G, blocks, OUTPUTS), -2, -3), "<f2")
    # inputs as (high or low half of a byte, row of 64 bytes, place among 4), outputs as (block, place among 16)
    codes = codes.reshape(*lead, G, 8 // bits, bits, 4, blocks, OUTPUTS)
    n = len(lead)
    codes = codes.transpose(*range(n), n + 4, n, n + 1, n + 2, n + 5, n + 3)  # [..., blocks, G, half, row, 16, 4]
    merged = codes[..., 0, :, :, :] | codes[..., 1, :, :, :] << 4 if bits == 4 else codes[..., 0, :, :, :]
    return np.concatenate([merged.reshape(*lead, blocks, G, -1), scales.view(np.uint8)], -1)


def _pad(x: np.ndarray, rows: int, columns: int, value: int) -> np.ndarray:
    return np.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, rows - x.shape[-2]), (0, columns - x.shape[-1])], constant_values=value)


def unpack(packed: jax.Array, inputs: int, outputs: int) -> jax.Array:
    """The inverse of `pack`, as values: float32 [..., K, N]."""
    values = _unpack_blocks(packed, _bits(packed))  # [..., blocks, G, 32, 16]
    values = jnp.moveaxis(values, -4, -2)  # [..., G, 32, blocks, 16]
    *lead, G, _, blocks, _ = values.shape
    return values.reshape(*lead, G * INPUTS, blocks * OUTPUTS)[..., :inputs, :outputs]


def _unpack_blocks(packed: jax.Array, bits: int) -> jax.Array:
    """uint8 [..., bytes] -> float32 [..., 32 inputs, 16 outputs]."""
    lead = packed.shape[:-1]
    codes = packed[..., :-SCALE_BYTES].reshape(*lead, 1, bits, OUTPUTS, 4)
    if bits == 4:
        codes = jnp.concatenate([codes & 15, codes >> 4], -4)  # [..., half, row, 16, 4]
    centred = jnp.swapaxes(codes, -1, -2).reshape(*lead, INPUTS, OUTPUTS).astype(jnp.float32) - (1 << (bits - 1))
    scales = jax.lax.bitcast_convert_type(packed[..., -SCALE_BYTES:].reshape(*lead, OUTPUTS, 2), jnp.float16)
    return centred * scales[..., None, :].astype(jnp.float32)


def products(x: jax.Array, weights: Sequence[Quantized]) -> tuple[jax.Array, ...]:
    """x [..., K] times several weights of the same bits, in one call of the kernel where there is one."""
    one_kind = len({w.bits for w in weights}) == 1 and all(w.inputs == x.shape[-1] for w in weights)
    assert one_kind, [(w.bits, w.inputs) for w in weights]
    if jax.default_backend() == "cpu" and native.products() is not None:
        y = _on_cpu(x.reshape(-1, x.shape[-1]).astype(jnp.float32), tuple(weights))
        return tuple(a.reshape(*x.shape[:-1], -1).astype(x.dtype) for a in y)
    return tuple(jnp.matmul(x, w.dense(x.dtype), preferred_element_type=jnp.float32).astype(x.dtype) for w in weights)


@jax.custom_vjp
def _on_cpu(x_MK: jax.Array, weights: tuple[Quantized, ...]) -> tuple[jax.Array, ...]:
    index = next((w.index for w in weights if w.index is not None), jnp.int32(0))
    shapes = [jax.ShapeDtypeStruct((x_MK.shape[0], w.outputs), jnp.float32) for w in weights]
    return tuple(jax.ffi.ffi_call("pollux_products", shapes)(x_MK, index, *(w.packed for w in weights)))


def _forward(x_MK, weights):
    return _on_cpu(x_MK, weights), weights


def _backward(weights, gradients):
    d_x = sum(jnp.matmul(g, w.dense().T, preferred_element_type=jnp.float32) for g, w in zip(gradients, weights, strict=True))
    zero = jax.tree.map(lambda a: np.zeros(a.shape, jax.dtypes.float0), weights)
    return d_x, zero


_on_cpu.defvjp(_forward, _backward)
