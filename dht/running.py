"""Runs operations and checks, and takes in who answers: what a node does whatever it looks for.

What it asks goes out under numbers of its own; an answer to a number that is not known any more is
ignored. Requests of operations that have ended are kept for a while, since what comes of them still
tells who is alive. Sans-IO, as `dht.node` says.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dht.checks import Checks
from dht.finding import Looking
from dht.key import Key, key_of
from dht.lookup import Lookup
from dht.messages import (
    AddProviders,
    Answer,
    Ask,
    Contact,
    Done,
    Effect,
    FindNode,
    GetProviders,
    GetValue,
    Moment,
    Nodes,
    Ping,
    Pong,
    Providers,
    PutValue,
    Request,
    Stored,
    Trace,
    Values,
)
from dht.operation import QUERY_S, Operation, Wanted
from dht.records import why_not
from dht.serving import NO_SERVER, Serving
from dht.state import Author, NodeStats, new_state
from dht.table import K, Table
from dht.upkeep import Upkeep
from wire.ids import PeerId

LATE_MAX = 256  # requests of ended operations whose outcome still tells who is alive; 3 s at most
ENDED_MAX = 1024  # operations that wait to be taken out; the driver runs fewer at once
OUTAGE = 16  # requests in a row that nobody answered: it is our network. 70 % dead: 1 in 300
OURS = "too busy"  # why a request failed when we did not send it: no word about the peer

Then = Callable[[Any, Moment], None]  # what the node itself does with an operation's result

_ANSWERS: dict[type, type] = {
    Ping: Pong,
    FindNode: Nodes,
    GetProviders: Providers,
    GetValue: Values,
    AddProviders: Stored,
    PutValue: Stored,
}


@dataclass(slots=True)
class _Flying:
    """A request on its way. running: None for a check, and for those whose operation has ended."""

    contact: Contact
    request: Request
    running: "_Running | None" = None
    tag: int = 0
    is_check: bool = False


@dataclass(slots=True, eq=False)
class _Running:
    """An operation. is_ours: nobody outside waits for it."""

    number: int
    operation: Operation
    then: Then | None
    is_ours: bool
    trace: Trace | None  # to be filled in the end
    began_s: float
    asks: set[int] = field(default_factory=set[int])


class Runner:
    """The events of a node, and the operations that it runs."""

    def __init__(
        self, author: Author, rng: random.Random, *, is_server: bool = True, is_public: bool = False
    ) -> None:
        """A node that knows nobody. is_public: others take part, without our signatures."""
        self.state = new_state(author, rng, is_server=is_server, is_public=is_public)
        self.serving = Serving(self.state)
        self.upkeep = Upkeep(self.state, self.serving)
        self._checks = Checks()
        self._effects: list[Effect] = []
        self._numbers = 0
        self._flying: dict[int, _Flying] = {}
        self._late: dict[int, None] = {}
        self._silence = 0  # requests in a row that nobody answered
        self._running: dict[int, _Running] = {}
        self._ended: dict[int, Operation] = {}

    # --- events ----------------------------------------------------------------------------------

    def received(
        self, peer: PeerId, sender: Contact | None, request: Request, moment: Moment
    ) -> Answer:
        """Answer a request. Never raises. Over the limits, or as a client: Stored(0, why)."""
        answer = self.serving.answer(peer, request, moment)
        if sender is not None and sender.peer == peer:
            self._hear_of(sender, moment)
        return answer

    def answered(
        self,
        number: int,
        answer: Answer,
        sender: Contact | None,
        address: str | None,
        moment: Moment,
    ) -> None:
        """An Ask was answered; `sender` and `address` as in `dht.ports.Reply`."""
        flying = self._flying.pop(number, None)
        if flying is None:
            return
        if isinstance(answer, Stored) and _ANSWERS[type(flying.request)] is not Stored:
            self._refused(number, flying, answer.refusal, moment)
        elif not isinstance(answer, _ANSWERS[type(flying.request)]):
            self._failed(number, flying, "a false answer", moment)
        else:
            self._answered(
                number, flying, answer, self._who(flying, sender, moment), address, moment
            )

    def failed(self, number: int, why: str, moment: Moment) -> None:
        """An Ask was not answered: "timeout", "unreachable", or what the peer says."""
        flying = self._flying.pop(number, None)
        if flying is not None:
            self._failed(number, flying, why, moment)

    def peer_up(self, contact: Contact, moment: Moment) -> None:
        """A peer is there: it is asked in, if the table wants it, or if it has moved."""
        known = self.state.table.get(contact.peer)
        if known is None:
            is_new = self.state.table.wants(contact)
        else:
            is_new = contact.is_newer_than(known) and contact.addrs != known.addrs
        if is_new and not why_not(contact, moment.wall_ms):
            self._checks.knock(contact, moment.s, is_near=self._is_near(contact))
            self._check()

    def _hear_of(self, sender: Contact, moment: Moment) -> None:
        """Somebody asks us. An entry is alive then, but if it does not answer it helps nobody."""
        entry = self.state.table.entry(sender.peer)
        if entry is not None and not entry.failures and sender.addrs == entry.contact.addrs:
            self.state.table.answered(sender, None, moment.s)
        else:
            self.peer_up(sender, moment)

    def tick(self, moment: Moment) -> None:
        """The time of `wake_at` has come."""
        for running in [*self._running.values()]:
            if running.operation.wake_at <= moment.s:
                self._pump(running, moment)
        for chore in self.upkeep.due(moment):
            self.start(chore.operation, moment, then=chore.then, is_ours=True)

    @property
    def wake_at(self) -> float:
        """When the next `tick` is due (Moment.s)."""
        wake_at = self.upkeep.wake_at
        for running in self._running.values():
            wake_at = min(wake_at, running.operation.wake_at)
        return wake_at

    def effects(self) -> list[Effect]:
        """What has to be done now, in order; each is returned once."""
        effects, self._effects = self._effects, []
        return effects

    # --- operations ------------------------------------------------------------------------------

    def end(self, number: int) -> Operation | None:
        """Take an operation out: one that has ended, with its result, or one that is given up."""
        running = self._running.pop(number, None)
        if running is None:
            return self._ended.pop(number, None)
        self._forget_asks(running)
        _fill(running)
        return running.operation

    def start(
        self,
        operation: Operation,
        moment: Moment,
        *,
        then: Then | None = None,
        is_ours: bool = False,
        trace: Trace | None = None,
    ) -> int:
        """Run an operation; returns its number. When it has ended, `Done(number)` comes.

        then: what the node itself does with the result. is_ours: upkeep, no Done. trace: is filled
        with the hops when it has ended or is given up.
        """
        self._numbers += 1
        running = _Running(self._numbers, operation, then, is_ours, trace, moment.s)
        self._running[running.number] = running
        self._pump(running, moment)
        return running.number

    def _pump(self, running: _Running, moment: Moment) -> None:
        """Send what an operation wants to be sent, and see whether it has ended."""
        for wanted in running.operation.next_asks(moment):
            self._ask(running, wanted)
        if running.operation.is_done:
            self._done(running, moment)

    def _ask(self, running: _Running, wanted: Wanted) -> None:
        number = self._number(_Flying(wanted.contact, wanted.request, running, wanted.tag))
        running.asks.add(number)
        self.stats.upkeep += running.is_ours
        self._effects.append(Ask(number, wanted.contact, wanted.request, wanted.timeout_s))

    def _done(self, running: _Running, moment: Moment) -> None:
        del self._running[running.number]
        self._forget_asks(running)
        operation = running.operation
        if running.then is not None:
            running.then(operation.result, moment)
        if running.is_ours:
            return
        _fill(running)
        self.stats.lookups += 1
        self.stats.hops += _hops(operation)
        self.stats.seconds += moment.s - running.began_s
        self._ended[running.number] = operation
        if len(self._ended) > ENDED_MAX:
            del self._ended[next(iter(self._ended))]
        self._effects.append(Done(running.number))

    def _forget_asks(self, running: _Running) -> None:
        """Nobody waits for them any more; what comes of them still tells who is alive."""
        for number in running.asks:
            self._flying[number].running = None
            self._late[number] = None
        while len(self._late) > LATE_MAX:
            oldest = next(iter(self._late))
            del self._late[oldest]
            self._flying.pop(oldest, None)

    # --- what came of a request ------------------------------------------------------------------

    def _number(self, flying: _Flying) -> int:
        self._numbers += 1
        self._flying[self._numbers] = flying
        self.stats.asked += 1
        return self._numbers

    def _answered(
        self,
        number: int,
        flying: _Flying,
        answer: Answer,
        who: Contact | None,
        address: str | None,
        moment: Moment,
    ) -> None:
        table, peer = self.state.table, flying.contact.peer
        self.stats.answers += 1
        self._silence = 0
        if who is not None:
            for doubted in table.answered(who, address, moment.s):
                self._checks.offer(doubted, moment.s, is_stranger=False)
            if _is_useful(flying, answer):
                table.useful(peer, moment.s)
        if flying.is_check:
            self._checks.answered(peer)
        self._over(number, flying, moment, answer=answer)

    def _refused(self, number: int, flying: _Flying, why: str, moment: Moment) -> None:
        """It is there, but does not answer this: we ask too much, or it is no server any more."""
        self.stats.answers += 1
        self._silence = 0
        if why == NO_SERVER:
            self.state.table.failed(flying.contact.peer, moment.s, is_final=True)
        if flying.is_check:
            self._checks.failed(flying.contact.peer, moment.s)
        self._over(number, flying, moment, why=f"refused: {why}")

    def _failed(self, number: int, flying: _Flying, why: str, moment: Moment) -> None:
        peer = flying.contact.peer
        self.stats.timeouts += why == "timeout"
        self.stats.failures += why != "timeout"
        if why != OURS and self._silence < OUTAGE:
            self._silence += 1
            self.state.table.failed(peer, moment.s)
        if flying.is_check:
            self._checks.failed(peer, moment.s)
        self._over(number, flying, moment, why=why)

    def _over(
        self,
        number: int,
        flying: _Flying,
        moment: Moment,
        *,
        answer: Answer | None = None,
        why: str = "",
    ) -> None:
        """Tell the operation what came of its request; then what follows from it all."""
        self._late.pop(number, None)
        running = flying.running
        if running is not None:
            running.asks.discard(number)
            if answer is None:
                running.operation.failed(flying.tag, why, moment)
            else:
                running.operation.answered(flying.tag, answer, moment)
            self._pump(running, moment)
        self.upkeep.look_at_changes(moment)
        self._check()

    def _check(self) -> None:
        """Ask those who wait to be asked whether they are there."""
        while (one := self._checks.next()) is not None:
            contact, is_stranger = one
            number = self._number(_Flying(contact, Ping(), is_check=True))
            self.stats.checks += 1
            self._effects.append(Ask(number, contact, Ping(), QUERY_S, is_check=is_stranger))

    def _is_near(self, contact: Contact) -> bool:
        """Whether it is nearer to us than our k-th nearest, so that both hold the same records."""
        nearest = self.state.table.closest(self.state.key, K)
        own = self.state.key
        return len(nearest) < K or contact.key ^ own < nearest[-1].key ^ own

    def _who(self, flying: _Flying, sender: Contact | None, moment: Moment) -> Contact | None:
        """Whose answer it is, if it is a server's: they say so by sending their record along."""
        if sender is None:
            return flying.contact if self.state.is_public else None
        if sender.peer != flying.contact.peer or why_not(sender, moment.wall_ms):
            return None
        return sender

    # --- what it is ------------------------------------------------------------------------------

    @property
    def table(self) -> Table:
        """Whom we know."""
        return self.state.table

    @property
    def stats(self) -> NodeStats:
        """Counters since the beginning."""
        return self.state.stats


def _fill(running: _Running) -> None:
    """Tell who wanted to know what the hops were."""
    if running.trace is not None:
        running.trace.hops[:] = running.operation.trace.hops


def _hops(operation: Operation) -> int:
    if isinstance(operation, Looking):
        operation = operation.lookup
    return operation.hops if isinstance(operation, Lookup) else 0


def _is_useful(flying: _Flying, answer: Answer) -> bool:
    """Whether an answer brought a lookup forward: somebody nearer than who answered is in it."""
    if not isinstance(answer, Nodes | Providers | Values) or not isinstance(
        flying.request, FindNode | GetProviders | GetValue
    ):
        return False
    key: Key = key_of(flying.request.name)
    own = flying.contact.key ^ key
    return any(one.key ^ key < own for one in answer.closer)
