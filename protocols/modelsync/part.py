"""What a run's driver takes and gives: a trainer's part in it, outcomes, who belongs to it."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from protocols.modelsync.codecs import Vector
from protocols.modelsync.wire import Certificate, Shape
from wire.errors import ShoalError
from wire.ids import PeerId


class RunFailed(ShoalError):
    """This node's part in a run has ended by an error; the others go on."""

    hint = "see the daemon's log; `shoal train` joins again"


@dataclass(frozen=True)
class LaneShape:
    """One lane of a run, in float32 elements: what a member sends a round, what replicas hold."""

    contribution: int
    state: int


@dataclass(frozen=True)
class Attachment:
    """What a trainer brings: the shape of its run and the buffers that it shares with us.

    `exchange` holds the lanes' contributions, one after the other; after COMMIT of a lane's round
    its mean is there. `sent`, if given, has the same layout: after COMMIT it holds what has
    arrived of our contribution, for error feedback.
    """

    run: str
    lanes: tuple[LaneShape, ...]
    codec: str  # or "auto": each round has the most compact that a member wishes
    rounds: int
    min_members: int
    patience_s: float
    exchange: Vector
    sent: Vector | None = None
    settings: str = ""  # of the strategy: members with others would end in other states
    aggregator: str = "mean"
    sample: int = 0  # members a round (MoDeST); 0: all
    replicas_differ: bool = False  # mixes: roots are not compared
    is_verified: bool = False  # sealed rounds, validators, bans

    @property
    def terms(self) -> str:
        """All that members must have alike and that has no field of its own on the wire."""
        words = [self.settings] if self.settings else []
        if len(self.lanes) > 1:
            words.append(f"lanes={len(self.lanes)}")
        if self.aggregator != "mean":
            words.append(f"aggregator={self.aggregator}")
        if self.sample:
            words.append(f"sample={self.sample}")
        if self.replicas_differ:
            words.append("replicas_differ")
        if self.is_verified:
            words.append("verified")
        return " ".join(words)

    @property
    def shape(self) -> Shape:
        """What all members of the run have in common, all lanes together."""
        elements = sum(lane.contribution for lane in self.lanes)
        return Shape(elements, self.codec, self.terms)

    def lane_shape(self, lane: int) -> Shape:
        """What all members of the run have in common in one lane."""
        return Shape(self.lanes[lane].contribution, self.codec, self.terms)

    def slices(self) -> Iterator[slice]:
        """Where each lane's contribution lies in `exchange` and `sent`."""
        start = 0
        for lane in self.lanes:
            yield slice(start, start + lane.contribution)
            start += lane.contribution


@dataclass(frozen=True)
class Wish:
    """What a member would like the next round to be."""

    codec: str = "float32"
    every: int = 0


@dataclass(frozen=True)
class Outcome:
    """How a round ended here. Without certificate: we are behind, fetch a state first.

    `at_least` is the round that the state to fetch must have, `root` its hash if known.
    """

    certificate: Certificate | None
    at_least: int = 0
    root: bytes | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    seconds: float = 0.0
    rate: float = 0.0  # bytes/s that we were able to send; 0: not measured


@dataclass(frozen=True)
class Fetched:
    """A state was downloaded into the target buffer."""

    round: int
    root: bytes


@dataclass(frozen=True)
class Census:
    """Who belongs to the run: by lease, by farewell; and whom else to tell (connected peers).

    `left` names the round of the lane that each leaver would have had next. Who left bound to a
    result is in neither: it is still asked for a quorum, for nobody knows how its round ended.
    """

    live: list[PeerId] = field(default_factory=list[PeerId])
    left: dict[PeerId, int] = field(default_factory=dict[PeerId, int])
    others: list[PeerId] = field(default_factory=list[PeerId])


@dataclass(frozen=True)
class Contribution:
    """What one member has brought to the rounds that this node took part in."""

    peer: PeerId
    rounds: int = 0  # certificates that it signed
    weight: float = 0.0  # samples, or shares, in all of them
    left_out: int = 0  # times that an attempt went on without it
    bytes_in: int = 0  # that came from it
    bytes_out: int = 0  # that went to it
    seconds: float = 0.0  # that we waited for it to be ready, after we were
    banned: bool = False
