"""The entry's side of a session's ring: steps go out, picks come in, lost stages are replaced.

A thin driver of the chain. One task per stage holds its call (`held.py`), one feeds the first stage
(`feeder.py`), one waits for deadlines. Between two tokens none of them has anything to do.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager

import structlog
import trio

from protocols.sharding.chain import ENTRY, Chain
from protocols.sharding.feeder import Feeder
from protocols.sharding.held import HeldStage
from protocols.sharding.history import FIRST_NUMBER, Forgotten, History
from protocols.sharding.inlet import Inlet
from protocols.sharding.parts import (
    DropStage,
    Effect,
    EndStage,
    FeedStage,
    GiveUp,
    HopLost,
    Loss,
    OpenStage,
    PingStage,
    RewireStage,
)
from protocols.sharding.route import RouteHop
from protocols.sharding.rows import ID_BYTES, ids_to_rows
from protocols.sharding.service import StageService
from protocols.sharding.wire import (
    Broken,
    End,
    Open,
    Opened,
    Pick,
    Picks,
    Ping,
    Place,
    Receipt,
    Rewire,
    Step,
)
from wire.errors import BadMessage, ShoalError

# Seconds without picks, beyond what a step should take, until all feeds are opened anew; then,
# twice as long after that, stages are replaced by others.
STALL_S = 10.0
STALLS_MAX = 3  # after so many times, twice as long each, the answer is given up

log = structlog.get_logger(__name__)


class Ring:
    """The stages of one session. Start it in a nursery that ends with the session.

    `reusable`: rows of the prompt that stages may have. `opening` makes the request that opens one.
    """

    def __init__(
        self,
        stages: StageService,
        chain: Chain,
        session: bytes,
        rows_max: int,
        *,
        vocab_size: int,
        reusable: int,
        opening: Callable[[OpenStage], Open],
    ) -> None:
        self.chain = chain
        self.held: dict[int, HeldStage] = {}
        self.history = History(ID_BYTES, rows_max)
        self._feeder = Feeder(stages.calls, session, self.history, on_broken=self._feed_broken)
        self._stages, self._session, self._opening = stages, session, opening
        self._reusable, self._vocab_size = reusable, vocab_size
        self._nursery: trio.Nursery | None = None
        self._inlet: Inlet | None = None
        self._error: ShoalError | None = None
        self._changed = trio.Event()  # picks came, the chain changed, or all is over
        self._sooner = trio.Event()  # the chain's deadline may have come nearer
        self._number = FIRST_NUMBER - 1  # of the last step
        self._wanted = 0  # its picks
        self._picks: Picks | None = None

    @contextmanager
    def open(self, nursery: trio.Nursery, route: list[RouteHop]) -> Generator[None]:
        """Begin to open the stages of a route; take picks for the length of the block."""
        self._nursery = nursery
        last, n_layers = route[-1].peer, self.chain.n_layers
        with self._stages.expect(self._session, n_layers, last, self._on_picks) as self._inlet:
            nursery.start_soon(self._feeder.run)
            nursery.start_soon(self._watch)
            self._apply(self.chain.begin(route))
            yield

    async def whole(self) -> None:
        """Wait until all stages are open. Raises what ends the session."""
        while not self.chain.is_whole:
            await self._change()

    # Steps.

    def push(self, position: int, tokens: list[int], *, picks: int) -> None:
        """Send a step, without waiting."""
        self._number += 1
        self._wanted, self._picks = picks, None
        self.history.add(Step(self._number, position, ids_to_rows(tokens), picks))
        self._feeder.wake()

    async def picked(self, expected_s: float) -> list[Pick]:
        """Wait for the picks of the last step, which should take so long, at worst.

        Raises what ends the session.
        """
        stalls = 0
        while self._picks is None:
            is_late = True
            with trio.move_on_after((STALL_S + expected_s) * 2**stalls):
                await self._change()
                is_late = False
            if is_late and self.chain.is_whole:
                stalls += 1
                if stalls > STALLS_MAX:
                    raise HopLost("no tokens come, though all stages answer")
                self._apply(self.chain.stalled(trio.current_time(), is_again=stalls > 1))
        self.chain.picked(trio.current_time())
        return self._picks.picks

    def _on_picks(self, picks: Picks) -> None:
        """Take what the last stage feeds. Of earlier steps it may come twice; else it must fit."""
        if picks.number < self._number:
            return
        found = picks.number, picks.position, len(picks.picks)
        is_sound = all(
            token < self._vocab_size
            for pick in picks.picks
            for token in (pick.token, *(other for other, _ in pick.top))
        )
        if is_sound and found == (self._number, self.history.position, self._wanted):
            self._picks = picks
            self._changed.set()
            return
        number, _ = self.chain.hops[-1]
        why = f"picks of step {picks.number} at {picks.position} were not asked for"
        self.on_lost(number, Loss.FAILED, why, None)
        raise BadMessage(why)

    async def _change(self) -> None:
        """Wait until something changes. Raises what ends the session."""
        if self._error is None:
            await self._changed.wait()
            self._changed = trio.Event()
        if self._error is not None:
            raise self._error

    # The chain.

    def _apply(self, effects: list[Effect]) -> None:
        """Do what the chain says, without waiting."""
        for effect in effects:
            match effect:
                case OpenStage(number=number, hop=hop):
                    opening = self._opening(effect)
                    stage = HeldStage(self._stages.calls, hop.peer, number, opening, self)
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
                    self._feeder.point(place)
                case GiveUp(error):
                    self._error = error
        hops = self.chain.hops
        if self._inlet is not None and hops and self._inlet.previous != hops[-1][1].peer:
            self._inlet.expect(hops[-1][1].peer)
        if effects:
            self._sooner.set()
            self._changed.set()

    async def end(self, keys: list[bytes], timeout_s: float) -> list[Receipt | None]:
        """End all sessions; return the receipts of the stages in use, in their order."""
        self.chain.close()
        stages = [self.held[number] for number, _ in self.chain.hops]
        with trio.move_on_after(timeout_s) as scope:
            scope.shield = True
            for stage in stages:
                if stage.is_called:
                    stage.tell(End(keys))
                else:
                    stage.drop()
            for stage in stages:
                await stage.over.wait()
        for stage in self.held.values():
            stage.drop()
        return [stage.receipt for stage in stages]

    # What stages say.

    def on_opened(self, number: int, opened: Opened) -> None:
        """The session is open there."""
        now, position, truncates = trio.current_time(), opened.position, opened.truncates
        if position > max(self._reusable, self.history.position):
            self.on_lost(number, Loss.FAILED, f"it has rows before {position}: nobody has", None)
            return
        self._apply(self.chain.opened(number, position, truncates=truncates, now=now))
        self._changed.set()

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
