"""Messages that others announced and we lack: whom to ask, when, and who broke the promise.

An announcement (IHAVE) is a promise. It is called in after a short delay, for the message may be
on its way already; if nobody has sent it after a longer one, the next announcer is asked. A peer
that breaks more promises in a heartbeat than it keeps is reported: the specification's follow-up
of one random id per IWANT, made exact, so that single losses are nobody's fault.
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


@dataclass(slots=True)
class _Want:
    first: PeerId  # whom it counts against
    waiting: list[PeerId]  # announcers not asked yet
    due: float  # of its alarm; an earlier want of the same id may have left another in the heap
    asked: list[PeerId] = field(default_factory=list[PeerId])


class Wanted:
    """Ids announced to us that have not arrived."""

    def __init__(self, delay_s: float, again_s: float) -> None:
        self._delay_s, self._again_s = delay_s, again_s
        self._wants: dict[bytes, _Want] = {}
        self._alarms: list[tuple[float, bytes]] = []  # a heap; one for each want, some of past ones
        self._open: Counter[PeerId] = Counter()
        self._kept: Counter[PeerId] = Counter()
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
                self._kept[peer] += 1
            self._close(name, want)

    def due(self, now: float, checked: Pending) -> dict[PeerId, list[bytes]]:
        """Return whom to ask now, for which ids. Those being `checked` are here, perhaps: later."""
        asks: dict[PeerId, list[bytes]] = {}
        while self._alarms and self._alarms[0][0] <= now:
            due, name = heapq.heappop(self._alarms)
            want = self._wants.get(name)
            if want is None or want.due != due:
                continue
            if name not in checked:
                if want.asked:
                    self._broken[want.asked[-1]] += 1
                if not want.waiting:
                    self._close(name, want)
                    continue
                peer = want.waiting.pop(0)
                want.asked.append(peer)
                asks.setdefault(peer, []).append(name)
            want.due = now + self._again_s
            heapq.heappush(self._alarms, (want.due, name))
        return asks

    def forget(self, peer: PeerId) -> None:
        """A peer is gone: it is not asked any more. Cost: O(wanted)."""
        for want in self._wants.values():
            if peer in want.waiting:
                want.waiting.remove(peer)
        self._kept.pop(peer, None)
        self._broken.pop(peer, None)

    def take_broken(self) -> list[PeerId]:
        """Return who broke more promises than it kept since the last call."""
        guilty = [peer for peer, times in self._broken.items() if times > self._kept[peer]]
        self._kept.clear()
        self._broken.clear()
        return guilty

    def _close(self, name: bytes, want: _Want) -> None:
        del self._wants[name]
        self._open[want.first] -= 1
        if self._open[want.first] <= 0:
            del self._open[want.first]
