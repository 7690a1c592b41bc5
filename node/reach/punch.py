"""With whom to punch holes, and when: pure. docs/protocols/reach.md, "Hole punching".

Not how: `node.reach.attempts` connects, `node.reach.puncher` talks and drives this.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from wire.ids import PeerId

AT_ONCE_MAX = 8  # peers that we punch with: 8 x 32 sockets that wait for an answer
PAUSES_S = (1.0, 3.0)  # between the three tries of a round
REST_S = 30.0  # after a round; it doubles: both ends may just have been busy
REST_MAX_S = 1800.0
# Tries with one peer that come to nothing, whoever begins: it may connect anew for each, to make us
# send packets to others. Two rounds in a row are needed when its addresses change; then one round a
# minute is more than the pauses above.
ASKS_PER_PEER, ASKS_PER_PEER_S = 6.0, 1 / 20
# And all peers together, of whom one may have made many names: a scan of 32 addresses a second
# that answers nobody, at most.
ASKS, ASKS_PER_S = 24.0, 1.0
WAIT_MIN_S = 0.001  # less is a rounding error
RECORDS_MAX = 64  # peers whose last punch is told to people

Outcome = Literal["direct", "failed", "trying"]


@dataclass
class Record:
    """The last round with a peer, for people."""

    peer: PeerId
    began_at: float
    outcome: Outcome = "trying"
    tries: int = 0
    took_s: float = 0.0


@dataclass
class _Wish:
    """A peer that dialled us through a relay: we begin."""

    due: float
    failures: int = 0  # in this round
    rest_s: float = REST_S
    is_moved: bool = False  # while we tried: begin anew after this try

    def begin_round(self, now: float) -> None:
        self.due, self.failures, self.rest_s, self.is_moved = now, 0, REST_S, False

    def fail(self, now: float) -> None:
        if self.is_moved:
            self.begin_round(now)
        elif self.failures < len(PAUSES_S):
            self.due = now + PAUSES_S[self.failures]
            self.failures += 1
        else:
            self.due, self.failures = now + self.rest_s, 0
            self.rest_s = min(2 * self.rest_s, REST_MAX_S)


@dataclass
class _Bucket:
    """Of tries that may fail."""

    full: float
    per_s: float
    at: float
    left: float

    def refill(self, now: float) -> None:
        self.left = min(self.full, self.left + (now - self.at) * self.per_s)
        self.at = now

    @property
    def wait_s(self) -> float:
        return max(0.0, (1 - self.left) / self.per_s)


@dataclass
class Punches:
    """Give it what happens; ask whom to `start`, and again at `deadline`.

    own: our peer ID. Of two peers that begin with each other, the one with the smaller ID goes on.
    """

    own: PeerId
    records: dict[PeerId, Record] = field(default_factory=dict[PeerId, Record])
    outcomes: Counter[Outcome] = field(default_factory=Counter[Outcome])  # since the start
    _wishes: dict[PeerId, _Wish] = field(default_factory=dict[PeerId, _Wish])
    _tries: set[PeerId] = field(default_factory=set[PeerId])  # that we began
    _answers: set[PeerId] = field(default_factory=set[PeerId])  # that they did
    _asks: dict[PeerId, _Bucket] = field(default_factory=dict[PeerId, _Bucket])
    _all_asks: _Bucket = field(default_factory=lambda: _Bucket(ASKS, ASKS_PER_S, -math.inf, ASKS))

    def set_wanted(self, peers: Iterable[PeerId], now: float) -> None:
        """These dialled us, through relays, and have no direct connection now."""
        wanted = set(peers)
        for peer in wanted - self._wishes.keys():
            self._wishes[peer] = _Wish(now)
        for peer in self._wishes.keys() - wanted:
            del self._wishes[peer]

    def moved(self, peer: PeerId | None, now: float) -> None:
        """A peer's addresses changed, or (None) ours: what failed may work now."""
        for one, wish in self._wishes.items():
            if peer in (None, one):
                if one in self._tries:
                    wish.is_moved = True
                else:
                    wish.begin_round(now)

    def start(self, now: float) -> list[PeerId]:
        """Return with whom to try now; tell `ended` of each."""
        due = sorted((wish.due, peer) for peer, wish in self._wishes.items() if wish.due <= now)
        begun: list[PeerId] = []
        for _, peer in due:
            busy = self._tries | self._answers
            if len(busy) >= AT_ONCE_MAX:
                break
            if peer in busy:
                continue
            if wait_s := self._take(peer, now):
                self._wishes[peer].due = now + wait_s
                continue
            self._tries.add(peer)
            self._note(peer, now).tries += 1
            begun.append(peer)
        return begun

    @property
    def deadline(self) -> float:
        """When to ask `start` again; infinity if only news can change its answer."""
        if len(self._tries | self._answers) >= AT_ONCE_MAX:
            return math.inf
        busy = self._tries | self._answers
        return min(
            (w.due for peer, w in self._wishes.items() if peer not in busy), default=math.inf
        )

    def ended(self, peer: PeerId, *, is_direct: bool, now: float) -> None:
        """A try that we began is over."""
        self._tries.discard(peer)
        self._conclude(peer, is_direct=is_direct, now=now)
        wish = self._wishes.get(peer)
        if wish is not None:
            wish.fail(now)  # if it is direct, the wish goes as soon as that is seen

    def asked(self, peer: PeerId, now: float) -> bool:
        """A peer wants to punch with us: tell whether we do. If so, tell `answered` of it.

        If true while we try with the same peer, drop that try.
        """
        if peer in self._answers or (peer in self._tries and self.own < peer):
            return False
        if len(self._tries | self._answers | {peer}) > AT_ONCE_MAX:
            return False
        if self._take(peer, now):
            return False
        self._answers.add(peer)
        self._note(peer, now).tries += 1
        return True

    def answered(self, peer: PeerId, *, is_direct: bool, now: float) -> None:
        """What `asked` allowed is over."""
        self._answers.discard(peer)
        self._conclude(peer, is_direct=is_direct, now=now)

    def next_at(self, peer: PeerId) -> float | None:
        """When we try again with a peer; None if we do not."""
        wish = self._wishes.get(peer)
        return None if wish is None or peer in self._tries else wish.due

    def _take(self, peer: PeerId, now: float) -> float:
        """Allow one more try: return 0, or the seconds until there may be one."""
        for bucket in (self._all_asks, *self._asks.values()):
            bucket.refill(now)
        self._asks = {one: each for one, each in self._asks.items() if each.left < each.full}
        new = _Bucket(ASKS_PER_PEER, ASKS_PER_PEER_S, now, ASKS_PER_PEER)
        both = (self._all_asks, self._asks.setdefault(peer, new))
        wait_s = max(bucket.wait_s for bucket in both)
        if wait_s > WAIT_MIN_S:
            return wait_s
        for bucket in both:
            bucket.left -= 1
        return 0.0

    def _note(self, peer: PeerId, now: float) -> Record:
        record = self.records.pop(peer, None)
        if record is None or record.outcome == "direct":
            record = Record(peer, now)
        record.outcome = "trying"
        self.records[peer] = record
        if len(self.records) > RECORDS_MAX:
            del self.records[next(iter(self.records))]
        return record

    def _conclude(self, peer: PeerId, *, is_direct: bool, now: float) -> None:
        outcome: Outcome = "direct" if is_direct else "failed"
        self.outcomes[outcome] += 1
        if is_direct:  # of what led to the peer itself there may be any number
            for bucket in (self._all_asks, self._asks.get(peer)):
                if bucket is not None:
                    bucket.left = min(bucket.full, bucket.left + 1)
        if record := self.records.get(peer):
            record.outcome = outcome
            record.took_s = now - record.began_at
