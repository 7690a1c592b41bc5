"""What merging finds out about authors, and what a proof does to what is held."""

import pytest

from crdt import fault
from crdt import replica as replica_module
from crdt.change import Change
from crdt.entry import REGISTER, Record, is_signed
from crdt.fault import AUTHOR_FAULTS_MAX, Proven, judge
from crdt.namespace import Grant
from crdt.replica import Replica
from tests.unit.crdt_making import NOW_MS, OPEN, Chain, key_of, listed, missigned, unsigned
from tests.unit.crdt_replicas import SHORT, chain, is_consistent, merged, proof


def test_a_fork_is_found_on_merging_in_any_order() -> None:
    mine = chain()
    first = mine.put("a")
    fork = mine.fork()
    one, other = mine.put("a", 1), fork.put("b", 2)
    last = mine.put("c")
    for order in ((first, one, last, other), (last, other, first, one), (other, one, first, last)):
        replica = Replica(SHORT)
        found = [
            change.fault for record in order if (change := replica.merge(record, NOW_MS)).fault
        ]
        assert found
        assert replica.faults[mine.id].cut == 2
        assert replica.view("b", NOW_MS) is None
        assert replica.view("c", NOW_MS) is None
        assert other.stamp in replica.records  # it holds its place
        is_consistent(replica)


def test_a_value_from_before_the_fork_shows_again_if_another_place_holds_it() -> None:
    mine, other = chain(1), chain(2)
    theirs, first = other.put("k", "theirs", ms=0), mine.put("k", "first", ms=1)
    fork = mine.fork()
    replica = merged(theirs, first, second := mine.put("x", ms=2))
    change = replica.merge(fork.put("y", ms=3), NOW_MS)
    assert change.fault is not None
    assert change.keys == {"x", "y"}
    view = replica.view("k", NOW_MS)
    assert view is not None
    assert view.latest is first
    assert not replica.authority.counts(second)


def test_a_fork_of_whoever_granted_is_told_of_all_keys_under_the_grant() -> None:
    genesis = listed(0)
    owner, anna, bert = (Chain(author, genesis.id) for author in range(3))
    first = owner.grant(Grant(key_of(1), depth=1))
    anna.put("x", grant=first.id)
    fork = anna.fork()
    second = anna.grant(Grant(key_of(2)), under=first.id)
    replica = merged(first, second, bert.put("b", grant=second.id), genesis=genesis)
    change = replica.merge(fork.put("y", grant=first.id), NOW_MS)
    assert change.keys == {"grant", "b", "y"}
    assert replica.view("b", NOW_MS) is None


def test_links_and_clocks_that_lie_are_found_on_merging() -> None:
    mine = chain(1)
    first = mine.put("a", ms=10)
    skewed = mine.put("b", ms=10 - 5)
    assert merged(first).merge(skewed, NOW_MS).fault is not None
    assert merged(skewed).merge(first, NOW_MS).fault is not None
    broken = chain(2)
    one = broken.put("a")
    broken.prev = bytes(31) + b"\x01"
    two = broken.put("b")
    assert merged(one).merge(two, NOW_MS).fault is not None
    assert merged(two).merge(one, NOW_MS).fault is not None
    assert merged(two, broken.put("c")).merge(one, NOW_MS).fault is not None
    far = chain(4)
    old = far.put("a", ms=0)
    far.put("x", ms=10)
    assert merged(old).merge(far.put("b", ms=-1), NOW_MS).fault is not None  # against the head


def test_an_honest_chain_in_any_order_and_with_holes_is_no_fault() -> None:
    mine = chain()
    records = [mine.count(f"k{number % 3}", number) for number in range(12)]
    for order in (records, records[::-1], records[::2] + records[1::2]):
        replica = Replica(SHORT)
        assert not any(replica.merge(unsigned(record), NOW_MS).fault for record in order)
        is_consistent(replica)


def test_a_wrong_signature_inside_a_run_is_proven_once_it_matters() -> None:
    mine = chain()
    bad = missigned(mine.put("a"))
    mine.prev = bad.link
    after, later = mine.put("b"), mine.put("c")
    for order in ((bad, after), (after, bad)):
        replica = merged(*order, later)
        assert replica.faults == {}  # nobody has looked
        change = replica.drop(bad)
        assert change.fault is not None
        assert change.fault.cut == 1
        assert set(change.dropped) == {bad, after, later}
        assert replica.records == {}
        assert replica.refusal(later, NOW_MS) == "fault"
        assert replica.merge(later, NOW_MS) == Change()
        is_consistent(replica)


def test_a_wrong_signature_is_found_when_a_fork_has_it_looked_at() -> None:
    mine = chain()
    first = mine.put("first")
    fork = mine.fork()
    bad = missigned(mine.put("a"))
    mine.prev = bad.link
    after, twin = mine.put("b"), fork.put("x")
    for order in ((bad, after, twin), (after, twin, bad), (bad, twin, after), (after, bad, twin)):
        replica = merged(first)
        for record in order:
            replica.merge(unsigned(record), NOW_MS)
        assert replica.faults[mine.id].cut == 1  # the fork alone would cut at 2
        assert replica.records == {}


def test_a_wrong_signature_without_a_successor_goes_without_a_proof() -> None:
    mine = chain()
    bad = missigned(mine.put("a"))
    mine.prev = bad.link
    replica = merged(bad, mine.put("b"), mine.put("b"))
    change = replica.drop(bad)
    assert (change.fault, change.dropped, change.keys) == (None, [bad], {"a"})
    assert replica.drop(bad) == Change()
    assert not is_signed(bad)
    is_consistent(replica)


def test_a_proof_from_elsewhere_is_kept_once_and_only_here() -> None:
    mine = chain()
    fork = mine.fork()
    found = proof(mine.put("a"), fork.put("b"))
    replica = merged()
    assert replica.merge_fault(found).fault is found
    assert replica.merge_fault(found) == Change()
    foreign = chain(genesis=OPEN)
    fork = foreign.fork()
    assert replica.merge_fault(proof(foreign.put("a"), fork.put("b"))) == Change()
    assert list(replica.faults) == [mine.id]


def test_an_author_who_forks_again_and_again_loses_everything_and_is_refused() -> None:
    innocent = chain(1, instance=99)
    kept = [innocent.put("k"), innocent.put("l"), chain(2).put("k")]
    replica = merged(*kept)
    for instance in range(AUTHOR_FAULTS_MAX + 2):
        forked = chain(1, instance)
        first = forked.put(f"a{instance}")
        fork = forked.fork()
        replica.merge(first, NOW_MS)
        replica.merge(forked.put("b", ms=50 + instance), NOW_MS)
        replica.merge(fork.put(f"c{instance}", ms=90), NOW_MS)
    assert list(replica.records.values()) == [kept[2]]
    assert len(replica.faults) == AUTHOR_FAULTS_MAX
    assert replica.refusal(innocent.put("k"), NOW_MS) == "fault"
    is_consistent(replica)


def test_what_a_forgotten_proof_cut_off_shows_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fault, "FAULTS_MAX", 1)
    chains = sorted((chain(author) for author in range(2)), key=lambda one: one.id, reverse=True)
    for one in chains:
        one.put("before")
    replica, change = Replica(SHORT), Change()
    for number, line in enumerate(chains):
        fork = line.fork()
        replica.merge(line.put(f"k{number}"), NOW_MS)
        change = replica.merge(fork.put(f"other{number}"), NOW_MS)
    assert list(replica.faults) == [chains[1].id]
    assert change.keys >= {"k0", "other0", "k1", "other1"}
    assert replica.view("k0", NOW_MS) is not None
    assert replica.view("k1", NOW_MS) is None
    is_consistent(replica)


def test_thousands_of_twins_cost_no_more_than_their_signatures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    judged = 0

    def count(a: Record, b: Record) -> Proven | None:
        nonlocal judged
        judged += 1
        return judge(a, b)

    monkeypatch.setattr(replica_module, "judge", count)
    mine = chain()
    first = mine.put("first")
    fork = mine.fork()
    replica = merged(first, *(mine.put(f"a{number}") for number in range(300)))
    for number in range(300):
        replica.merge(fork.put(f"b{number}"), NOW_MS)
    assert judged == 1  # once cut, only what cuts earlier is of interest
    assert replica.faults[mine.id].cut == 2
    assert replica.view("first", NOW_MS) is not None
    assert replica.view("a0", NOW_MS) is None


@pytest.mark.parametrize("step", [1, -1, 7])
def test_twins_of_one_number_go_one_by_one(step: int) -> None:
    mine = chain()
    replica = merged(mine.put("first"))
    twins = [mine.fork().put(f"k{number}") for number in range(20)]
    for twin in twins:
        replica.merge(twin, NOW_MS)
    for index in range(20):
        replica.drop(twins[index * step % 20])
        is_consistent(replica)
    assert len(replica.records) == 1


def test_a_record_by_a_head_that_is_gone_still_tells_a_fork() -> None:
    mine = chain()
    first = mine.put("k")
    fork = mine.fork()
    replica = merged(first, mine.put("x"))
    replica.merge(chain(1, 2).put("x", ms=50), NOW_MS)  # takes the place of the head
    change = replica.merge(fork.write(REGISTER, "y", hlc=first.hlc + 9, value=b"\x01"), NOW_MS)
    assert change.fault is not None
