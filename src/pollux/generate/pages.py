"""Which page of the KV cache belongs to whom, and what prefixes it still holds. Host side only; the arrays are in model/cache.py.

Pages come in kinds: one for global layers, one for each window, whose pages a row uses as a ring. A full page is named by all tokens up to
its end (`names`), so that a row can begin behind the longest prefix whose pages are still there. A page that nobody uses any more keeps its
name until the room is needed; the one that was released first goes first.
"""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from pollux.tokens import sequence as tokens

GLOBAL = 0  # the kind of global layers; other kinds are their window


class NoPages(Exception):
    """There is no free page of some kind."""


class Pool:
    """The pages of one kind: free, in use (perhaps by several rows), or unused but still named."""

    def __init__(self, number: int):
        self._users = [0] * number
        self._free = collections.deque(range(number))
        self._unused: collections.OrderedDict[int, None] = collections.OrderedDict()  # named pages, the longest unused first
        self._page_of: dict[bytes, int] = {}
        self._name_of: dict[int, bytes] = {}
        self.evicted: list[tuple[int, bytes]] | None = None  # named pages that were taken to write on; None: nobody asks

    def __len__(self) -> int:
        return len(self._users)

    @property
    def available(self) -> int:
        """Pages that `take` can give."""
        return len(self._free) + len(self._unused)

    @property
    def kept(self) -> int:
        """Pages that nobody uses but that still hold a prefix."""
        return len(self._unused)

    def grow(self, number: int) -> None:
        self._free.extend(range(len(self._users), number))
        self._users += [0] * (number - len(self._users))

    def take(self) -> int:
        """A page to write on. Raises NoPages."""
        if self._free:
            page = self._free.popleft()
        elif self._unused:
            page, _ = self._unused.popitem(last=False)
            name = self._name_of.pop(page)
            del self._page_of[name]
            if self.evicted is not None:
                self.evicted.append((page, name))
        else:
            raise NoPages
        self._users[page] = 1
        return page

    def share(self, page: int) -> int:
        self._users[page] += 1
        self._unused.pop(page, None)
        return page

    def release(self, page: int) -> None:
        self._users[page] -= 1
        assert self._users[page] >= 0, "a page was released twice"
        if not self._users[page]:
            if page in self._name_of:
                self._unused[page] = None
            else:
                self._free.append(page)

    def users(self, page: int) -> int:
        return self._users[page]

    def name(self, page: int, name: bytes) -> None:
        """Let a page that is full be found; the first of equal pages keeps the name."""
        if name not in self._page_of and page not in self._name_of:
            self._page_of[name], self._name_of[page] = page, name

    def find(self, name: bytes) -> int | None:
        return self._page_of.get(name)


class Ledger:
    """All kinds of pages of one model. page: tokens of a page. rings: pages of a row by window."""

    def __init__(self, page: int, rings: dict[int, int], pages: dict[int, int]):
        self.page, self.rings = page, rings
        self.pools = {kind: Pool(number) for kind, number in pages.items()}
        self._tell: Callable[[int, list[int], list[bytes]], None] | None = None

    def watch(self, tell: Callable[[int, list[int], list[bytes]], None]) -> None:
        """Have tell(kind, pages, names) called when named pages have been taken to write on, before anything is written."""
        self._tell = tell
        for pool in self.pools.values():
            pool.evicted = []

    def tell_evicted(self) -> None:
        for kind, pool in self.pools.items():
            if self._tell is not None and pool.evicted:
                pages, names = zip(*pool.evicted, strict=True)
                pool.evicted = []
                self._tell(kind, list(pages), list(names))

    def needed(self, number: int) -> list[tuple[int, int]]:
        """Kinds and numbers of the pages that a row needs which begins behind its first `number` pages."""
        return [(kind, i) for kind in self.pools for i in (self._seen(kind, number) if kind else range(number))]

    def matched(
        self, names: Sequence[bytes], open_at: Iterable[int] = (), elsewhere: Callable[[int, bytes], bool] = lambda kind, name: False
    ) -> int:
        """How many pages a prompt whose full pages have these names need not be computed again.

        open_at: numbers of pages behind which it cannot begin, because tokens before and after see each other. elsewhere: says whether a
        page of a kind that is not here can be had.
        """
        best, closed = 0, set(open_at)

        def has(kind: int, name: bytes) -> bool:
            return self.pools[kind].find(name) is not None or elsewhere(kind, name)

        for number in range(1, len(names) + 1):
            if GLOBAL in self.pools and not has(GLOBAL, names[number - 1]):
                break
            if number not in closed and all(has(window, names[i]) for window in self.rings for i in self._seen(window, number)):
                best = number
        return best

    def lease(self, names: Sequence[bytes] = ()) -> Lease:
        """The pages of a row that begins with pages of these names, which must be there."""
        return Lease(self, names)

    def _seen(self, window: int, number: int) -> range:
        """Numbers of the pages that the tokens right after page `number` - 1 see in a layer with this window."""
        return range(max(0, (number * self.page - window + 1) // self.page), number)


class Lease:
    """The pages of one row. `tables`: of each kind int32 [M], M as large as the row needs or the size of its ring."""

    def __init__(self, ledger: Ledger, names: Sequence[bytes]):
        self._ledger = ledger
        self._held: dict[int, dict[int, int]] = {kind: {} for kind in ledger.pools}  # kind -> number in the row -> page
        self.covered = len(names)  # pages of the row from its start
        self.tables = {window: np.zeros(ring, np.int32) for window, ring in ledger.rings.items()}
        if GLOBAL in ledger.pools:
            self.tables[GLOBAL] = np.zeros(max(8, len(names)), np.int32)
        for kind, number in ledger.needed(len(names)):
            page = ledger.pools[kind].find(names[number])
            assert page is not None
            self._put(kind, number, ledger.pools[kind].share(page))

    def cover(self, end: int) -> None:
        """Have pages for the tokens before position `end`. Raises NoPages and changes nothing if there are not enough."""
        number = -(-end // self._ledger.page)
        if not all(self._can_take(kind, number - self.covered) for kind in self._ledger.pools):
            raise NoPages
        while self.covered < number:
            for kind, pool in self._ledger.pools.items():
                ring = self._ledger.rings.get(kind)
                if ring is not None and self.covered - ring in self._held[kind]:
                    pool.release(self._held[kind].pop(self.covered - ring))
                self._put(kind, self.covered, pool.take())
            self.covered += 1
        self._ledger.tell_evicted()

    def _can_take(self, kind: int, new: int) -> bool:
        """Whether there are as many more pages of a kind. A ring gives back one for each it takes, which counts if nobody else has it; when
        it has gone round, all are its own."""
        pool, ring = self._ledger.pools[kind], self._ledger.rings.get(kind, new)
        available = pool.available
        for number in range(self.covered - ring, self.covered - ring + min(new, ring)):
            page = self._held[kind].get(number) if kind else None
            available += (page is not None and pool.users(page) == 1) - 1
            if available < 0:
                return False
        return True

    def pages(self, kind: int) -> dict[int, int]:
        """The pages of a kind that the row has, by their numbers in it."""
        return self._held[kind]

    def name(self, number: int, name: bytes) -> None:
        """Page `number` of the row is full and is called so."""
        for kind, pool in self._ledger.pools.items():
            if number in self._held[kind]:
                pool.name(self._held[kind][number], name)

    def release(self) -> None:
        for kind, pool in self._ledger.pools.items():
            for page in self._held[kind].values():
                pool.release(page)
            self._held[kind].clear()

    def _put(self, kind: int, number: int, page: int) -> None:
        self._held[kind][number] = page
        if kind:
            self.tables[kind][number % len(self.tables[kind])] = page
            return
        if number >= len(self.tables[kind]):
            self.tables[kind] = np.concatenate([self.tables[kind], np.zeros_like(self.tables[kind])])
        self.tables[kind][number] = page


def names(ids: np.ndarray, content: np.ndarray, page: int, before: Sequence[bytes] = ()) -> list[bytes]:
    """The names of all full pages of a row. ids int32 [T]; content: what `media_content` says of them; before: names that are known."""
    made = list(before)
    for number in range(len(made), len(ids) // page):
        own = slice(number * page, (number + 1) * page)
        last = made[-1] if made else b""
        made.append(hashlib.blake2b(last + ids[own].tobytes() + content[own].tobytes(), digest_size=16).digest())
    return made


def media_content(sequence: tokens.Sequence) -> np.ndarray:
    """uint64 [T]: 0 for text; for a soft token a digest of its run of soft tokens, and of all its two-way group, since its keys and values
    depend on these."""
    content = np.zeros(len(sequence), np.uint64)
    for soft in sequence.soft.values():
        ends = [*(np.flatnonzero(np.diff(soft.index) != 1) + 1).tolist(), len(soft.index)]
        for start, end in zip([0, *ends], ends, strict=False):
            content[soft.index[start:end]] = _digest(soft.features[start:end], soft.coord[start:end])
    for group in np.unique(sequence.group[sequence.group > 0]):
        own = sequence.group == group
        content[own] = _digest(sequence.ids[own], content[own])
    return content


def _digest(*arrays: np.ndarray) -> np.uint64:
    digest = hashlib.blake2b(digest_size=8)
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return np.frombuffer(digest.digest(), np.uint64)[0] | np.uint64(1)


def open_pages(group: np.ndarray, page: int) -> set[int]:
    """Numbers of pages behind which no row may begin, since a two-way group goes on there. group int32 [T]."""
    ends = np.arange(page, len(group), page)
    return set((ends[(group[ends - 1] == group[ends]) & (group[ends] > 0)] // page).tolist())


def closed_pages(group: np.ndarray, page: int) -> int:
    """How many whole pages a row may be cut to at most, if its end must not lie inside a two-way group. group int32 [T]."""
    inside = open_pages(group, page)
    return next(pages for pages in range(len(group) // page, -1, -1) if pages not in inside)
