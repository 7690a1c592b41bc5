"""Wire messages of modelsync: PREPARE, ACK, data, DONE, COMMIT; readiness; state for joiners.

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
Signature = Annotated[bytes, Meta(min_length=64, max_length=64)]
Elements = Annotated[int, Meta(ge=1, le=ELEMENTS_MAX)]
ShardSize = Annotated[int, Meta(ge=0, le=ELEMENTS_MAX)]
Weight = Annotated[float, Meta(ge=0.0, le=WEIGHT_MAX)]
CodecName = Annotated[str, Meta(pattern=r"\A[a-z][a-z0-9]*\Z", max_length=16)]
Settings = Annotated[str, Meta(pattern=r"\A[a-z0-9_=.,:+ -]*\Z", max_length=256)]
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
    """Names one attempt: no two attempts of a round share a number and a proposer."""

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
    """What a member has signed in an attempt whose end it does not know: it stands by this result."""

    attempt: AttemptNumber
    proposer: Peer
    result: Hash
    members: Members  # whose contributions are in it, with their weights
    weights: Annotated[list[Weight], Meta(min_length=1, max_length=MEMBERS_MAX)]
    shards: Annotated[list[ShardSize], Meta(min_length=1, max_length=MEMBERS_MAX)]
    codec: CodecName
    every: Every = 0


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
    settings: Settings = ""
    lane: LaneNumber = 0
    topology: Topology = "all"
    rate: Rate = 0  # measured in the rounds before
    owns: bool = True
    is_new: bool = False
    wish_codec: CodecName = "float32"  # of an "auto" run
    wish_every: Every = 0
    bound: Bound | None = None
    held: Hash | None = None  # of the first form; goes with it

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
    contributions are in the result, with their weights: the members, unless an earlier attempt
    was adopted. Sealed rounds also have each member's `commitments` (hash of its encoded contribution) and
    `seals` (hash of 32 random bytes); `reveals` open the seals.
    """

    run: RunName
    round: Round
    attempt: AttemptNumber
    proposer: Peer
    members: Members
    weights: Annotated[list[Weight], Meta(max_length=MEMBERS_MAX)]
    codec: CodecName
    base_root: Hash
    result: Hash
    lane: LaneNumber = 0
    topology: Topology = "all"
    every: Every = 0  # local steps to the next round; 0: as before
    contributors: Annotated[list[Peer], Meta(max_length=MEMBERS_MAX)] = []
    commitments: Annotated[list[Hash], Meta(max_length=MEMBERS_MAX)] = []
    seals: Annotated[list[Hash], Meta(max_length=MEMBERS_MAX)] = []
    signatures: Annotated[tuple[Signature, ...], Meta(max_length=MEMBERS_MAX)] = ()
    reveals: Annotated[tuple[Hash, ...], Meta(max_length=MEMBERS_MAX)] = ()

    def __post_init__(self) -> None:
        """Refuse weights that the type alone cannot."""
        _check_weights(*self.weights)

    def body(self) -> bytes:
        """Return what the members sign."""
        return msgspec.msgpack.encode(msgspec.structs.replace(self, signatures=(), reveals=()))

    def is_signed(self) -> bool:
        """True if every member signed it, once each."""
        if len(set(self.members)) != len(self.members) or len(self.weights) != len(self.members):
            return False
        if len(self.signatures) != len(self.members):
            return False
        body = self.body()
        return all(
            verify(member, CERTIFICATE_TAG, body, signature)
            for member, signature in zip(self.members, self.signatures, strict=True)
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
    adopt: Bound | None = None  # no sums: spread this result of an earlier attempt

    def __post_init__(self) -> None:
        """Refuse weights that the type alone cannot."""
        _check_weights(*self.weights)

    @property
    def ballot(self) -> Ballot:
        """The attempt that this opens."""
        return Ballot(self.round, self.attempt, self.proposer)

    def certificate(self, result: bytes) -> Certificate:
        """Return the unsigned certificate of this attempt."""
        return Certificate(
            run=self.run,
            round=self.round,
            attempt=self.attempt,
            proposer=self.proposer,
            members=self.members,
            weights=self.weights,
            codec=self.codec,
            base_root=self.base_root,
            result=result,
            lane=self.lane,
            topology=self.topology,
            every=self.every,
            contributors=self.members if self.adopt is None else self.adopt.members,
        )


class Commit(Message, frozen=True, tag="commit"):
    """Everybody is done: apply the mean."""

    certificate: Certificate


class Abort(Message, frozen=True, tag="abort"):
    """The attempt failed; the next goes on without `excluded`."""

    excluded: Annotated[list[Peer], Meta(max_length=MEMBERS_MAX)]


class Ack(Message, frozen=True, tag="ack"):
    """The member takes part, and in no worse attempt of this round.

    In a sealed round with the hash of its encoded contribution, and of 32 bytes it will reveal.
    """

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
    """Of a sealed round: what everybody has committed to, in member order. Data may flow."""

    commitments: Annotated[list[Hash], Meta(min_length=1, max_length=MEMBERS_MAX)]
    seals: Annotated[list[Hash], Meta(min_length=1, max_length=MEMBERS_MAX)]


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
    """Which state of this run's lane do you hold?"""

    run: RunName
    lane: LaneNumber = 0


class Latest(Message, frozen=True):
    """The state before `round`, its hash, and the certificate of the round that led to it."""

    round: Round
    root: Hash
    elements: Elements
    certificate: Certificate | None = None


class StatePart(Message, frozen=True):
    """First `latest` alone, then bytes of the state: parameters, then momentum, raw float32."""

    latest: Latest | None
    data: Data


READY = Method("modelsync.ready", Ready, Heard)
ATTEMPT = Method("modelsync.attempt", Order, Answer)
REDUCE = Method("modelsync.reduce", Piece, Piece, CHUNK_FRAME_MAX)
LATEST = Method("modelsync.latest", Ask, Latest)
STATE = Method("modelsync.state", Ask, StatePart, CHUNK_FRAME_MAX)


def result_of(shards: list[bytes]) -> bytes:
    """Hash the shard hashes, in member order, to the result that a certificate names."""
    return hashlib.sha256(b"".join(shards)).digest()
