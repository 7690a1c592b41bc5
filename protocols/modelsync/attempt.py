"""One attempt at a round, as its proposer and as a member: PREPARE, ACK, data, DONE, COMMIT.

The proposer holds one stream to each member for as long as the attempt lasts, so either end knows
at once when the other dies. Only the proposer decides who is to blame; a member whose proposer
dies blames the proposer.
"""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import msgspec
import trio

from protocols.modelsync.exchange import MEAN_WAIT_S, OPEN_S, Complete, Exchange, Fault
from protocols.modelsync.machine import Accusation, blame
from protocols.modelsync.wire import (
    ATTEMPT,
    CERTIFICATE_TAG,
    Abort,
    Ack,
    Answer,
    Beat,
    Certificate,
    Commit,
    Done,
    Failed,
    Go,
    Nack,
    Order,
    Prepare,
    result_of,
)
from wire.errors import BadMessage, ShoalError
from wire.ids import PeerId, Signer, verify
from wire.ports import Call, Rpc

ACK_WAIT_S = 4.0  # seconds for a member to say ACK; it has nothing to compute for it
DONE_WAIT_S = 8.0  # seconds for the last DONE after the first: chunk waits have passed by then
BLAME_WAIT_S = 0.3  # seconds in which more evidence may come, after the first fault
ORDER_WAIT_S = 1.0  # seconds to get the decision out to each member
VERDICT_WAIT_S = 2.0  # seconds for the proposer to decide after it was told of a fault
NEWS_MAX = 1024  # events of one attempt: at most 4 a member, and 64 members

Body = Ack | Nack | Done | Failed | Beat
OpenExchange = Callable[[Prepare, Callable[[Fault | Complete], None]], Exchange]


@dataclass(frozen=True)
class Aborted:
    """The attempt failed: whom to leave out, whom to ask again, what others know already."""

    excluded: frozenset[PeerId]
    stale: frozenset[PeerId] = frozenset()
    attempt: int = 0
    certificate: Certificate | None = None


@dataclass(frozen=True)
class _Lost:
    reason: str


class Lead:
    """The proposer's side of one attempt."""

    def __init__(
        self, prepare: Prepare, rpc: Rpc, signer: Signer, open_exchange: OpenExchange
    ) -> None:
        self.prepare = prepare
        self._rpc, self._signer = rpc, signer
        self._send, self._news = trio.open_memory_channel[tuple[PeerId, object]](NEWS_MAX)
        self.exchange = open_exchange(prepare, self._own_news)
        self._others = [member for member in prepare.members if member != rpc.peer]
        self._order = Order(Abort([]))
        self._decided = trio.Event()
        self._accusations: list[Accusation] = []

    async def run(self) -> Certificate | Aborted:
        """Lead the attempt to its end, in bounded time."""
        async with trio.open_nursery() as data:
            data.start_soon(self.exchange.run)
            async with trio.open_nursery() as links:
                for member in self._others:
                    links.start_soon(self._follow, member)
                outcome = await self._gather()
                self._order = _order_for(outcome)
                self._decided.set()
                links.cancel_scope.deadline = trio.current_time() + ORDER_WAIT_S
            data.cancel_scope.cancel()
        self.exchange.close()
        return outcome

    def supersede(self) -> None:
        """A better attempt has begun here: give this one up, nobody is to blame."""
        self._say(self._rpc.peer, Nack("superseded"))

    # -- deciding ----------------------------------------------------------------------------

    async def _gather(self) -> Certificate | Aborted:
        done: dict[PeerId, Done] = {}
        while len(done) < len(self.prepare.members):
            wait_s = DONE_WAIT_S if done else math.inf  # the data has deadlines of its own
            member, what = self._rpc.peer, None
            with trio.move_on_after(wait_s) as scope:
                member, what = await self._news.receive()
            if scope.cancelled_caught:
                return self._blame_silent(done)
            match what:
                case Done():
                    done[member] = what
                case Nack():
                    return await self._refused(member, what)
                case Fault() | Failed() | _Lost():
                    self._note_fault(member, what)
                    return await self._blame()
                case _:
                    continue
        return self._certify(done)

    async def _blame(self) -> Aborted:
        """Collect accusations for a moment, then decide."""
        with trio.move_on_after(BLAME_WAIT_S):
            while True:
                member, what = await self._news.receive()
                self._note_fault(member, what)
        return Aborted(frozenset(blame(self._accusations) - {self._rpc.peer}))

    def _note_fault(self, member: PeerId, what: object) -> None:
        me = self._rpc.peer
        match what:
            case _Lost():
                self._accusations.append(Accusation(me, member, "lost"))
            case Fault(accused, reason) | Failed(accused, reason):
                if accused != member and accused in self.prepare.members:
                    self._accusations.append(Accusation(member, accused, reason))
            case _:
                return

    async def _refused(self, member: PeerId, nack: Nack) -> Aborted:
        if nack.certificate is not None and nack.certificate.is_signed():
            return Aborted(frozenset(), certificate=nack.certificate)
        stale = frozenset({member})
        excluded = stale if nack.reason in ("invalid", "schema") else frozenset[PeerId]()
        return Aborted(excluded, stale, attempt=nack.attempt)

    def _blame_silent(self, done: dict[PeerId, Done]) -> Aborted:
        me = self._rpc.peer
        return Aborted(frozenset(set(self.prepare.members) - set(done) - {me}))

    def _certify(self, done: dict[PeerId, Done]) -> Certificate | Aborted:
        members = self.prepare.members
        for index, owner in enumerate(members):
            if len({done[member].shards[index] for member in members}) != 1:
                return Aborted(frozenset({owner}) - {self._rpc.peer})
        certificate = self.prepare.certificate(result_of(done[members[0]].shards))
        body = certificate.body()
        for member in members:
            if not verify(member, CERTIFICATE_TAG, body, done[member].signature):
                return Aborted(frozenset({member}))
        signatures = tuple(done[member].signature for member in members)
        return msgspec.structs.replace(certificate, signatures=signatures)

    # -- one member --------------------------------------------------------------------------

    async def _follow(self, member: PeerId) -> None:
        try:
            async with self._rpc.stream(member, ATTEMPT, timeout_s=OPEN_S) as call:
                await call.send(Order(self.prepare))
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._listen, call)
                    await self._decided.wait()
                    await self._tell(call)
                    nursery.cancel_scope.cancel()
        except ShoalError as error:
            self._say(member, _Lost(error.code))

    async def _listen(self, call: Call[Order, Answer]) -> None:
        member = call.peer
        try:
            with trio.fail_after(ACK_WAIT_S):
                self._say(member, (await call.receive()).body)
            while True:
                body = (await call.receive()).body
                self._check(member, body)
                self._say(member, body)
        except trio.TooSlowError:
            self._say(member, _Lost("silent"))
        except trio.EndOfChannel:
            self._say(member, _Lost("broken"))
        except ShoalError as error:
            self._say(member, _Lost(error.code))

    def _check(self, member: PeerId, body: Body) -> None:
        if isinstance(body, Done) and len(body.shards) != len(self.prepare.members):
            raise BadMessage(f"{len(body.shards)} shard hashes from {member}")

    async def _tell(self, call: Call[Order, Answer]) -> None:
        try:
            with trio.move_on_after(ORDER_WAIT_S):
                await call.send(self._order)
                await call.finish()
        except ShoalError:
            return  # it learns of the outcome when it next says that it is ready

    def _own_news(self, event: Fault | Complete) -> None:
        if isinstance(event, Complete):
            self._say(self._rpc.peer, done_for(self.prepare, event.shards, self._signer))
        else:
            self._say(self._rpc.peer, event)

    def _say(self, member: PeerId, event: object) -> None:
        try:
            self._send.send_nowait((member, event))
        except trio.WouldBlock:
            return  # NEWS_MAX: only repeated faults can overflow it


class Follow:
    """A member's side of one attempt, on the stream that the proposer opened."""

    def __init__(
        self,
        prepare: Prepare,
        call: Call[Answer, Order],
        signer: Signer,
        open_exchange: OpenExchange,
    ) -> None:
        self.prepare = prepare
        self._call, self._signer = call, signer
        self._send, self._news = trio.open_memory_channel[Done | Failed | Nack](NEWS_MAX)
        self.exchange = open_exchange(prepare, self._on_news)
        self._is_superseded = False

    async def run(self) -> Certificate | Aborted:
        """Take part until the proposer decides, dies or falls silent."""
        outcome: Certificate | Aborted = Aborted(frozenset({self.prepare.proposer}))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.exchange.run)
            nursery.start_soon(self._report, nursery.cancel_scope)
            try:
                await self._call.send(Answer(Ack()))
                outcome = self._obey((await self._call.receive()).body)
            except (ShoalError, trio.EndOfChannel):
                pass  # the proposer is gone, or talks nonsense: it is left out
            nursery.cancel_scope.cancel()
        self.exchange.close()
        return Aborted(frozenset()) if self._is_superseded else outcome

    def supersede(self, attempt: int) -> None:
        """A better attempt has begun here: tell the proposer and leave."""
        self._is_superseded = True
        self._put(Nack("superseded", attempt))

    def _obey(self, order: Prepare | Go | Beat | Commit | Abort) -> Certificate | Aborted:
        match order:
            case Abort(excluded):
                return Aborted(frozenset(excluded))
            case Commit(certificate):
                if self.holds(certificate) and certificate.is_signed():
                    return certificate
                raise BadMessage("a certificate of something else")
            case _:
                raise BadMessage("not an order of this attempt")

    def holds(self, certificate: Certificate) -> bool:
        """True if it certifies this very attempt and the mean that lies here."""
        shards = self.exchange.shards
        if not shards:
            return False
        return certificate.body() == self.prepare.certificate(result_of(shards)).body()

    async def _report(self, scope: trio.CancelScope) -> None:
        """Send what happens to the proposer, then give it bounded time to decide."""
        async for body in self._news:
            with suppress(ShoalError):  # a dead proposer shows on the receiving side
                with trio.move_on_after(ORDER_WAIT_S):
                    await self._call.send(Answer(body))
            if isinstance(body, Nack):
                scope.cancel()
                return
            wait_s = DONE_WAIT_S + MEAN_WAIT_S if isinstance(body, Done) else VERDICT_WAIT_S
            scope.deadline = min(scope.deadline, trio.current_time() + wait_s)

    def _on_news(self, event: Fault | Complete) -> None:
        if isinstance(event, Complete):
            self._put(done_for(self.prepare, event.shards, self._signer))
        else:
            self._put(Failed(event.accused, event.reason))

    def _put(self, body: Done | Failed | Nack) -> None:
        try:
            self._send.send_nowait(body)
        except trio.WouldBlock:
            return  # NEWS_MAX: only repeated faults can overflow it


def done_for(prepare: Prepare, shards: list[bytes], signer: Signer) -> Done:
    """Sign the outcome as one member sees it."""
    body = prepare.certificate(result_of(shards)).body()
    return Done(shards, signer.sign(CERTIFICATE_TAG, body))


def _order_for(outcome: Certificate | Aborted) -> Order:
    if isinstance(outcome, Certificate):
        return Order(Commit(outcome))
    return Order(Abort(sorted(outcome.excluded)))
