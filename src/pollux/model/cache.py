"""The KV cache: global layers keep every key, local layers a ring of their window.

A row holds one document from its first token on, so the slot of a key tells its position: in a global layer slot = position, in a ring
slot = position mod (its number of slots). Rows of one batch may have different lengths; how long they are follows from the positions of
the new tokens. Hence tokens are taken back by writing others at their positions. A ring forgets what it overwrites, so it needs a
spare slot for each token that may be taken back at once: what such a token overwrites, the window has left behind.
Shapes: B rows, T new tokens, S slots, N pages of P slots, M pages of a row, K kv-heads, H head size, C slots for soft tokens, D model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp

from pollux.model.attention import KeysValues, Positions
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
    """K and V of one layer in pages [N, P, K, H], or of a stack of layers on a leading axis. Without a table each row is one page."""

    k: jax.Array | Rounded
    v: jax.Array | Rounded
    window: int = field(default=0, metadata={"static": True})  # 0 = global
    spare: int = field(default=0, metadata={"static": True})  # slots of a ring beyond its window
    index: jax.Array | None = None  # int32 scalar: which layer of the stack `extend` is about
    table: jax.Array | None = None  # int32 [B, M], the pages of each row; slot s of the row is in page s // P

    @property
    def slots(self) -> int:
        """Tokens of a row that there is room for."""
        return self.k.shape[-3] * (1 if self.table is None else self.table.shape[1])

    def keys(self, new: Positions) -> Positions:
        """The positions [B, S] of what new queries may see once `extend` has written their own keys; equal for all layers of a window."""
        B, T = new.index.shape
        slots, rows = self.slots, jnp.arange(B)[:, None]
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

    def extend(self, k_BTKH, v_BTKH, new: Positions) -> tuple[LayerCache, KeysValues]:
        """Write the new keys and values; return the cache, and all keys and values that the new queries may see.

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
            return after, KeysValues(keys, values, self.index, self.table)
        layer = () if self.index is None else (self.index,)
        keys, values = (
            jnp.concatenate([old[layer].astype(k_BTKH.dtype), x.astype(k_BTKH.dtype)], 1) for old, x in ((self.k, k), (self.v, v))
        )
        return after, KeysValues(keys, values)

    def _written(self, old, new, slot_BT: jax.Array):
        """`old`, trees of stacks or layers [(L,) N, P, ...], with the rows [B, T, ...] of `new` in their slots."""
        pages, size = self.k.shape[-4:-2]
        number = slot_BT // size
        page = jnp.arange(len(slot_BT))[:, None] if self.table is None else jnp.take_along_axis(self.table, number, 1, mode="clip")
        at = jnp.where(slot_BT < self.slots, page * size + slot_BT % size, pages * size)
        at = at.reshape(-1).astype(jnp.int32)
        stacks, tree = jax.tree.flatten(old)
        rows = [x.reshape(-1, *x.shape[2:]) for x in jax.tree.leaves(new)]
        if self.index is not None and has_kernels():
            shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in stacks]
            aliases = {2 + i: i for i in range(len(stacks))}
            write = jax.ffi.ffi_call("pollux_write", shapes, input_output_aliases=aliases, vmap_method="sequential")
            return jax.tree.unflatten(tree, write(at, self.index, *stacks, *rows))
        where = (*(() if self.index is None else (self.index,)), at // size, at % size)
        return jax.tree.unflatten(tree, [stack.at[where].set(x, mode="drop") for stack, x in zip(stacks, rows, strict=True)])

    def _forgets(self, tokens: int) -> bool:
        """Whether writing so many overwrites what some of their queries still see."""
        forgets = self.window > 0 and tokens > self.spare + 1
        assert not (forgets and self.table is not None), "a ring of pages has room for a whole chunk"
        return forgets

    def _slots(self, new: Positions) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Positions [B, 1] of the first new token and after the last; the slot [B, T] of each, out of range for those not kept."""
        slots = self.slots
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
    rows: jax.Array | None = None  # int32 [B], which rows of `soft` are those of the tokens; None = row b is

    @property
    def kv_cache_dtype(self) -> CacheDtype | None:
        """In what 8 bits keys and values are kept, if they are."""
        kept = next(layer.k for layer in (*self.groups, *self.tail) if layer is not None)
        return next(name for name, dtype in DTYPES.items() if kept.dtype == dtype) if isinstance(kept, Rounded) else None

    def view(self, tables: Mapping[int, Any], rows: Any) -> Cache:
        """The same pages as rows whose pages are in tables int32 [B, M], by window."""

        def layer(layer: LayerCache | None) -> LayerCache | None:
            return layer and replace(layer, table=tables[layer.window])

        return replace(self, groups=tuple(map(layer, self.groups)), tail=tuple(map(layer, self.tail)), rows=rows)  # type: ignore[arg-type]

    @property
    def pages(self) -> Cache:
        """Without tables."""
        return self.view(dict.fromkeys(_windows(self)), None)


def paged(
    config: ModelConfig,
    pages: Mapping[int, int],
    page: int,
    chunk: int,
    rows: int,
    dtype=jnp.float32,
    soft_slots: int = 0,
    kv_cache_dtype: CacheDtype | None = None,
) -> Cache:
    """An empty cache of pages[window] pages of `page` tokens for each kind of layers, for rows that grow by at most `chunk` tokens at
    once. `Cache.view` gives them tables. `rows`: for soft tokens that cross-attention reads."""

    def layer(layer: LayerConfig, *stack: int) -> LayerCache | None:
        a = layer.attention
        if a.shares_kv:
            return None
        shape = (*stack, pages[a.window], page, a.num_kv_heads, a.head_dim)
        return LayerCache(
            _zeros(shape, dtype, kv_cache_dtype), _zeros(shape, dtype, kv_cache_dtype), a.window, chunk - 1 if a.window else 0
        )

    return _cache(config, layer, rows, soft_slots, dtype)


def ring(window: int, page: int, chunk: int) -> int:
    """Pages of a ring: those of the window before a chunk and of the chunk itself."""
    return -(-(window - 1 + chunk) // page) + 1


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

    def layer(layer: LayerConfig, *stack: int) -> LayerCache | None:
        a = layer.attention
        if a.shares_kv:
            return None
        shape = (*stack, rows, min(a.window + spare, slots) if a.window else slots, a.num_kv_heads, a.head_dim)
        k, v = _zeros(shape, dtype, kv_cache_dtype), _zeros(shape, dtype, kv_cache_dtype)
        return LayerCache(k, v, a.window and shape[-3], spare if a.window else 0)

    return _cache(config, layer, rows, soft_slots, dtype)


def _zeros(shape: tuple[int, ...], dtype, kv_cache_dtype: CacheDtype | None) -> jax.Array | Rounded:
    if kv_cache_dtype is None:
        return jnp.zeros(shape, dtype)
    return Rounded(jnp.zeros(shape, DTYPES[kv_cache_dtype]), jnp.zeros(shape[:-1], jnp.float32))


def _cache(config: ModelConfig, layer: Callable[..., LayerCache | None], rows: int, soft_slots: int, dtype) -> Cache:
    return Cache(
        tuple(layer(x, config.num_groups) for x in (config.pattern if config.num_groups else ())),  # type: ignore[misc]
        tuple(layer(x) for x in config.tail),
        jnp.zeros((rows, soft_slots, config.d_model), dtype),
        jnp.full((rows, soft_slots), -1, jnp.int32),
    )


def _windows(cache: Cache) -> set[int]:
    return {layer.window for layer in (*cache.groups, *cache.tail) if layer is not None}
