"""softmax(q k^T scale + prior) v under a mask, with a gradient of its own for speed on CPUs.

The gradient keeps q, k, v, the output and the log-sum-exp, and computes the probabilities anew (Dao et al. 2022). On a CPU with a C++
compiler the kernels of native/ do both, block by block; elsewhere XLA does, without the tiling.
Shapes: B rows, T queries, S keys, N heads = K kv-heads x G queries each, H head size.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from pollux.model import native

MASKED = -1e30
QUERIES = 256  # of a block in attend_within
WINDOW = 640  # fewest keys of a block there; pictures of 70, 140, 280, ... tokens of nine patches are little smaller than its doubles


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rounded:
    """Keys or values in 8 bits: x = codes * scale, with a scale for every vector of a head."""

    codes: jax.Array  # int8 or float8_e4m3fn [..., S, K, H]
    scale: jax.Array  # float32 [..., S, K]

    @classmethod
    def of(cls, x: jax.Array, dtype) -> Rounded:
        """x [..., H] with its largest magnitude at the largest code."""
        whole = jnp.issubdtype(dtype, jnp.integer)
        largest = float(jnp.iinfo(dtype).max if whole else jnp.finfo(dtype).max)
        x = x.astype(jnp.float32)
        scale = jnp.max(jnp.abs(x), -1) / largest
        codes = x / jnp.where(scale == 0, 1.0, scale)[..., None]
        return cls((jnp.rint(codes) if whole else codes).astype(dtype), scale)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    @property
    def dtype(self):
        return self.codes.dtype

    def __getitem__(self, at) -> Rounded:
        return Rounded(self.codes[at], self.scale[at])

    def astype(self, dtype) -> jax.Array:
        """The values."""
        return (self.codes.astype(jnp.float32) * self.scale[..., None]).astype(dtype)


def additive_mask(mask_BTS: jax.Array) -> jax.Array:
    """bool [B, T, S] -> float32 with 0 where visible and a large negative number elsewhere; computed once for all layers."""
    return jax.lax.optimization_barrier(jnp.where(mask_BTS, 0.0, MASKED))


def attend(q_BTNH, k_BSKH, v_BSKH, mask_BTS, scale: float, soft_cap: float = 0.0, bias_BNTS=None, index=None, table_BM=None) -> jax.Array:
    """Attention output [B, T, N, H] in q's dtype; a query that sees nothing gets zeros.

    mask_BTS: from additive_mask. soft_cap > 0: scores become cap * tanh(scores / cap). bias_BNTS: added to the scores (differentiable).
    k, v: arrays, or Rounded without a gradient. index: int32 scalar, which layer it is if they are stacks of layers (no gradient).
    table_BM: if keys and values lie in pages [N, P, K, H], those of each row, S = M P (no gradient).
    """
    kernels = not soft_cap and bias_BNTS is None and has_kernels()
    if not (kernels and k_BSKH.dtype in (jnp.float32, jnp.int8)):
        k_BSKH, v_BSKH = (_gathered(x, index, table_BM) for x in (k_BSKH, v_BSKH))
        index = table_BM = None
    where = jnp.int32(0) if index is None else index, jnp.arange(len(q_BTNH), dtype=jnp.int32)[:, None] if table_BM is None else table_BM
    if isinstance(k_BSKH, Rounded) and kernels and k_BSKH.dtype == jnp.int8:
        return _attend_rounded_on_cpu(q_BTNH, k_BSKH, v_BSKH, *where, mask_BTS, scale)
    if isinstance(k_BSKH, Rounded):
        k_BSKH, v_BSKH = k_BSKH.astype(q_BTNH.dtype), v_BSKH.astype(q_BTNH.dtype)
    if kernels:
        q, k, v = (x.astype(jnp.float32) for x in (q_BTNH, k_BSKH, v_BSKH))
        return _attend_on_cpu(q, k, v, *where, mask_BTS, scale).astype(q_BTNH.dtype)
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q = q_BTNH.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    k, v = k_BSKH.transpose(0, 2, 1, 3), v_BSKH.transpose(0, 2, 1, 3)
    if soft_cap or bias_BNTS is not None:
        bias = None if bias_BNTS is None else bias_BNTS.reshape(B, K, N // K, T, -1)
        out = _formula(q, k, v, mask_BTS, scale, soft_cap, bias)
    else:
        out = _attend(q, k, v, mask_BTS, scale)
    return out.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H).astype(q_BTNH.dtype)


def _gathered(x: jax.Array | Rounded, index, table_BM) -> jax.Array | Rounded:
    """[B, S, K, H] from a stack of layers, from pages, or from both."""
    if table_BM is not None:
        return jax.tree.map(
            lambda leaf: leaf.reshape(len(table_BM), -1, *leaf.shape[3:]), x[(*([] if index is None else [index]), table_BM)]
        )
    return x if index is None else x[index]


def attend_within(q_BTNH, k_BTKH, v_BTKH, segment_BT, scale: float) -> jax.Array:
    """Attention output [B, T, N, H] where every position sees all of its segment, a run of equal numbers of the ascending `segment_BT`.

    Queries go block by block. The keys of a block are a window that holds its segments, of the smallest of a few sizes, so that time
    and memory follow the sizes of the segments and not T^2.
    """
    B, T, N, H = q_BTNH.shape
    block = min(QUERIES, T)
    blocks = -(-T // block)
    sizes = [min(WINDOW, T)]
    while sizes[-1] < T:
        sizes.append(min(T, 2 * sizes[-1]))

    def cut(x: jax.Array, fill: int) -> jax.Array:  # [B, T, ...] -> [blocks, B, block, ...]
        padding = [(0, 0), (0, blocks * block - T), *[(0, 0)] * (x.ndim - 2)]
        return jnp.pad(x, padding, constant_values=fill).reshape(B, blocks, block, *x.shape[2:]).swapaxes(0, 1)

    def window(size: int, q, segment, start) -> jax.Array:
        at = jnp.minimum(start, T - size)[:, None] + jnp.arange(size)
        rows = jnp.arange(B)[:, None]
        mask = additive_mask(segment[:, :, None] == segment_BT[rows, at][:, None, :])
        return attend(q, k_BTKH[rows, at], v_BTKH[rows, at], mask, scale)

    @jax.checkpoint
    def one(_, scanned):
        q, segment = scanned
        start = jnp.sum(segment_BT < segment[:, :1], 1)
        end = jnp.sum(segment_BT <= segment[:, -1:], 1)
        size = jnp.sum(jnp.max(end - start) > jnp.array(sizes))
        return None, jax.lax.switch(size, [functools.partial(window, s) for s in sizes], q, segment, start)

    last = jnp.iinfo(segment_BT.dtype).max
    _, out = jax.lax.scan(one, None, (cut(q_BTNH, 0), cut(segment_BT, last)))
    return out.swapaxes(0, 1).reshape(B, blocks * block, N, H)[:, :T]


def has_kernels() -> bool:
    """Whether the attention kernels of native/ can be used. XLA cannot share out their work over several devices."""
    return jax.default_backend() == "cpu" and jax.device_count() == 1 and native.attention() is not None


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _attend_on_cpu(q_BTNH, k_BSKH, v_BSKH, index, table_BM, mask_BTS, scale):
    return _attend_on_cpu_forward(q_BTNH, k_BSKH, v_BSKH, index, table_BM, mask_BTS, scale)[0]


def _attend_on_cpu_forward(q, k, v, index, table, mask, scale):
    B, T, N, _ = q.shape
    shapes = (jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct((B, N, T), q.dtype))
    call = jax.ffi.ffi_call("pollux_attention", shapes, vmap_method="sequential")
    out, log_sum = call(q, k, v, index, table, mask, scale=np.float32(scale))
    return out, (q, k, v, mask, out, log_sum)


def _attend_on_cpu_backward(scale, residual, d_out):
    q, k, v, *_ = residual
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v)]
    call = jax.ffi.ffi_call("pollux_attention_gradient", shapes, vmap_method="sequential")
    d_q, d_k, d_v = call(*residual, d_out, scale=np.float32(scale))
    return d_q, d_k, d_v, None, None, None


_attend_on_cpu.defvjp(_attend_on_cpu_forward, _attend_on_cpu_backward)


def _attend_rounded_on_cpu(q, k: Rounded, v: Rounded, index, table, mask, scale):
    B, T, N, _ = q.shape
    shapes = (jax.ShapeDtypeStruct(q.shape, jnp.float32), jax.ShapeDtypeStruct((B, N, T), jnp.float32))
    call = jax.ffi.ffi_call("pollux_attention_rounded", shapes, vmap_method="sequential")
    out, _ = call(q.astype(jnp.float32), k.codes, k.scale, v.codes, v.scale, index, table, mask, scale=np.float32(scale))
    return out.astype(q.dtype)


def _dot(a_BKxx, b_BKxx, contract_a: int, contract_b: int) -> jax.Array:
    dims = (((contract_a,), (contract_b,)), ((0, 1), (0, 1)))
    return jax.lax.dot_general(a_BKxx, b_BKxx, dims, preferred_element_type=jnp.float32)


def _scores(q_BKGTH, k_BKSH):
    """float32 [B, K, G, T, S]; the G queries of one kv-head are one matrix product."""
    B, K, G, T, H = q_BKGTH.shape
    return _dot(q_BKGTH.reshape(B, K, G * T, H), k_BKSH, 3, 3).reshape(B, K, G, T, -1)


def _weigh(p_BKGTS, v_BKSH):
    B, K, G, T, S = p_BKGTS.shape
    return _dot(p_BKGTS.astype(v_BKSH.dtype).reshape(B, K, G * T, S), v_BKSH, 3, 2).reshape(B, K, G, T, -1)


def _formula(q, k, v, mask_BTS, scale, soft_cap, bias):
    scores = _scores(q, k) * scale
    if soft_cap:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    if bias is not None:
        scores += bias
    mask = mask_BTS[:, None, None]
    p = jax.nn.softmax(scores + mask, -1)
    return _weigh(jnp.where(mask < 0, 0.0, p), v).astype(v.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(q, k, v, mask_BTS, scale):
    return _attend_forward(q, k, v, mask_BTS, scale)[0]


def _attend_forward(q, k, v, mask_BTS, scale):
    masked = _scores(q * jnp.asarray(scale, q.dtype), k) + mask_BTS[:, None, None]
    top = jnp.maximum(jnp.max(masked, -1, keepdims=True), MASKED / 2)
    p = jnp.exp(masked - top)
    total = jnp.maximum(jnp.sum(p, -1, keepdims=True), 1e-30)
    out = (_weigh(p, v) / total).astype(v.dtype)
    return out, (q, k, v, mask_BTS, out, top + jnp.log(total))


def _attend_backward(scale, residual, d_out):
    q, k, v, mask_BTS, out, log_sum = residual
    B, K, G, T, H = q.shape
    q_scaled = q * jnp.asarray(scale, q.dtype)
    p = jnp.exp(_scores(q_scaled, k) + mask_BTS[:, None, None] - log_sum)
    delta = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), -1, keepdims=True)
    d_scores = (p * (_scores(d_out, v) - delta)).astype(q.dtype).reshape(B, K, G * T, -1)

    def contract_queries(weights, x):  # [B, K, G*T, S], [B, K, G, T, H] -> [B, K, S, H]
        x, weights = jax.lax.optimization_barrier((x.reshape(B, K, G * T, H), weights))
        return jax.lax.optimization_barrier(_dot(x, weights, 2, 2)).swapaxes(2, 3)

    d_q = _dot(d_scores, k, 3, 2) * scale
    d_k = contract_queries(d_scores, q_scaled)
    d_v = contract_queries(p.astype(q.dtype).reshape(B, K, G * T, -1), d_out)
    return d_q.astype(q.dtype).reshape(q.shape), d_k.astype(k.dtype), d_v.astype(v.dtype), None


_attend.defvjp(_attend_forward, _attend_backward)
