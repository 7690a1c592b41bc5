"""One topic as this node holds it: who reads it here, what is kept of it, what came to what."""

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from protocols.channels.history import NOTHING, History, Keep, Kept
from protocols.channels.policy import AuthorRates, Limits, owner_of
from protocols.channels.subscription import Arrival, Subscription
from wire.ids import PeerId

RATE_WINDOW_S = 10  # seconds that a rate is the mean of

ChannelHandler = Callable[[PeerId, bytes], Awaitable[bool]]


@dataclass
class Counters:
    """What came to what, of one topic or of all."""

    published: int = 0  # by us
    delivered: int = 0  # of others: new, valid, and given to who reads here
    forwarded: int = 0  # copies sent to peers, ours and others'
    invalid: int = 0  # broke a rule: its last sender is to blame
    ignored: int = 0  # stale, no news, over a limit, or of nobody's writer
    failed: int = 0  # blobs that could not be fetched; history that could not be had
    dropped: int = 0  # by readers of ours that were too slow
    copies: int = 0  # arrived again: the price of the mesh
    limited: int = 0  # over a peer's rate, or too many at once: not read, and asked for later
    unsent: int = 0  # dropped because the peer was too slow
    given: int = 0  # of the past, to peers that asked


@dataclass(frozen=True)
class Published:
    """A message of ours that is on its way."""

    seqno: int
    peers: int  # connected peers that are subscribed
    cid: str = ""  # of the blob, if it went by reference


@dataclass(frozen=True)
class ChannelView:
    """One topic, for people and metrics."""

    topic: str
    readers: int
    peers: int  # connected and subscribed
    mesh: dict[PeerId, float]  # with their scores
    counters: Counters
    dropped: int
    history: int
    rate_s: float
    bytes_s: float


class Meter:
    """Messages and bytes per second, over the last `RATE_WINDOW_S`."""

    def __init__(self) -> None:
        self._seconds: deque[list[int]] = deque(maxlen=RATE_WINDOW_S + 1)  # [second, count, bytes]

    def count(self, size_bytes: int, now: float) -> None:
        """Count one message."""
        second = int(now)
        if not self._seconds or self._seconds[-1][0] != second:
            self._seconds.append([second, 0, 0])
        self._seconds[-1][1] += 1
        self._seconds[-1][2] += size_bytes

    def rates(self, now: float) -> tuple[float, float]:
        """Return messages/s and bytes/s over the last full seconds."""
        first, last = int(now) - RATE_WINDOW_S, int(now)
        full = [entry for entry in self._seconds if first <= entry[0] < last]
        return (
            sum(entry[1] for entry in full) / RATE_WINDOW_S,
            sum(entry[2] for entry in full) / RATE_WINDOW_S,
        )


@dataclass
class Channel:
    """A topic that something here is subscribed to: programs, or one handler of ours.

    What no reader here accepts is not passed on; what one accepts is, so the loosest policy of
    them is the node's.
    """

    topic: str
    handler: ChannelHandler | None = None
    subscriptions: list[Subscription] = field(default_factory=list[Subscription])
    history: History = field(default_factory=History)
    counters: Counters = field(default_factory=Counters)
    meter: Meter = field(default_factory=Meter)
    rates: AuthorRates = field(init=False)

    def __post_init__(self) -> None:
        self.owner = owner_of(self.topic)
        self.rates = AuthorRates(Limits())

    def attach(self, subscription: Subscription, keep: Keep) -> None:
        """Add a reader; the history grows to what it wants kept, the limits to what it allows."""
        self.subscriptions.append(subscription)
        self.history.keep = self.history.keep.most(keep)
        limits = self.rates.limits.most(subscription.policy.limits)
        if limits != self.rates.limits:
            self.rates = AuthorRates(limits)

    def detach(self, subscription: Subscription) -> None:
        """Let a reader go."""
        self.subscriptions.remove(subscription)
        self.counters.dropped += subscription.dropped
        if not self.subscriptions:
            self.history = History(NOTHING)

    @property
    def is_idle(self) -> bool:
        """Whether nobody here reads it any more."""
        return self.handler is None and not self.subscriptions

    @property
    def dropped(self) -> int:
        """Messages that slow readers lost."""
        return self.counters.dropped + sum(reader.dropped for reader in self.subscriptions)

    def wants(self, author: PeerId) -> bool:
        """Tell whether anybody here accepts what an author writes."""
        if self.handler is not None:
            return True
        return any(reader.policy.accepts(author) for reader in self.subscriptions)

    def deliver(self, kept: Kept, arrival: Arrival) -> None:
        """Give a new, valid message to every reader that accepts its author; remember it."""
        self.history.add(kept)
        self.meter.count(arrival.size_bytes, kept.at)  # without blobs, which are not here yet
        for reader in self.subscriptions:
            if reader.policy.accepts(kept.author):
                reader.put(arrival)
