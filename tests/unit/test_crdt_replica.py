"""The replica: what stays of what is merged, and what is refused."""

import pytest

from crdt import replica as replica_module
from crdt.chains import EMPTY_CHAINS_MAX
from crdt.change import Change
from crdt.entry import Record
from crdt.fault import check
from crdt.namespace import Grant, Rules
from crdt.replica import Replica
from tests.unit.crdt_making import NOW_MS, OPEN, Chain, dot, key_of, listed
from tests.unit.crdt_replicas import GC_MS, SHORT, chain, is_consistent, merged, proof, small


def test_an_author_has_one_entry_at_a_place_and_others_have_theirs() -> None:
    mine, theirs = chain(1), chain(2)
    first, second, other = mine.put("k", ms=0), mine.put("k", ms=1), theirs.put("k", ms=2)
    replica = Replica(SHORT)
    change = replica.merge(first, NOW_MS)
    assert (change.is_added, change.keys, change.dropped) == (True, {"k"}, [])
    change = replica.merge(second, NOW_MS)
    assert (change.is_added, change.keys, change.dropped) == (True, {"k"}, [first])
    replica.merge(other, NOW_MS)
    assert replica.at("k") == (second, other)
    for old in (first, second):
        assert not replica.is_news(old)
        assert replica.merge(old, NOW_MS) == Change()
    assert replica.is_news(mine.put("k", ms=3))
    is_consistent(replica)


def test_a_key_that_is_overwritten_often_stays_one_entry() -> None:
    mine, replica = chain(), Replica(SHORT)
    for _ in range(300):
        replica.merge(mine.put("k"), NOW_MS)
    assert len(replica.records) == 1
    assert replica.heads() == [(mine.id, 300)]
    is_consistent(replica)


def test_version_grows_with_what_is_held_and_nothing_else() -> None:
    replica, mine = Replica(SHORT), chain()
    fork = mine.fork()
    one = mine.put("a")
    versions = [replica.version]
    for step in (
        lambda: replica.merge(one, NOW_MS),
        lambda: replica.merge(mine.put("a"), NOW_MS),
        lambda: replica.merge_fault(proof(one, fork.put("b"))),
    ):
        step()
        versions.append(replica.version)
    assert versions == sorted(set(versions))
    replica.merge(one, NOW_MS)
    replica.view("a", NOW_MS)
    replica.pop_due(NOW_MS)
    assert replica.version == versions[-1]


def test_fingerprint_and_root_are_of_the_set_and_of_the_proofs() -> None:
    records = [chain(author).put(key, ms=author) for author in range(3) for key in "ab"]
    one, other = merged(*records), merged(*records[::-1])
    assert one.fingerprint() == other.fingerprint()
    assert len(one.fingerprint()) == 16
    assert one.root() == other.root()
    assert len(one.root()) == 32
    before = one.fingerprint(), one.root()
    forked = chain(9)
    fork = forked.fork()
    found = proof(forked.put("x"), fork.put("y"))
    one.merge_fault(found)
    assert one.fingerprint() != before[0]
    assert one.root() != before[1]
    other.merge_fault(check(found.fault))
    assert (one.fingerprint(), one.root()) == (other.fingerprint(), other.root())
    assert merged(*records[1:]).fingerprint() != before[0]


def test_a_scan_yields_what_shows_under_a_prefix_in_order() -> None:
    mine = chain()
    keys = ("run/b", "run/a", "sun", "run", "run/c/d", "run/~")
    replica = merged(*(mine.put(key) for key in keys), mine.put("run/x"), mine.delete("run/x"))
    replica.merge(mine.lease("run/y", 10), NOW_MS)
    later_ms = NOW_MS + 10_000

    def keys_of(prefix: str, after: str = "") -> list[str]:
        return [view.key for view in replica.scan(prefix, later_ms, after=after)]

    assert keys_of("run/") == ["run/a", "run/b", "run/c/d", "run/~"]
    assert keys_of("run/", after="run/a") == ["run/b", "run/c/d", "run/~"]
    assert keys_of("run/", after="a") == keys_of("run/")
    assert keys_of("") == sorted(keys)
    assert keys_of("x") == keys_of("ä") == []
    assert replica.view("run/x", later_ms) is None
    assert replica.view("nowhere", later_ms) is None


def test_a_chain_is_read_in_its_order_and_its_head_outlives_its_entries() -> None:
    mine = chain()
    records = [mine.put(f"k{number % 4}") for number in range(10)]
    replica = Replica(SHORT)
    for record in records[5:] + records[:5]:
        replica.merge(record, NOW_MS)
    assert replica.chain_after(mine.id, 0, 99) == records[6:]
    assert replica.chain_after(mine.id, 8, 99) == records[8:]
    assert replica.chain_after(mine.id, 0, 2) == records[6:8]
    assert replica.chain_after(mine.id, 10, 99) == []
    assert replica.chain_after(bytes(16), 0, 99) == []
    assert replica.heads() == [(mine.id, 10)]
    again = chain(instance=2)
    for number in range(4):
        replica.merge(again.put(f"k{number}", ms=100 + number), NOW_MS)
    assert replica.chain_after(mine.id, 0, 99) == []
    assert replica.heads() == sorted([(mine.id, 10), (again.id, 4)])
    assert replica.heads(limit=1) == replica.heads()[:1]
    assert replica.heads(replica.heads()[0][0]) == replica.heads()[1:]
    replica.pop_due(NOW_MS + GC_MS + 9)
    assert replica.heads() == [(again.id, 4)]
    is_consistent(replica)


def test_heads_of_empty_chains_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crdt.chains.EMPTY_CHAINS_MAX", 10)
    replica = Replica(SHORT)
    for instance in range(50):
        replica.merge(chain(instance=instance).put("k", ms=instance), NOW_MS)
    assert len(replica.heads()) == 11
    assert EMPTY_CHAINS_MAX > 1000


def test_what_never_belongs_here_is_refused() -> None:
    replica = merged()
    assert replica.refusal(chain(genesis=OPEN).put("k"), NOW_MS) == "namespace"
    assert replica.refusal(chain().grant(Grant(key_of(2))), NOW_MS) == "policy"


def test_the_future_is_refused_until_its_time_comes() -> None:
    ahead = chain().put("k", ms=30_001)
    assert merged().refusal(ahead, NOW_MS) == "future"
    assert merged().refusal(ahead, NOW_MS + 1) == ""


def test_a_grant_may_come_after_what_it_allows() -> None:
    genesis = listed(0)
    owner, anna = Chain(0, genesis.id), Chain(1, genesis.id)
    grant = owner.grant(Grant(key_of(1)))
    one = anna.put("k", grant=grant.id)
    replica = Replica(genesis)
    assert replica.refusal(one, NOW_MS) == "no_grant"
    replica.merge(grant, NOW_MS)
    assert replica.refusal(one, NOW_MS) == ""
    replica.merge(one, NOW_MS)
    assert replica.view("k", NOW_MS) is not None
    is_consistent(replica)


def test_a_new_revocation_by_one_author_takes_the_place_of_its_last() -> None:
    genesis = listed(0)
    owner, anna = Chain(0, genesis.id), Chain(1, genesis.id)
    grant = owner.grant(Grant(key_of(1)))
    one = anna.put("k", grant=grant.id)
    replica = merged(grant, one, genesis=genesis)
    change = replica.merge(owner.revoke(grant.id), NOW_MS)
    assert change.keys == {"revoke", "k"}
    assert replica.view("k", NOW_MS) is None
    change = replica.merge(owner.revoke(grant.id, [dot(one)]), NOW_MS)
    assert "k" in change.keys
    assert replica.view("k", NOW_MS) is not None
    assert len(replica.at("revoke")) == 1


def test_who_revokes_again_and_again_does_not_have_all_walked_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replica_module, "BELOW_MAX", 50)
    genesis = listed(0, Rules(gc_ms=GC_MS))
    owner, anna = Chain(0, genesis.id), Chain(1, genesis.id)
    grant = owner.grant(Grant(key_of(1)), ms=0)
    entries = [anna.put(f"k{number}", grant=grant.id) for number in range(100)]
    replica = merged(grant, *entries, genesis=genesis)
    for number in range(5):
        change = replica.merge(owner.revoke(grant.id, ms=200 + number), NOW_MS)
        assert change.keys == {"revoke"}
    assert replica.view("k7", NOW_MS) is None
    assert replica.pop_due(NOW_MS + 300).keys >= {f"k{number}" for number in range(100)}
    assert replica.pop_due(NOW_MS + 600).keys == set()
    replica.pop_due(NOW_MS + GC_MS // 2 + 300)
    assert {one.key for one in replica.records.values()} == {"grant", "revoke"}
    is_consistent(replica)


def test_what_a_grant_allowed_goes_with_it() -> None:
    genesis = listed(0, Rules(gc_ms=GC_MS, author_entries=2))
    owner, anna, bert = (Chain(author, genesis.id) for author in range(3))
    first = owner.grant(Grant(key_of(1), depth=1))
    second = anna.grant(Grant(key_of(2)), under=first.id)
    entries = [anna.put("a", grant=first.id), bert.put("b", grant=second.id)]
    entries.append(anna.revoke(second.id, [dot(entries[1])], under=first.id))
    replica = merged(first, second, *entries, genesis=genesis)
    assert replica.merge(c := owner.put("c"), NOW_MS).dropped == []
    assert replica.merge(owner.put("d"), NOW_MS).dropped == []  # data and grants count apart
    assert replica.merge(owner.put("e"), NOW_MS).dropped == [c]
    replica.merge(owner.grant(Grant(key_of(3))), NOW_MS)
    change = replica.merge(owner.grant(Grant(key_of(4))), NOW_MS)
    assert set(change.dropped) == {first, second, *entries}
    assert change.keys >= {"a", "b"}
    is_consistent(replica)


def test_a_revocation_by_a_delegate_goes_with_the_grant_it_revokes() -> None:
    genesis = listed(0, Rules(gc_ms=GC_MS, author_entries=2))
    owner, anna = Chain(0, genesis.id), Chain(1, genesis.id)
    first = owner.grant(Grant(key_of(1), depth=1))
    second = anna.grant(Grant(key_of(2)), under=first.id)
    by_anna, by_owner = anna.revoke(second.id, under=first.id), owner.revoke(second.id)
    replica = merged(first, second, by_anna, genesis=genesis)
    change = replica.merge(anna.grant(Grant(key_of(3)), under=first.id), NOW_MS)
    assert set(change.dropped) == {
        second,
        by_anna,
    }  # the oldest of three rules, and what hangs on it
    assert replica.refusal(by_anna, NOW_MS) == "no_grant"
    assert replica.refusal(by_owner, NOW_MS) == ""
    is_consistent(replica)


def test_a_quota_keeps_the_newest_whatever_the_order() -> None:
    genesis = small(3)
    mine, other = chain(1, genesis=genesis), chain(2, genesis=genesis)
    records = [mine.put(f"k{number}") for number in range(6)]
    for order in (records, records[::-1], records[3:] + records[:3]):
        replica = Replica(genesis)
        dropped: list[Record] = []
        for record in [*order, other.put("k0")]:
            if not replica.refusal(record, NOW_MS):
                dropped += replica.merge(record, NOW_MS).dropped
        held = [one for one in replica.records.values() if one.author == mine.key]
        assert sorted(one.seq for one in held) == [4, 5, 6]
        assert replica.held_by(mine.key) == 3
        assert {one.seq for one in dropped} <= {1, 2, 3}
        is_consistent(replica)
        assert replica.refusal(records[0], NOW_MS) == "author_full"
        assert replica.merge(records[0], NOW_MS) == Change()
        replica.merge(mine.put("k5"), NOW_MS)  # in the place of its last
        assert replica.held_by(mine.key) == 3
        mine.seq, mine.prev, mine.ms = 6, records[-1].link, 5


def test_a_quota_with_much_overwriting_stays_exact() -> None:
    genesis = small(40)
    mine, replica = chain(genesis=genesis), Replica(genesis)
    latest: dict[str, Record] = {}
    for number in range(3000):
        record = mine.put(f"k{number * 7 % 60}")
        latest[record.key] = record
        replica.merge(record, NOW_MS)
    newest = sorted(one.stamp for one in latest.values())[-40:]
    assert sorted(replica.records) == newest
    is_consistent(replica)


def test_what_was_deleted_elsewhere_is_told_of() -> None:
    mine = chain()
    gone, kept = mine.put("a"), mine.put("b")
    replica = merged(gone, kept)
    change = replica.forget([gone])
    assert (change.dropped, change.keys) == ([gone], {"a"})
    assert replica.forget([gone]).dropped == []
    assert list(replica.records.values()) == [kept]
    is_consistent(replica)


def test_a_node_without_room_refuses_what_is_new_only() -> None:
    mine = chain()
    one = mine.put("a")
    replica = Replica(SHORT, room=lambda record, old, now_ms: False)
    assert replica.refusal(one, NOW_MS) == "full"
    replica.merge(one, NOW_MS)
    assert replica.refusal(mine.put("a"), NOW_MS) == ""
    assert replica.refusal(mine.put("a", "more of it"), NOW_MS) == "full"
    assert replica.refusal(mine.put("b"), NOW_MS) == "full"


def test_chains_are_listed_page_by_page() -> None:
    replica = Replica(SHORT)
    made = [chain(instance=instance) for instance in range(40)]
    for number, one in enumerate(made):
        replica.merge(one.put(f"k{number}", ms=number), NOW_MS)
    after, found = b"", list[tuple[bytes, int]]()
    while page := replica.heads(after, 7):
        found += page
        after = page[-1][0]
    assert found == sorted((one.id, 1) for one in made)
