"""What a key shows, kind by kind, and what hides what."""

import random

import pytest

from crdt.entry import Record
from crdt.fold import SIBLINGS_MAX, View, place_of, stand, view_of
from tests.unit.crdt_making import Chain, dot
from wire import codec


def view(*records: Record) -> View | None:
    """The order must not matter."""
    found = view_of("k", records)
    for _ in range(3):
        assert view_of("k", random.Random(1).sample(records, len(records))) == found
    return found


def shows(*records: Record) -> list[Record]:
    found = view(*records)
    return [] if found is None else list(found.values)


def lost(*records: Record) -> dict[bytes, Record]:
    standing = stand(records)
    return {} if standing is None else {loser.id: by for loser, by in standing.lost}


A, B, C = Chain(1), Chain(2), Chain(3)


def test_of_registers_the_latest_shows_and_the_others_lose_to_it() -> None:
    old, new = A.put("k", ms=1), B.put("k", ms=2)
    assert view(old, new) == View("k", "register", new, (new,))
    assert lost(old, new) == {old.id: new}
    assert view() is None


def test_of_one_stamp_the_larger_id_is_later() -> None:
    twins = sorted((A.put("k", ms=10), B.put("k", ms=10)), key=lambda one: one.id)
    assert shows(*twins) == [twins[1]]


def test_leases_and_registers_are_one_class() -> None:
    lease, old, new = A.lease("k", 1000, ms=20), B.put("k", ms=15), C.put("k", ms=30)
    found = view(lease, old)
    assert found == View("k", "lease", lease, (lease,))
    assert shows(lease, old, new) == [new]


def test_a_tombstone_hides_everything_older_and_shows_nothing() -> None:
    older = [
        A.put("k", ms=40),
        A.add("k", 1, ms=41),
        B.count("k", 5, ms=42),
        C.multi("k", 1, ms=43),
    ]
    tombstone = B.delete("k", ms=50)
    newer = A.add("k", 2, ms=60)
    assert view(*older, tombstone) is None
    assert lost(*older, tombstone) == {one.id: tombstone for one in older}
    assert shows(*older, tombstone, newer) == [newer]
    standing = stand([*older, tombstone, newer])
    assert standing is not None
    assert standing.hidden is tombstone  # it goes on hiding what is older than it


def test_the_class_of_the_latest_hides_the_others() -> None:
    register, added, counted = A.put("k", ms=100), A.add("k", 1, ms=101), B.count("k", 5, ms=102)
    sibling = C.multi("k", 1, ms=103)
    found = view(register, added, counted, sibling)
    assert found is not None
    assert (found.kind, found.values) == ("multi", (sibling,))
    assert lost(register, added, counted, sibling) == {added.id: sibling, counted.id: sibling}
    assert stand([register, added]) is not None


def test_what_another_class_hides_may_have_lost_before() -> None:
    added, other = A.add("k", 1, ms=150), A.add("k", 2, ms=151)
    remove = B.remove("k", 1, [type(dot(added))(A.id, added.seq)], ms=152)
    seen = A.multi("k", 1, ms=153)
    sees = B.multi("k", 2, [dot(seen)], ms=154)
    counted = C.count("k", 1, ms=160)
    assert shows(added, other, remove, seen, sees, counted) == [counted]
    assert lost(added, other, remove, seen, sees, counted) == {
        added.id: remove, other.id: counted, remove.id: counted, seen.id: sees, sees.id: counted,
    }  # fmt: skip


def test_siblings_show_until_one_has_seen_them() -> None:
    one, two = A.multi("k", 1, ms=200), B.multi("k", 2, ms=201)
    assert shows(one, two) == [two, one]
    both = C.multi("k", 3, [dot(one), dot(two)], ms=210)
    assert shows(one, two, both) == [both]
    assert lost(one, two, both) == {one.id: both, two.id: both}
    half = C.multi("k", 4, [dot(one)], ms=220)
    assert shows(one, two, half) == [half, two]
    gone = C.multi("k", None, [dot(one), dot(two)], ms=230)
    assert view(one, two, gone) is None
    assert shows(one, gone, B.multi("k", 5, ms=240))[0].seq == B.seq


def test_a_dot_covers_up_to_its_number_and_only_what_is_older() -> None:
    first, second = A.multi("k", 1, ms=300), A.multi("k", 2, ms=310)
    saw_first = B.multi("k", 3, [dot(first)], ms=320)
    assert shows(second, saw_first) == [saw_first, second]
    liar = B.multi("k", 4, [type(dot(second))(A.id, 2**60)], ms=305)
    assert shows(first, second, liar) == [second, liar]


def test_what_was_seen_by_several_lost_to_the_first_of_them() -> None:
    one = A.multi("k", 1, ms=400)
    seers = [Chain(author).multi("k", 2, [dot(one)], ms=400 + author) for author in (4, 5, 6)]
    far = Chain(7).multi("k", 2, [type(dot(one))(A.id, one.seq + 9)], ms=450)
    assert lost(one, *seers, far)[one.id] is seers[0]
    assert lost(one, seers[1], seers[2])[one.id] is seers[1]
    near_and_far = [Chain(8).multi("k", 2, [dot(one)], ms=460), far]
    assert lost(one, *near_and_far)[one.id] is far


def test_no_more_than_sixteen_siblings_show_the_latest_first() -> None:
    siblings = [Chain(author).multi("k", author, ms=author) for author in range(20)]
    assert shows(*siblings) == siblings[::-1][:SIBLINGS_MAX]


def test_a_counter_is_the_sum_of_its_chains() -> None:
    entries = [A.count("k", 10, 3, ms=500), B.count("k", 1, 5, ms=501), C.count("k", 0, ms=502)]
    found = view(*entries)
    assert found is not None
    assert (found.kind, found.total, len(found.values)) == ("counter", 3, 3)
    assert found.latest is entries[-1]


def test_a_counter_that_was_deleted_starts_from_zero_and_keeps_its_chain() -> None:
    old = A.count("k", 10, 3, ms=600)
    tombstone = B.delete("k", ms=610)
    concurrent = C.count("k", 2, ms=605)
    assert view(old, concurrent, tombstone) is None
    again = A.count("k", 11, 3, (10, 3), ms=620)
    found = view(concurrent, tombstone, again)
    assert found is not None
    assert found.total == 1
    below = view(A.count("k", 11, 9, (10, 3), ms=630))
    assert below is not None
    assert below.total == -5


def test_an_add_wins_over_a_remove_that_has_not_seen_it() -> None:
    mine, theirs = A.add("k", "x", ms=700), B.add("k", "x", ms=701)
    remove = C.remove("k", "x", [dot(mine)], ms=710)
    assert shows(mine, theirs, remove) == [theirs]
    assert view(mine, remove) is None
    assert lost(mine, theirs, remove) == {mine.id: remove}
    again = A.add("k", "x", ms=720)
    assert shows(again, remove) == [again]


def test_a_remove_is_for_its_element_and_for_what_is_older() -> None:
    one, two = A.add("k", 1, ms=800), A.add("k", 2, ms=801)
    remove = B.remove("k", 1, [dot(two)], ms=810)  # the dot covers both entries of the chain
    assert shows(one, two, remove) == [two]
    liar = C.remove("k", 2, [type(dot(two))(A.id, 2**60)], ms=800)
    assert shows(two, liar) == [two]


def test_of_several_adds_of_an_element_the_latest_shows_and_none_is_lost() -> None:
    old, new = A.add("k", "x", 1, ms=900), B.add("k", "x", 2, ms=901)
    assert shows(old, new) == [new]
    assert lost(old, new) == {}  # a remove that has seen only the newer lets the older show
    assert shows(old, new, C.remove("k", "x", [dot(new)], ms=910)) == [old]


def test_elements_show_in_their_order_and_a_value_makes_a_map() -> None:
    one, two, three = (A.add("k", element, ms=1000 + element) for element in (3, 1, 2))
    found = view(one, two, three)
    assert found is not None
    assert (found.kind, found.values) == ("set", (two, three, one))
    assert found.latest is two or found.latest.stamp == max(x.stamp for x in (one, two, three))
    mapped = view(one, A.add("k", 2, "value", ms=1010))
    assert mapped is not None
    assert mapped.kind == "map"


def test_a_later_remove_of_an_author_that_says_less_does_not_undo_a_longer_one() -> None:
    adds = [A.add("k", "x", ms=1100), A.add("k", "x", ms=1101)]
    long = B.remove("k", "x", [dot(adds[1])], ms=1110)
    short = C.remove("k", "x", [dot(adds[0])], ms=1111)
    assert shows(*adds, long, short) == []
    assert set(lost(*adds, long, short)) == {one.id for one in adds}


def test_rules_show_nothing_and_lose_to_nothing() -> None:
    revocations = [A.revoke(bytes(32), ms=1200), A.revoke(bytes(32), ms=1201)]
    assert view(*revocations) is None
    assert lost(*revocations) == {}


@pytest.mark.parametrize("is_same_author", [True, False])
def test_an_author_has_one_entry_at_a_place(is_same_author: bool) -> None:
    other = Chain(1, instance=2) if is_same_author else Chain(2)
    mine = Chain(1)
    x, y = codec.encode("x"), codec.encode("y")
    assert x != y
    pairs = [
        (mine.put("k"), other.put("k"), True),
        (mine.put("k"), other.lease("k", 5), True),
        (mine.put("k"), other.multi("k", 1), False),
        (mine.multi("k", 1), other.multi("k", 1), True),
        (mine.add("k", "x"), other.add("k", "x"), True),
        (mine.add("k", "x"), other.add("k", "y"), False),
        (mine.add("k", "x"), other.remove("k", "x", [dot(mine.add("k", "x"))]), False),
        (mine.count("k", 1), other.count("k", 1), False),  # each chain counts for itself
        (mine.revoke(bytes(32)), other.revoke(bytes(32)), True),
        (mine.revoke(bytes(32)), other.revoke(bytes(31) + b"\x01"), False),
    ]
    for one, two, is_one_place in pairs:
        assert (place_of(one) == place_of(two)) == (is_one_place and is_same_author)
    counted = mine.count("k", 1), mine.count("k", 2)
    assert place_of(counted[0]) == place_of(counted[1])
