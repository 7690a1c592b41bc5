"""What a run's driver takes and gives: a trainer's part in it, outcomes, who belongs to it."""

from dataclasses import dataclass, field

from protocols.modelsync.codecs import Vector
from protocols.modelsync.wire import Certificate, Shape
from wire.ids import PeerId


@dataclass(frozen=True)
class Attachment:
    """What a trainer brings: the shape of its run and the buffer that it shares with us.

    The buffer holds its contribution; after COMMIT, the mean.
    """

    run: str
    elements: int
    codec: str
    rounds: int
    min_members: int
    patience_s: float
    exchange: Vector
    settings: str = ""  # of the outer step: members with others would end in other states

    @property
    def shape(self) -> Shape:
        """What all members of the run have in common."""
        return Shape(self.elements, self.codec, self.settings)


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


@dataclass(frozen=True)
class Census:
    """Who belongs to the run: by lease, by farewell; and whom else to tell (connected peers).

    A farewell names the round that the leaver would have had next.
    """

    live: list[PeerId] = field(default_factory=list[PeerId])
    left: dict[PeerId, int] = field(default_factory=dict[PeerId, int])
    others: list[PeerId] = field(default_factory=list[PeerId])
