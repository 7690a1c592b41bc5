"""What every member of an attempt does: move its data, and sign what came of it."""

import secrets
from collections.abc import Callable

from protocols.modelsync.exchange import Exchange
from protocols.modelsync.news import Complete, Fault
from protocols.modelsync.tally import Pledge
from protocols.modelsync.wire import Ack, Bound, Certificate, Done, Failed, Go, Prepare
from wire.errors import BadMessage
from wire.ids import Signer

BEAT_S = 0.5  # seconds between two signs of life on the stream of an attempt
SILENCE_S = 2.0  # seconds without one that make a suspect: four beats
ORDER_WAIT_S = 1.0  # seconds to get a message out to the other end of it
NEWS_MAX = 1024  # events of one attempt: a few a member, and 64 members; more are dropped

OpenExchange = Callable[[Prepare, Callable[[Fault | Complete], None]], Exchange]
Hold = Callable[[Bound, Exchange], None]


class Seat:
    """One member's own part in one attempt. `say` takes what the proposer is to hear of it.

    `hold` is told what we are bound to before anybody sees our signature.
    """

    def __init__(
        self,
        prepare: Prepare,
        signer: Signer,
        open_exchange: OpenExchange,
        *,
        hold: Hold,
        say: Callable[[Done | Failed], None],
    ) -> None:
        self.prepare = prepare
        self._pledge = Pledge(prepare, signer, secrets.token_bytes(32))
        self._hold, self._say = hold, say
        self._is_over = False
        self.exchange = open_exchange(prepare, self._on_news)

    async def ack(self, bound: Bound | None) -> Ack:
        """Promise to take part; in a sealed round this encodes our whole contribution."""
        is_committing = self.prepare.is_sealed and self.prepare.adopt is None
        commitment = await self.exchange.seal() if is_committing else None
        return self._pledge.ack(bound, commitment)

    def go(self, go: Go) -> None:
        """All take part: we may sign. Raises BadMessage."""
        self._pledge.go(go)
        if go.commitments:
            self.exchange.go(dict(zip(self.prepare.members, go.commitments, strict=True)))
        self._sign()

    def leave(self) -> None:
        """Sign nothing from now on, and end the streams that others opened to us."""
        self._is_over = True
        self.exchange.close()

    def is_of_us(self, certificate: Certificate) -> bool:
        """True if it certifies this very attempt and the result that we signed."""
        return self._pledge.is_of_us(certificate)

    def _on_news(self, event: Fault | Complete) -> None:
        if isinstance(event, Complete):
            self._pledge.shards = event.shards
            self._sign()
        else:
            self._say(Failed(event.accused, event.reason))

    def _sign(self) -> None:
        if self._is_over:
            return
        try:
            done = self._pledge.done()
        except BadMessage:
            self._say(Failed(self.prepare.proposer, "bad"))
            return
        if done is not None and self._pledge.bound is not None:
            self._hold(self._pledge.bound, self.exchange)
            self._say(done)
