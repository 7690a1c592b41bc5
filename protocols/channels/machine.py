"""Flooding without I/O: what is news, what a batch holds, what waits for a peer.

First form: every message goes to every connected peer that is not known to have it. GossipSub
(a mesh of few peers per topic, announcements to the others) replaces it; publishers and
subscribers will not notice.
"""

import hashlib
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from protocols.channels.wire import BATCH_BYTES, BATCH_MAX, Gossip
from wire import codec
from wire.ids import PeerId

SEEN_MAX = 16 * 1024  # ids remembered; about 3 MB
SEEN_AGE_S = 120.0  # for how long (GossipSub's own figure); a message is through in seconds
TOPICS_MAX = 256  # subscriptions of one node: a program that needs more has a bug
QUEUE_MAX = 256  # messages waiting for one peer; when full the oldest is dropped
QUEUE_BYTES = 4 * 1024 * 1024  # and in bytes, likewise

MessageId = bytes


def message_id(message: Gossip) -> MessageId:
    """Name a message by all that is in it: SHA-256 of its encoding."""
    return hashlib.sha256(codec.encode(message)).digest()


@dataclass
class Flood:
    """Remembers what was seen and decides where a message goes."""

    own: PeerId
    seen_max: int = SEEN_MAX
    seen_age_s: float = SEEN_AGE_S
    _seen: OrderedDict[MessageId, float] = field(default_factory=OrderedDict[MessageId, float])

    def is_news(self, message: Gossip, now: float) -> bool:
        """Tell whether a message is seen for the first time; from then on it is not."""
        while self._seen and next(iter(self._seen.values())) <= now - self.seen_age_s:
            self._seen.popitem(last=False)
        name = message_id(message)
        if name in self._seen:
            return False
        if len(self._seen) >= self.seen_max:
            self._seen.popitem(last=False)
        self._seen[name] = now
        return message.origin != self.own  # an echo of ours, from before the restart perhaps

    def publish(self, message: Gossip, now: float) -> None:
        """Remember a message of our own, so that its echo is no news."""
        self.is_news(message, now)

    def targets(
        self, message: Gossip, source: PeerId | None, connected: list[PeerId]
    ) -> list[PeerId]:
        """Say to whom a message goes on: all but who sent it, who wrote it, and us."""
        known = {source, message.origin, self.own}
        return [peer for peer in connected if peer not in known]


@dataclass
class SendQueue:
    """What waits for one peer: bounded in messages and bytes, the oldest goes first of all."""

    dropped: int = 0
    _messages: deque[Gossip] = field(default_factory=deque[Gossip])
    _size_bytes: int = 0

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, message: Gossip) -> None:
        """Add a message, dropping the oldest until it fits."""
        self._messages.append(message)
        self._size_bytes += len(message.data)
        while len(self._messages) > QUEUE_MAX or self._size_bytes > QUEUE_BYTES:
            self._pop()
            self.dropped += 1

    def take_batch(self) -> list[Gossip]:
        """Remove and return what goes out in the next push; at least one message."""
        batch, size_bytes = [self._pop()], 0
        while self._messages and len(batch) < BATCH_MAX:
            size_bytes += len(self._messages[0].data)
            if size_bytes > BATCH_BYTES:
                break
            batch.append(self._pop())
        return batch

    def _pop(self) -> Gossip:
        message = self._messages.popleft()
        self._size_bytes -= len(message.data)
        return message
