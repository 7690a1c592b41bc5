"""Who may write: policies, grants handed on, revocations before and after, and who may revoke."""

import pytest

from crdt.authority import Authority
from crdt.entry import ADD, GRANT, LEASE, REGISTER, REVOKE, Record
from crdt.fault import Proofs, judge
from crdt.namespace import Genesis, Grant
from tests.unit.crdt_making import NOW_MS, OPEN, Chain, dot, key_of, listed, signer

OWNER, ANNA, BERT, CARL, DORA = range(5)
LISTED = listed(OWNER)


def chain(author: int, instance: int = 1) -> Chain:
    return Chain(author, LISTED.id, instance)


def authority(*records: Record, proofs: Proofs | None = None) -> Authority:
    """Hand in records in this order; each must be allowed."""
    found = Authority(LISTED, (proofs or Proofs()).is_cut)
    for record in records:
        assert found.gate(record) == ""
        found.add(record)
    return found


def test_in_an_open_namespace_everybody_writes_but_nobody_grants() -> None:
    found = Authority(OPEN, Proofs().is_cut)
    one = Chain()
    assert found.gate(one.put("anything")) == ""
    assert found.gate(one.put("grant")) == ""  # a key like any other
    assert found.gate(one.grant(Grant(key_of(2)))) == "policy"
    assert found.gate(one.revoke(bytes(32))) == "policy"
    assert found.counts(one.put("anything"))


def test_where_owners_write_a_key_needs_its_author_in_it() -> None:
    found = Authority(Genesis(1, "own", None, "owner"), Proofs().is_cut)
    one, peer = Chain(), signer(1).peer
    assert found.gate(one.put(f"member/@{peer}")) == ""
    assert found.gate(one.put("member")) == "policy"
    assert found.gate(one.put("member/@")) == "policy"
    assert found.gate(one.put(f"member/x@{peer}")) == "policy"


def test_where_writers_are_listed_the_owner_writes_and_others_with_its_grant() -> None:
    owner, anna = chain(OWNER), chain(ANNA)
    grant = owner.grant(Grant(key_of(ANNA), prefix="run/"))
    early = anna.put("run/a", grant=grant.id)
    found = authority(owner.put("any"))
    assert found.gate(anna.put("run/a")) == "policy"
    assert found.gate(early) == "no_grant"
    found.add(grant)
    assert found.gate(early) == ""
    assert found.counts(early)
    assert found.gate(anna.put("sun/a", grant=grant.id)) == "policy"
    assert found.gate(chain(BERT).put("run/a", grant=grant.id)) == "policy"
    assert found.gate(owner.put("run/a", grant=grant.id)) == "policy"  # it needs none


def test_a_grant_is_for_its_kinds_and_its_time() -> None:
    owner, anna = chain(OWNER), chain(ANNA)
    grant = owner.grant(
        Grant(key_of(ANNA), kinds=1 << ADD | 1 << LEASE, not_before_ms=NOW_MS + 10,
              not_after_ms=NOW_MS + 20)
    )  # fmt: skip
    found = authority(grant)

    def gate(kind: int, ms: int) -> str:
        expires_ms = NOW_MS + 99 if kind == LEASE else 0
        return found.gate(
            anna.write(kind, "k", ms=ms, value=b"\x01", expires_ms=expires_ms, grant=grant.id)
        )

    assert [gate(ADD, ms) for ms in (9, 10, 20, 21)] == ["policy", "", "", "policy"]
    assert gate(LEASE, 15) == ""
    assert gate(REGISTER, 15) == "policy"


def test_rules_stand_under_their_keys_and_nothing_else_does() -> None:
    owner = chain(OWNER)
    found = authority()
    for key in ("grant", "revoke"):
        assert found.gate(owner.put(key)) == "policy"
    raw = owner.grant(Grant(key_of(ANNA))).entry.value
    assert found.gate(owner.write(GRANT, "elsewhere", value=raw)) == "policy"
    assert found.gate(owner.write(GRANT, "revoke", value=raw)) == "policy"
    assert found.gate(owner.write(GRANT, "grant", value=raw)) == ""
    assert found.gate(owner.write(GRANT, "grant", value=b"\x90")) == "policy"
    assert found.gate(owner.write(REVOKE, "revoke", value=b"\x90")) == "policy"


def test_a_grant_is_handed_on_as_often_as_it_says_and_never_grows() -> None:
    owner, anna, bert, carl = (chain(author) for author in (OWNER, ANNA, BERT, CARL))
    first = owner.grant(Grant(key_of(ANNA), prefix="run/", kinds=1 << ADD, depth=2,
                              not_before_ms=NOW_MS, not_after_ms=NOW_MS + 1000))  # fmt: skip
    found = authority(first)

    def narrower(**changed: object) -> Record:
        fields: dict[str, object] = {
            "subject": key_of(BERT), "prefix": "run/b", "kinds": 1 << ADD, "depth": 1,
            "not_before_ms": NOW_MS, "not_after_ms": NOW_MS + 1000,
        }  # fmt: skip
        return anna.grant(Grant(**(fields | changed)), under=first.id)  # type: ignore[arg-type]

    for changed in (
        {"prefix": "ru"}, {"prefix": "sun"}, {"kinds": 0}, {"kinds": 1 << ADD | 1 << REGISTER},
        {"depth": 2}, {"not_before_ms": NOW_MS - 1}, {"not_after_ms": NOW_MS + 1001},
        {"not_after_ms": 0},
    ):  # fmt: skip
        assert found.gate(narrower(**changed)) == "policy", changed
    second = narrower()
    found.add(second)
    third = bert.grant(
        Grant(key_of(CARL), "run/b", 1 << ADD, NOW_MS, NOW_MS + 1000, 0), under=second.id
    )
    assert found.gate(third) == ""
    found.add(third)
    by_carl = carl.write(ADD, "run/b/x", element=b"\x01", grant=third.id)
    assert found.gate(by_carl) == ""
    assert found.counts(by_carl)
    fourth = carl.grant(
        Grant(key_of(DORA), "run/b", 1 << ADD, NOW_MS, NOW_MS + 1000, 0), under=third.id
    )
    assert found.gate(fourth) == "policy"
    assert [record.id for record, _ in found.grants()] == sorted(
        (one.id for one in (first, second, third)), key=lambda id: found._grants[id].record.stamp
    )


def test_what_a_revocation_does_not_keep_does_not_count_whatever_its_stamp() -> None:
    owner, anna = chain(OWNER), chain(ANNA)
    grant = owner.grant(Grant(key_of(ANNA)))
    kept, lost = anna.put("a", grant=grant.id, ms=500), anna.put("b", grant=grant.id, ms=600)
    dated_back = chain(ANNA, instance=2).put("c", grant=grant.id, ms=100)
    revocation = owner.revoke(grant.id, [dot(kept)], ms=10_000)
    for order in ([grant, revocation], [revocation, grant]):
        found = authority(*order, kept, lost, dated_back)  # all come in: order must not matter
        assert [found.counts(one) for one in (kept, lost, dated_back)] == [True, False, False]
        assert found.is_revoked(grant.id)
        assert set(found.under(grant.id)) == {kept, lost, dated_back}
        found.remove(revocation)
        assert not found.is_revoked(grant.id)
        assert found.counts(lost)


def test_a_number_that_was_left_out_is_no_way_around_a_revocation() -> None:
    owner, anna = chain(OWNER), chain(ANNA)
    grant = owner.grant(Grant(key_of(ANNA)), ms=0)
    hole = anna.fork()
    anna.seq, anna.prev = 1_000_000, b"\1" * 32
    kept = anna.put("a", grant=grant.id, ms=500)
    revocation = owner.revoke(grant.id, [dot(kept)], ms=600)
    found = authority(grant, kept, revocation)
    assert found.counts(kept)
    assert not found.counts(hole.put("b", grant=grant.id, ms=700))


def test_a_second_revocation_does_not_let_stand_what_came_after_the_first() -> None:
    owner, anna = chain(OWNER), chain(ANNA)
    grant = owner.grant(Grant(key_of(ANNA)), ms=0)
    kept = anna.put("a", grant=grant.id, ms=500)
    revocation = owner.revoke(grant.id, [dot(kept)], ms=600)
    found = authority(grant, kept, revocation, anna.put("b", grant=grant.id, ms=550))
    assert found.dots_under(grant.id) == (dot(kept),)


def test_several_revocations_keep_what_all_of_them_keep() -> None:
    owner, anna, bert = chain(OWNER), chain(ANNA), chain(BERT)
    first = owner.grant(Grant(key_of(ANNA), depth=1))
    second = anna.grant(Grant(key_of(BERT)), under=first.id)
    entries = [bert.put(f"k{number}", grant=second.id) for number in range(3)]
    found = authority(first, second, *entries)
    found.add(anna.revoke(second.id, [dot(entries[1])], under=first.id, ms=100))
    assert [found.counts(one) for one in entries] == [True, True, False]
    found.add(owner.revoke(second.id, [dot(entries[0])], ms=100))
    assert [found.counts(one) for one in entries] == [True, False, False]


def test_a_revoked_grant_takes_those_handed_on_with_it_if_it_does_not_keep_them() -> None:
    owner, anna, bert = chain(OWNER), chain(ANNA), chain(BERT)
    first = owner.grant(Grant(key_of(ANNA), depth=1))
    before = anna.grant(Grant(key_of(BERT)), under=first.id)
    after = anna.grant(Grant(key_of(BERT)), under=first.id)
    by_both = [bert.put("a", grant=before.id), bert.put("b", grant=after.id)]
    found = authority(first, before, after, *by_both)
    assert all(map(found.counts, by_both))
    revocation = owner.revoke(first.id, [dot(before)])
    found.add(revocation)
    assert set(found.under(first.id)) == {before, after, *by_both}
    assert [found.counts(one) for one in by_both] == [True, False]


def test_only_those_above_revoke() -> None:
    owner, anna, bert, carl = (chain(author) for author in (OWNER, ANNA, BERT, CARL))
    to_anna = owner.grant(Grant(key_of(ANNA), depth=2))
    to_bert = anna.grant(Grant(key_of(BERT), depth=1), under=to_anna.id)
    to_carl = bert.grant(Grant(key_of(CARL)), under=to_bert.id)
    found = authority(to_anna, to_bert, to_carl)
    assert found.gate(anna.revoke(to_bert.id, under=to_anna.id)) == ""
    assert found.gate(anna.revoke(to_carl.id, under=to_anna.id)) == ""
    assert found.gate(bert.revoke(to_carl.id, under=to_bert.id)) == ""
    assert found.gate(anna.revoke(to_anna.id, under=to_anna.id)) == "policy"
    assert found.gate(bert.revoke(to_bert.id, under=to_bert.id)) == "policy"
    assert found.gate(bert.revoke(to_anna.id, under=to_bert.id)) == "policy"
    assert found.gate(carl.revoke(to_bert.id, under=to_carl.id)) == "policy"
    assert found.gate(bert.revoke(to_carl.id)) == "policy"
    assert found.gate(bert.revoke(bytes(32), under=to_bert.id)) == "no_grant"
    assert found.gate(owner.revoke(bytes(32))) == ""  # it may know what we don't, yet


def test_a_revoked_author_cannot_revoke_in_return() -> None:
    """Two grant each other, and revoke each other: who is above decides, so nobody hangs."""
    owner, anna, bert = chain(OWNER), chain(ANNA), chain(BERT)
    to_anna = owner.grant(Grant(key_of(ANNA), depth=2))
    to_bert = owner.grant(Grant(key_of(BERT), depth=2))
    anna_too = bert.grant(Grant(key_of(ANNA), depth=1), under=to_bert.id)
    bert_too = anna.grant(Grant(key_of(BERT), depth=1), under=to_anna.id)
    found = authority(to_anna, to_bert, anna_too, bert_too)
    by_anna = anna.revoke(bert_too.id, under=to_anna.id)
    by_bert = bert.revoke(anna_too.id, under=to_bert.id)
    for one in (by_anna, by_bert):
        assert found.gate(one) == ""
        found.add(one)
    assert found.counts(by_anna)
    assert found.counts(by_bert)
    assert found.gate(anna.revoke(bert_too.id, under=anna_too.id)) == "policy"
    late = owner.revoke(to_anna.id, [dot(bert_too)])
    found.add(late)
    assert not found.counts(by_anna)
    assert found.counts(bert.put("k", grant=bert_too.id))


def test_a_fork_of_the_granter_ends_what_hangs_on_it() -> None:
    owner, anna, bert = chain(OWNER), chain(ANNA), chain(BERT)
    first = owner.grant(Grant(key_of(ANNA), depth=1))
    second = anna.grant(Grant(key_of(BERT)), under=first.id)
    fork = anna.fork()
    third = anna.grant(Grant(key_of(BERT)), under=first.id)
    by_second, by_third = bert.put("a", grant=second.id), bert.put("b", grant=third.id)
    proofs = Proofs()
    found = authority(first, second, third, by_second, by_third, proofs=proofs)
    proven = judge(third, fork.put("x", grant=first.id))
    assert proven is not None
    proofs.put(proven)
    assert [found.counts(one) for one in (second, third)] == [True, False]
    assert [found.counts(one) for one in (by_second, by_third)] == [True, False]


def test_the_grant_to_write_under_is_found() -> None:
    owner, anna = chain(OWNER), chain(ANNA)
    narrow = owner.grant(Grant(key_of(ANNA), prefix="run/", not_after_ms=NOW_MS + 100))
    deep = owner.grant(Grant(key_of(ANNA), prefix="sun/", depth=1))
    found = authority(narrow, deep)
    me = key_of(ANNA)
    assert found.grant_for(me, REGISTER, "run/a", NOW_MS) == narrow.id
    assert found.grant_for(me, REGISTER, "run/a", NOW_MS + 101) is None
    assert found.grant_for(me, REGISTER, "moon", NOW_MS) is None
    assert found.grant_for(key_of(OWNER), REGISTER, "run/a", NOW_MS) is None
    hand_on = Grant(key_of(BERT), prefix="sun/b")
    assert found.grant_for(me, GRANT, "grant", NOW_MS, grant=hand_on) == deep.id
    handed_on = anna.grant(hand_on, under=deep.id)
    found.add(handed_on)
    assert found.grant_for(me, REVOKE, "revoke", NOW_MS, revoked=handed_on.id) == deep.id
    assert found.grant_for(me, REVOKE, "revoke", NOW_MS, revoked=narrow.id) is None
    found.add(owner.revoke(deep.id))
    assert found.grant_for(me, REGISTER, "sun/a", NOW_MS) is None


def test_the_dots_of_a_grant_name_the_latest_of_each_chain_under_it() -> None:
    owner = chain(OWNER)
    grant = owner.grant(Grant(key_of(ANNA)))
    chains = [chain(ANNA, instance) for instance in range(70)]
    last = [[one.put("a", grant=grant.id, ms=ms) for _ in range(2)][-1]
            for ms, one in enumerate(chains)]  # fmt: skip
    found = authority(grant, *last)
    dots = found.dots_under(grant.id)
    assert len(dots) == 64
    assert set(dots) == {dot(one) for one in last[-64:]}
    assert list(dots) == sorted(dots, key=lambda one: one.chain)
    assert found.dots_under(bytes(32)) == ()


@pytest.mark.parametrize("removed", ["grant", "entry"])
def test_what_is_gone_is_forgotten(removed: str) -> None:
    owner, anna = chain(OWNER), chain(ANNA)
    grant = owner.grant(Grant(key_of(ANNA)))
    one = anna.put("a", grant=grant.id)
    found = authority(grant, one)
    if removed == "grant":
        assert found.remove(grant) == [one]
        assert found.gate(one) == "no_grant"
        assert not found.counts(one)
    else:
        assert found.remove(one) == []
        assert list(found.under(grant.id)) == []
