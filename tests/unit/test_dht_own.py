"""What we say ourselves: signed anew when it must be, numbered so that the newest wins."""

import pytest

from dht import own
from dht.own import HALF_LIFE_MS, RECORD_AGE_MS, RETRY_MS, Own
from dht.records import LIFE_MAX_MS, open_peer, open_provision
from dht.values import head_name, multi_name
from tests.sim.replicas import EPOCH_MS, signer
from wire.errors import UsageError

ME = signer(1)


def test_our_record_is_signed_anew_only_when_it_says_something_else_or_is_old() -> None:
    addresses = [f"/ip4/192.0.2.1/tcp/1/p2p/{ME.peer}"]
    mine = Own(ME, lambda: addresses)
    first = mine.contact(EPOCH_MS)
    assert open_peer(first.sealed).addrs == ("/ip4/192.0.2.1/tcp/1",)
    assert mine.contact(EPOCH_MS + RECORD_AGE_MS) is first
    addresses.append("/ip4/192.0.2.2/tcp/1")
    moved = mine.contact(EPOCH_MS)  # within the same millisecond
    assert moved.is_newer_than(first)
    assert len(moved.addrs) == 2
    assert mine.contact(EPOCH_MS + RECORD_AGE_MS + 1).is_newer_than(moved)


def test_a_clock_that_went_back_does_not_make_our_record_older() -> None:
    addresses = ["/ip4/192.0.2.1/tcp/1"]
    mine = Own(ME, lambda: addresses)
    first = mine.contact(EPOCH_MS)
    addresses[0] = "/ip4/192.0.2.2/tcp/1"
    assert mine.contact(EPOCH_MS - 60_000).is_newer_than(first)


def test_prepared_records_are_used_and_sealed_anew_when_they_are_old() -> None:
    mine = Own(ME, list[str])
    mine.prepare([b"a"], EPOCH_MS)
    prepared = mine.provision(b"a", EPOCH_MS + 1000)
    assert open_provision(prepared.sealed).expires_ms == EPOCH_MS + LIFE_MAX_MS
    assert mine.provision(b"a", EPOCH_MS + 1000).sealed is prepared.sealed
    later = mine.provision(b"a", EPOCH_MS + HALF_LIFE_MS)
    assert later.expires_ms == EPOCH_MS + HALF_LIFE_MS + LIFE_MAX_MS
    mine.drop_prepared([b"a"])
    assert mine.provision(b"a", EPOCH_MS + 1000).sealed is not prepared.sealed


def test_values_are_numbered_by_the_clock_and_always_forward() -> None:
    mine = Own(ME, list[str])
    seqs = [mine.head("a", b"1", at).seq for at in (EPOCH_MS, EPOCH_MS, EPOCH_MS - 5000)]
    assert seqs == [EPOCH_MS, EPOCH_MS + 1, EPOCH_MS + 2]
    assert mine.multi("a", b"1", EPOCH_MS + 9000).seq == EPOCH_MS + 9000


def test_values_are_due_at_half_life_or_soon_if_nobody_took_them() -> None:
    mine = Own(ME, list[str])
    head = mine.head("latest/a", b"1", EPOCH_MS)
    multi = mine.multi("run/a", b"2", EPOCH_MS)
    assert mine.due(EPOCH_MS + RETRY_MS - 1) == []
    mine.stored(head.name, EPOCH_MS)
    assert mine.due(EPOCH_MS + HALF_LIFE_MS - 1) == [multi.name]
    later_ms = EPOCH_MS + HALF_LIFE_MS
    assert mine.due(later_ms) == [head.name, multi.name]
    for old in (head, multi):
        again = mine.again(old.name, later_ms)
        assert again is not None
        assert (again.name, again.data) == (old.name, old.data)
        assert again.seq > old.seq
        assert again.expires_ms == later_ms + LIFE_MAX_MS
    assert mine.due(later_ms) == []


def test_what_nobody_takes_is_tried_less_and_less_often() -> None:
    mine, now_ms, waits = Own(ME, list[str]), EPOCH_MS, list[int]()
    name = mine.head("a", b"1", now_ms).name
    for _ in range(10):
        before_ms = now_ms
        while not mine.due(now_ms):
            now_ms += RETRY_MS
        waits.append((now_ms - before_ms) // RETRY_MS)
        mine.again(name, now_ms)
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]
    mine.stored(name, now_ms)
    assert mine.due(now_ms + HALF_LIFE_MS) == [name]
    mine.again(name, now_ms + HALF_LIFE_MS)
    assert mine.due(now_ms + HALF_LIFE_MS + RETRY_MS) == [name]


def test_after_a_restart_our_values_are_due_and_numbered_after_the_last() -> None:
    before, mine = Own(ME, list[str]), Own(ME, list[str])
    before.head("a", b"1", EPOCH_MS)
    ours = before.multi("b", b"2", EPOCH_MS)
    theirs = Own(signer(2), list[str]).multi("b", b"3", EPOCH_MS)
    mine.adopt([*before.values(), theirs])
    assert mine.due(EPOCH_MS) == [head_name(ME.peer, "a"), multi_name("b")]
    again = mine.again(ours.name, EPOCH_MS - 60_000)
    assert again is not None
    assert again.seq == ours.seq + 1


def test_a_forgotten_value_is_not_stored_again() -> None:
    mine = Own(ME, list[str])
    value = mine.head("a", b"1", EPOCH_MS)
    mine.forget(value.name)
    assert mine.values() == []
    assert mine.due(EPOCH_MS + LIFE_MAX_MS) == []
    assert mine.again(value.name, EPOCH_MS) is None
    mine.stored(value.name, EPOCH_MS)
    assert mine.due(EPOCH_MS + LIFE_MAX_MS) == []


def test_too_many_values_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "PUBLISHED_MAX", 2)
    mine = Own(ME, list[str])
    for name in ("a", "b", "a"):
        mine.head(name, b"1", EPOCH_MS)
    with pytest.raises(UsageError):
        mine.head("c", b"1", EPOCH_MS)
    assert len(mine.values()) == 2
