"""The last messages of a topic, bounded in number, bytes and age; kept by every subscriber.

Pure. Ages, not clock times, go from peer to peer: two machines need not agree on the time.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Annotated

from msgspec import Meta

from protocols.channels.wire import Message
from wire import codec
from wire.ids import PeerId
from wire.ports import Method

COUNT_MAX = 4096  # messages that one history may keep, and one peer may send of it
BYTES_MAX = 16 * 1024 * 1024  # and bytes
AGE_MAX_S = 24 * 3600.0  # and how far back it may reach
ITEM_MAX = 80 * 1024  # bytes of one message with its signature on the way


@dataclass(frozen=True)
class Keep:
    """How much of the past a subscriber keeps for those who come late."""

    count: int = 256
    size_bytes: int = 1024 * 1024
    age_s: float = 600.0

    def most(self, other: "Keep") -> "Keep":
        """Return what satisfies both."""
        return Keep(
            max(self.count, other.count),
            max(self.size_bytes, other.size_bytes),
            max(self.age_s, other.age_s),
        )


NOTHING = Keep(0, 0, 0.0)


@dataclass(frozen=True)
class Kept:
    """One message of the past. `at`: when it came (or is said to have), on our own clock.

    order_ns: what it is sorted by among messages of several peers: its number if that is a time,
    else the wall clock when it came.
    """

    name: bytes
    author: PeerId
    message: Message
    at: float
    order_ns: int


@dataclass
class History:
    """One topic's past, oldest first."""

    keep: Keep = NOTHING
    _kept: OrderedDict[bytes, Kept] = field(default_factory=OrderedDict[bytes, Kept])
    _size_bytes: int = 0

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, name: bytes) -> bool:
        return name in self._kept

    def add(self, kept: Kept) -> None:
        """Remember a message that is not remembered yet, forgetting the oldest."""
        if self.keep.count == 0 or kept.name in self._kept:
            return
        self._kept[kept.name] = kept
        self._size_bytes += len(kept.message.data)
        while len(self._kept) > self.keep.count or self._size_bytes > self.keep.size_bytes:
            self._pop()

    def extend_back(self, older: list[Kept], now: float) -> None:
        """Add older messages, in no order, to what is here."""
        known = [kept for kept in older if kept.name not in self._kept]
        mine, self._kept, self._size_bytes = [*self._kept.values()], OrderedDict(), 0
        for kept in sorted([*known, *mine], key=lambda kept: kept.order_ns):
            self.add(kept)
        self.forget(now)

    def forget(self, now: float) -> None:
        """Drop what is over age."""
        while self._kept and next(iter(self._kept.values())).at < now - self.keep.age_s:
            self._pop()

    def since(self, now: float, age_s: float, last: int) -> list[Kept]:
        """Return the messages that are at most so old, the last so many of them, oldest first."""
        self.forget(now)
        found = [kept for kept in self._kept.values() if kept.at >= now - age_s]
        return found[max(0, len(found) - last) :]

    def _pop(self) -> None:
        _, kept = self._kept.popitem(last=False)
        self._size_bytes -= len(kept.message.data)


class Ask(codec.Message, frozen=True):
    """What is wanted of a topic's past: at most so old, and the last so many."""

    topic: Annotated[str, Meta(min_length=1, max_length=128)]
    age_ms: Annotated[int, Meta(ge=0, le=int(AGE_MAX_S * 1000))]
    last: Annotated[int, Meta(ge=1, le=COUNT_MAX)]


class Past(codec.Message, frozen=True):
    """One message as it was signed (GossipSub's encoding), and how long ago it came."""

    age_ms: Annotated[int, Meta(ge=0, le=int(AGE_MAX_S * 1000))]
    message: Annotated[bytes, Meta(max_length=ITEM_MAX)]


# Server-streaming: one Ask, then the messages, oldest first. Two at a time and peer: it is bulk.
HISTORY = Method("channels.history", Ask, Past, frame_max=ITEM_MAX + 64, at_once=2)
