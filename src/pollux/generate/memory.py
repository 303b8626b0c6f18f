"""The paged KV cache of one model: its arrays, who has which page, and the prefill that fills them.

Shapes are few, so that few programs are compiled however requests vary: a prefill reads T tokens of B rows, one of `shapes`, and the tables
of rows have room for 512 tokens, four times as many, and so on.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from pollux.generate.decode import cache_dtype, prefill
from pollux.generate.pages import Ledger
from pollux.generate.prompts import bucket
from pollux.generate.rows import Reading, tables
from pollux.generate.shelf import Shelf
from pollux.generate.spill import Spill
from pollux.model.cache import Cache, CacheDtype, paged, ring
from pollux.model.config import ModelConfig
from pollux.model.decoder import EMBEDDED, embedded
from pollux.model.params import Params
from pollux.tokens.sequence import Inputs, SoftBatch

FIRST_SLOTS = 512  # fewest tokens that a table has room for
WIDER = 4  # how much more the next table has
SHORT = 16  # tokens of the shortest prefill
PAGE = 32  # tokens
Spilled = tuple[Spill, str]  # where pages go that there is no room for, and the model that they are of
SOFT_SLOTS = 1024  # soft tokens of a row that cross-attention can read


class Memory:
    """chunk: most tokens of a prefill. rows: most rows, for the memory of cross-attention and the size of rings. spill: for models without
    cross-attention."""

    def __init__(
        self,
        params: Params,
        config: ModelConfig,
        rows: int,
        chunk: int,
        slots: int,
        kv_cache_dtype: CacheDtype | None = None,
        spill: Spilled | None = None,
    ):
        self.params, self.config, self.rows, self.chunk = params, config, rows, chunk
        self._kv_cache_dtype = kv_cache_dtype
        windows = {layer.attention.window for layer in config.layers if not layer.attention.shares_kv}
        self._rings = {window: ring(window, PAGE, chunk) for window in windows if window}
        self.crosses = any(layer.cross_attention for layer in config.layers)
        self.ledger = Ledger(PAGE, self._rings, self._pages(windows, slots))
        self.cache: Cache = self._empty()
        self._shelf = None if spill is None or self.crosses else Shelf(spill[0], spill[1], self.cache, PAGE)
        if self._shelf is not None:
            self.ledger.watch(self._spill)

    def _pages(self, kinds: set[int], slots: int) -> dict[int, int]:
        """Pages of each kind for `slots` tokens. Rings of all rows, and then some so that prefixes stay, are enough for a window."""
        number = -(-slots // PAGE)
        return {kind: min(number, self.rows * self._rings[kind] + number // 4) if kind else number for kind in kinds}

    def _empty(self) -> Cache:
        pages = {kind: len(pool) for kind, pool in self.ledger.pools.items()}
        dtype = cache_dtype(self.params)
        return paged(
            self.config, pages, PAGE, self.chunk, self.rows if self.crosses else 0, dtype, SOFT_SLOTS * self.crosses, self._kv_cache_dtype
        )

    @property
    def slots(self) -> int:
        """Tokens that there are pages for."""
        return max(len(pool) for pool in self.ledger.pools.values()) * PAGE

    def grow(self, slots: int) -> None:
        """Have pages for that many tokens; what is in the cache stays."""
        pages = self._pages(set(self.ledger.pools), slots)
        for kind, pool in self.ledger.pools.items():
            pool.grow(max(pages[kind], len(pool)))
        self.cache = _grown(self.cache, jax.eval_shape(self._empty))

    def widths(self, slots: int) -> dict[int, int]:
        """Pages in the tables of rows with at most that many tokens."""
        wide = self.all_widths(slots)[-1]
        return {kind: self._rings.get(kind, wide // PAGE) for kind in self.ledger.pools}

    def view(self, readings: Sequence[Reading | None], slots: int, numbers: Sequence[int]) -> Cache:
        """The cache as rows with at most `slots` tokens each. numbers: of the rows in the memory of cross-attention."""
        leases = [None if reading is None else reading.lease for reading in readings]
        return self.cache.view(tables(leases, self.widths(slots)), np.array(numbers, np.int32) if self.crosses else None)

    def lease(self, reading: Reading) -> int:
        """Give a reading the pages that it need not fill again; returns their tokens."""
        reusable = [] if self.crosses else reading.names[: reading.wanted // PAGE]
        if self._shelf is not None and (after := self._shelf.fetch(self.cache, self.ledger, reusable, reading.open_pages)):
            self.cache = after
        found = self.ledger.matched(reusable, reading.open_pages)
        reading.lease, reading.filled = self.ledger.lease(reading.names[:found]), found * PAGE
        return reading.filled

    def keep(self, reading: Reading) -> None:
        """Have what a reading has in the cache outlive it, and the program, as far as there is a place for that."""
        if self._shelf is not None and reading.lease is not None:
            for kind in self.ledger.pools:
                own = {number: page for number, page in reading.lease.pages(kind).items() if number < reading.filled // PAGE}
                self._shelf.put(self.cache, kind, list(own.values()), [reading.names[number] for number in own], wait=True)

    def warm_spill(self) -> None:
        """Compile what moves pages to the spill and back."""
        if self._shelf is not None:
            self.cache = self._shelf.warm(self.cache, self.ledger.pools)

    def forget_soft(self, number: int) -> None:
        """A new row starts to use this part of the memory of cross-attention."""
        if self.crosses:
            self.cache = _without_soft(self.cache, number)

    def embed(self, reading: Reading) -> None:
        """The soft tokens of a sequence, media of one kind at a time."""
        if reading.soft is not None:
            return
        features, index = [np.zeros((0, self.config.d_model), np.float32)], [np.zeros(0, np.int32)]
        for name, soft in reading.sequence.soft.items():
            number, size = len(soft.index), bucket(len(soft.index), 16)
            padded = SoftBatch(
                np.zeros((1, size, soft.features.shape[1]), np.float32),
                np.full((1, size), len(reading.sequence), np.int32),
                np.zeros((1, size, 2), np.int32),
            )
            padded.features[0, :number], padded.index[0, :number], padded.coord[0, :number] = soft.features, soft.index, soft.coord
            features.append(np.asarray(_embedded(self.params, self.config, name, padded), np.float32)[0, :number])
            index.append(soft.index)
        order = np.argsort(np.concatenate(index))
        reading.soft = np.concatenate(features)[order], np.concatenate(index)[order]

    def read(self, readings: Sequence[Reading], numbers: Sequence[int]) -> int:
        """Prefill the next chunk of the first of the readings, which have pages for it; returns the tokens of the program that does it,
        padding included.

        Raises ValueError if a medium is longer than a chunk.
        """
        T = self.tokens(readings[0])
        along = [0, *(i for i in range(1, len(readings)) if readings[i].fits(T))]
        B = max(B for B, t in self.shapes() if t == T and (B <= len(along) or B == 1))
        readings, numbers = [readings[i] for i in along[:B]], [numbers[i] for i in along[:B]]
        sizes = [reading.chunk(T) for reading in readings]
        for reading, size in zip(readings, sizes, strict=True):
            assert reading.lease is not None
            reading.lease.cover(reading.filled + size)
            self.embed(reading)
        inputs = _no_inputs(B, T, self.config.d_model)
        soft = inputs.soft[EMBEDDED]
        for row, (reading, size) in enumerate(zip(readings, sizes, strict=True)):
            own = slice(reading.filled, reading.filled + size)
            inputs.ids[row, :size], inputs.position[row, :size] = reading.sequence.ids[own], np.arange(own.start, own.stop)
            inputs.segment[row, :size], inputs.group[row, :size] = 1, reading.sequence.group[own]
            features, index = reading.soft_within(own.start, own.stop)
            soft.features[row, : len(index)], soft.index[row, : len(index)] = features, index
        spare = B - len(readings)
        slots = max(reading.filled + size for reading, size in zip(readings, sizes, strict=True))
        self._prefill(inputs, [*readings, *[None] * spare], slots, [*numbers, *[self.rows] * spare])
        for reading, size in zip(readings, sizes, strict=True):
            reading.read(size)
        return B * T

    def tokens(self, reading: Reading) -> int:
        """Tokens of the next prefill, as its first reading wants them; as many others come along as fit."""
        wanted = next(T for _, T in self.shapes() if reading.unfinished <= T or T == self.chunk)
        return wanted if reading.fits(wanted) else self.chunk

    def shapes(self) -> list[tuple[int, int]]:
        """Rows and tokens of all prefills, by tokens."""
        return [(1, SHORT), (1, 4 * SHORT), (4, 4 * SHORT), (1, self.chunk)]

    def all_widths(self, longest: int) -> list[int]:
        """The sizes of tables for rows of up to so many tokens."""
        sizes = [FIRST_SLOTS]
        while sizes[-1] < longest:
            sizes.append(sizes[-1] * WIDER)
        return sizes

    def warm(self, shape: tuple[int, int], slots: int) -> None:
        """Compile a prefill."""
        self._prefill(_no_inputs(*shape, self.config.d_model), [None] * shape[0], slots, [self.rows] * shape[0])

    def wait(self) -> None:
        """Until what was read is in the cache."""
        jax.block_until_ready(self.cache)

    def _spill(self, kind: int, pages: Sequence[int], names: Sequence[bytes]) -> None:
        assert self._shelf is not None
        self._shelf.put(self.cache, kind, pages, names)

    def _prefill(self, inputs: Inputs, readings: Sequence[Reading | None], slots: int, numbers: Sequence[int]) -> None:
        self.cache = prefill(self.params, self.config, inputs, self.view(readings, slots, numbers)).pages


def _no_inputs(B: int, T: int, width: int) -> Inputs:
    """Padding."""
    soft = SoftBatch(np.zeros((B, T, width), np.float32), np.full((B, T), T, np.int32), np.zeros((B, T, 2), np.int32))
    ids, position, segment, branch, group = (np.zeros((B, T), np.int32) for _ in range(5))
    return Inputs(ids, position, segment, branch, group, {EMBEDDED: soft})


@functools.partial(jax.jit, static_argnames=("config", "name"))
def _embedded(params: Params, config: ModelConfig, name: str, batch: SoftBatch) -> jax.Array:
    return embedded(params, config, name, batch, cache_dtype(params))


def _grown(cache: Cache, larger: Cache) -> Cache:
    """The same pages, and more after them."""

    def pad(old: jax.Array, target: jax.ShapeDtypeStruct) -> jax.Array:
        return jnp.pad(old, [(0, b - a) for a, b in zip(old.shape, target.shape, strict=True)])

    return jax.tree.map(pad, cache, larger)


@functools.partial(jax.jit, donate_argnames=("cache",))
def _without_soft(cache: Cache, number: int) -> Cache:
    return replace(cache, soft_index=cache.soft_index.at[number].set(-1))
