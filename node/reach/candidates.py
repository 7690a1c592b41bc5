"""One address of ours that others might dial, and what those who tried say. Pure.

Its answers are collected in rounds: peers of different networks are asked until two agree, or
nobody is left to ask. That it cannot be reached any more is believed after two rounds.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from node.host.addresses import Address
from node.host.interfaces import network_of
from wire.ids import PeerId

Source = Literal["interface", "observed", "mapped"]
Outcome = Literal["reached", "failed", "no answer"]

AGREE = 2  # networks from which the same was said
ASKED_MAX = 5  # peers a round: servers answer a peer only so often
RECHECK_S = 600.0  # between rounds that all is well
CALM_S = 1.0  # between a round and one that only begins because somebody new could be asked
DOUBT_S = 30.0  # between the two failures that make a verdict worse, and after rounds without news


@dataclass(frozen=True)
class Vantage:
    """A connected peer outside: it may be asked to dial us, and `stun` are its own addresses that
    answer STUN (empty if we cannot dial it), at most one a family. dialled_us: at an address of
    ours that it can tell.
    """

    peer: PeerId
    host: str
    stun: tuple[Address, ...] = ()
    dialled_us: bool = False


@dataclass(frozen=True)
class Answer:
    """What one peer said. What an anchor reached proves nothing: we opened its way ourselves."""

    peer: PeerId
    network: str
    reached: bool
    is_proof: bool


@dataclass
class Candidate:
    """`reached`: None until a round said something. `round_at`: when the next may begin."""

    address: Address
    source: Source
    via: str = ""  # which protocol mapped it
    reached: bool | None = None
    doubt_at: float | None = None  # the first round that failed since it was reached
    round_at: float = -math.inf
    asked_at: float = math.inf  # when this round, or the last one, began
    closed_at: float = -math.inf  # when the last round ended
    answers: list[Answer] = field(default_factory=list[Answer])  # of this round, or the last one
    _asking: dict[PeerId, str] = field(default_factory=dict[PeerId, str])  # and their networks
    _asked: set[PeerId] = field(default_factory=set[PeerId])  # in this round

    def next_asked(
        self, vantages: Iterable[Vantage], opened: set[PeerId | str], now: float
    ) -> Vantage | None:
        """Choose whom to ask now, and count as asked; None if nobody.

        opened: peers and IP addresses that were anchors lately; they come last.
        """
        if now < self.round_at or len(self._asked) >= ASKED_MAX:
            return None
        if len(self._asking) >= AGREE - self._agreed():
            return None
        heard = {answer.network for answer in self._current()} | set(self._asking.values())
        free = [one for one in vantages if one.peer not in self._asked]
        if not free:
            return None
        best = min(free, key=lambda one: (_is_opened(one, opened), network_of(one.host) in heard))
        if _is_opened(best, opened) and self._asking:
            return None  # an anchor says little: only if the others leave it open
        if not self._asked:
            self.answers, self.asked_at = [], now
        self._asked.add(best.peer)
        self._asking[best.peer] = network_of(best.host)
        return best

    def heard(
        self, peer: PeerId, outcome: Outcome, *, is_opened: bool, vantages: Iterable[Vantage]
    ) -> bool:
        """Take an answer; True if it may end the round (then `close` it). Late ones are dropped."""
        network = self._asking.pop(peer, None)
        if network is None:
            return False
        if outcome != "no answer":
            reached = outcome == "reached"
            # An anchor is let in by a router that filters by address; where there is no router
            # that translates, firewalls filter by port, too.
            is_proof = not (reached and is_opened and self.source == "observed")
            self.answers.append(Answer(peer, network, reached, is_proof))
        if self._agreed() >= AGREE:
            return True
        is_left = any(one.peer not in self._asked for one in vantages)
        return not self._asking and (not is_left or len(self._asked) >= ASKED_MAX)

    def close(self, now: float) -> None:
        """End the round and draw the conclusion. One yes and one no is a no: only some get in."""
        yes, no = self._networks(reached=True), self._networks(reached=False)
        self.closed_at = now
        self._asking.clear()
        self._asked.clear()
        if not yes and not no:
            self.round_at = now + DOUBT_S
        elif len(yes) > len(no):
            self.reached, self.doubt_at, self.round_at = True, None, now + RECHECK_S
        elif self.reached and (self.doubt_at is None or now < self.doubt_at + DOUBT_S):
            self.doubt_at = now if self.doubt_at is None else self.doubt_at
            self.round_at = self.doubt_at + DOUBT_S
        else:
            self.reached, self.doubt_at, self.round_at = False, None, now + RECHECK_S

    def hurry(self, at: float) -> None:
        """Begin the next round at about `at`, if none is going on and it is not sooner anyway."""
        if not self._asked:
            self.round_at = min(self.round_at, max(at, self.closed_at + CALM_S))

    @property
    def is_asking(self) -> bool:
        """True while somebody is trying."""
        return bool(self._asking)

    @property
    def proofs(self) -> int:
        """How many answers of the last round count."""
        return sum(answer.is_proof for answer in self.answers)

    def _current(self) -> list[Answer]:
        return self.answers if self._asked else []

    def _networks(self, *, reached: bool) -> set[str]:
        return {one.network for one in self.answers if one.is_proof and one.reached == reached}

    def _agreed(self) -> int:
        if not self._asked:
            return 0
        return max(len(self._networks(reached=True)), len(self._networks(reached=False)))


def _is_opened(vantage: Vantage, opened: set[PeerId | str]) -> bool:
    return vantage.peer in opened or vantage.host in opened
