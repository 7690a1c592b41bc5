"""What an operation writes does what its user asked for, whatever others have written there."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crdt import drafts
from crdt.clock import HLC_MAX
from crdt.entry import SEEN_MAX, Dot, Record
from crdt.fold import View
from crdt.own import Build, OwnChains
from crdt.replica import Replica
from tests.soak.crdt_histories import ELEMENTS, KEYS, deliver, draw
from tests.unit.crdt_making import NOW_MS, Chain, dot, key_of, signer
from tests.unit.crdt_replicas import SHORT, chain, merged
from wire import codec
from wire.errors import UsageError

ME = 9
LATER_MS = NOW_MS + 60_000


def write(replica: Replica, own: OwnChains, key: str, build: Build) -> Record | None:
    """Write as the writer does, a commit each."""
    held = replica.at(key)

    def counts(record: Record) -> bool:
        return replica.counts(record, LATER_MS)

    pending = own.draft(replica.genesis, replica.id, key, build, held, LATER_MS, counts)
    if pending is None:
        return None
    assert replica.refusal(pending.shape, LATER_MS) == ""
    own.take(pending)
    (record,) = own.sign([pending])
    assert replica.merge(record, LATER_MS).is_added
    return record


def seen_at(replica: Replica, key: str) -> View | None:
    return replica.view(key, LATER_MS)


def elements(replica: Replica, key: str) -> list[bytes]:
    view = seen_at(replica, key)
    return [one.element for one in view.values] if view and view.kind in ("set", "map") else []


@settings(max_examples=400, deadline=None)
@given(
    st.integers(0, 2**32),
    st.lists(
        st.tuples(st.sampled_from(KEYS), st.integers(0, 5), st.sampled_from(ELEMENTS)), max_size=8
    ),
)
def test_what_was_asked_for_shows(seed: int, steps: Sequence[tuple[str, int, int]]) -> None:
    listed = seed % 3 == 0  # then we are the owner
    history = draw(seed, is_young=seed % 2 == 0, is_honest=listed, listed=listed)
    replica = Replica(history.genesis)
    deliver(replica, history.records, LATER_MS)
    own = OwnChains(signer(0 if listed else ME))
    for number, (key, operation, element) in enumerate(steps):
        if replica.held_by(own.author) < replica.rules.author_entries:  # else our oldest goes
            _step(replica, own, key, operation, codec.encode(element), codec.encode(number))


def _step(
    replica: Replica, own: OwnChains, key: str, operation: int, element: bytes, value: bytes
) -> None:
    before = seen_at(replica, key)
    if operation == 0:
        record = write(replica, own, key, drafts.put(value))
        view = seen_at(replica, key)
        assert view is not None
        assert view.values == (record,)
    elif operation == 1:
        write(replica, own, key, drafts.delete())
        assert seen_at(replica, key) is None
    elif operation == 2:
        record = write(replica, own, key, drafts.put_multi(value, own.author))
        view = seen_at(replica, key)
        assert view is not None
        assert view.values == (record,)
    elif operation == 3:
        write(replica, own, key, drafts.add(element, value))
        assert element in elements(replica, key)
    elif operation == 4:
        others = {one for one in elements(replica, key) if one != element}
        was_there = element in elements(replica, key)
        record = write(replica, own, key, drafts.remove(element, own.author))
        assert element not in elements(replica, key)
        if was_there:
            assert record is not None
            assert others == set(elements(replica, key))
    else:
        write(replica, own, key, drafts.increment(2))
        view = seen_at(replica, key)
        assert view is not None
        assert view.kind == "counter"
        if before is not None and before.kind == "counter":
            assert view.total == before.total + 2


def test_a_tombstone_that_does_not_count_is_no_deletion() -> None:
    forger = chain(1)
    forger.put("before")
    fork = forger.fork()
    replica = merged(chain(2).put("k", ms=1), forger.delete("k", ms=2), fork.put("other", ms=2))
    assert seen_at(replica, "k") is not None
    write(replica, OwnChains(signer(ME)), "k", drafts.delete())
    assert seen_at(replica, "k") is None


def test_a_remove_that_claims_the_future_does_not_stop_ours() -> None:
    element = codec.encode("x")
    anna, liar = chain(1), chain(2)
    replica = merged(anna.add("s", "x", ms=0), liar.remove("s", "x", [Dot(anna.id, HLC_MAX)], ms=1))
    replica.merge(anna.add("s", "x", ms=2), NOW_MS)
    assert elements(replica, "s") == [element]
    write(replica, OwnChains(signer(ME)), "s", drafts.remove(element, key_of(ME)))
    assert elements(replica, "s") == []


@pytest.mark.parametrize("count", [SEEN_MAX, SEEN_MAX + 1])
def test_a_remove_that_cannot_name_all_adds_is_refused(count: int) -> None:
    element = codec.encode("x")
    replica = merged(*(chain(100 + number).add("s", "x") for number in range(count)))
    own = OwnChains(signer(ME))
    if count <= SEEN_MAX:
        write(replica, own, "s", drafts.remove(element, own.author))
        assert elements(replica, "s") == []
        return
    with pytest.raises(UsageError, match="more than 64 chains"):
        write(replica, own, "s", drafts.remove(element, own.author))
    other = OwnChains(signer(ME + 1))  # what others removed need not be named again
    first = max(replica.at("s"), key=lambda one: one.stamp)
    taken = Chain(ME + 2, SHORT.id).remove("s", "x", [dot(first)], ms=100)
    replica.merge(taken, NOW_MS)
    write(replica, other, "s", drafts.remove(element, other.author))
    assert elements(replica, "s") == []


def test_a_multi_value_entry_names_again_what_our_last_one_had_seen() -> None:
    replica = merged(theirs := chain(1).multi("k", 1))
    own = OwnChains(signer(ME))
    write(replica, own, "k", drafts.put_multi(b"\x01", own.author))
    replica.forget([theirs])  # as when it was collected
    second = write(replica, own, "k", drafts.put_multi(b"\x02", own.author))
    assert second is not None
    assert second.entry.seen == (dot(theirs),)
    late = Replica(SHORT)
    for record in (theirs, second):
        late.merge(record, NOW_MS)
    view = seen_at(late, "k")
    assert view is not None
    assert view.values == (second,)
