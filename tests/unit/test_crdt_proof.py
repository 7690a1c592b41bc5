"""Proof documents: what they show, what a third party refuses, and why."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crdt import proof
from crdt.clock import stamp
from crdt.entry import (
    ADD,
    COUNTER,
    GRANT,
    LEASE,
    MULTI,
    NO_LINK,
    REGISTER,
    REMOVE,
    REVOKE,
    Counted,
    Dot,
    Entry,
    Record,
    Signed,
    is_signed,
    seal,
    unseal,
)
from crdt.fault import check
from crdt.namespace import Genesis, Grant, Revoke, Rules, open_genesis
from crdt.proof import PROOF_MAX, Attest, Proof, Root, Verdict, prove, verify
from crdt.replica import Replica
from crdt.tree import Leaf, faults_digest, root_by, state_root
from wire import codec
from wire.errors import BadMessage, ShoalError, UsageError
from wire.ids import Signer, public_key_of

NOW_MS = 1_800_000_000_000
OWNER, ANN, BEN, EVE = (Signer(bytes([number]) * 32) for number in range(1, 5))
PROVER = Signer(bytes([9]) * 32)
OPEN = open_genesis("runs")
LISTED = Genesis(1, "team", public_key_of(OWNER.peer), "list", b"s", Rules())
decoder = msgspec.msgpack.Decoder(Proof)


@dataclass
class Pen:
    """Writes a chain of one author in one namespace, entry after entry."""

    signer: Signer
    genesis: Genesis = OPEN
    instance: bytes = bytes(8)
    now_ms: int = NOW_MS - 60_000
    last: Record | None = None
    grant: bytes | None = None
    written: list[Record] = field(default_factory=list[Record])

    def write(self, kind: int, key: str, value: object = None, **fields: object) -> Record:
        """Sign the next entry, a second later than the one before."""
        self.now_ms += 1_000
        seq, prev = (self.last.seq + 1, self.last.link) if self.last is not None else (1, NO_LINK)
        entry = Entry(
            1,
            self.genesis.id,
            public_key_of(self.signer.peer),
            self.instance,
            seq,
            prev,
            stamp(self.now_ms),
            kind,
            key,
            value=None if value is None else codec.encode(value),
            grant=self.grant,
        )
        self.last = seal(msgspec.structs.replace(entry, **fields), self.signer)
        self.written.append(self.last)
        return self.last

    @property
    def chain(self) -> bytes:
        """The chain's name."""
        assert self.last is not None
        return self.last.chain


def replica_of(genesis: Genesis, *records: Record) -> Replica:
    replica = Replica(genesis)
    for record in records:
        reason = replica.refusal(record, NOW_MS)
        assert not reason, reason
        replica.merge(record, NOW_MS)
    return replica


def shown_by(replica: Replica, key: str, **given: int) -> Verdict:
    """Prove and verify; what the third party sees must be what the replica shows."""
    verdict = verify(replica.id, prove(replica, key, PROVER, NOW_MS), root=replica.root(), **given)
    assert summary(verdict) == summary_of(replica, key, verdict.at_ms)
    return verdict


def summary(verdict: Verdict) -> object:
    view = verdict.view
    return view and (view.kind, view.latest.id, [one.id for one in view.values], view.total)


def summary_of(replica: Replica, key: str, now_ms: int) -> object:
    view = replica.view(key, now_ms)
    return view and (view.kind, view.latest.id, [one.id for one in view.values], view.total)


def forged(document: bytes, **fields: object) -> bytes:
    """Change fields of a document, and attest what comes out as if it were so."""
    changed = msgspec.structs.replace(decoder.decode(document), **fields)
    keys = [changed.key, *(one for one in ("grant", "revoke") if one != changed.key)]
    slot = changed.slots[0]
    ids = sorted([*(unseal(one).id for one in slot.entries), *slot.others])
    tree_root = root_by(keys[0], ids, slot.path)
    faults = faults_digest((one.chain, one.cut, one.digest) for one in changed.cuts)
    root = Root(changed.genesis.id, state_root(changed.genesis.id, tree_root, faults), NOW_MS)
    attest = Attest(public_key_of(EVE.peer), NOW_MS, EVE.sign(proof.TAG, codec.encode(root)))
    return codec.encode(msgspec.structs.replace(changed, attest=attest))


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


def granted(pen: Pen, subject: Signer, **fields: object) -> bytes:
    grant = msgspec.structs.replace(Grant(public_key_of(subject.peer)), **fields)
    return pen.write(GRANT, "grant", grant).id


@dataclass
class Team:
    """A namespace whose owner granted Ann, who handed it on to Ben; others have grants too."""

    owner: Pen = field(default_factory=lambda: Pen(OWNER, LISTED))
    ann: Pen = field(default_factory=lambda: Pen(ANN, LISTED, now_ms=NOW_MS - 40_000))
    ben: Pen = field(default_factory=lambda: Pen(BEN, LISTED, now_ms=NOW_MS - 30_000))

    def __post_init__(self) -> None:
        self.ann.grant = granted(self.owner, ANN, depth=2)
        self.stranger = granted(self.owner, EVE, prefix="eve/")
        self.ben.grant = granted(self.ann, BEN, prefix="run/")
        self.ben.write(REGISTER, "run/a", "ben's")

    def replica(self) -> Replica:
        """All that they wrote."""
        return replica_of(LISTED, *self.owner.written, *self.ann.written, *self.ben.written)


def test_a_handed_on_grant_is_shown_up_to_the_owner_and_no_others_are() -> None:
    team = Team()
    document = prove(team.replica(), "run/a", PROVER, NOW_MS)
    verdict = shown_by(team.replica(), "run/a")
    assert verdict.is_present
    slots = decoder.decode(document).slots
    assert [len(slot.entries) for slot in slots] == [1, 2, 0]
    assert slots[1].others == (team.stranger,)
    assert verdict.entries == 3


def test_a_revocation_takes_effect_and_cannot_be_kept_back() -> None:
    team = Team()
    before = team.replica()
    assert team.ann.grant is not None
    team.owner.now_ms = NOW_MS - 20_000
    team.owner.write(REVOKE, "revoke", Revoke(team.ben.grant or b""))
    after = team.replica()
    verdict = shown_by(after, "run/a")
    assert not verdict.is_present
    assert verdict.entries == 4
    document = prove(after, "run/a", PROVER, NOW_MS)
    old = decoder.decode(prove(before, "run/a", PROVER, NOW_MS))
    slots = decoder.decode(document).slots
    for slot in (old.slots[2], msgspec.structs.replace(slots[2], entries=())):
        with pytest.raises(BadMessage, match=r"not of one state|in its stead"):
            verify(LISTED.id, forged(document, slots=(*slots[:2], slot)))
    hidden = msgspec.structs.replace(slots[2], entries=(), others=(unseal(slots[2].entries[0]).id,))
    with pytest.raises(BadMessage, match="under 'revoke' are kept back"):
        verify(LISTED.id, forged(document, slots=(*slots[:2], hidden)))


def test_a_grant_that_matters_cannot_be_kept_back() -> None:
    document = prove(Team().replica(), "run/a", PROVER, NOW_MS)
    slots = decoder.decode(document).slots
    for keep in (0, 1):
        ids = sorted([*slots[1].others, unseal(slots[1].entries[1 - keep]).id])
        kept = msgspec.structs.replace(
            slots[1], entries=(slots[1].entries[keep],), others=tuple(ids)
        )
        with pytest.raises(BadMessage, match=r"grant behind .* is kept back"):
            verify(LISTED.id, forged(document, slots=(slots[0], kept, slots[2])))


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


def test_an_entry_that_the_rules_forbid_is_refused() -> None:
    team = Team()
    team.ben.write(REGISTER, "other/a", 1)  # beyond the prefix of his grant
    replica = Replica(LISTED)
    for record in (*team.owner.written, *team.ann.written, *team.ben.written):
        replica.merge(record, NOW_MS)
    with pytest.raises(BadMessage, match=r"'other/a'.*policy"):
        verify(LISTED.id, prove(replica, "other/a", PROVER, NOW_MS))


# Faults


def forked() -> Replica:
    """Ann forks her chain at 2; what she wrote there and later does not count."""
    ann, ben = Pen(ANN), Pen(BEN, now_ms=NOW_MS - 90_000)
    first = ann.write(REGISTER, "safe", 1)
    left = ann.write(REGISTER, "run/a", "left")
    twin = Pen(ANN, now_ms=ann.now_ms, last=first)
    right = twin.write(REGISTER, "run/b", "right")
    bens = ben.write(REGISTER, "run/a", "ben's")
    replica = replica_of(OPEN, first, bens, left, right)
    assert len(replica.faults) == 1
    return replica


def test_what_comes_after_a_fork_does_not_count_for_third_parties_either() -> None:
    replica = forked()
    verdict = shown_by(replica, "run/a")
    assert verdict.view is not None
    assert verdict.view.latest.peer == BEN.peer
    assert (verdict.entries, verdict.faults) == (2, 1)
    assert shown_by(replica, "safe").is_present
    assert not shown_by(replica, "run/b").is_present
    assert decoder.decode(prove(replica, "away", PROVER, NOW_MS)).faults == ()


def test_a_proof_of_a_fault_cannot_be_kept_back_changed_or_invented() -> None:
    replica = forked()
    document = prove(replica, "run/a", PROVER, NOW_MS)
    whole = decoder.decode(document)
    cut, fault = whole.cuts[0], whole.faults[0]
    with pytest.raises(BadMessage, match="about the state"):
        verify(OPEN.id, forged(document, cuts=(), faults=()), root=replica.root())
    with pytest.raises(BadMessage, match="0 proofs of faults are shown, 1 are due"):
        verify(OPEN.id, forged(document, faults=()))
    with pytest.raises(BadMessage, match="1 proofs of faults are shown, 0 are due"):
        verify(OPEN.id, forged(document, cuts=()))
    later = msgspec.structs.replace(cut, cut=cut.cut + 1)
    with pytest.raises(BadMessage, match="not the one named"):
        verify(OPEN.id, forged(document, cuts=(later,)))
    for pair in ((fault.first, fault.first), (fault.second, fault.first)):
        wrong = msgspec.structs.replace(fault, first=pair[0], second=pair[1])
        with pytest.raises(BadMessage, match="no proof of a fault"):
            verify(OPEN.id, forged(document, faults=(wrong,)))
    with pytest.raises(BadMessage, match="not in order"):
        verify(OPEN.id, forged(document, cuts=(cut, cut), faults=(fault, fault)))


def test_a_fault_in_another_namespace_is_none_here() -> None:
    elsewhere = open_genesis("models")
    ann = Pen(ANN, elsewhere)
    ann.write(REGISTER, "a", 1)
    Pen(ANN, elsewhere).write(REGISTER, "b", 2)
    twins = [*ann.written, Pen(ANN, elsewhere).write(REGISTER, "b", 2)]
    proven = next(iter(replica_of(elsewhere, *twins).faults.values()))
    here = replica_of(OPEN, Pen(ANN).write(REGISTER, "a", 1))
    document = prove(here, "a", PROVER, NOW_MS)
    cuts = (proof._cut_of(proven),)  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(BadMessage, match="not the one named"):
        verify(OPEN.id, forged(document, cuts=cuts, faults=(proven.fault,)))
    assert check(proven.fault).cut == 1


def test_entries_that_contradict_each_other_need_their_proof_of_a_fault() -> None:
    pen = Pen(ANN)
    first, left = pen.write(REGISTER, "a", 1), pen.write(MULTI, "m", 1)
    right = Pen(ANN, now_ms=pen.now_ms, last=first).write(ADD, "m", element=b"\x01")
    replica = replica_of(OPEN, left)
    slot = decoder.decode(prove(replica, "m", PROVER, NOW_MS)).slots[0]
    both = tuple(one.signed for one in sorted((left, right), key=lambda record: record.id))
    document = prove(replica, "m", PROVER, NOW_MS)
    with pytest.raises(BadMessage, match="prove a fault"):
        verify(OPEN.id, forged(document, slots=(msgspec.structs.replace(slot, entries=both),)))


# What is refused


def busy() -> Replica:
    """Three authors, a fork, and a few more keys than fit a bucket."""
    replica = forked()
    pen = Pen(BEN, instance=bytes([1] * 8))
    for number in range(40):
        replica.merge(pen.write(REGISTER, f"k/{number}", number), NOW_MS)
    return replica


@pytest.mark.parametrize("key", ["run/a", "k/3", "away"])
@pytest.mark.parametrize("flip", [0x01, 0x80])
def test_a_change_of_any_byte_is_refused(key: str, flip: int) -> None:
    document = prove(busy(), key, PROVER, NOW_MS)
    for position in range(len(document)):
        changed = bytearray(document)
        changed[position] ^= flip
        with pytest.raises(BadMessage):
            verify(OPEN.id, bytes(changed))


def test_a_change_of_any_byte_of_a_listed_namespace_is_refused() -> None:
    document = prove(Team().replica(), "run/a", PROVER, NOW_MS)
    for position in range(len(document)):
        changed = bytearray(document)
        changed[position] ^= 0x04
        with pytest.raises(BadMessage):
            verify(LISTED.id, bytes(changed))


@given(st.integers(0, 5_000), st.binary(max_size=8), st.integers(0, 8))
def test_no_splice_of_bytes_is_accepted(at: int, new: bytes, gone: int) -> None:
    document = DOCUMENT
    at %= len(document)
    spliced = document[:at] + new + document[at + gone :]
    if spliced != document:
        with pytest.raises(BadMessage):
            verify(OPEN.id, spliced)


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(frame: bytes) -> None:
    with pytest.raises(BadMessage):
        verify(OPEN.id, frame)


def test_a_proof_of_one_key_is_none_of_another() -> None:
    replica = busy()
    keys = ("run/a", "run/b", "k/1", "k/2", "away", "gone")
    parts = {key: decoder.decode(prove(replica, key, PROVER, NOW_MS)) for key in keys}
    for key in keys:
        for other in keys:
            if other != key:
                moved = msgspec.structs.replace(parts[key], key=other)
                with pytest.raises(BadMessage):
                    verify(OPEN.id, codec.encode(moved))
                for slot in (parts[key].slots[0], parts[other].slots[0]):
                    with pytest.raises(BadMessage):
                        verify(
                            OPEN.id,
                            forged(codec.encode(moved), slots=(slot,)),
                            root=replica.root() if slot is not parts[other].slots[0] else bytes(32),
                        )


def test_nobody_denies_an_entry_that_is_there() -> None:
    replica = busy()
    document = prove(replica, "k/1", PROVER, NOW_MS)
    slot = decoder.decode(document).slots[0]
    leaf = Leaf(bytes(32), bytes(32))
    for path in (
        slot.path,
        msgspec.structs.replace(slot.path, siblings=slot.path.siblings[:-1]),
        msgspec.structs.replace(slot.path, other=leaf),
    ):
        for entries in ((), slot.entries):
            if (path, entries) != (slot.path, slot.entries):
                denied = msgspec.structs.replace(slot, path=path, entries=entries)
                with pytest.raises(BadMessage):
                    verify(OPEN.id, refit(document, slots=(denied,)), root=replica.root())


def refit(document: bytes, **fields: object) -> bytes:
    """Change fields, and leave the attestation as it is."""
    return codec.encode(msgspec.structs.replace(decoder.decode(document), **fields))


def test_what_it_is_about_must_be_what_was_asked() -> None:
    replica = replica_of(OPEN, Pen(ANN).write(REGISTER, "a", 1))
    document = prove(replica, "a", PROVER, NOW_MS)
    with pytest.raises(BadMessage, match="about the namespace"):
        verify(LISTED.id, document)
    with pytest.raises(BadMessage, match="about the state"):
        verify(OPEN.id, document, root=bytes(32))
    with pytest.raises(BadMessage, match="90 s from now"):
        verify(OPEN.id, document, now_ms=NOW_MS - 90_000)
    assert verify(OPEN.id, document, now_ms=NOW_MS - 30_000).is_present
    unknown = verify(OPEN.id, document)
    assert "any other replica" in unknown.not_proven[-1]
    other = msgspec.structs.replace(decoder.decode(document).attest, author=public_key_of(EVE.peer))
    with pytest.raises(BadMessage, match="has not attested"):
        verify(OPEN.id, refit(document, attest=other))


def wrong_entries(right: Record) -> dict[str, Signed]:
    body, signature = right.signed.body, right.signed.signature
    elsewhere = Pen(ANN, open_genesis("models")).write(REGISTER, "a", 1)
    ahead = Pen(ANN, now_ms=NOW_MS + 60_000).write(REGISTER, "a", 1)
    other_key = Pen(ANN).write(REGISTER, "b", 1)
    return {
        "wrong signature": Signed(body, signature[:-1] + bytes([signature[-1] ^ 1])),
        "stands in the slot": elsewhere.signed,
        "future": ahead.signed,
        "slot of 'a'": other_key.signed,
    }


@pytest.mark.parametrize(
    "reason", ["wrong signature", "stands in the slot", "future", "slot of 'a'"]
)
def test_a_wrong_entry_is_refused_though_a_root_commits_to_it(reason: str) -> None:
    right = Pen(ANN).write(REGISTER, "a", 1)
    document = prove(replica_of(OPEN, right), "a", PROVER, NOW_MS)
    slot = msgspec.structs.replace(
        decoder.decode(document).slots[0], entries=(wrong_entries(right)[reason],)
    )
    with pytest.raises(BadMessage, match=reason):
        verify(OPEN.id, forged(document, slots=(slot,)))


def test_entries_are_complete_in_order_and_each_once() -> None:
    ann, ben = Pen(ANN).write(REGISTER, "a", 1), Pen(BEN).write(REGISTER, "a", 2)
    replica = replica_of(OPEN, ann, ben)
    document = prove(replica, "a", PROVER, NOW_MS)
    slot = decoder.decode(document).slots[0]
    first, second = slot.entries
    for entries in ((second, first), (first, first, second)):
        with pytest.raises(BadMessage, match="not in order"):
            verify(
                OPEN.id, forged(document, slots=(msgspec.structs.replace(slot, entries=entries),))
            )
    less = msgspec.structs.replace(slot, entries=(first,))
    with pytest.raises(BadMessage, match="about the state"):
        verify(OPEN.id, forged(document, slots=(less,)), root=replica.root())
    hidden = msgspec.structs.replace(slot, entries=(first,), others=(unseal(second).id,))
    with pytest.raises(BadMessage, match="kept back"):
        verify(OPEN.id, forged(document, slots=(hidden,)), root=replica.root())
    with pytest.raises(BadMessage, match="2 slots, not 1"):
        verify(OPEN.id, forged(document, slots=(slot, slot)))


def test_two_entries_at_one_place_are_no_state_of_any_replica() -> None:
    pen = Pen(ANN)
    old, new = pen.write(REGISTER, "a", 1), pen.write(REGISTER, "a", 2)
    document = prove(replica_of(OPEN, old), "a", PROVER, NOW_MS)
    slot = decoder.decode(document).slots[0]
    both = tuple(one.signed for one in sorted((old, new), key=lambda record: record.id))
    with pytest.raises(BadMessage, match="no replica holds together"):
        verify(OPEN.id, forged(document, slots=(msgspec.structs.replace(slot, entries=both),)))


def test_documents_are_bounded_before_they_are_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadMessage, match="over the limit"):
        verify(OPEN.id, bytes(PROOF_MAX + 1))
    pen = Pen(ANN)
    records = [pen.write(ADD, "set", element=codec.encode(number)) for number in range(20)]
    replica = replica_of(OPEN, *records)
    document = prove(replica, "set", PROVER, NOW_MS)
    assert len(document) < 20 * 300
    monkeypatch.setattr(proof, "SHOWN_MAX", 19)
    with pytest.raises(ShoalError, match="20 entries"):
        prove(replica, "set", PROVER, NOW_MS)
    with pytest.raises(BadMessage, match="more than 19 entries"):
        verify(OPEN.id, document)
    monkeypatch.setattr(proof, "SHOWN_MAX", 20)
    monkeypatch.setattr(proof, "PROOF_MAX", len(document) - 1)
    with pytest.raises(ShoalError, match="over the limit"):
        prove(replica, "set", PROVER, NOW_MS)


@pytest.mark.parametrize("key", ["", "a b", "é", "k" * 257])
def test_what_is_no_key_has_no_proof(key: str) -> None:
    with pytest.raises(UsageError, match="not a key"):
        prove(Replica(OPEN), key, PROVER, NOW_MS)


def test_an_entry_with_a_wrong_signature_is_not_handed_out() -> None:
    right = Pen(ANN).write(REGISTER, "a", 1)
    wrong = unseal(Signed(right.signed.body, bytes(64)))  # as if it had come in a run
    replica = replica_of(OPEN, wrong)
    [[shown]] = proof.shown_records(replica, "a")
    assert not is_signed(shown)
    with pytest.raises(ShoalError, match="wrong signature"):
        prove(replica, "a", PROVER, NOW_MS)
    replica.drop(shown)
    assert not shown_by(replica, "a").is_present


DOCUMENT = prove(busy(), "run/a", PROVER, NOW_MS)

# Whole histories

Steps = list[tuple[int, int, int, int]]
KEYS = ("a", "run/b", "run/c", "d")


class History:
    """Plays random steps: three authors with grants write every kind, fork, revoke."""

    def __init__(self, genesis: Genesis) -> None:
        self.genesis = genesis
        self.owner = Pen(OWNER, genesis)
        self.pens = [Pen(signer, genesis) for signer in (ANN, BEN, EVE)]
        if genesis.write == "list":
            self.pens[0].grant = granted(self.owner, ANN, depth=2)
            self.pens[1].grant = granted(self.pens[0], BEN)
            self.pens[2].grant = granted(self.owner, EVE, prefix="run/")
        self.counts: dict[tuple[bytes, str], int] = {}

    def play(self, who: int, what: int, where: int, count: int) -> None:
        """Let an author write one entry."""
        pen, key = self.pens[who], KEYS[where]
        deeds: list[Callable[[], object]] = [
            lambda: pen.write(REGISTER, key, count),
            lambda: pen.write(REGISTER, key),
            lambda: pen.write(MULTI, key, count, seen=self._dots(count)),
            lambda: pen.write(ADD, key, count % 2 or None, element=bytes([count % 3 + 1])),
            lambda: pen.write(
                REMOVE,
                key,
                element=bytes([count % 3 + 1]),
                seen=self._dots(count) or (Dot(bytes(16), 1),),
            ),
            lambda: pen.write(COUNTER, key, Counted(self._grown(pen, key, count), 0)),
            lambda: pen.write(LEASE, key, count, expires_ms=NOW_MS - 3_000 + 1_000 * count),
            lambda: self._fork(pen, key),
            lambda: self._revoke(pen, count),
        ]
        deeds[what]()

    @property
    def records(self) -> list[Record]:
        """Everything that was written, grants first."""
        return [*self.owner.written, *(one for pen in self.pens for one in pen.written)]

    def _dots(self, count: int) -> tuple[Dot, ...]:
        heads = [pen.last for pen in self.pens[: count % 4] if pen.last is not None]
        return tuple(Dot(head.chain, head.seq) for head in heads)

    def _grown(self, pen: Pen, key: str, count: int) -> int:
        grown = self.counts.get((pen.instance, key), 0) + count
        self.counts[pen.instance, key] = grown
        return grown

    def _fork(self, pen: Pen, key: str) -> None:
        last = pen.last
        pen.write(REGISTER, key, "left")
        pen.last = last
        pen.write(REGISTER, key, "right")

    def _revoke(self, pen: Pen, count: int) -> None:
        if self.genesis.write == "list" and pen.grant is not None:
            kept = self._dots(count)
            self.owner.now_ms = max(self.owner.now_ms, pen.now_ms)
            self.owner.write(REVOKE, "revoke", Revoke(pen.grant, kept))


steps = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 8), st.integers(0, 3), st.integers(0, 5)),
    max_size=30,
)


@pytest.mark.parametrize("genesis", [OPEN, LISTED])
@settings(deadline=None)
@given(steps)
def test_a_third_party_sees_what_the_replica_shows_after_any_history(
    genesis: Genesis, played: Steps
) -> None:
    history = History(genesis)
    for step in played:
        history.play(*step)
    replica = Replica(genesis)
    for record in history.records:
        if not replica.refusal(record, NOW_MS):
            replica.merge(record, NOW_MS)
    for key in (*KEYS, "away", "grant"):
        shown_by(replica, key)
        shown_by(replica, key, now_ms=NOW_MS + 1_500)


def test_ids_of_hashes_are_what_the_format_says() -> None:
    """The document's root by hand, from the specification alone."""
    record = Pen(ANN).write(REGISTER, "a", 1)
    replica = replica_of(OPEN, record)

    def sha(*parts: bytes) -> bytes:
        return hashlib.sha256(b"".join(parts)).digest()

    leaf = sha(b"\0", sha(b"a"), sha(sha(record.signed.body)))
    assert replica.root() == sha(b"crdt/state/1\0", OPEN.id, leaf, sha(b"crdt/faults/1\0"))
    assert verify(OPEN.id, prove(replica, "a", PROVER, NOW_MS)).root == replica.root()
