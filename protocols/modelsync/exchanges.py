"""The exchanges of one lane at this node, and the result that it is bound to."""

from collections.abc import Callable

import trio

from protocols.modelsync.aggregate import Aggregator
from protocols.modelsync.codecs import Vector
from protocols.modelsync.exchange import Exchange, open_exchange
from protocols.modelsync.memory import Memory
from protocols.modelsync.news import Complete, Fault, News
from protocols.modelsync.wire import Ballot, Piece, Prepare, result_of
from protocols.modelsync.work import Work
from wire.errors import NotFound
from wire.ids import PeerId
from wire.ports import Bulk, Call, Rpc

PREPARE_WAIT_S = 4.0  # seconds that data may come before its PREPARE


class Exchanges:
    """Opens exchanges, and brings peers to them. `on_bad` is told who sent us what cannot be."""

    def __init__(
        self,
        rpc: Rpc,
        bulk: Bulk | None,
        work: Work,
        *,
        contribution: Vector,
        aggregator: Aggregator,
        wants_sent: bool,
        on_bad: Callable[[PeerId], None],
    ) -> None:
        self._rpc, self._bulk, self._work, self._on_bad = rpc, bulk, work, on_bad
        self._contribution, self._aggregator, self._memory = contribution, aggregator, Memory()
        self._wants_sent = wants_sent
        self._open: dict[Ballot, Exchange] = {}
        self._opened = trio.Event()
        self.held: Exchange | None = None  # the result that we are bound to

    def open(self, prepare: Prepare, news: News) -> Exchange:
        """Return our side of an attempt's data."""

        def note(event: Fault | Complete) -> None:
            if isinstance(event, Fault) and event.reason == "bad":
                self._on_bad(event.accused)  # we saw it ourselves: its stream is its own
            news(event)

        held, adopt = self.held, prepare.adopt
        is_held = held is not None and adopt and result_of(held.shards) == adopt.result
        exchange = open_exchange(
            prepare,
            rpc=self._rpc,
            bulk=self._bulk,
            contribution=self._contribution[: prepare.elements],
            work=self._work,
            news=note,
            aggregator=self._aggregator,
            memory=self._memory,
            held=held.held if held is not None and is_held else None,
            wants_sent=self._wants_sent,
        )
        self._open[prepare.ballot] = exchange
        self._opened.set()
        self._opened = trio.Event()
        return exchange

    def close(self, ballot: Ballot) -> None:
        """An attempt is over: nobody is brought to its exchange any more."""
        exchange = self._open.pop(ballot, None)
        if exchange is not None:
            exchange.close()

    async def serve(self, call: Call[Piece, Piece], first: Piece) -> None:
        """Bring a peer to the exchange that it means. Raises NotFound if there is none in time."""
        with trio.move_on_after(PREPARE_WAIT_S):
            while first.ballot not in self._open:
                await self._opened.wait()
        exchange = self._open.get(first.ballot)
        if exchange is None:
            raise NotFound("no such attempt here")
        await exchange.serve(call, first)
