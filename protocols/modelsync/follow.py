"""One attempt at a round as a member sees it, on the stream that the proposer opened.

A member whose proposer falls silent, breaks off or talks nonsense blames the proposer.
"""

import math
from contextlib import suppress

import trio

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
from protocols.modelsync.tally import Aborted
from protocols.modelsync.wire import (
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
from wire.errors import BadMessage, ShoalError
from wire.ids import Signer
from wire.ports import Call

GO_WAIT_S = OPEN_S + 3.0  # seconds for GO after our ACK, besides sealing: others may answer late
VERDICT_WAIT_S = 2.0  # seconds for the proposer to decide after it was told of a fault
COMMIT_WAIT_S = 9.0  # seconds for it after our DONE, besides what the attempt has taken: others may
# wait for a mean that is not coming (news.MEAN_WAIT_S) before they accuse its owner


class Follow:
    """A member's side of one attempt. `bound`: what we were bound to before it."""

    def __init__(
        self,
        prepare: Prepare,
        call: Call[Answer, Order],
        signer: Signer,
        open_exchange: OpenExchange,
        *,
        hold: Hold,
        bound: Bound | None,
    ) -> None:
        self.prepare = prepare
        self._call, self._bound = call, bound
        self._send, self._news = trio.open_memory_channel[Ack | Done | Failed | Nack](NEWS_MAX)
        self.seat = Seat(prepare, signer, open_exchange, hold=hold, say=self._put)
        self._is_superseded = False
        self._go_scope = trio.CancelScope()

    async def run(self) -> Certificate | Aborted:
        """Take part until the proposer decides, dies or falls silent."""
        outcome: Certificate | Aborted = Aborted(frozenset({self.prepare.proposer}))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.seat.exchange.run)
            nursery.start_soon(self._ack)
            nursery.start_soon(self._report, nursery.cancel_scope)
            with suppress(ShoalError, trio.EndOfChannel, trio.TooSlowError), self._go_scope:
                outcome = await self._obey()
            nursery.cancel_scope.cancel()
        self.seat.leave()
        return Aborted() if self._is_superseded else outcome

    def supersede(self, attempt: int) -> None:
        """A better attempt has begun here: tell the proposer and leave."""
        self.seat.leave()
        self._is_superseded = True
        self._put(Nack("superseded", attempt))

    async def _obey(self) -> Certificate | Aborted:
        while True:
            with trio.fail_after(SILENCE_S):
                order = (await self._call.receive()).body
            match order:
                case Beat():
                    continue
                case Go():
                    self._go_scope.deadline = math.inf
                    self.seat.go(order)
                case Abort(excluded, is_void):
                    return Aborted(frozenset(excluded), is_void=is_void)
                case Commit(certificate):
                    if self.seat.is_of_us(certificate) and certificate.is_signed():
                        return certificate
                    raise BadMessage("a certificate of something else")
                case Prepare():
                    raise BadMessage("PREPARE in mid-attempt")

    async def _ack(self) -> None:
        self._put(await self.seat.ack(self._bound))
        self._go_scope.deadline = trio.current_time() + GO_WAIT_S + extra_s(self.prepare)

    async def _report(self, scope: trio.CancelScope) -> None:
        """Say what there is to say, and in between that we are alive."""
        began = trio.current_time()
        while True:
            body: Ack | Done | Failed | Nack | Beat = Beat()
            with trio.move_on_after(BEAT_S):
                body = await self._news.receive()
            with suppress(ShoalError), trio.move_on_after(ORDER_WAIT_S):
                await self._call.send(Answer(body))  # a dead proposer shows on the other side
            now = trio.current_time()
            match body:
                case Nack():
                    scope.cancel()
                    return
                case Done():
                    wait_s = COMMIT_WAIT_S + now - began
                    if self.prepare.adopt is not None:  # others may have to get it first
                        wait_s += extra_s(self.prepare)
                    scope.deadline = min(scope.deadline, now + wait_s)
                case Failed():
                    scope.deadline = min(scope.deadline, now + VERDICT_WAIT_S)
                case _:
                    pass

    def _put(self, body: Ack | Done | Failed | Nack) -> None:
        try:
            self._send.send_nowait(body)
        except trio.WouldBlock:
            return  # NEWS_MAX: only repeated faults can overflow it
