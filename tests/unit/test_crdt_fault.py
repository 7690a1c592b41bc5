"""Proofs of faults: what proves one, where it cuts, and what proves nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt import fault
from crdt.entry import REGISTER, Record, Signed
from crdt.fault import (
    AUTHOR_FAULTS_MAX,
    FAULT_MAX,
    HIGHEST,
    WHOLE,
    Fault,
    Proofs,
    Proven,
    check,
    fault_decoder,
    is_suspect,
    judge,
)
from tests.unit.crdt_making import NOW_MS, Chain, missigned, unsigned
from wire import codec
from wire.errors import BadMessage


def proof(a: Record, b: Record) -> Proven:
    """Whoever saw both proves it, in whatever order; anybody checks it, from bytes."""
    assert is_suspect(a, b) or not (a.is_checked and b.is_checked)
    found = judge(unsigned(a), unsigned(b))
    assert found is not None
    other_way = judge(unsigned(b), unsigned(a))
    assert other_way is not None
    assert other_way.digest == found.digest
    raw = codec.encode(found.fault)
    assert len(raw) <= FAULT_MAX
    checked = check(codec.decode(raw, fault_decoder, FAULT_MAX))
    for one in (found, checked):
        assert (one.namespace, one.author, one.chain) == (a.namespace, a.author, a.chain)
    assert (checked.rank, checked.digest) == (found.rank, found.digest)
    return found


def no_proof(a: Record, b: Record) -> None:
    assert judge(unsigned(a), unsigned(b)) is None
    for first, second in ((a, b), (b, a)):
        with pytest.raises(BadMessage, match="no proof"):
            check(Fault(first.signed, second.signed))


def test_two_entries_of_one_number_cut_there() -> None:
    chain = Chain()
    chain.put("a")
    fork = chain.fork()
    one, other = chain.put("a", 1), fork.put("b", 2)
    assert proof(one, other).cut == 2
    assert proof(chain.put("a", 1), fork.put("b", 2)).cut == 3  # the fork may have gone on


def test_a_follower_that_names_another_predecessor_cuts_before_it() -> None:
    chain = Chain()
    chain.put("a")
    fork = chain.fork()
    second, _ = chain.put("a", 1), fork.put("b", 2)
    assert proof(second, fork.put("b", 3)).cut == 2


def test_a_stamp_that_does_not_grow_cuts_at_the_earlier_number() -> None:
    chain = Chain()
    first = chain.put("a", ms=1000)
    same = chain.write(REGISTER, "b", hlc=first.hlc, value=b"\x01")
    assert proof(first, same).cut == 1
    second = chain.put("a", ms=1500)
    assert proof(second, chain.put("b", ms=1499)).cut == 3
    no_proof(first, chain.put("b", ms=1001))


def test_a_counter_that_falls_proves_nothing() -> None:
    """Its author's last entry may have been collected."""
    chain = Chain()
    first = chain.count("hits", 5, 3)
    no_proof(first, chain.count("hits", 4, 3))
    no_proof(first, chain.count("hits", 0, 0))


def test_a_wrong_signature_that_the_author_went_on_from_cuts_all() -> None:
    chain = Chain()
    chain.put("a")
    bad = missigned(chain.put("b"))
    chain.prev = bad.link
    after = chain.put("c")
    assert proof(bad, after).cut == WHOLE
    no_proof(bad, chain.put("d"))  # not its follower: the signature may be the relay's doing


def test_a_wrong_signature_that_the_author_did_not_go_on_from_proves_nothing() -> None:
    chain = Chain()
    first = chain.put("a")
    fork = chain.fork()
    second = chain.put("b")
    no_proof(missigned(first), second)
    no_proof(first, missigned(second))
    other = fork.put("b", 2)
    no_proof(missigned(second), other)
    no_proof(second, missigned(other))


def test_what_is_in_order_proves_nothing() -> None:
    chain, other, elsewhere = Chain(), Chain(instance=2), Chain(namespace=bytes(32))
    one, two, three = chain.put("a"), chain.put("b"), chain.put("c")
    for a, b in ((one, two), (two, three), (one, three), (one, one)):
        assert not is_suspect(a, b)
        no_proof(a, b)
    no_proof(one, other.put("a", 2))  # another instance
    no_proof(one, elsewhere.put("a", 2))  # another namespace
    no_proof(one, Chain(author=2).put("a", 2))


def test_a_proof_has_one_form() -> None:
    chain = Chain()
    fork = chain.fork()
    one, other = sorted((chain.put("a"), fork.put("b")), key=lambda record: record.id)
    assert check(Fault(one.signed, other.signed)).cut == 1
    with pytest.raises(BadMessage, match="no proof"):
        check(Fault(other.signed, one.signed))
    with pytest.raises(BadMessage):
        check(Fault(one.signed, Signed(b"\x90", bytes(64))))


@given(st.binary(max_size=200))
def test_any_bytes_as_a_proof(raw: bytes) -> None:
    try:
        fault = codec.decode(raw, fault_decoder, FAULT_MAX)
        check(fault)
    except BadMessage:
        return
    raise AssertionError("random bytes were a proof")


def forks(author: int, instance: int, at: int = 1, key: str = "b") -> Proven:
    chain = Chain(author, instance=instance)
    for _ in range(at - 1):
        chain.put("a")
    fork = chain.fork()
    found = judge(chain.put("a"), fork.put(key))
    assert found is not None
    return found


def test_of_several_proofs_for_a_chain_the_earliest_cut_stays_then_the_smaller() -> None:
    late, early, twin = forks(1, 1, at=5), forks(1, 1, at=3), forks(1, 1, at=3, key="c")
    kept = min(early, twin, key=lambda one: one.digest)
    for order in ((late, early, twin), (twin, late, early), (early, twin, late)):
        proofs = Proofs()
        cuts = [proofs.put(one) for one in order]
        assert cuts[0] == HIGHEST
        assert proofs.by_chain == {kept.chain: kept} or proofs.by_chain[late.chain] is kept
        assert proofs.cut_of(late.chain) == 3
        assert proofs.put(late) == proofs.put(kept) == 0
    assert Proofs().cut_of(late.chain) == HIGHEST


def test_a_proof_does_not_touch_what_is_before_its_cut_nor_other_chains() -> None:
    proofs = Proofs()
    proofs.put(forks(1, 1, at=3))
    chain = Chain()
    records = [chain.put("a") for _ in range(4)]
    assert [proofs.is_cut(one) for one in records] == [False, False, True, True]
    assert not any(proofs.is_out(one) for one in records)
    assert not proofs.is_cut(Chain(instance=2).put("a"))
    proofs.put(forks(1, 1, at=1))
    assert all(proofs.is_cut(one) and proofs.is_out(one) for one in records)


def test_proofs_of_many_authors_stay_few_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fault, "FAULTS_MAX", 3)
    monkeypatch.setattr(fault, "AUTHOR_FAULTS_MAX", 2)
    found = [forks(author, instance, at=2) for author in range(4) for instance in range(4)]
    by_author = [sorted(one.chain for one in found[at : at + 4])[:2] for at in range(0, 16, 4)]
    kept = sorted(one for part in by_author for one in part)[:3]
    for order in (found, found[::-1], found[::3] + found[1::3] + found[2::3] + found):
        proofs, gone = Proofs(), set[bytes]()
        for one in order:
            if proofs.put(one):
                trimmed = proofs.trim()
                gone |= {trimmed.chain} if trimmed is not None else set()
            assert proofs.trim() is None
        assert sorted(proofs.by_chain) == kept
        assert gone.isdisjoint(kept)
        out = {one.author for one in found if proofs.is_author_out(one.author)}
        assert out == {one.author for one in found if _kept_of(one.author, found, kept) == 2}


def _kept_of(author: bytes, found: list[Proven], kept: list[bytes]) -> int:
    return sum(one.author == author and one.chain in kept for one in found)


def test_an_author_of_many_faults_is_out_and_its_proofs_stay_few_in_any_order() -> None:
    found = [forks(1, instance, at=2) for instance in range(AUTHOR_FAULTS_MAX + 3)]
    kept = sorted(one.chain for one in found)[:AUTHOR_FAULTS_MAX]
    innocent = Chain(author=1, instance=1000).put("a")
    for order in (found, found[::-1], found + found):
        proofs = Proofs()
        for count, one in enumerate(order, 1):
            proofs.put(one)
            assert proofs.is_author_out(one.author) == (count >= AUTHOR_FAULTS_MAX)
        assert sorted(proofs.by_chain) == kept
        assert proofs.is_out(innocent)
        assert proofs.is_cut(innocent)
        assert not proofs.is_out(Chain(author=2).put("a"))
    assert innocent.wall_ms == NOW_MS
