"""Proofs for third parties: what a namespace holds at a key, checked with its ID and nothing else.

A document carries all entries at the key and everything that decides which of them count: grants,
revocations, proofs of faults; and the paths by which one state root binds them all, signed by the
replica that attests it. Whoever checks it puts the same parts together and sees what that replica
saw. Pure: no store, no network, no clock. Format: docs/protocols/store.md.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated

import msgspec
from msgspec import Meta

from crdt.aging import is_expired
from crdt.authority import Authority
from crdt.clock import utc
from crdt.entry import (
    BODY_MAX,
    GRANT,
    REVOKE,
    Hash,
    InstanceId,
    KeyText,
    Record,
    Seq,
    Signed,
    Stamp,
    chain_of,
    is_signed,
    peer_of,
    unseal,
)
from crdt.fault import FAULTS_MAX, Fault, Proofs, Proven, check
from crdt.fold import View, place_of, view_of
from crdt.namespace import Genesis, revoke_decoder
from crdt.replica import Replica
from crdt.tree import Path, faults_digest, root_by, state_root
from wire import codec, ids
from wire.codec import Message
from wire.errors import BadMessage, ShoalError, UsageError
from wire.ids import PeerId, Signer, public_key_of

PROOF_MAX = 1024 * 1024  # bytes; a plain key takes 2 kB. Checking the largest takes 0.5 s
SHOWN_MAX = 4096  # entries in a document: as many signatures to check
NAMED_MAX = PROOF_MAX // 32  # ids: what fits anyway
GRANT_KEY, REVOKE_KEY = "grant", "revoke"  # where a namespace with listed writers keeps its rules
TAG = "crdt/root/1"


class Slot(Message, frozen=True):
    """Everything that is retained at a key, by id, and its path in the tree.

    others: ids of what is there too and does not matter (grants that nothing shown rests on).
    """

    path: Path
    entries: Annotated[tuple[Signed, ...], Meta(max_length=SHOWN_MAX)]
    others: Annotated[tuple[Hash, ...], Meta(max_length=NAMED_MAX)] = ()


class Cut(Message, frozen=True):
    """A proof of a fault by name: of a chain of this author, what is below `cut` counts."""

    author: Hash
    instance: InstanceId
    cut: Seq
    digest: Hash

    @property
    def chain(self) -> bytes:
        """The chain's name: it binds its author, so nobody hides whose fault it is."""
        return chain_of(self.author, self.instance)


class Root(Message, frozen=True):
    """What an attester signs: that this was its state root."""

    namespace: Hash
    root: Hash
    wall_ms: Stamp


class Attest(Message, frozen=True):
    """Who says that this state was its own, and when; the root follows from the rest."""

    author: Hash
    wall_ms: Stamp
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]


class Proof(Message, frozen=True, tag="shoal-proof-1"):
    """The document. slots: of the key, then, where writers are listed, of the keys `grant` and
    `revoke`. cuts: all proofs of faults of the namespace by name, so that none can be kept back.
    faults: those of them whole of authors of the entries shown.
    """

    genesis: Genesis
    key: KeyText
    slots: Annotated[tuple[Slot, ...], Meta(min_length=1, max_length=3)]
    cuts: Annotated[tuple[Cut, ...], Meta(max_length=FAULTS_MAX)]
    faults: Annotated[tuple[Fault, ...], Meta(max_length=FAULTS_MAX)]
    attest: Attest


_decoder = msgspec.msgpack.Decoder(Proof)


@dataclass(frozen=True)
class Verdict:
    """What a document shows. view: what the key shows; None if nothing.

    root: of the state, as attested by `attester` at `attested_ms`.
    at_ms: the time that leases were held to. entries, faults: how many were checked.
    """

    genesis: Genesis
    key: str
    view: View | None
    root: bytes
    attester: PeerId
    attested_ms: int
    at_ms: int
    entries: int
    faults: int
    is_root_given: bool

    @property
    def is_present(self) -> bool:
        """True if the key shows something."""
        return self.view is not None

    @property
    def proven(self) -> tuple[str, ...]:
        """What whoever trusts no one knows now, a sentence each."""
        what = "shows the given value" if self.is_present else "shows nothing"
        return (
            f"in the state {self.root.hex()} of the namespace, {self.key!r} {what} "
            f"(leases held to {utc(self.at_ms)})",
            f"each entry behind this, {self.entries} in all, is signed by its author and within "
            "the rules that the namespace's ID commits to",
            "no entry, grant, revocation or proof of a fault of that state was kept back",
        )

    @property
    def not_proven(self) -> tuple[str, ...]:
        """What it cannot show, a sentence each."""
        return (
            "that what was written is true",
            f"that this is the newest state: {self.attester} says that it was its own at "
            f"{utc(self.attested_ms)}, and may not have seen, or may have left out, later entries",
            *(() if self.is_root_given else ("that any other replica has had this state",)),
        )


def shown_records(replica: Replica, key: str) -> list[list[Record]]:
    """Return what a proof shows of each of its slots, by id.

    A caller may check their signatures (`is_signed`) in a thread before it calls `prove`, and let
    the replica drop those that are wrong.
    """
    keys = _slot_keys(replica.genesis, key)
    held = {one: sorted(replica.at(one), key=_id_of) for one in keys}
    if GRANT_KEY in keys[1:]:
        grants = {record.id: record for record in held[GRANT_KEY]}
        needed = _grants_below([*held[key], *held.get(REVOKE_KEY, ())], grants)
        held[GRANT_KEY] = [record for record in held[GRANT_KEY] if record.id in needed]
    return [held[one] for one in keys]


def prove(replica: Replica, key: str, signer: Signer, now_ms: int) -> bytes:
    """Return the document about a key, attested by `signer`.

    Cost: a signature (60 µs) for each entry that came in a run, see `shown_records`.
    Raises UsageError if it is no key, ShoalError if it would be too large.
    """
    try:
        msgspec.convert(key, KeyText)
    except msgspec.ValidationError as error:
        raise UsageError(f"not a key: {key[:64]!r}") from error
    shown = shown_records(replica, key)
    slots = tuple(
        _slot(replica, one, records)
        for one, records in zip(_slot_keys(replica.genesis, key), shown, strict=True)
    )
    records = [record for part in shown for record in part]
    faults = sorted(replica.faults.values(), key=lambda proven: proven.chain)
    for record in records:
        if not is_signed(record):
            raise ShoalError(f"{key!r} cannot be proven: a wrong signature of {record.peer}")
    authors = {record.author for record in records}
    root = Root(replica.id, replica.root(), now_ms)
    signature = signer.sign(TAG, codec.encode(root))
    proof = Proof(
        replica.genesis,
        key,
        slots,
        tuple(_cut_of(one) for one in faults),
        tuple(one.fault for one in faults if one.author in authors),
        Attest(public_key_of(signer.peer), now_ms, signature),
    )
    document = codec.encode(proof)
    if len(document) > PROOF_MAX or len(records) > SHOWN_MAX:
        raise ShoalError(
            f"the proof of {key!r} has {len(records)} entries and {len(document)} B, over the "
            f"limit of {SHOWN_MAX} and {PROOF_MAX} B",
            hint="prove a key with fewer entries",
        )
    return document


def verify(
    namespace_id: bytes, document: bytes, *, root: bytes | None = None, now_ms: int | None = None
) -> Verdict:
    """Check a document against a namespace's ID, and return what it shows.

    root: the state root that it must be about, if one is known from elsewhere.
    now_ms: the time to hold leases to; that of the attestation if None.
    Cost: a signature (60 µs) for each entry shown, two for each fault.
    Raises BadMessage, which says what is wrong.
    """
    proof = codec.decode(document, _decoder, PROOF_MAX)
    if codec.encode(proof) != document:
        raise BadMessage("the document is not in canonical form")
    if proof.genesis.id != namespace_id:
        raise BadMessage(f"it is about the namespace {proof.genesis.id.hex()}")
    shown, tree_root = _open_slots(proof)
    faults = _open_faults(proof, [record for part in shown for record in part])
    digest = faults_digest((one.chain, one.cut, one.digest) for one in proof.cuts)
    state = state_root(namespace_id, tree_root, digest)
    _check_attest(proof, state, root, now_ms)
    attest = proof.attest
    authority = _authority(proof, shown, faults)
    at_ms = attest.wall_ms if now_ms is None else now_ms
    counts = (one for one in shown[0] if authority.counts(one) and not is_expired(one, at_ms))
    return Verdict(
        proof.genesis,
        proof.key,
        view_of(proof.key, counts),
        state,
        peer_of(attest.author),
        attest.wall_ms,
        at_ms,
        sum(map(len, shown)),
        len(proof.cuts),
        root is not None,
    )


def _slot_keys(genesis: Genesis, key: str) -> list[str]:
    """Return the keys whose slots a proof about `key` shows."""
    rules = (GRANT_KEY, REVOKE_KEY) if genesis.write == "list" else ()
    return [key, *(one for one in rules if one != key)]


def _id_of(record: Record) -> bytes:
    return record.id


def _grants_below(records: list[Record], grants: dict[bytes, Record]) -> set[bytes]:
    """Return the ids of grants that records name, and of those that these rest on."""
    needed: set[bytes] = set()
    to_see = [grant for record in records for grant in _named_grants(record)]
    while to_see:
        grant = to_see.pop()
        if grant in grants and grant not in needed:
            needed.add(grant)
            to_see.extend(_named_grants(grants[grant]))
    return needed


def _named_grants(record: Record) -> Iterator[bytes]:
    """Yield the grant that allows a record, and the one that it revokes."""
    entry = record.entry
    if entry.grant is not None:
        yield entry.grant
    if record.kind == REVOKE:
        yield codec.decode(entry.value or b"", revoke_decoder, BODY_MAX).grant


def _slot(replica: Replica, key: str, records: list[Record]) -> Slot:
    shown = {record.id for record in records}
    others = sorted(record.id for record in replica.at(key) if record.id not in shown)
    path = replica.tree.path(key)
    return Slot(path, tuple(record.signed for record in records), tuple(others))


def _cut_of(proven: Proven) -> Cut:
    instance = unseal(proven.fault.first).entry.instance
    return Cut(proven.author, instance, proven.cut, proven.digest)


def _open_slots(proof: Proof) -> tuple[list[list[Record]], bytes]:
    """Decode the entries of each slot; returns them and the tree's root, which all must have."""
    keys = _slot_keys(proof.genesis, proof.key)
    if len(keys) != len(proof.slots):
        raise BadMessage(f"{len(proof.slots)} slots, not {len(keys)}")
    namespace = proof.genesis.id
    shown: list[list[Record]] = []
    roots: set[bytes] = set()
    for key, slot in zip(keys, proof.slots, strict=True):
        records = [unseal(signed) for signed in slot.entries]
        for record in records:
            if record.namespace != namespace or record.key != key:
                raise BadMessage(f"an entry under {record.key!r} stands in the slot of {key!r}")
        if slot.others and (key != GRANT_KEY or key == proof.key):
            raise BadMessage(f"entries under {key!r} are kept back")
        names = [record.id for record in records]
        if not _is_ascending(names) or not _is_ascending(slot.others):
            raise BadMessage(f"the entries under {key!r} are not in order")
        roots.add(root_by(key, [*names, *slot.others], slot.path))
        shown.append(records)
    if sum(map(len, shown)) > SHOWN_MAX:
        raise BadMessage(f"more than {SHOWN_MAX} entries")
    if len(roots) != 1:
        raise BadMessage("the slots are not of one state")
    return shown, roots.pop()


def _is_ascending(names: Sequence[bytes]) -> bool:
    return all(a < b for a, b in pairwise(names))


def _open_faults(proof: Proof, records: list[Record]) -> dict[bytes, Proven]:
    """Check the proofs of faults of the authors shown: these must be whole, and no others are."""
    if not _is_ascending([one.chain for one in proof.cuts]):
        raise BadMessage("the proofs of faults are not in order")
    authors = {record.author for record in records}
    due = [one for one in proof.cuts if one.author in authors]
    if len(due) != len(proof.faults):
        raise BadMessage(f"{len(proof.faults)} proofs of faults are shown, {len(due)} are due")
    found: dict[bytes, Proven] = {}
    for cut, fault in zip(due, proof.faults, strict=True):
        proven = check(fault)
        if proven.namespace != proof.genesis.id or _cut_of(proven) != cut:
            raise BadMessage(f"a proof of a fault of {peer_of(proven.author)} is not the one named")
        found[proven.chain] = proven
    return found


def _check_attest(proof: Proof, state: bytes, root: bytes | None, now_ms: int | None) -> None:
    """Hold the state to the root that is known, and the attester to its signature and time."""
    attest = proof.attest
    if root is not None and state != root:
        raise BadMessage(f"it is about the state {state.hex()}, not {root.hex()}")
    signed = codec.encode(Root(proof.genesis.id, state, attest.wall_ms))
    if not ids.verify(peer_of(attest.author), TAG, signed, attest.signature):
        raise BadMessage(f"{peer_of(attest.author)} has not attested the state {state.hex()}")
    if now_ms is not None and attest.wall_ms > now_ms + proof.genesis.rules.max_skew_ms:
        raise BadMessage(f"attested {(attest.wall_ms - now_ms) / 1000:.0f} s from now")


def _authority(proof: Proof, shown: list[list[Record]], faults: dict[bytes, Proven]) -> Authority:
    """Hold every entry to the namespace's rules; returns what says which of them count."""
    proofs = Proofs()
    for proven in faults.values():
        proofs.put(proven)
    records = [record for part in shown for record in part]
    latest_ms = proof.attest.wall_ms + proof.genesis.rules.max_skew_ms
    for record in records:
        if not is_signed(record):
            raise BadMessage(f"a wrong signature under {record.key!r} of {record.peer}")
        if record.wall_ms > latest_ms:
            raise BadMessage(f"an entry under {record.key!r} is from the future of its attester")
        if proofs.is_out(record):
            raise BadMessage(f"an entry of {record.peer}, of whom no replica holds any")
    authority = Authority(proof.genesis, proofs.is_cut)
    hidden = {one for slot in proof.slots for one in slot.others}
    for record in _admit(authority, sorted(records, key=_stage_of)):
        if not hidden.isdisjoint(_named_grants(record)):
            raise BadMessage(f"the grant behind {record.key!r} of {record.peer} is kept back")
        # else its grant is gone from the state: it is retained, and does not count
    if len({(record.key, place_of(record)) for record in records}) < len(records):
        raise BadMessage("two entries of an author at one place, which no replica holds")
    return authority


def _stage_of(record: Record) -> tuple[int, bytes]:
    """Grants, then revocations, then the rest: the order in which most can be taken at once."""
    return {GRANT: 0, REVOKE: 1}.get(record.kind, 2), record.stamp


def _admit(authority: Authority, records: list[Record]) -> list[Record]:
    """Let in what the rules allow, as grants become known; returns what has no grant."""
    waiting: list[Record] = []
    for record in records:
        reason = authority.gate(record)
        if reason == "no_grant":
            waiting.append(record)
        elif reason:
            raise BadMessage(f"an entry under {record.key!r} of {record.peer}: {reason}")
        else:
            authority.add(record)
    return waiting if len(waiting) == len(records) else _admit(authority, waiting)
