"""What an operation is: something that is looked for or stored, sans-IO, one request at a time.

`dht.node.Node` runs operations: it hands their wishes to the driver as `Ask`s under numbers of its
own, and brings back what came of them. Lookups, puts, gets and provides are operations, and so is
what the node does by itself (refresh, handing over).
"""

from dataclasses import dataclass
from typing import Any, Protocol

from dht.messages import Answer, Contact, Moment, Request, Trace

QUERY_S = 3.0  # for one answer, with dialling; a slower peer is no use in a lookup
SLOW_S = 0.5  # after this a request no longer fills a place: another may fly beside it
OPERATION_S = 30.0  # for one lookup: 40 requests, 8 at a time, with a third of the peers dead


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request that an operation wants to be sent. `tag` names it within the operation."""

    tag: int
    contact: Contact
    request: Request
    timeout_s: float = QUERY_S


class Operation(Protocol):
    """Same inputs, same outputs: time and chance come from outside."""

    def next_asks(self, moment: Moment) -> list[Wanted]:
        """Return what to send now; called at the beginning and after every event.

        What comes with the end (`is_done` is true afterwards) is sent, and its answers not awaited.
        """
        ...

    def answered(self, tag: int, answer: Answer, moment: Moment) -> None:
        """A request was answered."""
        ...

    def failed(self, tag: int, why: str, moment: Moment) -> None:
        """A request was not answered: "timeout", "unreachable", or what the peer says."""
        ...

    @property
    def trace(self) -> Trace:
        """Every request so far, in the order of sending."""
        ...

    @property
    def wake_at(self) -> float:
        """When `next_asks` may have more to send although nothing has come (Moment.s); or inf."""
        ...

    @property
    def is_done(self) -> bool:
        """True when nothing more comes of it; requests in flight are forgotten then."""
        ...

    @property
    def result(self) -> Any:
        """What came of it; each operation says what."""
        ...
