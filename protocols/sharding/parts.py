"""What a chain is made of, what it asks of its driver, and the errors that end it."""

import enum
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from protocols.sharding.route import RouteHop
from protocols.sharding.wire import Place
from wire.errors import Busy, PeerUnreachable, ShoalError
from wire.ids import PeerId

OPEN_S = 5.0  # seconds for a stage to open: a connection over a relay takes two or three
RESUME_S = 1.0  # seconds to find a stage again whose connection broke, before another replaces it
RETRY_S = 0.5  # seconds between two looks for somebody who has the blocks of a gap
PATIENCE_S = 30.0  # seconds that nobody computes some blocks until the answer is given up: others
# take over blocks that nobody has in 10 s, and must fetch and load them
FIRST_PATIENCE_S = 10.0  # the same before the answer has begun: who asks can ask again
LOSSES_MAX = 32  # stages that break, each after it had opened, without a pick between: it is us
BROKEN_MAX = 3  # feeds that break between two stages, both alive, without a pick between
ROOM_S = 5.0  # seconds after which to ask full stages again, unless they say: a short answer


class HopLost(PeerUnreachable):
    """A stage broke in mid-answer, and nobody else has its blocks."""

    code = "hop_lost"
    hint = "try again; `shoal map` shows which blocks are missing"


class NoRoom(Busy):
    """Every node that has some of the blocks is full."""

    hint = "try again in a few seconds, or `shoal host` the model on another node"


class Loss(enum.Enum):
    """Why a stage is not ours any more."""

    BROKEN = enum.auto()  # its stream broke: it, the path to it, or our own connection
    FAILED = enum.auto()  # it said so, or what it says makes no sense
    SILENT = enum.auto()  # it does not answer
    BUSY = enum.auto()  # it has no room
    ENDED = enum.auto()  # we ended it, to open it anew


@dataclass(frozen=True)
class OpenStage:
    """Open a session on a stage, or open it again."""

    number: int
    hop: RouteHop
    takes: str
    previous: PeerId
    next: Place
    is_fresh: bool = False  # it is to compute all rows, whatever it has of the prompt


@dataclass(frozen=True)
class RewireStage:
    """Tell a stage its neighbours."""

    number: int
    previous: PeerId
    next: Place


@dataclass(frozen=True)
class PingStage:
    """Ask a stage now whether it is there."""

    number: int


@dataclass(frozen=True)
class DropStage:
    """Let go of a stage: it is lost."""

    number: int


@dataclass(frozen=True)
class EndStage:
    """End the session of a stage in good order, then report it lost (`Loss.ENDED`)."""

    number: int


@dataclass(frozen=True)
class FeedStage:
    """The entry's own feed goes to this stage; the same one again: open it anew."""

    next: Place


@dataclass(frozen=True)
class GiveUp:
    """The answer cannot go on."""

    error: ShoalError


Effect = OpenStage | RewireStage | PingStage | DropStage | EndStage | FeedStage | GiveUp
# (first block, block after the last, the nodes beside, not these nodes) -> stages; raises NoRoute
Find = Callable[[int, int, PeerId, PeerId, Collection[PeerId]], list[RouteHop]]


@dataclass(eq=False)  # a part is itself, not one like it
class Feeding:
    """An end that feeds the next one: a stage, or the entry itself."""

    next: Place | None = None  # as it was told
    feed_down: bool = False  # it cannot feed it, as far as we know
    broken: int = 0  # times that its feed broke, since a pick
    has_blamed: bool = False  # the next one, for that


@dataclass(kw_only=True, eq=False)
class Leg(Feeding):
    """A stage of the session."""

    number: int
    hop: RouteHop
    takes: str
    deadline: float  # it is lost then, unless we hear of it
    since: float  # nobody has computed its blocks from then until it opened
    is_open: bool = False
    is_ending: bool = False
    is_fresh: bool = False  # it had forgotten rows
    has_worked: bool = False  # tokens were picked since it was opened
    is_resumed: bool = False  # opened again under the same name, after its stream broke
    previous: PeerId | None = None  # as it was told
    position: int = 0
    truncates: bool = True

    @property
    def place(self) -> Place:
        """Where it is fed."""
        return Place(self.hop.peer, self.hop.start)


@dataclass(eq=False)
class Gap:
    """Blocks that nobody computes; `peer` did, or should have."""

    peer: PeerId
    start: int
    end: int
    takes: str
    gives: str
    cause: str
    since: float  # nobody has computed the blocks since
    busy: bool = False
    is_fresh: bool = False
    resume: RouteHop | None = None  # first look for this one again
    retry_s: float = -math.inf  # not before


def merged(parts: list[Leg | Gap]) -> list[Leg | Gap]:
    """Make gaps beside each other one, so that another span over both can take them."""
    found: list[Leg | Gap] = []
    for part in parts:
        last = found[-1] if found else None
        if (
            isinstance(part, Gap)
            and isinstance(last, Gap)
            and part.resume is None
            and last.resume is None
        ):
            found[-1] = replace(
                last,
                end=part.end,
                gives=part.gives,
                since=min(last.since, part.since),
                busy=last.busy or part.busy,
                is_fresh=last.is_fresh or part.is_fresh,
                retry_s=min(last.retry_s, part.retry_s),
            )
        else:
            found.append(part)
    return found
