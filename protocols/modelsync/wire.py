"""Wire messages of modelsync: readiness, PREPARE, ACK, GO, data, DONE, COMMIT.

Tensors travel as raw bytes in one of our codecs; nothing is ever unpickled.
"""

import hashlib
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

from wire.codec import CHUNK_FRAME_MAX, Message
from wire.ids import PeerId, verify
from wire.ports import Method

MEMBERS_MAX = 64  # peers in one round: every member talks to every other
ELEMENTS_MAX = 1 << 31  # 8 GiB of float32, more than a daemon of the first form should map
ROUNDS_MAX = 1 << 24
ATTEMPTS_MAX = 1 << 16
WEIGHT_MAX = 1e6  # samples or shares; with codecs.VALUE_MAX no float32 sum of 64 can overflow
WEIGHT_MIN = 1e-3  # of who brings data: a mean divided by next to nothing would not be one
LANES_MAX = 256  # sequences of rounds in one run
EVERY_MAX = 1 << 20  # local steps between two rounds
CERTIFICATE_TAG = "shoal/modelsync/certificate/1"

RunName = Annotated[str, Meta(pattern=r"\A[a-z0-9][a-z0-9._-]{0,63}\Z", max_length=64)]
Peer = Annotated[PeerId, Meta(min_length=1, max_length=64)]
Round = Annotated[int, Meta(ge=0, le=ROUNDS_MAX)]
AttemptNumber = Annotated[int, Meta(ge=0, le=ATTEMPTS_MAX)]
Hash = Annotated[bytes, Meta(min_length=32, max_length=32)]
Hashes = Annotated[tuple[Hash, ...], Meta(max_length=MEMBERS_MAX)]
Signature = Annotated[bytes, Meta(min_length=64, max_length=64)]
Elements = Annotated[int, Meta(ge=1, le=ELEMENTS_MAX)]
ShardSize = Annotated[int, Meta(ge=0, le=ELEMENTS_MAX)]
Weight = Annotated[float, Meta(ge=0.0, le=WEIGHT_MAX)]
CodecName = Annotated[str, Meta(pattern=r"\A[a-z][a-z0-9]*\Z", max_length=16)]
Settings = Annotated[str, Meta(pattern=r"\A[a-z0-9_=.,:+ -]*\Z", max_length=256)]
Terms = Annotated[str, Meta(pattern=r"\A[a-z0-9_=.,:+ -]*\Z", max_length=384)]
LaneNumber = Annotated[int, Meta(ge=0, lt=LANES_MAX)]
Topology = Annotated[str, Meta(pattern=r"\A(all|ring|exponential|complete|pairs)\Z", max_length=16)]
Every = Annotated[int, Meta(ge=0, le=EVERY_MAX)]  # 0: no wish
Rate = Annotated[int, Meta(ge=0, le=1 << 40)]  # bytes/s; 0: not measured
Reason = Annotated[str, Meta(max_length=32)]
Data = Annotated[bytes, Meta(max_length=CHUNK_FRAME_MAX)]
Members = Annotated[list[Peer], Meta(min_length=1, max_length=MEMBERS_MAX)]


class Shape(NamedTuple):
    """What all members of a run have in common."""

    elements: int
    codec: str
    settings: str = ""

    def __str__(self) -> str:
        """As a person is told of it."""
        return f"{self.elements} parameters on the {self.codec} wire, {self.settings or '-'}"


class Ballot(NamedTuple):
    """Names one attempt of a lane: no two of a round share a number and a proposer."""

    round: int
    attempt: int
    proposer: PeerId


def is_weight(weight: float) -> bool:
    """True for 0 (brings no data) and for shares in a mean."""
    return weight == 0 or WEIGHT_MIN <= weight <= WEIGHT_MAX


def _check_weights(*weights: float) -> None:
    if not all(map(is_weight, weights)):
        raise ValueError(f"a weight is 0 or from {WEIGHT_MIN:g} to {WEIGHT_MAX:g}")


class Bound(Message, frozen=True):
    """What a member has signed in an attempt whose end it does not know: it stands by this result.

    `attempt` and `proposer` are of that attempt; the rest is of the one that made the result.
    `members` are those whose contributions are in it, with their weights and shards; in sealed
    rounds, with the hashes of what they brought.
    """

    attempt: AttemptNumber
    proposer: Peer
    result: Hash
    members: Members
    weights: Annotated[list[Weight], Meta(min_length=1, max_length=MEMBERS_MAX)]
    shards: Annotated[list[ShardSize], Meta(min_length=1, max_length=MEMBERS_MAX)]
    codec: CodecName
    every: Every = 0
    commitments: Hashes = ()

    def __post_init__(self) -> None:
        """Refuse weights that the type alone cannot, and lists that do not fit each other."""
        _check_weights(*self.weights)
        if not len(self.members) == len(self.weights) == len(self.shards):
            raise ValueError("a result has one weight and one shard for each who is in it")
        if len(set(self.members)) != len(self.members):
            raise ValueError("nobody is in a result twice")
        if self.commitments and len(self.commitments) != len(self.members):
            raise ValueError("a sealed result has one commitment for each who is in it")


class Ready(Message, frozen=True):
    """The sender's trainer has a contribution for `round` of a lane. Weight 0 brings no data.

    `root` is the hash of the state that its contribution starts from; `settings` are those of the
    strategy, which must be alike or every round ends in different states. `is_new`: it joined at
    this round and remembers no promise. `owns`: it can average a shard for others.
    """

    run: RunName
    round: Round
    root: Hash
    weight: Weight
    elements: Elements  # of a contribution to this lane
    codec: CodecName  # "auto": as the proposer says
    settings: Terms = ""
    lane: LaneNumber = 0
    topology: Topology = "all"
    rate: Rate = 0  # measured in the rounds before
    owns: bool = True
    is_new: bool = False
    wish_codec: CodecName = "float32"  # of an "auto" run
    wish_every: Every = 0
    bound: Bound | None = None

    def __post_init__(self) -> None:
        """Refuse weights that the type alone cannot."""
        _check_weights(self.weight)

    @property
    def shape(self) -> Shape:
        """What all members of a run have in common."""
        return Shape(self.elements, self.codec, self.settings)


class Certificate(Message, frozen=True):
    """The outcome of a round of a lane. `result` hashes the averaged bytes, shard by shard.

    Every member signed `body()`; `signatures` are in member order. `contributors` are those whose
    contributions are in the result: the members, unless an earlier attempt was adopted. In their
    order come `weights` and, in sealed rounds, `commitments` (hash of an encoded contribution).
    Sealed rounds also have `seals` (hashes of 32 random bytes) and `reveals`, which open them, in
    member order.
    """

    run: RunName
    round: Round
    attempt: AttemptNumber
    proposer: Peer
    members: Members
    contributors: Members
    weights: Annotated[list[Weight], Meta(min_length=1, max_length=MEMBERS_MAX)]
    codec: CodecName
    base_root: Hash
    result: Hash
    lane: LaneNumber = 0
    topology: Topology = "all"
    every: Every = 0  # local steps to the next round; 0: as before
    commitments: Hashes = ()
    seals: Hashes = ()
    signatures: Annotated[tuple[Signature, ...], Meta(max_length=MEMBERS_MAX)] = ()
    reveals: Hashes = ()

    def __post_init__(self) -> None:
        """Refuse weights that the type alone cannot."""
        _check_weights(*self.weights)

    def body(self) -> bytes:
        """Return what the members sign."""
        return msgspec.msgpack.encode(msgspec.structs.replace(self, signatures=(), reveals=()))

    def is_signed(self) -> bool:
        """True if every member signed it, once each, and the lists fit each other."""
        members, contributors = len(self.members), len(self.contributors)
        if members != len(set(self.members)) or contributors != len(set(self.contributors)):
            return False
        if contributors != len(self.weights) or members != len(self.signatures):
            return False
        if self.seals and not self._is_unsealed():
            return False
        body = self.body()
        return all(
            verify(member, CERTIFICATE_TAG, body, signature)
            for member, signature in zip(self.members, self.signatures, strict=True)
        )

    def _is_unsealed(self) -> bool:
        if not len(self.seals) == len(self.reveals) == len(self.members):
            return False
        return len(self.commitments) == len(self.contributors) and all(
            seal_of(reveal) == seal for reveal, seal in zip(self.reveals, self.seals, strict=True)
        )

    @property
    def ballot(self) -> Ballot:
        """The attempt that succeeded."""
        return Ballot(self.round, self.attempt, self.proposer)


class Heard(Message, frozen=True):
    """Answer to Ready: the receiver's own readiness, and its certificate if the round is over."""

    ready: Ready | None = None
    certificate: Certificate | None = None


class Prepare(Message, frozen=True, tag="prepare"):
    """One attempt: these members, weights and shard sizes (elements, in member order)."""

    run: RunName
    round: Round
    attempt: AttemptNumber
    proposer: Peer
    members: Members
    weights: Annotated[list[Weight], Meta(min_length=1, max_length=MEMBERS_MAX)]
    shards: Annotated[list[ShardSize], Meta(min_length=1, max_length=MEMBERS_MAX)]
    codec: CodecName
    base_root: Hash
    elements: Elements
    lane: LaneNumber = 0
    topology: Topology = "all"
    every: Every = 0
    is_sealed: bool = False  # ACK commits to the contribution, GO tells all of all
    newcomers: Annotated[tuple[Peer, ...], Meta(max_length=MEMBERS_MAX)] = ()
    adopt: Bound | None = None  # no sums: spread this result of an earlier attempt

    def __post_init__(self) -> None:
        """Refuse weights that the type alone cannot."""
        _check_weights(*self.weights)

    @property
    def ballot(self) -> Ballot:
        """The attempt that this opens."""
        return Ballot(self.round, self.attempt, self.proposer)

    @property
    def source(self) -> "Prepare | Bound":
        """What tells whose contributions are in the result, and how it was made."""
        return self if self.adopt is None else self.adopt

    def certificate(self, result: bytes, go: "Go | None" = None) -> Certificate:
        """Return the unsigned certificate of this attempt; sealed rounds need what GO said."""
        commitments, seals = self.commitments(go), go.seals if self.is_sealed and go else ()
        source = self.source
        return Certificate(
            run=self.run,
            round=self.round,
            attempt=self.attempt,
            proposer=self.proposer,
            members=self.members,
            contributors=source.members,
            weights=source.weights,
            codec=source.codec,
            base_root=self.base_root,
            result=result,
            lane=self.lane,
            topology=self.topology,
            every=source.every,
            commitments=commitments,
            seals=seals,
        )

    def bound(self, result: bytes, go: "Go | None" = None) -> Bound:
        """Return what who signs `result` in this attempt stands by."""
        source = self.source
        return Bound(
            attempt=self.attempt,
            proposer=self.proposer,
            result=result,
            members=source.members,
            weights=source.weights,
            shards=source.shards,
            codec=source.codec,
            every=source.every,
            commitments=self.commitments(go),
        )

    def commitments(self, go: "Go | None") -> tuple[bytes, ...]:
        """Hashes of what the contributors brought, in a sealed round."""
        if not self.is_sealed or go is None:
            return ()
        return go.commitments if self.adopt is None else self.adopt.commitments


class Commit(Message, frozen=True, tag="commit"):
    """Everybody is done: apply the mean."""

    certificate: Certificate


class Abort(Message, frozen=True, tag="abort"):
    """The attempt failed; the next goes on without `excluded`. Void: members signed different
    results, so who signed one is not bound to it."""

    excluded: Annotated[list[Peer], Meta(max_length=MEMBERS_MAX)]
    is_void: bool = False


class Ack(Message, frozen=True, tag="ack"):
    """The member takes part, and in no worse attempt of this round; it is bound to `bound`.

    In a sealed round with the hash of its encoded contribution, and of 32 bytes it will reveal.
    """

    bound: Bound | None = None
    commitment: Hash | None = None
    seal: Hash | None = None


class Nack(Message, frozen=True, tag="nack"):
    """The member does not take part; with its certificate if the round is over for it."""

    reason: Reason
    attempt: AttemptNumber = 0
    certificate: Certificate | None = None


class Done(Message, frozen=True, tag="done"):
    """The member holds the whole mean: the hash of each shard, and its signature."""

    shards: Annotated[list[Hash], Meta(min_length=1, max_length=MEMBERS_MAX)]
    signature: Signature
    reveal: Hash | None = None


class Go(Message, frozen=True, tag="go"):
    """Every member has said ACK, and nobody is bound to anything else: DONE may be said.

    In a sealed round with what everybody has committed to, in member order: data may flow.
    """

    commitments: Hashes = ()
    seals: Hashes = ()


class Beat(Message, frozen=True, tag="beat"):
    """Still here."""


class Failed(Message, frozen=True, tag="failed"):
    """The member cannot finish because of `accused`: silent, broken or bad."""

    accused: Peer
    reason: Reason


class Order(Message, frozen=True):
    """What the proposer says on the stream of an attempt."""

    body: Prepare | Go | Beat | Commit | Abort


class Answer(Message, frozen=True):
    """What a member says on the stream of an attempt."""

    body: Ack | Nack | Done | Failed | Beat


class Piece(Message, frozen=True):
    """One encoded chunk of a shard. Towards the owner a contribution, back the mean."""

    run: RunName
    round: Round
    attempt: AttemptNumber
    proposer: Peer
    index: Annotated[int, Meta(ge=0, le=ELEMENTS_MAX)]
    data: Data
    lane: LaneNumber = 0

    @property
    def ballot(self) -> Ballot:
        """The attempt that it belongs to."""
        return Ballot(self.round, self.attempt, self.proposer)


class Ask(Message, frozen=True):
    """About one lane of a run: are you there; which state of it do you hold?"""

    run: RunName
    lane: LaneNumber = 0


READY = Method("modelsync.ready", Ready, Heard)
ATTEMPT = Method("modelsync.attempt", Order, Answer)
REDUCE = Method("modelsync.reduce", Piece, Piece, CHUNK_FRAME_MAX)


def seal_of(reveal: bytes) -> bytes:
    """Hash 32 random bytes to what ACK says of them."""
    return hashlib.sha256(b"shoal/modelsync/seal/1" + reveal).digest()


def result_of(shards: list[bytes]) -> bytes:
    """Hash the shard hashes, in member order, to the result that a certificate names."""
    return hashlib.sha256(b"".join(shards)).digest()
