"""Who may write to a channel and how much: subscribers decide it before they pass a message on.

Pure. A topic whose name begins with `own/PEER/` belongs to that peer: every node reads the rule off
the name, so what others write there is invalid. A list of writers is a subscriber's own choice:
what its writers did not write is dropped here, but who passed it on is not to blame.
"""

import re
from collections import OrderedDict
from dataclasses import dataclass, field

from wire.errors import BadMessage, UsageError
from wire.ids import PeerId, public_key_of

TOPIC_MAX = 128  # characters; a peer ID of 52 fits in with room for a name
INTERNAL = "shoal/"  # topics of the daemon's own parts: the store's is `shoal/crdt`
OWN = "own/"  # topics that belong to one peer: `own/PEER` and `own/PEER/...`
AUTHORS_MAX = 1024  # whose rates are remembered per topic; the longest silent one is forgotten

_TOPIC = re.compile(r"[!-~]+\Z")  # ASCII without blanks: what fits into a shell and a log line


@dataclass(frozen=True)
class Limits:
    """What one topic takes from one author, before its messages are dropped here.

    The burst is what a program may say at once (the goal's is 60), the rate what it may go on with.
    """

    messages_s: float = 200.0
    messages_burst: float = 2000.0
    bytes_s: float = 2e6
    bytes_burst: float = 32e6

    def most(self, other: "Limits") -> "Limits":
        """Return what satisfies both."""
        return Limits(
            max(self.messages_s, other.messages_s),
            max(self.messages_burst, other.messages_burst),
            max(self.bytes_s, other.bytes_s),
            max(self.bytes_burst, other.bytes_burst),
        )


@dataclass(frozen=True)
class Policy:
    """What a subscriber accepts. `writers` None: any member."""

    writers: frozenset[PeerId] | None = None
    limits: Limits = field(default_factory=Limits)

    def accepts(self, author: PeerId) -> bool:
        """Tell whether this subscriber wants to hear an author."""
        return self.writers is None or author in self.writers


@dataclass
class Bucket:
    """A rate with a burst: tokens flow in, messages and bytes take them out."""

    rate_s: float
    burst: float
    level: float
    at: float = 0.0

    @classmethod
    def full(cls, rate_s: float, burst: float) -> "Bucket":
        """Return a bucket that nobody has used yet."""
        return cls(rate_s, burst, burst)

    def take(self, amount: float, now: float) -> bool:
        """Take tokens if there are enough."""
        self._flow(now)
        if self.level < amount:
            return False
        self.level -= amount
        return True

    def borrow(self, amount: float, now: float) -> float:
        """Take tokens in any case; returns for how many seconds to do nothing more."""
        self._flow(now)
        self.level -= amount
        return max(0.0, -self.level / self.rate_s)

    def _flow(self, now: float) -> None:
        self.level = min(self.burst, self.level + (now - self.at) * self.rate_s)
        self.at = now


class AuthorRates:
    """The budgets of one topic's authors. Ask only about messages that are proven theirs."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._budgets: OrderedDict[PeerId, tuple[Bucket, Bucket]] = OrderedDict()

    def allow(self, author: PeerId, size_bytes: int, now: float) -> bool:
        """Charge one message; False if its author is over a limit."""
        budget = self._budgets.get(author)
        if budget is None:
            limits = self.limits
            messages = Bucket.full(limits.messages_s, limits.messages_burst)
            budget = messages, Bucket.full(limits.bytes_s, limits.bytes_burst)
            self._budgets[author] = budget
            if len(self._budgets) > AUTHORS_MAX:
                self._budgets.popitem(last=False)
        else:
            self._budgets.move_to_end(author)
        return budget[0].take(1, now) and budget[1].take(size_bytes, now)


def owner_of(topic: str) -> PeerId | None:
    """Return the only peer that may write to a topic; None if the name says nothing of it."""
    if not topic.startswith(OWN):
        return None
    return PeerId(topic[len(OWN) :].partition("/")[0])


def may_write(topic: str, author: PeerId) -> bool:
    """Tell whether the topic's name lets an author write: every node decides this alike."""
    return owner_of(topic) in (None, author)


def check_topic(topic: str) -> None:
    """Raise UsageError unless a topic can be subscribed to and published on."""
    if len(topic) > TOPIC_MAX or not _TOPIC.match(topic):
        raise UsageError(
            f"not a topic: {topic[:80]!r}",
            hint=f"a topic is 1 to {TOPIC_MAX} printable ASCII characters without blanks",
        )
    owner = owner_of(topic)
    if owner is not None:
        try:
            public_key_of(owner)
        except BadMessage as error:
            raise UsageError(
                f"topic {topic!r} names no peer: {error}",
                hint=f"{OWN}PEER/NAME, as `shoal id` says",
            ) from error


def check_user_topic(topic: str) -> None:
    """Raise UsageError for what is no topic, or one that the daemon itself talks on."""
    check_topic(topic)
    if topic.startswith(INTERNAL):
        raise UsageError(
            f"topics that begin with {INTERNAL!r} belong to the daemon", hint="choose another name"
        )


def check_writer(topic: str, own: PeerId) -> None:
    """Raise UsageError if others would refuse what we write to a topic."""
    if not may_write(topic, own):
        raise UsageError(
            f"only {owner_of(topic)} may write to {topic}", hint=f"yours begin with {OWN}{own}"
        )
