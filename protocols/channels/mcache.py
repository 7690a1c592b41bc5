"""What a node remembers of messages: those that it has, by heartbeat, and ids, by age or number."""

from collections import deque
from dataclasses import dataclass, field

from protocols.channels.wire import Message
from wire.ids import PeerId


class Seen:
    """Ids of messages that are no news, with the time of each. Bounded by age and number."""

    def __init__(self, age_s: float, limit: int) -> None:
        self._age_s, self._limit = age_s, limit
        self._times: dict[bytes, float] = {}  # in order of time
        self.get = self._times.get  # the cheapest look-up there is, for every duplicate

    def __contains__(self, name: bytes) -> bool:
        return name in self._times

    def __len__(self) -> int:
        return len(self._times)

    def add(self, name: bytes, now: float) -> None:
        """Remember an id; the oldest makes room."""
        if len(self._times) >= self._limit:
            del self._times[next(iter(self._times))]
        self._times[name] = now

    def expire(self, now: float) -> None:
        """Forget what is too old."""
        old: list[bytes] = []
        for name, time in self._times.items():
            if time > now - self._age_s:
                break
            old.append(name)
        for name in old:
            del self._times[name]


class RecentIds:
    """A set of ids in two generations: it forgets by dropping the older one. Bounded."""

    __slots__ = ("_limit", "_new", "_old")

    def __init__(self, limit: int) -> None:
        self._limit = limit // 2
        self._new: set[bytes] = set()
        self._old: set[bytes] = set()

    def __contains__(self, name: bytes) -> bool:
        return name in self._new or name in self._old

    def __len__(self) -> int:
        return len(self._new) + len(self._old)

    def add(self, name: bytes) -> None:
        """Remember an id, at the cost of the older half if there is no room."""
        if len(self._new) >= self._limit:
            self.turn()
        self._new.add(name)

    def turn(self) -> None:
        """Forget the older generation."""
        if self._new or self._old:
            self._old, self._new = self._new, set()


@dataclass(slots=True)
class _Kept:
    message: Message
    given: dict[PeerId, int] = field(default_factory=dict[PeerId, int])


class MessageCache:
    """Messages of the last heartbeats: what we announce, and give to who asks."""

    def __init__(self, beats: int, gossip_beats: int, limit_bytes: int) -> None:
        self._kept: dict[bytes, _Kept] = {}  # oldest first
        self._beats: deque[list[tuple[str, bytes]]] = deque([[]], maxlen=beats)  # newest last
        self._gossip_beats, self._limit_bytes = gossip_beats, limit_bytes
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, name: bytes) -> bool:
        return name in self._kept

    def put(self, message: Message) -> None:
        """Keep a message; the oldest make room."""
        name = message.id
        if name in self._kept:
            return
        self._kept[name] = _Kept(message)
        self._beats[-1].append((message.topic, name))
        self.size_bytes += len(message.raw)
        while self.size_bytes > self._limit_bytes:
            self._drop(next(iter(self._kept)))

    def give(self, name: bytes, peer: PeerId, times_max: int) -> Message | None:
        """Return a message to a peer that asks; None if it is not kept, or was given too often."""
        kept = self._kept.get(name)
        if kept is None or kept.given.get(peer, 0) >= times_max:
            return None
        kept.given[peer] = kept.given.get(peer, 0) + 1
        return kept.message

    def recent(self) -> dict[str, list[bytes]]:
        """Return the ids to announce, by topic."""
        topics: dict[str, list[bytes]] = {}
        for beat in list(self._beats)[-self._gossip_beats :]:
            for topic, name in beat:
                if name in self._kept:
                    topics.setdefault(topic, []).append(name)
        return topics

    def shift(self) -> None:
        """A heartbeat has passed."""
        if len(self._beats) == self._beats.maxlen:
            for _, name in self._beats[0]:
                if name in self._kept:
                    self._drop(name)
        self._beats.append([])

    def _drop(self, name: bytes) -> None:
        self.size_bytes -= len(self._kept.pop(name).message.raw)
