"""Proof documents: what they show, what a third party refuses, and why."""

import hashlib

import pytest

from crdt.entry import (
    ADD,
    COUNTER,
    LEASE,
    MULTI,
    REGISTER,
    REMOVE,
    REVOKE,
    Counted,
    Dot,
    is_signed,
)
from crdt.namespace import Revoke
from crdt.proof import prove, shown_records, verify
from crdt.replica import Replica
from tests.soak.crdt_histories import GC_MS, deliver, draw
from tests.soak.crdt_histories import KEYS as DRAWN_KEYS
from tests.unit.proof_making import (
    ANN,
    BEN,
    LISTED,
    NOW_MS,
    OPEN,
    PROVER,
    Pen,
    Team,
    decoder,
    forked,
    replica_of,
    shown_by,
    summary,
    summary_of,
)
from wire import codec

# What it shows


def test_a_register_is_shown_with_its_author_and_who_attests_it() -> None:
    record = Pen(ANN).write(REGISTER, "run/a", 7)
    verdict = shown_by(replica_of(OPEN, record), "run/a")
    assert verdict.is_present
    assert verdict.view is not None
    assert verdict.view.latest.peer == ANN.peer
    assert verdict.view.latest.entry.value == codec.encode(7)
    assert (verdict.attester, verdict.attested_ms) == (PROVER.peer, NOW_MS)
    assert (verdict.entries, verdict.faults) == (1, 0)
    assert "newest" in verdict.not_proven[1]
    assert "shows the given value" in verdict.proven[0]
    assert len(verdict.not_proven) == 2


@pytest.mark.parametrize("count", [0, 1, 2, 300])
def test_a_key_that_is_not_there_is_shown_to_be_absent(count: int) -> None:
    pen = Pen(ANN, now_ms=NOW_MS - 400_000)
    records = [pen.write(REGISTER, f"k/{number}", number) for number in range(count)]
    replica = replica_of(OPEN, *records)
    verdict = shown_by(replica, "away")
    assert not verdict.is_present
    assert verdict.entries == 0
    assert "shows nothing" in verdict.proven[0]


def test_every_kind_is_folded_by_the_third_party() -> None:
    ann, ben = Pen(ANN), Pen(BEN, now_ms=NOW_MS - 59_500)
    ann.write(REGISTER, "reg", "old")
    ben.write(REGISTER, "reg", "new")
    for pen in (ann, ben):
        pen.write(COUNTER, "count", Counted(5, 2))
        pen.write(MULTI, "multi", pen.signer.peer)
        pen.write(ADD, "set", element=b"\x01")
        pen.write(ADD, "map", 3, element=b"\x01")
    ben.write(REMOVE, "set", element=b"\x01", seen=(Dot(ann.chain, 99),))
    ann.write(REGISTER, "gone", 1)
    ann.write(REGISTER, "gone")
    replica = replica_of(OPEN, *ann.written, *ben.written)
    kinds = {key: shown_by(replica, key).view for key in ("reg", "count", "multi", "set", "map")}
    assert [view and view.kind for view in kinds.values()] == [
        "register", "counter", "multi", "set", "map",
    ]  # fmt: skip
    count, multi = kinds["count"], kinds["multi"]
    assert count is not None
    assert count.total == 6
    assert multi is not None
    assert len(multi.values) == 2
    gone = shown_by(replica, "gone")
    assert not gone.is_present
    assert gone.entries == 1  # the tombstone proves it


def test_a_lease_is_held_to_the_time_that_is_asked_about() -> None:
    lease = Pen(ANN).write(LEASE, "seat", 1, expires_ms=NOW_MS + 10_000)
    replica = replica_of(OPEN, lease)
    assert shown_by(replica, "seat").is_present
    assert shown_by(replica, "seat", now_ms=NOW_MS + 9_999).is_present
    late = shown_by(replica, "seat", now_ms=NOW_MS + 10_000)
    assert not late.is_present
    assert late.at_ms == NOW_MS + 10_000


# Listed writers


def test_a_handed_on_grant_is_shown_up_to_the_owner_and_no_others_are() -> None:
    team = Team()
    document = prove(team.replica(), "run/a", PROVER, NOW_MS)
    verdict = shown_by(team.replica(), "run/a")
    assert verdict.is_present
    slots = decoder.decode(document).slots
    assert [len(slot.entries) for slot in slots] == [1, 2, 0]
    assert slots[1].others == (team.stranger,)
    assert verdict.entries == 3


def test_a_revocation_by_one_who_granted_is_shown_with_what_it_rests_on() -> None:
    team = Team()
    team.ann.write(REVOKE, "revoke", Revoke(team.ben.grant or b""))
    verdict = shown_by(team.replica(), "away")
    assert verdict.entries == 3  # the revocation, Ann's grant, and Ben's
    assert not shown_by(team.replica(), "run/a").is_present


def test_a_grant_handed_on_by_a_slow_clock_comes_before_the_one_above_it() -> None:
    team = Team(ann=Pen(ANN, LISTED, now_ms=NOW_MS - 90_000))
    assert team.ann.written[0].stamp < team.owner.written[0].stamp
    assert shown_by(team.replica(), "run/a").is_present


def test_what_is_dead_and_not_yet_collected_is_in_the_state_still() -> None:
    pen = Pen(ANN, now_ms=NOW_MS - OPEN.rules.gc_ms)
    replica = replica_of(OPEN, pen.write(REGISTER, "a"))
    late_ms = NOW_MS + 10_000
    assert replica.refusal(pen.written[0], late_ms) == "dead"
    verdict = verify(OPEN.id, prove(replica, "a", PROVER, late_ms), root=replica.root())
    assert (verdict.is_present, verdict.entries) == (False, 1)


def test_the_rules_themselves_can_be_proven() -> None:
    replica = Team().replica()
    for key, slots in (("grant", 2), ("revoke", 2), ("run/a", 3)):
        document = prove(replica, key, PROVER, NOW_MS)
        assert len(decoder.decode(document).slots) == slots
        assert verify(LISTED.id, document).is_present == (key == "run/a")


def test_an_entry_whose_grant_is_not_held_is_shown_and_does_not_count() -> None:
    team = Team()
    replica = Replica(LISTED)
    replica.merge(team.ben.written[0], NOW_MS)
    verdict = shown_by(replica, "run/a")
    assert verdict.entries == 1
    assert not verdict.is_present


# Faults


def test_what_comes_after_a_fork_does_not_count_for_third_parties_either() -> None:
    replica = forked()
    verdict = shown_by(replica, "run/a")
    assert verdict.view is not None
    assert verdict.view.latest.peer == BEN.peer
    assert (verdict.entries, verdict.faults) == (2, 1)
    assert shown_by(replica, "safe").is_present
    assert not shown_by(replica, "run/b").is_present
    assert decoder.decode(prove(replica, "away", PROVER, NOW_MS)).faults == ()


# Whole histories


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("first", [0, 60, 120])
def test_a_third_party_sees_what_the_replica_shows_after_any_history(
    first: int, listed: bool
) -> None:
    present = 0
    for seed in range(first, first + 60):
        history = draw(seed, listed=listed)
        history.rng.shuffle(history.records)
        replica = Replica(history.genesis)
        deliver(replica, history.records, NOW_MS)
        at_ms = NOW_MS + history.rng.choice((0, GC_MS // 3))
        replica.pop_due(at_ms)
        for key in (*DRAWN_KEYS, "grant", "revoke", "away"):
            drop_wrong(replica, key)
            verdict = verify(replica.id, prove(replica, key, PROVER, at_ms), root=replica.root())
            assert summary(verdict) == summary_of(replica, key, at_ms), (seed, key)
            present += verdict.is_present
    assert present > 30


def drop_wrong(replica: Replica, key: str) -> None:
    """Do what a service does before it proves: let go of entries whose signature is wrong."""
    while wrong := [
        one for part in shown_records(replica, key) for one in part if not is_signed(one)
    ]:
        for record in wrong:
            replica.drop(record)


def test_ids_of_hashes_are_what_the_format_says() -> None:
    """The document's root by hand, from the specification alone."""
    record = Pen(ANN).write(REGISTER, "a", 1)
    replica = replica_of(OPEN, record)

    def sha(*parts: bytes) -> bytes:
        return hashlib.sha256(b"".join(parts)).digest()

    leaf = sha(b"\0", sha(b"a"), sha(sha(record.signed.body)))
    assert replica.root() == sha(b"crdt/state/1\0", OPEN.id, leaf, sha(b"crdt/faults/1\0"))
    assert verify(OPEN.id, prove(replica, "a", PROVER, NOW_MS)).root == replica.root()
