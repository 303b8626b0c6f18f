"""Pages: who has them, what prefixes are found again, and that nothing is lost or given twice."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pollux.generate.pages import GLOBAL, Ledger, NoPages, media_content, names, open_pages
from pollux.generate.prompts import plain
from pollux.tokens.sequence import Soft

PAGE = 4


def _names(ids):
    return names(np.array(ids, np.int32), np.zeros(len(ids), np.uint64), PAGE)


def _ledger(pages=10, ring=3, window=6):
    return Ledger(PAGE, {window: ring}, {GLOBAL: pages, window: pages})


def _used(ledger):
    return {kind: len(pool) - pool.available for kind, pool in ledger.pools.items()}


def test_a_prefix_is_found_page_by_page_and_only_where_all_before_it_is_equal():
    ledger = _ledger()
    known = _names(range(12))
    lease = ledger.lease()
    lease.cover(12)
    for number, name in enumerate(known):
        lease.name(number, name)
    assert ledger.matched(_names(range(14))) == 3
    assert ledger.matched(_names([*range(8), 99, 98, 97, 96])) == 2
    assert ledger.matched(_names([99, *range(1, 12)])) == 0
    assert ledger.matched(known, open_at={3}) == 2, "a medium goes on behind page 2"


def test_a_prefix_is_of_no_use_without_the_pages_that_its_window_still_sees():
    ledger = _ledger(pages=8, ring=3)
    lease = ledger.lease()
    lease.cover(5 * PAGE)
    for number, name in enumerate(_names(range(5 * PAGE))):
        lease.name(number, name)
    # The ring holds pages 2, 3 and 4, and pages 0 and 1 were given back before they had a name.
    assert ledger.matched(_names(range(5 * PAGE))) == 5
    assert ledger.matched(_names(range(4 * PAGE))) == 4, "the window of 6 sees pages 2 and 3"
    assert ledger.matched(_names(range(2 * PAGE))) == 0


def test_released_pages_keep_their_prefix_until_the_room_is_needed_and_the_oldest_go_first():
    ledger = Ledger(PAGE, {}, {GLOBAL: 4})
    first, second = _names([1] * 8), _names([2] * 8)
    for known in (first, second):
        lease = ledger.lease()
        lease.cover(8)
        for number, name in enumerate(known):
            lease.name(number, name)
        lease.release()
    assert ledger.matched(first) == ledger.matched(second) == 2 and _used(ledger) == {GLOBAL: 0}
    other = ledger.lease()
    other.cover(8)
    assert ledger.matched(first) == 0 and ledger.matched(second) == 2
    shared = ledger.lease(second)
    with pytest.raises(NoPages):
        other.cover(12)
    shared.release()
    other.cover(12)


def test_a_lease_that_finds_too_few_pages_changes_nothing():
    ledger = _ledger(pages=3)
    lease = ledger.lease()
    lease.cover(2 * PAGE)
    before = _used(ledger), lease.covered
    with pytest.raises(NoPages):
        lease.cover(4 * PAGE)
    assert (_used(ledger), lease.covered) == before


def test_a_long_row_needs_no_more_pages_of_a_window_than_its_ring():
    ledger = Ledger(PAGE, {5: 3}, {GLOBAL: 40, 5: 4})
    lease = ledger.lease()
    lease.cover(20 * PAGE)
    assert _used(ledger) == {GLOBAL: 20, 5: 3} and len(set(lease.tables[5].tolist())) == 3
    lease.cover(40 * PAGE)
    with pytest.raises(NoPages):
        ledger.lease().cover(3 * PAGE)
    lease.release()
    assert set(_used(ledger).values()) == {0}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(1, 30)), max_size=40))
def test_no_page_is_lost_or_written_by_two(steps):
    ledger, leases = _ledger(pages=12), {}
    for row, kind, end in steps:
        if row in leases and kind == 0:
            leases.pop(row).release()
        elif row not in leases:
            known = _names([kind] * end)
            leases[row] = ledger.lease(known[: ledger.matched(known)])
        else:
            try:
                leases[row].cover(end)
            except NoPages:
                continue
            for number, name in enumerate(_names([kind] * end)[: leases[row].covered]):
                leases[row].name(number, name)
    for pool_kind, pool in ledger.pools.items():
        held = [page for lease in leases.values() for page in lease._held[pool_kind].values()]
        assert len(pool) - pool.available == len(set(held))
        counts = {page: held.count(page) for page in held}
        assert all(pool._users[page] == count for page, count in counts.items())
        assert all(page in pool._name_of for page, count in counts.items() if count > 1), "only what is full may be shared"
    for lease in leases.values():
        lease.release()
    assert set(_used(ledger).values()) == {0}


def _with_picture(pixel, group=1):
    prompt = plain(range(12))
    soft = Soft(np.full((4, 3), pixel, np.float32), np.arange(3, 7, dtype=np.int32), np.zeros((4, 2), np.int32))
    two_way = np.where((np.arange(12) >= 3) & (np.arange(12) < 7), group, 0).astype(np.int32)
    return dataclasses.replace(prompt, soft={"image": soft}, group=two_way)


def test_pages_are_named_by_the_bytes_of_media_not_by_their_placeholders():
    same, again, other = (_with_picture(pixel) for pixel in (0.5, 0.5, 0.25))
    name = [names(s.ids, media_content(s), PAGE) for s in (same, again, other)]
    assert name[0] == name[1] and not set(name[0]) & set(name[2])
    causal = [names(s.ids, media_content(s), PAGE) for s in (_with_picture(0.5, 0), _with_picture(0.25, 0))]
    assert not set(causal[0]) & set(causal[1])


def test_no_row_begins_inside_a_two_way_group():
    assert open_pages(_with_picture(0.5).group, PAGE) == {1}
    assert open_pages(np.zeros(12, np.int32), PAGE) == set()
