"""Proof documents that were tampered with, forged, or cut: each is refused with its reason."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crdt import proof
from crdt.entry import (
    ADD,
    REGISTER,
    REVOKE,
    Record,
    Signed,
    is_signed,
    unseal,
)
from crdt.fault import check
from crdt.namespace import Revoke, open_genesis
from crdt.proof import PROOF_MAX, prove, verify
from crdt.replica import Replica
from crdt.tree import Leaf
from tests.unit.proof_making import (
    ANN,
    BEN,
    EVE,
    LISTED,
    NOW_MS,
    OPEN,
    PROVER,
    Pen,
    Team,
    busy,
    decoder,
    forged,
    forked,
    granted,
    refit,
    replica_of,
    shown_by,
)
from wire import codec
from wire.errors import BadMessage, ShoalError, UsageError
from wire.ids import public_key_of

DOCUMENT = prove(busy(), "run/a", PROVER, NOW_MS)


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


@pytest.mark.parametrize(
    ("short", "long"),
    [
        (b"\xadshoal", b"\xd9\x0dshoal"),  # a text with a longer head than it needs
        (b"\xc4\x20", b"\xc5\x00\x20"),  # and bytes, here of a hash
    ],
)
def test_a_document_has_one_encoding(short: bytes, long: bytes) -> None:
    changed = DOCUMENT.replace(short, long, 1)
    assert changed != DOCUMENT
    assert decoder.decode(changed) == decoder.decode(DOCUMENT)
    with pytest.raises(BadMessage, match="canonical"):
        verify(OPEN.id, changed)


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
                with pytest.raises(BadMessage):
                    verify(OPEN.id, forged(codec.encode(moved)), root=replica.root())


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
    with pytest.raises(BadMessage, match="at one place"):
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


def test_what_is_named_only_is_named_in_order() -> None:
    team = Team()
    for prefix in ("x/", "y/"):
        granted(team.owner, EVE, prefix=prefix)
    document = prove(team.replica(), "run/a", PROVER, NOW_MS)
    slots = decoder.decode(document).slots
    assert len(slots[1].others) == 3
    turned = msgspec.structs.replace(slots[1], others=slots[1].others[::-1])
    with pytest.raises(BadMessage, match="not in order"):
        verify(LISTED.id, refit(document, slots=(slots[0], turned, slots[2])))


def test_an_entry_that_the_rules_forbid_is_refused() -> None:
    team = Team()
    team.ben.write(REGISTER, "other/a", 1)  # beyond the prefix of his grant
    replica = Replica(LISTED)
    for record in (*team.owner.written, *team.ann.written, *team.ben.written):
        replica.merge(record, NOW_MS)
    with pytest.raises(BadMessage, match=r"'other/a'.*policy"):
        verify(LISTED.id, prove(replica, "other/a", PROVER, NOW_MS))


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


def test_an_author_that_is_out_has_nothing_in_any_state() -> None:
    pen = Pen(ANN)
    left, right = pen.write(REGISTER, "a", 1), Pen(ANN).write(REGISTER, "a", 2)
    document = prove(replica_of(OPEN, left), "a", PROVER, NOW_MS)
    proven = next(iter(replica_of(OPEN, left, right).faults.values()))
    cuts = (proof._cut_of(proven),)  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(BadMessage, match="of whom no replica holds any"):
        verify(OPEN.id, forged(document, cuts=cuts, faults=(proven.fault,)))
