"""What one peer may ask of us: token buckets, so that bursts pass and floods do not. Pure.

A bucket is one number, the moment at which it will be full again (the generic cell rate algorithm,
ITU-T I.371): spending moves it on, and nobody has to fill it. A bucket that is full is forgotten.
"""

from dataclasses import dataclass, field
from typing import Literal

from wire.ids import PeerId

TOO_MANY = "too many requests"  # the reason that a refused peer is told
PEERS_MAX = 10_000  # that spent something in the last 40 s: 1 MB; strangers beyond have to wait
SWEEP_S = 10.0  # between two looks for what may be forgotten

Kind = Literal["request", "record"]


@dataclass(frozen=True, slots=True)
class Rate:
    """How many of a kind a peer may send: `burst` at once, and `per_s` in the long run."""

    per_s: float
    burst: int


# A lookup asks us a handful of times, a refresh of a whole table some 50 times; who provides ten
# thousand blobs in a small swarm has all of us keep all of them, in three minutes. A record costs
# 100 µs, mostly its signature on a thread.
RATES: dict[Kind, Rate] = {"request": Rate(50.0, 200), "record": Rate(50.0, 2000)}


@dataclass(slots=True)
class Limits:
    """Who has spent what."""

    _full_at: dict[Kind, dict[PeerId, float]] = field(
        default_factory=lambda: {kind: dict[PeerId, float]() for kind in RATES}
    )
    _sweep_at: float = 0.0

    def allows(self, peer: PeerId, kind: Kind, now_s: float, count: int = 1) -> bool:
        """Whether a peer may send `count` more of a kind now. If so, it has spent them."""
        if now_s >= self._sweep_at:
            self._sweep(now_s)
        rate, full_at = RATES[kind], self._full_at[kind]
        if peer not in full_at and len(full_at) >= PEERS_MAX:
            return False
        then = max(full_at.get(peer, now_s), now_s) + count / rate.per_s
        if then - now_s > rate.burst / rate.per_s + 1e-9:
            return False
        full_at[peer] = then
        return True

    def __len__(self) -> int:
        return sum(map(len, self._full_at.values()))

    def _sweep(self, now_s: float) -> None:
        self._sweep_at = now_s + SWEEP_S
        for kind, full_at in self._full_at.items():
            self._full_at[kind] = {peer: at for peer, at in full_at.items() if at > now_s}
