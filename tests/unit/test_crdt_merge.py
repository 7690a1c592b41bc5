"""The fold: any order, any repetition, the same state; limits; what is thrown away when."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import crdt.merge
from crdt.clock import stamp
from crdt.entry import REGISTER, Entry, Record, seal
from crdt.merge import Replica
from tests.sim.replicas import signer

NOW_MS = 1_800_000_000_000
SIGNERS = [signer(number) for number in range(1, 4)]


def record(key: str, *, author: int = 0, hlc: int = stamp(NOW_MS), value: bytes | None = b"\x01",
           expires_ms: int = 0) -> Record:  # fmt: skip
    own = SIGNERS[author]
    return seal(Entry(1, "runs", key, own.peer, hlc, REGISTER, value, expires_ms), own)


POOL = [
    record(key, author=author, hlc=stamp(NOW_MS) + tick, value=value)
    for key in ("a", "b", "c")
    for author in range(3)
    for tick in range(2)
    for value in (b"\x01", b"\x02", None)
]
histories = st.lists(st.sampled_from(POOL), max_size=30)


def fold(*parts: list[Record]) -> Replica:
    replica = Replica()
    for part in parts:
        for one in part:
            replica.merge(one)
    return replica


def state(replica: Replica) -> object:
    return replica.records, replica.root("runs"), replica.digest.fingerprint("")


@given(histories, st.randoms())
def test_the_order_of_entries_does_not_matter(history: list[Record], rng: random.Random) -> None:
    shuffled = rng.sample(history, len(history))
    assert state(fold(history)) == state(fold(shuffled))


@given(histories, histories, histories)
def test_merging_is_associative(a: list[Record], b: list[Record], c: list[Record]) -> None:
    def winners(replica: Replica) -> list[Record]:
        return list(replica.records.get("runs", {}).values())

    left = fold(winners(fold(a, b)), c)
    right = fold(a, winners(fold(b, c)))
    assert state(left) == state(right)


@given(histories)
def test_merging_again_changes_nothing(history: list[Record]) -> None:
    replica = fold(history)
    before = state(replica)
    assert {replica.merge(one) for one in history} <= {False}
    assert state(replica) == before


@given(histories)
def test_the_digest_counts_exactly_what_is_held(history: list[Record]) -> None:
    replica = fold(history)
    held = replica.records.get("runs", {})
    assert replica.digest.count() == len(held) == len(replica.digest.items(""))
    for prefix in ("", "0", "a", "ff", "abcd"):
        assert replica.digest.count(prefix) == len(replica.digest.items(prefix))


def test_the_last_writer_wins_then_the_larger_author_then_the_name() -> None:
    old, new = record("k", hlc=5), record("k", hlc=6)
    assert fold([new, old]).records["runs"]["k"] is new
    by_author = sorted((record("k", author=i) for i in range(3)), key=lambda r: r.entry.author)
    assert fold(by_author[::-1]).records["runs"]["k"] is by_author[-1]
    twins = sorted((record("k", value=value) for value in (b"\x01", b"\x02")), key=lambda r: r.id)
    assert fold(twins[::-1]).records["runs"]["k"] is twins[1]


def test_a_scan_returns_live_keys_under_a_prefix_in_order() -> None:
    replica = fold([record(key) for key in ("run/b", "run/a", "sun", "run", "run/c/d")])
    replica.merge(record("run/b", hlc=stamp(NOW_MS) + 1, value=None))
    replica.merge(record("run/x", expires_ms=NOW_MS))
    assert [one.entry.key for one in replica.scan("runs", "run/", NOW_MS)] == ["run/a", "run/c/d"]
    assert replica.scan("other", "", NOW_MS) == []
    assert replica.get("runs", "run/b", NOW_MS) is None
    assert replica.get("runs", "sun", NOW_MS) is not None


def test_entries_from_too_far_in_the_future_and_dead_ones_are_refused() -> None:
    replica = Replica()
    assert replica.refusal(record("k", hlc=stamp(NOW_MS + 30_000)), NOW_MS) is None
    assert replica.refusal(record("k", hlc=stamp(NOW_MS + 30_001)), NOW_MS) == "future"
    assert replica.refusal(record("k", expires_ms=NOW_MS - 59_999), NOW_MS) is None
    assert replica.refusal(record("k", expires_ms=NOW_MS - 60_000), NOW_MS) == "dead"


def test_an_author_may_hold_so_many_keys_and_still_overwrite_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(crdt.merge, "AUTHOR_KEYS_MAX", 3)
    replica = fold([record(f"k{index}") for index in range(3)])
    assert replica.refusal(record("k3"), NOW_MS) == "author_full"
    assert replica.refusal(record("k2", hlc=stamp(NOW_MS) + 1), NOW_MS) is None
    assert replica.refusal(record("k3", author=1), NOW_MS) is None
    replica.merge(record("k0", author=1, hlc=stamp(NOW_MS) + 1))
    assert replica.refusal(record("k3"), NOW_MS) is None


def test_a_full_store_still_takes_a_few_short_leases_of_a_newcomer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(crdt.merge, "RECORDS_MAX", 20)
    monkeypatch.setattr(crdt.merge, "RESERVE_MAX", 2)
    replica = fold([record(f"k{index}") for index in range(20)])
    short, long = NOW_MS + 30_000, NOW_MS + 301_000
    assert replica.refusal(record("new", author=1), NOW_MS) == "full"
    assert replica.refusal(record("new", author=1, expires_ms=long), NOW_MS) == "full"
    assert replica.refusal(record("new", author=1, expires_ms=short), NOW_MS) is None
    assert replica.refusal(record("new", expires_ms=short), NOW_MS) == "full"  # it holds 20 keys
    for index in range(2):
        replica.merge(record(f"lease{index}", author=1, expires_ms=short))
    assert replica.refusal(record("new", author=2, expires_ms=short), NOW_MS) == "full"


def test_what_found_no_room_is_remembered_for_five_minutes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(crdt.merge, "REFUSED_MAX", 2)
    replica, (a, b, c) = Replica(), [record(key) for key in "abc"]
    for one in (a, b, c):
        replica.refused(one, NOW_MS)
    assert [replica.was_refused(one.slot, one.id[:8]) for one in (a, b, c)] == [False, True, True]
    assert not replica.was_refused(b.slot, a.id)
    replica.pop_due(NOW_MS + 299_999)
    assert replica.was_refused(b.slot, b.id)
    replica.pop_due(NOW_MS + 300_000)
    assert not replica.was_refused(b.slot, b.id)


def test_a_lease_is_told_of_when_it_expires_and_is_gone_a_minute_later() -> None:
    replica = fold([record("lease", expires_ms=NOW_MS + 1000), record("stays")])
    root_of_rest = fold([record("stays")]).root("runs")
    assert replica.pop_due(NOW_MS + 999) == ([], [])
    expired, dead = replica.pop_due(NOW_MS + 1000)
    assert [one.entry.key for one in expired] == ["lease"]
    assert dead == []
    assert replica.pop_due(NOW_MS + 60_999) == ([], [])
    expired, dead = replica.pop_due(NOW_MS + 61_000)
    assert expired == []
    assert [one.entry.key for one in dead] == ["lease"]
    assert replica.root("runs") == root_of_rest
    assert replica.digest.count() == 1


def test_a_renewed_lease_does_not_expire_at_its_old_time() -> None:
    replica = fold([
        record("lease", expires_ms=NOW_MS + 1000),
        record("lease", hlc=stamp(NOW_MS) + 1, expires_ms=NOW_MS + 5000),
    ])  # fmt: skip
    assert replica.pop_due(NOW_MS + 4999) == ([], [])
    assert len(replica.pop_due(NOW_MS + 5000)[0]) == 1


@settings(max_examples=20)
@given(st.integers(0, 200))
def test_counts_return_to_nothing_when_everything_dies(count: int) -> None:
    replica = fold([record(f"k{index}", expires_ms=NOW_MS + 1) for index in range(count)])
    replica.pop_due(NOW_MS + 10**9)
    assert replica.digest.fingerprint("") == Replica().digest.fingerprint("")
    assert replica.root("runs") == Replica().root("runs")
    assert replica == Replica() or replica.records == {"runs": {}}
