"""One attempt at a round as its proposer runs it: PREPARE, ACK, GO, DONE, COMMIT.

It holds one stream to each member for as long as the attempt lasts, and both ends say Beat, so
that either knows soon when the other is gone. Only the proposer decides who is to blame.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import trio

from protocols.modelsync.blame import Accusation, blame
from protocols.modelsync.news import OPEN_S, extra_s
from protocols.modelsync.seat import (
    BEAT_S,
    NEWS_MAX,
    ORDER_WAIT_S,
    SILENCE_S,
    Hold,
    OpenExchange,
    Seat,
)
from protocols.modelsync.tally import Aborted, Tally
from protocols.modelsync.wire import (
    ATTEMPT,
    Abort,
    Ack,
    Answer,
    Beat,
    Bound,
    Certificate,
    Commit,
    Done,
    Failed,
    Go,
    Nack,
    Order,
    Prepare,
)
from wire.errors import ShoalError
from wire.ids import PeerId, Signer
from wire.ports import Call, Rpc

ACK_WAIT_S = 2.0  # seconds for a member to say ACK, besides what sealing takes
DONE_WAIT_S = 2.0  # seconds for the last DONE after the first, besides what the first has taken
BLAME_WAIT_S = 0.3  # seconds in which more evidence may come, after a fault that may be an echo
CERTAIN_WAIT_S = 0.05  # the same after one that is none: others may have died together
ORDERS_MAX = 4  # PREPARE, GO and the outcome, and one to spare


@dataclass(frozen=True)
class _Lost:
    reason: str


class Lead:
    """The proposer's side of one attempt."""

    def __init__(
        self,
        prepare: Prepare,
        rpc: Rpc,
        signer: Signer,
        open_exchange: OpenExchange,
        *,
        hold: Hold,
        bound: Callable[[], Bound | None],
    ) -> None:
        self.prepare = prepare
        self._rpc, self._bound = rpc, bound
        self._tally = Tally(prepare)
        self._send, self._news = trio.open_memory_channel[tuple[PeerId, object]](NEWS_MAX)
        self.seat = Seat(prepare, signer, open_exchange, hold=hold, say=self._own_news)
        others = [member for member in prepare.members if member != rpc.peer]
        self._orders = {m: trio.open_memory_channel[Order](ORDERS_MAX) for m in others}
        self._accusations: list[Accusation] = []
        self._done_by = math.inf
        self._gone_at = math.inf

    async def run(self) -> Certificate | Aborted:
        """Lead the attempt to its end, in bounded time."""
        async with trio.open_nursery() as data:
            data.start_soon(self.seat.exchange.run)
            data.start_soon(self._own_ack)
            async with trio.open_nursery() as links:
                for member in self._orders:
                    links.start_soon(self._follow, member)
                outcome = await self._gather()
                self._tell(_order_for(outcome))
                links.cancel_scope.deadline = trio.current_time() + ORDER_WAIT_S
            data.cancel_scope.cancel()
        self.seat.leave()
        return outcome

    def supersede(self, attempt: int) -> None:
        """A better attempt has begun here: give this one up, nobody is to blame."""
        self.seat.leave()
        self._say(self._rpc.peer, Nack("superseded", attempt))

    # -- deciding ----------------------------------------------------------------------------

    async def _gather(self) -> Certificate | Aborted:
        while True:
            member, what = self._rpc.peer, None
            with trio.move_on_at(self._done_by) as scope:
                member, what = await self._news.receive()
            if scope.cancelled_caught:
                return Aborted(self._tally.missing())
            decision: object = None
            match what:
                case Ack():
                    decision = self._tally.ack(member, what)
                case Done():
                    decision = self._done(member, what)
                case Nack():
                    decision = self._tally.refused(member, what)
                case Failed() | _Lost():
                    return await self._blame(member, what)
                case _:
                    pass
            match decision:
                case Go():
                    self._gone_at = trio.current_time()
                    self._tell(Order(decision))
                    self.seat.go(decision)
                case Certificate() | Aborted():
                    return decision
                case _:
                    pass

    def _done(self, member: PeerId, done: Done) -> Certificate | Aborted | None:
        if not self._tally.dones:
            now = trio.current_time()
            self._done_by = now + DONE_WAIT_S + max(0.0, now - self._gone_at)
            if self.prepare.adopt is not None:  # who has the result is done at once
                self._done_by += extra_s(self.prepare)
        return self._tally.done(member, done)

    async def _blame(self, member: PeerId, what: object) -> Aborted:
        """Collect accusations for a moment, then decide."""
        self._note_fault(member, what)
        is_certain = isinstance(what, _Lost)
        with trio.move_on_after(CERTAIN_WAIT_S if is_certain else BLAME_WAIT_S):
            while True:
                member, what = await self._news.receive()
                self._note_fault(member, what)
        guilty, adopt = frozenset(blame(self._accusations)), self.prepare.adopt
        if adopt is not None and guilty <= {self._rpc.peer}:
            # Nobody has the result: who claims to be bound to it must have it.
            bound = {m: ack.bound for m, ack in self._tally.acks.items() if ack.bound is not None}
            guilty = frozenset(m for m in bound if bound[m].result == adopt.result)
        return Aborted(guilty - {self._rpc.peer})

    def _note_fault(self, member: PeerId, what: object) -> None:
        match what:
            case _Lost():
                self._accusations.append(Accusation(self._rpc.peer, member, "lost"))
            case Failed(accused, reason):
                if accused != member and accused in self.prepare.members:
                    self._accusations.append(Accusation(member, accused, reason))
            case _:
                return

    # -- ourselves ---------------------------------------------------------------------------

    async def _own_ack(self) -> None:
        self._say(self._rpc.peer, await self.seat.ack(self._bound()))

    def _own_news(self, body: Done | Failed) -> None:
        self._say(self._rpc.peer, body)

    # -- one member --------------------------------------------------------------------------

    async def _follow(self, member: PeerId) -> None:
        """Say what there is to say, and in between that we are alive."""
        orders = self._orders[member][1]
        try:
            async with self._rpc.stream(member, ATTEMPT, timeout_s=OPEN_S) as call:
                await call.send(Order(self.prepare))
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._listen, call)
                    order = Order(Beat())
                    while not isinstance(order.body, Commit | Abort):
                        order = Order(Beat())
                        with trio.move_on_after(BEAT_S):
                            order = await orders.receive()
                        with trio.move_on_after(SILENCE_S):  # then its silence shows
                            await call.send(order)
                    await call.finish()
                    nursery.cancel_scope.cancel()
        except* ShoalError:
            self._say(member, _Lost("broken"))

    async def _listen(self, call: Call[Order, Answer]) -> None:
        member, said_ack = call.peer, False
        sealing_s = extra_s(self.prepare) if self.prepare.adopt is None else 0.0
        ack_by = trio.current_time() + ACK_WAIT_S + sealing_s
        try:
            while True:
                with trio.fail_after(SILENCE_S):
                    body = (await call.receive()).body
                said_ack = said_ack or not isinstance(body, Beat)
                if not said_ack and trio.current_time() > ack_by:
                    raise trio.TooSlowError
                if not isinstance(body, Beat):
                    self._say(member, body)
        except trio.TooSlowError:
            self._say(member, _Lost("silent"))
        except trio.EndOfChannel:
            self._say(member, _Lost("broken"))
        except ShoalError as error:
            self._say(member, _Lost(error.code))

    def _tell(self, order: Order) -> None:
        for send, _ in self._orders.values():
            send.send_nowait(order)

    def _say(self, member: PeerId, event: object) -> None:
        try:
            self._send.send_nowait((member, event))
        except trio.WouldBlock:
            return  # NEWS_MAX: only repeated faults can overflow it


def _order_for(outcome: Certificate | Aborted) -> Order:
    if isinstance(outcome, Certificate):
        return Order(Commit(outcome))
    return Order(Abort(sorted(outcome.excluded), outcome.is_void))
