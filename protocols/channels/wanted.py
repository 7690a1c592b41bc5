"""Messages that others announced and we lack: whom to ask, when, and who broke the promise.

An announcement (IHAVE) is a promise. It is called in after a short delay, for the message may be
on its way already; if it has not come after a longer one, the next announcer is asked. Promises
are broken when nobody sent the message for some seconds, as in the specification: to be slow is
no fault. A peer that breaks more of them than it lately kept is reported, so that single losses
are nobody's fault either.
"""

import heapq
import math
from collections import Counter
from dataclasses import dataclass, field

from protocols.channels.pending import Pending
from wire.ids import PeerId

WANTED_MAX = 8192  # ids in all; a busy second has some hundreds. About 4 MB
PER_PEER_MAX = 1024  # of them that one peer was the first to announce
ANNOUNCERS_MAX = 8  # per id, those who came first
_KEPT_DECAY = 0.95  # per heartbeat: what was kept makes up for what breaks some seconds later
_KEPT_MIN = 0.5  # less is none


@dataclass(slots=True)
class _Want:
    first: PeerId  # whom it counts against
    waiting: list[PeerId]  # announcers not asked yet
    due: float  # of its alarm; an earlier want of the same id may have left another in the heap
    asked: list[PeerId] = field(default_factory=list[PeerId])
    over: float = math.inf  # when those who were asked have broken their promise


class Wanted:
    """Ids announced to us that have not arrived."""

    def __init__(self, delay_s: float, again_s: float, follow_up_s: float) -> None:
        self._delay_s, self._again_s, self._follow_up_s = delay_s, again_s, follow_up_s
        self._wants: dict[bytes, _Want] = {}
        self._alarms: list[tuple[float, bytes]] = []  # a heap; one for each want, some of past ones
        self._open: Counter[PeerId] = Counter()
        self._kept: dict[PeerId, float] = {}
        self._broken: Counter[PeerId] = Counter()

    def __len__(self) -> int:
        return len(self._wants)

    @property
    def deadline(self) -> float:
        """When somebody may have to be asked."""
        return self._alarms[0][0] if self._alarms else math.inf

    def announced(self, name: bytes, peer: PeerId, now: float) -> bool:
        """Note who has a message; false if there is no room for it."""
        want = self._wants.get(name)
        if want is not None:
            known = len(want.waiting) + len(want.asked)
            if known < ANNOUNCERS_MAX and peer not in want.waiting and peer not in want.asked:
                want.waiting.append(peer)
            return True
        if len(self._alarms) >= WANTED_MAX or self._open[peer] >= PER_PEER_MAX:
            return False
        want = self._wants[name] = _Want(peer, [peer], now + self._delay_s)
        self._open[peer] += 1
        heapq.heappush(self._alarms, (want.due, name))
        return True

    def arrived(self, name: bytes, peer: PeerId) -> None:
        """A message came."""
        want = self._wants.get(name)
        if want is not None:
            if peer in want.asked:
                self._kept[peer] = self._kept.get(peer, 0.0) + 1
            self._close(name, want)

    def excuse(self, name: bytes, peer: PeerId) -> None:
        """A message came, but we could not take it: that is not the fault of who sent it."""
        want = self._wants.get(name)
        if want is not None and peer in want.asked:
            want.asked.remove(peer)

    def due(self, now: float, checked: Pending) -> dict[PeerId, list[bytes]]:
        """Return whom to ask now, for which ids. Those being `checked` are here, perhaps: later."""
        asks: dict[PeerId, list[bytes]] = {}
        while self._alarms and self._alarms[0][0] <= now:
            due, name = heapq.heappop(self._alarms)
            want = self._wants.get(name)
            if want is None or want.due != due:
                continue
            want.due = now + self._again_s
            if name not in checked:
                if want.waiting:
                    peer = want.waiting.pop(0)
                    want.asked.append(peer)
                    want.over = now + self._follow_up_s
                    asks.setdefault(peer, []).append(name)
                elif want.asked and now < want.over:
                    want.due = want.over
                else:
                    self._broken.update(want.asked)
                    self._close(name, want)
                    continue
            heapq.heappush(self._alarms, (want.due, name))
        return asks

    def forget(self, peer: PeerId) -> None:
        """A peer is gone: it is not asked any more. Cost: O(wanted)."""
        for want in self._wants.values():
            for peers in (want.waiting, want.asked):
                if peer in peers:
                    peers.remove(peer)
        self._kept.pop(peer, None)
        self._broken.pop(peer, None)

    def take_broken(self) -> list[PeerId]:
        """Return who broke more promises since the last call than it lately kept."""
        broken, self._broken = self._broken, Counter()
        guilty = [peer for peer, times in broken.items() if times > round(self._kept.get(peer, 0))]
        left = {peer: kept * _KEPT_DECAY - broken[peer] for peer, kept in self._kept.items()}
        self._kept = {peer: kept for peer, kept in left.items() if kept >= _KEPT_MIN}
        return guilty

    def _close(self, name: bytes, want: _Want) -> None:
        del self._wants[name]
        self._open[want.first] -= 1
        if self._open[want.first] <= 0:
            del self._open[want.first]
