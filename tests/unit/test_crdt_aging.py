"""What goes, and when: leases, losers, tombstones; and what is dead on arrival."""

import pytest

from crdt import replica as replica_module
from crdt.entry import Record
from crdt.replica import Replica
from tests.unit.crdt_making import NOW_MS, dot
from tests.unit.crdt_replicas import GC_MS, chain, is_consistent, merged, proof


def goes(
    replica: Replica, *, at_ms: int, dropped: list[Record], keys: tuple[str, ...] = ()
) -> None:
    """Nothing happens a millisecond before."""
    before = replica.pop_due(NOW_MS + at_ms - 1)
    assert (before.dropped, before.keys) == ([], set())
    change = replica.pop_due(NOW_MS + at_ms)
    assert (change.dropped, change.keys) == (dropped, set(keys))
    for one in dropped:
        assert replica.refusal(one, NOW_MS + at_ms) == "dead"
    is_consistent(replica)


def test_a_lease_is_told_of_when_it_expires_and_goes_two_skews_later() -> None:
    lease = chain().lease("k", 1000, ms=0)
    replica = merged(lease)
    assert replica.view("k", NOW_MS + 999) is not None
    assert replica.view("k", NOW_MS + 1000) is None
    goes(replica, at_ms=1000, dropped=[], keys=("k",))
    goes(replica, at_ms=61_000, dropped=[lease])
    assert replica.records == {}


def test_a_lease_of_which_nobody_asked_in_time_is_told_of_when_it_goes() -> None:
    lease = chain().lease("k", 1000, ms=0)
    replica = merged(lease)
    change = replica.pop_due(NOW_MS + 100_000)
    assert (change.dropped, change.keys) == ([lease], {"k"})


def test_a_renewed_lease_does_not_expire_at_its_old_time() -> None:
    mine = chain()
    replica = merged(mine.lease("k", 1000, ms=0), mine.lease("k", 5000, ms=1))
    goes(replica, at_ms=5001, dropped=[], keys=("k",))


def test_behind_an_expired_lease_another_author_shows_again() -> None:
    register, lease = chain(2).put("k", ms=0), chain(1).lease("k", 1000, ms=1)
    replica = merged(register, lease)
    view = replica.view("k", NOW_MS + 1001)
    assert view is not None
    assert view.latest is register
    goes(replica, at_ms=1001, dropped=[], keys=("k",))


def test_nothing_is_lost_to_a_lease_that_has_expired() -> None:
    register = chain(2).put("k", ms=0)
    lease = chain(1).lease("k", GC_MS // 2 - 1000, ms=1)
    replica = merged(register, lease)
    goes(replica, at_ms=GC_MS // 2 - 999, dropped=[], keys=("k",))
    goes(replica, at_ms=GC_MS // 2 - 999 + 60_000, dropped=[lease])
    assert replica.at("k") == (register,)


def test_a_loser_goes_half_a_gc_after_what_it_lost_to() -> None:
    old, new = chain(1).put("k", ms=0), chain(2).put("k", ms=1000)
    replica = merged(old, new)
    goes(replica, at_ms=1000 + GC_MS // 2, dropped=[old])
    goes(replica, at_ms=1000 + 9 * GC_MS, dropped=[])


def test_a_tombstone_goes_a_gc_after_it_was_written_and_what_it_hides_long_before() -> None:
    old, tombstone = chain(1).add("k", 1, ms=0), chain(2).delete("k", ms=1000)
    replica = merged(old, tombstone)
    goes(replica, at_ms=1000 + GC_MS // 2, dropped=[old])
    goes(replica, at_ms=1000 + GC_MS, dropped=[tombstone])


def test_a_remove_goes_like_a_tombstone_and_an_add_without_value_stays() -> None:
    added, other = chain(1).add("k", 1, ms=0), chain(1, 2).add("k", 2, ms=5)
    remove = chain(2).remove("k", 1, [dot(added)], ms=1000)
    replica = merged(added, other, remove)
    goes(replica, at_ms=1000 + GC_MS // 2, dropped=[added])
    goes(replica, at_ms=1000 + GC_MS, dropped=[remove])
    goes(replica, at_ms=9 * GC_MS, dropped=[])
    assert replica.at("k") == (other,)


def test_a_sibling_that_was_seen_goes_and_a_multi_value_tombstone_too() -> None:
    one = chain(1).multi("k", 1, ms=0)
    gone = chain(2).multi("k", None, [dot(one)], ms=1000)
    replica = merged(one, gone)
    goes(replica, at_ms=1000 + GC_MS // 2, dropped=[one])
    goes(replica, at_ms=1000 + GC_MS, dropped=[gone])


def test_a_register_that_a_newer_class_hides_goes_on_hiding_for_a_gc() -> None:
    register, counted = chain(1).put("k", ms=0), chain(2).count("k", 1, ms=1000)
    replica = merged(register, counted)
    goes(replica, at_ms=GC_MS, dropped=[register])
    late = merged(chain(1).put("k", ms=0), chain(2).count("k", 1, ms=GC_MS), now_ms=NOW_MS + GC_MS)
    goes(late, at_ms=GC_MS + GC_MS // 2, dropped=[late.at("k")[0]])


def test_what_a_proof_cuts_off_goes_half_a_gc_after_itself() -> None:
    mine = chain()
    mine.put("x", ms=-5)
    fork = mine.fork()
    one = mine.put("k", ms=0)
    replica = merged(one, chain(2).put("k", ms=-3))
    replica.merge_fault(proof(one, fork.put("y", ms=1)))
    goes(replica, at_ms=GC_MS // 2, dropped=[one])


def test_what_hid_a_loser_may_give_way_to_what_does_not_count() -> None:
    mine = chain(1)
    hides = mine.put("k", ms=2000)
    mine.put("x", ms=2001)
    fork = mine.fork()
    cut = mine.put("k", ms=3000)
    added = chain(2).add("k", 1, ms=0)
    remove = chain(3).remove("k", 1, [dot(added)], ms=1000)
    replica = merged(added, remove, hides)
    replica.merge_fault(proof(cut, fork.put("y", ms=3001)))
    late_ms = NOW_MS + 1000 + GC_MS // 2
    assert replica.pop_due(late_ms).dropped == []  # it has lost to the register, which is younger
    replica.merge(cut, late_ms)
    assert replica.pop_due(late_ms + 1).dropped == [added]


def test_what_is_dead_on_arrival_is_refused() -> None:
    late_ms = NOW_MS + GC_MS
    assert merged().refusal(chain().delete("k", ms=0), late_ms - 1) == ""
    assert merged().refusal(chain().delete("k", ms=0), late_ms) == "dead"
    assert merged().refusal(chain().lease("k", 10, ms=0), NOW_MS + 60_010) == "dead"
    assert merged().refusal(chain().put("k", ms=0), NOW_MS * 2) == ""
    old, new = chain(1).put("k", ms=0), chain(2).put("k", ms=10)
    replica = merged(new)
    assert replica.refusal(old, NOW_MS + 10 + GC_MS // 2 - 1) == ""
    assert replica.refusal(old, NOW_MS + 10 + GC_MS // 2) == "dead"
    newer = chain(1).put("k", ms=20)
    assert replica.refusal(newer, NOW_MS + 10 + GC_MS) == ""


def test_at_a_key_of_many_the_dead_come_in_and_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_module, "EXACT_MAX", 4)
    late_ms = NOW_MS + GC_MS
    replica = merged(*(chain(author).put("k", ms=100 + author) for author in range(6)))
    replica.merge(chain(7).put("k", ms=200), NOW_MS)
    old = [chain(author).put("k", ms=0) for author in range(10, 20)]
    for one in old:
        assert replica.refusal(one, late_ms) == ""
        replica.merge(one, late_ms)
    replica.pop_due(late_ms)
    replica.pop_due(late_ms + 10)
    assert len(replica.at("k")) == 1
    is_consistent(replica)


def test_a_look_at_very_many_is_cut_into_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica_module, "LOOK_MAX", 5)
    mine = chain()
    replica = merged(*(mine.lease(f"k{number}", 1000, ms=number) for number in range(20)))
    told: list[set[str]] = []
    while told[-1:] != [set()]:
        told.append(replica.pop_due(NOW_MS + 2000).keys)
    assert len(told) > 3
    assert set().union(*told) == {f"k{number}" for number in range(20)}
