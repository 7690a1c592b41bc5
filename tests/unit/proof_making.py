"""Authors who write chains, replicas of what they wrote, and documents changed by forgers."""

from dataclasses import dataclass, field

import msgspec

from crdt import proof
from crdt.clock import stamp
from crdt.entry import (
    GRANT,
    NO_LINK,
    REGISTER,
    Entry,
    Record,
    seal,
    unseal,
)
from crdt.namespace import Genesis, Grant, Rules, open_genesis
from crdt.proof import Attest, Proof, Root, Verdict, prove, verify
from crdt.replica import Replica
from crdt.tree import faults_digest, root_by, state_root
from wire import codec
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


def busy() -> Replica:
    """Three authors, a fork, and a few more keys than fit a bucket."""
    replica = forked()
    pen = Pen(BEN, instance=bytes([1] * 8))
    for number in range(40):
        replica.merge(pen.write(REGISTER, f"k/{number}", number), NOW_MS)
    return replica


def refit(document: bytes, **fields: object) -> bytes:
    """Change fields, and leave the attestation as it is."""
    return codec.encode(msgspec.structs.replace(decoder.decode(document), **fields))
