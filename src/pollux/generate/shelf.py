"""Pages of one model's cache on their way to the spill and back, named by what they hold, by the model, and by the form of the cache.

Pages travel in groups of a fixed size, so that each kind of them needs one program for each direction. G pages of a group.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib.metadata import version

import jax
import jax.numpy as jnp
import numpy as np

from pollux.generate.pages import Ledger, NoPages
from pollux.generate.spill import Spill
from pollux.model.cache import Cache, LayerCache
from pollux.model.config import ModelConfig
from pollux.model.folder import hash_params
from pollux.model.params import Params

GROUP = 16


class Shelf:
    """What the spill has of one model's pages. model: as `identity` says it."""

    def __init__(self, spill: Spill, model: str, cache: Cache, page: int):
        self._spill = spill
        form = [str(leaf.dtype) for leaf in jax.tree.leaves((cache.groups, cache.tail))]
        self._key = hashlib.blake2b("\n".join([model, str(page), *form]).encode(), digest_size=32).digest()

    def put(self, cache: Cache, kind: int, pages: Sequence[int], names: Sequence[bytes], wait: bool = False) -> None:
        """Keep pages of a kind, before anything else is written on them. wait: for room, where others are left out."""
        new = [(page, stored) for page, name in zip(pages, names, strict=True) if (stored := self._stored(kind, name)) not in self._spill]
        for start in range(0, len(new), GROUP):
            if self._spill.is_full and not wait:
                return
            group = new[start : start + GROUP]
            arrays = _Group(_taken(cache, kind, _padded([page for page, _ in group])))
            data = [functools.partial(arrays.page, i) for i in range(len(group))]
            self._spill.put([stored for _, stored in group], data, GROUP * sum(size for *_, size in _forms(cache, kind)), wait)

    def fetch(self, cache: Cache, ledger: Ledger, names: Sequence[bytes], open_at: Iterable[int] = ()) -> Cache | None:
        """Bring back pages of a prompt whose full pages have these names, where that lets it begin later; the cache with them, None if
        there is nothing to bring."""
        open_at = set(open_at)
        while True:
            here, number = ledger.matched(names, open_at), ledger.matched(names, open_at, self._has)
            if number <= here:
                return None
            wanted = [(kind, names[i]) for kind, i in ledger.needed(number)]
            if any(sum(k == kind for k, _ in wanted) > pool.available for kind, pool in ledger.pools.items()):
                return None
            missing = [(kind, name) for kind, name in wanted if ledger.pools[kind].find(name) is None]
            found = {one: data for one in missing if (data := self._get(cache, *one)) is not None}
            if len(found) == len(missing):
                break
        held = [(kind, ledger.pools[kind].share(page)) for kind, name in wanted if (page := ledger.pools[kind].find(name)) is not None]
        taken: list[tuple[int, int, bytes]] = []
        try:
            for kind, name in missing:
                taken.append((kind, ledger.pools[kind].take(), name))
            ledger.tell_evicted()
            after = self._written(cache, taken, found)
            for kind, page, name in taken:
                ledger.pools[kind].name(page, name)
            return after
        except NoPages:
            ledger.tell_evicted()
            return None
        finally:
            for kind, page in [*held, *((kind, page) for kind, page, _ in taken)]:
                ledger.pools[kind].release(page)

    def _written(self, cache: Cache, taken: Sequence[tuple[int, int, bytes]], found: dict[tuple[int, bytes], bytes]) -> Cache:
        for kind in {kind for kind, _, _ in taken}:
            own = [(page, found[kind, name]) for k, page, name in taken if k == kind]
            for start in range(0, len(own), GROUP):
                group = own[start : start + GROUP]
                cache = _put(
                    cache, kind, _padded([page for page, _ in group], pages_of(cache, kind)), _arrays(cache, kind, [d for _, d in group])
                )
        return cache

    def warm(self, cache: Cache, kinds: Iterable[int]) -> Cache:
        """Compile what moves pages; leaves them as they are."""
        for kind in kinds:
            _taken(cache, kind, _padded([]))
            cache = _put(cache, kind, _padded([], pages_of(cache, kind)), _arrays(cache, kind, []))
        return cache

    def _has(self, kind: int, name: bytes) -> bool:
        return self._stored(kind, name) in self._spill

    def _get(self, cache: Cache, kind: int, name: bytes) -> bytes | None:
        data = self._spill.get(self._stored(kind, name))
        if data is not None and len(data) != sum(size for *_, size in _forms(cache, kind)):
            self._spill.forget(self._stored(kind, name))
            return None
        return data

    def _stored(self, kind: int, name: bytes) -> str:
        return hashlib.blake2b(name + kind.to_bytes(8, "little"), digest_size=32, key=self._key).hexdigest()


class _Group:
    """Pages that are on their way from the device; `page` waits for them."""

    def __init__(self, arrays: list[jax.Array]):
        self._arrays: list = arrays
        for array in arrays:
            array.copy_to_host_async()

    def page(self, number: int) -> bytes:
        return b"".join(np.asarray(array)[number].tobytes() for array in self._arrays)


def identity(params: Params, config: ModelConfig) -> str:
    """Of all that keys and values depend on beside the tokens: parameters, config, and the programs that compute them."""
    form = str(jax.tree.structure(params))  # with what adapters are scaled by
    return "\n".join([hash_params(params), form, repr(config), version("pollux"), version("jax"), jax.local_devices()[0].device_kind])


def pages_of(cache: Cache, kind: int) -> int:
    """How many pages of a kind there are."""
    return next(layer.k.shape[-4] for layer in (*cache.groups, *cache.tail) if layer is not None and layer.window == kind)


def _padded(pages: Sequence[int], spare: int = 0) -> np.ndarray:
    """int32 [G]; spare: what stands for no page."""
    return np.array([*pages, *[spare] * (GROUP - len(pages))], np.int32)


def _stacks(cache: Cache, kind: int) -> list[tuple[jax.Array, int]]:
    """The arrays that pages of a kind are cut from, each with the dimension of the pages."""
    layers = [(layer, 1) for layer in cache.groups] + [(layer, 0) for layer in cache.tail if layer is not None]
    return [(leaf, dim) for layer, dim in layers if layer.window == kind for leaf in jax.tree.leaves((layer.k, layer.v))]


def _forms(cache: Cache, kind: int) -> list[tuple[np.dtype, tuple[int, ...], int]]:
    """Type, shape and bytes of what a page has in each of the arrays."""
    shapes = [(np.dtype(leaf.dtype), (*leaf.shape[:dim], *leaf.shape[dim + 1 :])) for leaf, dim in _stacks(cache, kind)]
    return [(dtype, shape, dtype.itemsize * math.prod(shape)) for dtype, shape in shapes]


def _arrays(cache: Cache, kind: int, pages: Sequence[bytes]) -> list[np.ndarray]:
    """[G, ...] for each of the arrays of a kind."""
    arrays, start = [], 0
    for dtype, shape, size in _forms(cache, kind):
        array = np.zeros((GROUP, *shape), dtype)
        for i, data in enumerate(pages):
            array[i] = np.frombuffer(data, dtype, math.prod(shape), start).reshape(shape)
        arrays.append(array)
        start += size
    return arrays


@functools.partial(jax.jit, static_argnames="kind")
def _taken(cache: Cache, kind: int, pages: jax.Array) -> list[jax.Array]:
    return [jnp.moveaxis(jnp.take(leaf, pages, dim, mode="clip"), dim, 0) for leaf, dim in _stacks(cache, kind)]


@functools.partial(jax.jit, static_argnames="kind", donate_argnames="cache")
def _put(cache: Cache, kind: int, pages: jax.Array, contents: list[jax.Array]) -> Cache:
    arriving = iter(contents)

    def layer(layer: LayerCache | None, dim: int) -> LayerCache | None:
        if layer is None or layer.window != kind:
            return layer
        leaves, tree = jax.tree.flatten((layer.k, layer.v))
        at = (slice(None),) * dim + (pages,)
        leaves = [leaf.at[at].set(jnp.moveaxis(next(arriving), 0, dim), mode="drop") for leaf in leaves]
        k, v = jax.tree.unflatten(tree, leaves)
        return replace(layer, k=k, v=v)

    groups, tail = tuple(layer(x, 1) for x in cache.groups), tuple(layer(x, 0) for x in cache.tail)
    return replace(cache, groups=groups, tail=tail)  # type: ignore[arg-type]
