"""Whom a relay serves, and with how much: pure. Time is passed in; nothing is sent from here.

`Hop` decides about reservations and circuits, `Asking` how often a peer may ask, `Bucket` when the
next bytes may cross. Source: libp2p/specs, relay/circuit-v2.md; docs/protocols/reach.md, "Relays".
"""

import itertools
import math
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Literal

from node.reach.messages import Limits, Status
from wire.ids import PeerId

MIB = 1024 * 1024
ASKS_PER_S = 8  # of one peer that are answered; a client renews twice an hour
ASKS_SHED_PER_S = 64  # beyond, it gets no answer either: that costs more than its asking
ASKERS_MAX = 1024  # peers whose asking is remembered, 200 bytes each; more than connect at once
BURST_S = 0.25  # of the rate may cross at once after a pause: a call is not paced


@dataclass(frozen=True)
class RelayBudget:
    """What a relay gives; the defaults are those of docs/protocols/reach.md."""

    reservations: int = 128  # as many as connections that a host holds by itself
    circuits: int = 64
    circuits_per_peer: int = 8  # at either end
    rate_bytes_s: float = 8 * MIB  # of all circuits together
    circuit_bytes: int = 1024 * MIB  # each way
    circuit_s: float = 3600.0
    reservation_s: float = 3600.0

    @property
    def limits(self) -> Limits:
        """What each circuit's ends are told."""
        return Limits(int(self.circuit_s), self.circuit_bytes)


@dataclass(frozen=True)
class Circuit:
    """One that was allowed. `number` tells it from others between the same two."""

    number: int
    source: PeerId
    target: PeerId
    until: float


class Hop:
    """Reservations and circuits of one relay."""

    def __init__(self, budget: RelayBudget) -> None:
        self.budget = budget
        self._until: dict[PeerId, float] = {}
        self._circuits: dict[int, Circuit] = {}
        self._of = Counter[PeerId]()  # circuits at each peer
        self._numbers = itertools.count(1)

    def reserve(self, peer: PeerId, *, is_relayed: bool, now: float) -> Status:
        """Make or renew a reservation; until `reserved_until`."""
        if is_relayed:  # no circuit over a circuit
            return Status.PERMISSION_DENIED
        self._expire(now)
        if peer not in self._until and len(self._until) >= self.budget.reservations:
            return Status.RESERVATION_REFUSED
        self._until[peer] = now + self.budget.reservation_s
        return Status.OK

    def reserved_until(self, peer: PeerId) -> float:
        """When a peer's reservation ends; minus infinity if it has none."""
        return self._until.get(peer, -math.inf)

    def gone(self, peer: PeerId) -> None:
        """A peer's connection ended, and its reservation with it."""
        self._until.pop(peer, None)

    def connect(
        self, source: PeerId, target: PeerId, *, is_relayed: bool, now: float
    ) -> Circuit | Status:
        """Allow a circuit, which counts until `ended`, or say why not."""
        if is_relayed or source == target:
            return Status.PERMISSION_DENIED
        if self.reserved_until(target) <= now:
            return Status.NO_RESERVATION
        full = self.budget.circuits_per_peer
        if (
            len(self._circuits) >= self.budget.circuits
            or self._of[source] >= full
            or self._of[target] >= full
        ):
            return Status.RESOURCE_LIMIT_EXCEEDED
        circuit = Circuit(next(self._numbers), source, target, now + self.budget.circuit_s)
        self._circuits[circuit.number] = circuit
        self._of.update((source, target))
        return circuit

    def ended(self, circuit: Circuit) -> None:
        """A circuit is over. Safe to repeat."""
        if self._circuits.pop(circuit.number, None) is not None:
            self._of.subtract((circuit.source, circuit.target))
            for peer in (circuit.source, circuit.target):
                if not self._of[peer]:
                    del self._of[peer]

    def reservations(self, now: float) -> list[PeerId]:
        """Who holds one."""
        self._expire(now)
        return list(self._until)

    def circuits(self) -> list[Circuit]:
        """Those that are in use."""
        return list(self._circuits.values())

    def free(self, now: float) -> int:
        """Reservations that can still be made."""
        self._expire(now)
        return self.budget.reservations - len(self._until)

    def _expire(self, now: float) -> None:
        for peer in [peer for peer, until in self._until.items() if until <= now]:
            del self._until[peer]


class Asking:
    """How often each peer asks: two token buckets a peer, of a second's size."""

    def __init__(self) -> None:
        self._asked: OrderedDict[PeerId, tuple[float, float, float]] = OrderedDict()

    def ask(self, peer: PeerId, now: float) -> Literal["serve", "refuse", "shed"]:
        """A peer asks: serve it, refuse it, or do not even answer."""
        at, few, many = self._asked.pop(peer, (now, float(ASKS_PER_S), float(ASKS_SHED_PER_S)))
        few = min(ASKS_PER_S, few + (now - at) * ASKS_PER_S)
        many = min(ASKS_SHED_PER_S, many + (now - at) * ASKS_SHED_PER_S)
        does_serve, does_answer = few >= 1, many >= 1
        self._asked[peer] = (now, few - does_serve, many - does_answer)
        if len(self._asked) > ASKERS_MAX:
            self._asked.popitem(last=False)  # who asked longest ago, whose buckets are full again
        return "serve" if does_serve else "refuse" if does_answer else "shed"


class Bucket:
    """A rate for all circuits together. What is taken may exceed what is there, once: the next
    waits for longer.
    """

    def __init__(self, rate_bytes_s: float, now: float) -> None:
        self._rate = rate_bytes_s
        self._at = now
        self._left = rate_bytes_s * BURST_S

    def is_empty(self, now: float) -> bool:
        """True if nothing may cross now."""
        self._left = min(self._rate * BURST_S, self._left + (now - self._at) * self._rate)
        self._at = now
        return self._left <= 0

    def take(self, size_bytes: int) -> None:
        """So much crosses."""
        self._left -= size_bytes

    @property
    def ready_at(self) -> float:
        """When it is no longer empty."""
        return self._at + max(0.0, 1 - self._left) / self._rate
