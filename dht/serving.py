"""What we answer to others. Pure; every refusal has a reason, and nothing here raises."""

from dht.key import Key, key_of
from dht.limits import TOO_MANY, Limits
from dht.messages import (
    AddProviders,
    Answer,
    Contact,
    FindNode,
    GetProviders,
    GetValue,
    Moment,
    Nodes,
    Ping,
    Pong,
    Providers,
    Provision,
    PutValue,
    Request,
    Stored,
    Value,
    Values,
)
from dht.state import State
from dht.table import K
from wire.ids import PeerId

REGION_SLACK = 4  # times our view of the region: others see other regions

# Why we do not answer, or keep a record; few and fixed, so that they can be counted.
NO_SERVER = "not a server"
FOREIGN = "not in our region"


class Serving:
    """Answers requests from the table and from what we hold."""

    def __init__(self, state: State) -> None:
        """Everybody begins with a full allowance."""
        self._state, self._limits = state, Limits()

    def answer(self, peer: PeerId, request: Request, moment: Moment) -> Answer:
        """Answer one request; a `Stored` with a refusal may answer any of them."""
        stats, kind = self._state.stats, type(request).__name__
        stats.requests[kind] = stats.requests.get(kind, 0) + 1
        if not self._state.is_server:
            return self._refused(NO_SERVER)
        if not self._limits.allows(peer, "request", moment.s):
            return self._refused(TOO_MANY)
        match request:
            case FindNode(name):
                return Nodes(self._closer(key_of(name), moment))
            case GetValue(name):
                held = self._state.holding.values(name, moment.wall_ms)
                return Values(held, self._closer(key_of(name), moment))
            case GetProviders(name):
                provisions = self._state.holding.provisions(name, moment.wall_ms)
                return Providers(provisions, self._closer(key_of(name), moment))
            case PutValue(value):
                return self._store((value,), peer, moment)
            case AddProviders(provisions):
                return self._store(provisions, peer, moment)
            case Ping():
                return Pong()

    def hold_own(self, record: Provision | Value, moment: Moment) -> None:
        """Hold a record of our own, if we belong to its close set."""
        if self._state.is_server:
            self._why_not(record, self._state.author.peer, moment)

    def _closer(self, key: Key, moment: Moment) -> tuple[Contact, ...]:
        closest = self._state.table.closest(key, K)
        if key == self._state.key:  # they ask for ourselves
            closest = [self._state.author.contact(moment.wall_ms), *closest[: K - 1]]
        return tuple(closest)

    def _store(
        self, records: tuple[Provision | Value, ...], peer: PeerId, moment: Moment
    ) -> Stored:
        """Keep what may be kept. The first reason stands for all."""
        if not self._limits.allows(peer, "record", moment.s, len(records)):
            return self._refused(TOO_MANY)
        reasons = [self._why_not(record, peer, moment) for record in records]
        refusals = [reason for reason in reasons if reason]
        for reason in refusals:
            self._state.stats.refused(reason)
        return Stored(len(records) - len(refusals), refusals[0] if refusals else "")

    def _why_not(self, record: Provision | Value, peer: PeerId, moment: Moment) -> str:
        """Keep a record: "", or say why not."""
        state = self._state
        if not self._is_near(key_of(record.name)):
            return FOREIGN
        if isinstance(record, Value):
            return state.holding.add_value(record, peer, moment)
        return state.holding.add_provision(record, peer, moment, is_public=state.is_public)

    def _is_near(self, key: Key) -> bool:
        """Whether we may belong to a key's close set; of few servers everybody does."""
        if len(self._state.table) < K:
            return True
        return key ^ self._state.key <= REGION_SLACK * self._state.size.region()

    def _refused(self, reason: str) -> Stored:
        self._state.stats.refused(reason)
        return Stored(0, reason)
