"""The entry's side of a session's ring: drives the chain of stages, and its own feed. Thin.

One task per stage holds its call (`held.py`), one feeds the first stage (`feeder.py`), one waits
for deadlines. Between two tokens none of them has anything to do.
"""

from collections.abc import Callable

import structlog
import trio

from protocols.sharding.chain import ENTRY, Chain
from protocols.sharding.feeder import Feeder
from protocols.sharding.held import HeldStage
from protocols.sharding.history import Forgotten, History
from protocols.sharding.parts import (
    DropStage,
    Effect,
    EndStage,
    FeedStage,
    GiveUp,
    Loss,
    OpenStage,
    PingStage,
    RewireStage,
)
from protocols.sharding.service import StageService
from protocols.sharding.wire import Broken, End, Open, Opened, Ping, Place, Receipt, Rewire
from wire.errors import ShoalError
from wire.ids import PeerId

log = structlog.get_logger(__name__)


class Ring:
    """The stages of one session. Run it in a nursery that ends with the session.

    `opening` makes the request that opens a stage; `on_change` is told when the chain is whole
    again, or `error` is set: the answer cannot go on.
    """

    def __init__(
        self,
        stages: StageService,
        chain: Chain,
        session: bytes,
        history: History,
        *,
        opening: Callable[[OpenStage], Open],
        on_change: Callable[[], None],
    ) -> None:
        self.chain = chain
        self.error: ShoalError | None = None
        self.held: dict[int, HeldStage] = {}
        self.feeder = Feeder(stages.calls, session, history, on_broken=self._feed_broken)
        self._calls = stages.calls
        self._opening, self._on_change = opening, on_change
        self._nursery: trio.Nursery | None = None
        self._sooner = trio.Event()  # the chain's deadline may have come nearer
        self._closing = False

    @property
    def last_peer(self) -> PeerId | None:
        """Who feeds us the picks."""
        hops = self.chain.hops
        return hops[-1][1].peer if hops else None

    def start(self, nursery: trio.Nursery, effects: list[Effect]) -> None:
        """Begin, with the first effects of the chain."""
        self._nursery = nursery
        nursery.start_soon(self.feeder.run)
        nursery.start_soon(self._watch)
        self.apply(effects)

    def apply(self, effects: list[Effect]) -> None:
        """Do what the chain says, without waiting."""
        for effect in effects:
            match effect:
                case OpenStage(number=number, hop=hop):
                    stage = HeldStage(self._calls, hop.peer, number, self._opening(effect), self)
                    self.held[number] = stage
                    assert self._nursery is not None
                    self._nursery.start_soon(stage.run)
                case RewireStage(number, previous, following):
                    self._tell(number, Rewire(previous, following))
                case PingStage(number):
                    self._tell(number, Ping())
                case EndStage(number):
                    self._tell(number, End())
                case DropStage(number):
                    stage = self.held.pop(number)
                    stage.drop()
                    log.info("stage.lost", peer=stage.peer, start=stage.opening.start)
                case FeedStage(place):
                    self.feeder.point(place)
                case GiveUp(error):
                    self.error = error
        if effects:
            self._sooner.set()
            self._on_change()

    async def end(self, keys: list[bytes], timeout_s: float) -> list[Receipt | None]:
        """End all sessions; return the receipts of the stages in use, in their order."""
        self._closing = True
        stages = [self.held[number] for number, _ in self.chain.hops]
        with trio.move_on_after(timeout_s) as scope:
            scope.shield = True
            for stage in stages:
                stage.tell(End(keys))
            for stage in stages:
                await stage.over.wait()
        return [stage.receipt for stage in stages]

    # What stages say.

    def on_opened(self, number: int, opened: Opened) -> None:
        """The session is open there."""
        now, position, truncates = trio.current_time(), opened.position, opened.truncates
        self._apply(self.chain.opened(number, position, truncates=truncates, now=now))
        self._on_change()

    def on_heard(self, number: int) -> None:
        """It answered a ping."""
        self._apply(self.chain.heard(number, trio.current_time()))

    def on_broken(self, number: int, broken: Broken) -> None:
        """It cannot feed its next."""
        now, forgot = trio.current_time(), broken.forgot
        log.debug("feed.broken", stage=number, to=broken.next.peer, why=broken.why[:200])
        self._apply(self.chain.broken(number, broken.next, forgot=forgot, now=now))

    def on_lost(self, number: int, loss: Loss, why: str, error: ShoalError | None) -> None:
        """The call is over."""
        self._apply(self.chain.lost(number, loss, why, trio.current_time(), error=error))

    def _feed_broken(self, place: Place, error: ShoalError) -> None:
        assert not isinstance(error, Forgotten), "token ids are never forgotten"
        now = trio.current_time()
        self._apply(self.chain.broken(ENTRY, place, forgot=False, now=now))

    def _apply(self, effects: list[Effect]) -> None:
        if not self._closing:
            self.apply(effects)

    def _tell(self, number: int, message: Rewire | Ping | End) -> None:
        stage = self.held.get(number)
        if stage is not None:
            stage.tell(message)

    async def _watch(self) -> None:
        """Wake the chain at its deadlines."""
        while True:
            self._sooner = trio.Event()
            with trio.move_on_at(self.chain.deadline):
                await self._sooner.wait()
            now = trio.current_time()
            if now >= self.chain.deadline:
                self._apply(self.chain.tick(now))
