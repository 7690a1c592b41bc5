"""Anti-entropy by script: cost, both directions, hostile answers."""

import random
import sys
from types import FrameType

import pytest

from crdt.clock import stamp
from crdt.digest import LEAF_MAX, Digest, Held
from crdt.entry import REGISTER, Entry, Record, Signed, seal, unseal
from crdt.merge import Replica
from crdt.reconcile import Session, compare, supply
from crdt.wire import (
    FRAME_MAX,
    Ask,
    Compare,
    Differ,
    Entries,
    Leaf,
    LeafItem,
    Push,
    Split,
    Taken,
    Want,
)
from tests.sim.replicas import signer
from wire import codec
from wire.errors import BadMessage

NOW_MS = 1_800_000_000_000
OWN = signer(1)


def record(key: str, hlc: int = 0, value: bytes = b"\x01") -> Record:
    entry = Entry(1, "runs", key, OWN.peer, stamp(NOW_MS) + hlc, REGISTER, value, 0)
    return seal(entry, OWN)


RECORDS = [record(f"key/{index}") for index in range(2000)]


def replica(records: list[Record]) -> Replica:
    made = Replica()
    for one in records:
        made.merge(one)
    return made


def merge(into: Replica, entries: list[Signed]) -> int:
    return sum([into.merge(unseal(one)) for one in entries])


def run(mine: Replica, theirs: Replica) -> tuple[Session, int]:
    """Drive a session to its end; returns it and the bytes that it moved."""
    session, moved = Session(mine), 0
    while (request := session.next_request()) is not None:
        answer: Differ | Entries | Taken
        match request:
            case Compare():
                answer = compare(theirs, request)
            case Want():
                answer = supply(theirs, request)
            case Push(entries):
                answer = Taken(merge(theirs, entries))
        frames = codec.encode(request), codec.encode(answer)
        assert max(map(len, frames)) <= FRAME_MAX
        moved += sum(map(len, frames))
        merge(mine, session.receive(answer))
    return session, moved


def test_equal_replicas_are_done_after_one_round_trip_and_few_bytes() -> None:
    session, moved = run(replica(RECORDS), replica(RECORDS[::-1]))
    assert session.round_trips == 1
    assert moved < 100


@pytest.mark.parametrize("seed", range(20))
def test_two_replicas_are_equal_afterwards(seed: int) -> None:
    rng = random.Random(seed)
    updates = [record(f"key/{rng.randrange(2000)}", hlc=1 + rng.randrange(3)) for _ in range(50)]
    a = replica(rng.sample(RECORDS, rng.randrange(2000)) + rng.sample(updates, 25))
    b = replica(rng.sample(RECORDS, rng.randrange(2000)) + rng.sample(updates, 25))
    run(a, b)
    assert a.root("runs") == b.root("runs")
    assert a.records == b.records


def test_cost_grows_with_the_difference_not_with_the_state() -> None:
    a, b = replica(RECORDS), replica(RECORDS[:-10])
    session, moved = run(a, b)
    assert (session.entries_in, session.entries_out) == (0, 10)
    assert session.round_trips <= 5
    assert moved < 20_000


def test_an_empty_replica_gets_everything_and_nothing_twice() -> None:
    session, _ = run(fresh := Replica(), replica(RECORDS))
    assert session.entries_in == len(RECORDS)
    assert session.entries_out == 0
    assert fresh.root("runs") == replica(RECORDS).root("runs")
    session, _ = run(replica(RECORDS), Replica())
    assert (session.entries_in, session.entries_out) == (0, len(RECORDS))


def test_the_older_of_two_versions_is_not_sent() -> None:
    a, b = replica([record("k", hlc=1)]), replica([record("k", hlc=2)])
    session, _ = run(a, b)
    assert (session.entries_in, session.entries_out) == (1, 0)
    a, b = replica([record("k", hlc=2)]), replica([record("k", hlc=1)])
    session, _ = run(a, b)
    assert (session.entries_in, session.entries_out) == (0, 1)


def test_versions_of_one_stamp_are_settled_too() -> None:
    values = [record("k", value=b"\x01")], [record("k", value=b"\x02")]
    for mine, theirs in (values, values[::-1]):
        a, b = replica(mine), replica(theirs)
        run(a, b)
        assert a.root("runs") == b.root("runs")


def test_an_answer_that_would_not_fit_is_cut_and_the_rest_asked_again() -> None:
    many = [record(f"many/{index}") for index in range(6000)]
    b = replica(many)
    asks = [Ask(f"{prefix:02x}", bytes(16)) for prefix in range(128)]
    answer = compare(b, Compare(asks))
    assert 0 < answer.handled < 128
    assert len(codec.encode(answer)) <= FRAME_MAX
    session, _ = run(a := replica(many[:3]), b)
    assert session.entries_in == 5997
    assert a.root("runs") == b.root("runs")


def test_large_entries_are_cut_into_frames() -> None:
    large = [record(f"large/{index}", value=bytes(2000)) for index in range(100)]
    a, b = replica(large[:50]), replica(large[50:])
    run(a, b)
    assert a.digest.count() == b.digest.count() == 100


@pytest.mark.parametrize(
    "answer",
    [
        Entries(1, []),
        Taken(0),
        Differ(0, [], []),
        Differ(2, [], []),
        Differ(1, [Split("a", [bytes(16)] * 16)], []),
        Differ(1, [Split("", [bytes(16)] * 16)], [Leaf("", [])]),
    ],
)
def test_an_answer_that_does_not_fit_the_request_is_the_peers_fault(answer: object) -> None:
    session = Session(replica(RECORDS[:3]))
    assert isinstance(session.next_request(), Compare)
    with pytest.raises(BadMessage):
        session.receive(answer)  # type: ignore[arg-type]


def test_a_slot_outside_the_asked_prefix_is_the_peers_fault() -> None:
    session = Session(replica(RECORDS))
    session.next_request()
    session.receive(Differ(1, [Split("", [bytes(16)] * 16)], []))
    asks = session.next_request()
    assert isinstance(asks, Compare)
    wrong = LeafItem("0" * 32, 1, bytes(8))
    prefix = next(ask.prefix for ask in asks.asks if ask.prefix != "0")
    with pytest.raises(BadMessage, match="not below"):
        session.receive(Differ(len(asks.asks), [], [Leaf(prefix, [wrong])]))


def test_a_peer_that_always_differs_is_given_up() -> None:
    session = Session(replica(RECORDS))

    def lead() -> None:
        while (request := session.next_request()) is not None:
            assert isinstance(request, Compare)
            splits = [Split(ask.prefix, [bytes(16)] * 16) for ask in request.asks[:100]]
            session.receive(Differ(len(splits), splits, []))

    with pytest.raises(BadMessage, match="whole slot"):
        lead()
    assert len(session._asks) < 100_000


def test_a_peer_that_promises_and_does_not_deliver_ends_too() -> None:
    session = Session(Replica())
    items = [LeafItem(f"{index:032x}", 1, bytes(8)) for index in range(LEAF_MAX)]
    session.next_request()
    session.receive(Differ(1, [], [Leaf("", items)]))
    assert isinstance(session.next_request(), Want)
    session.receive(Entries(LEAF_MAX, []))
    assert session.next_request() is None


def ground(count: int) -> list[Held]:
    """What a replica holds after somebody has ground slots into one prefix of three digits."""
    rng = random.Random(7)
    return [Held(f"abc{rng.getrandbits(116):029x}", n, rng.randbytes(32)) for n in range(count)]


def test_slots_ground_into_one_prefix_make_no_answer_dear() -> None:
    held = Replica()
    for one in ground(5000):
        held.digest.put(one)
    prefixes = [f"abc{number:02x}" for number in range(256)]
    steps = 0

    def count(frame: FrameType, event: str, _: object) -> None:
        nonlocal steps
        steps += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        compare(held, Compare([Ask(one, bytes(16)) for one in prefixes[:128]]))
        handled = compare(held, Compare([Ask("abc", bytes(16))] * 128)).handled
    finally:
        sys.setprofile(before)
    assert handled == 128
    assert steps < 40_000  # of Python's calls; one is about 0.1 µs, and they were 1,400,000


def test_the_tree_of_sums_does_not_depend_on_the_order_or_on_what_was_removed() -> None:
    every = ground(300) + [Held(one.slot, one.entry.hlc, one.id) for one in RECORDS[:200]]
    grown, shrunk = Digest(), Digest()
    for one in every[:150]:
        grown.put(one)
    for one in reversed(every):
        shrunk.put(one)
    for one in every[150:]:
        shrunk.remove(one.slot)
    for prefix in ("", "a", "abc", "abc1", "abc12", every[0].slot, every[0].slot[:9]):
        assert grown.items(prefix) == shrunk.items(prefix)
        assert grown.count(prefix) == shrunk.count(prefix) == len(grown.items(prefix))
        assert grown.children(prefix) == shrunk.children(prefix)
