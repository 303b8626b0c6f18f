"""The KV cache: global layers keep every key, local layers a ring of their window.

A row holds one document from its first token on, so the slot of a key tells its position: in a global layer slot = position, in a ring
slot = position mod (its number of slots). Rows of one batch may have different lengths; how long they are follows from the positions of
the new tokens. Hence tokens are taken back by writing others at their positions. A ring forgets what it overwrites, so it needs a
spare slot for each token that may be taken back at once: what such a token overwrites, the window has left behind.
Shapes: B rows, T new tokens, S slots, K kv-heads, H head size, C slots for soft tokens, D model.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp

from pollux.model.attention import Positions
from pollux.model.config import LayerConfig, ModelConfig
from pollux.model.dot_attention import Rounded, has_kernels

CacheDtype = Literal["int8", "float8"]
DTYPES: dict[CacheDtype, Any] = {"int8": jnp.int8, "float8": jnp.float8_e4m3fn}


def _keys_at(index_BS: jax.Array, valid_BS: jax.Array, group_BS: jax.Array | None = None) -> Positions:
    zero = jnp.zeros_like(index_BS)
    return Positions(index_BS, index_BS, valid_BS.astype(jnp.int32), zero, zero if group_BS is None else group_BS)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerCache:
    """K and V of one layer [B, S, K, H], or of a stack of layers on a leading axis."""

    k: jax.Array | Rounded
    v: jax.Array | Rounded
    window: int = field(default=0, metadata={"static": True})  # 0 = global
    spare: int = field(default=0, metadata={"static": True})  # slots of a ring beyond its window
    index: jax.Array | None = None  # int32 scalar: which layer of the stack `extend` is about

    def keys(self, new: Positions) -> Positions:
        """The positions [B, S] of what new queries may see once `extend` has written their own keys; equal for all layers of a window."""
        B, T = new.index.shape
        slots, rows = self.k.shape[-3], jnp.arange(B)[:, None]
        start, end, slot = self._slots(new)
        iota = jnp.broadcast_to(jnp.arange(slots), (B, slots))
        if self._forgets(T):
            held = (start - 1) - (start - 1 - iota) % slots
            old, fresh = _keys_at(held, held >= 0), _keys_at(new.index, new.segment > 0, new.group)
            return jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), old, fresh)
        groups = jnp.zeros((B, slots), jnp.int32).at[rows, slot].set(new.group, mode="drop") if T > 1 else None
        if not self.window:
            return _keys_at(iota, iota < end, groups)
        held = (end - 1) - (end - 1 - iota) % slots
        return _keys_at(held, held >= 0, groups)

    def extend(self, k_BTKH, v_BTKH, new: Positions) -> tuple[LayerCache, jax.Array, jax.Array, jax.Array | None]:
        """Write the new keys and values; return the cache, all keys and values that the new queries may see, and the index of the layer
        if those are stacks.

        A stack is written in place, so that a scan over layers carries it without copies.
        There is no gradient through it.
        `new.segment` is 1 for real tokens and 0 for padding, which may only follow them; `new.index` is the position in the document.
        """
        _, _, slot = self._slots(new)
        rounded, dtype = isinstance(self.k, Rounded), self.k.dtype
        k, v = (Rounded.of(x, dtype) if rounded else x.astype(dtype) for x in (k_BTKH, v_BTKH))
        keys, values = self._written((self.k, self.v), (k, v), slot)
        after = replace(self, k=keys, v=values, index=None)
        if not self._forgets(k_BTKH.shape[1]):
            return after, keys, values, self.index
        layer = () if self.index is None else (self.index,)
        keys, values = (
            jnp.concatenate([old[layer].astype(k_BTKH.dtype), x.astype(k_BTKH.dtype)], 1) for old, x in ((self.k, k), (self.v, v))
        )
        return after, keys, values, None

    def _written(self, old, new, slot_BT: jax.Array):
        """`old`, trees of stacks or layers [(L,) B, S, ...], with the rows [B, T, ...] of `new` in their slots."""
        stacks, tree = jax.tree.flatten(old)
        rows = jax.tree.leaves(new)
        if self.index is not None and has_kernels():
            shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in stacks]
            aliases = {2 + i: i for i in range(len(stacks))}
            write = jax.ffi.ffi_call("pollux_write", shapes, input_output_aliases=aliases, vmap_method="sequential")
            return jax.tree.unflatten(tree, write(slot_BT.astype(jnp.int32), self.index, *stacks, *rows))
        at = (*(() if self.index is None else (self.index,)), jnp.arange(len(slot_BT))[:, None], slot_BT)
        return jax.tree.unflatten(tree, [stack.at[at].set(x, mode="drop") for stack, x in zip(stacks, rows, strict=True)])

    def _forgets(self, tokens: int) -> bool:
        """Whether writing so many overwrites what some of their queries still see."""
        return self.window > 0 and tokens > self.spare + 1

    def _slots(self, new: Positions) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Positions [B, 1] of the first new token and after the last; the slot [B, T] of each, out of range for those not kept."""
        slots = self.k.shape[-3]
        written = new.segment > 0
        start = new.index[:, :1]
        end = start + jnp.sum(written, 1, keepdims=True)
        if self.window:
            written &= new.index >= end - slots
        return start, end, jnp.where(written, new.index % slots if self.window else new.index, slots)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """The caches of all layers, stacked as the parameters are, and the soft tokens that cross-attention reads (if any)."""

    groups: tuple[LayerCache, ...]
    tail: tuple[LayerCache | None, ...]  # None: a layer that reads another's
    soft: jax.Array  # [B, C, D]
    soft_index: jax.Array  # int32 [B, C]; -1 = unused

    @property
    def kv_cache_dtype(self) -> CacheDtype | None:
        """In what 8 bits keys and values are kept, if they are."""
        kept = next(layer.k for layer in (*self.groups, *self.tail) if layer is not None)
        return next(name for name, dtype in DTYPES.items() if kept.dtype == dtype) if isinstance(kept, Rounded) else None


def empty(
    config: ModelConfig,
    rows: int,
    slots: int,
    dtype=jnp.float32,
    soft_slots: int = 0,
    spare: int = 0,
    kv_cache_dtype: CacheDtype | None = None,
) -> Cache:
    """An empty cache for `rows` documents of at most `slots` tokens, of which the last `spare` may be taken back.

    dtype: of keys and values, unless `kv_cache_dtype` keeps them in 8 bits each. `soft_slots` matters to models with cross-attention only.
    """

    def zeros(*shape: int) -> jax.Array | Rounded:
        if kv_cache_dtype is None:
            return jnp.zeros(shape, dtype)
        return Rounded(jnp.zeros(shape, DTYPES[kv_cache_dtype]), jnp.zeros(shape[:-1], jnp.float32))

    def layer(layer: LayerConfig, *stack: int) -> LayerCache | None:
        a = layer.attention
        if a.shares_kv:
            return None
        shape = (*stack, rows, min(a.window + spare, slots) if a.window else slots, a.num_kv_heads, a.head_dim)
        return LayerCache(zeros(*shape), zeros(*shape), a.window and shape[-3], spare if a.window else 0)

    return Cache(
        tuple(layer(x, config.num_groups) for x in (config.pattern if config.num_groups else ())),  # type: ignore[misc]
        tuple(layer(x) for x in config.tail),
        jnp.zeros((rows, soft_slots, config.d_model), dtype),
        jnp.full((rows, soft_slots), -1, jnp.int32),
    )
