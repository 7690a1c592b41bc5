"""What tests of the replica share: small namespaces, and a check of all indexes."""

from crdt.entry import Record
from crdt.fault import Proven, judge
from crdt.namespace import Genesis, Rules
from crdt.replica import Replica
from tests.unit.crdt_making import NOW_MS, Chain

GC_MS = 3_600_000
SHORT = Genesis(1, "short", None, "open", b"", Rules(gc_ms=GC_MS))


def small(limit: int) -> Genesis:
    return Genesis(1, "small", None, "open", b"", Rules(gc_ms=GC_MS, author_entries=limit))


def chain(author: int = 1, instance: int = 1, genesis: Genesis = SHORT) -> Chain:
    return Chain(author, genesis.id, instance)


def merged(*records: Record, genesis: Genesis = SHORT, now_ms: int = NOW_MS) -> Replica:
    replica = Replica(genesis)
    for record in records:
        assert replica.refusal(record, now_ms) == ""
        replica.merge(record, now_ms)
    return replica


def proof(a: Record, b: Record) -> Proven:
    found = judge(a, b)
    assert found is not None
    return found


def is_consistent(replica: Replica) -> None:
    """Every index says the same."""
    held = list(replica.records.values())
    assert list(replica.timeline) == sorted(replica.records)
    assert replica.size == sum(one.size for one in held)
    keys = {one.key for one in held}
    assert {one.stamp for key in keys for one in replica.at(key)} == set(replica.records)
    for name in {one.chain for one in held}:
        own = [one for one in held if one.chain == name]
        found = replica.chain_after(name, 0, 10**6)
        assert [one.seq for one in found] == sorted(one.seq for one in own)
        assert set(found) == set(own)
        assert replica.seen(name) >= max(one.seq for one in own)
    authors = {one.author for one in held}
    assert replica.author_count == len(authors)
    for author in authors:
        assert replica.held_by(author) == sum(one.author == author for one in held)
    fresh = Replica(replica.genesis)
    assert (fresh.root() == replica.root()) == (not held and not replica.faults)
