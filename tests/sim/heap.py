"""Machines on one event heap: virtual clock, links, partitions, churn. Seeded, no tasks.

For any sans-IO machine. A machine is an index (0 to count - 1); what it does is the caller's. The
same seed and the same calls give the same events in the same order. Times are seconds since the
beginning. Measured: about 400,000 events/s, beside 10 to 20 thousand switches of trio tasks.
"""

import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import msgspec
from msgspec import Meta

Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Positive = Annotated[float, Meta(gt=0.0, le=1e9)]

SETTLED_SESSIONS = 20  # mean sessions before time 0, so that who is there is of every age
JITTER = 0.1  # of a delay, either way: messages overtake each other


class Heap:
    """What happens when. Events of one moment happen in the order in which they were asked for."""

    def __init__(self, seed: int) -> None:
        self.now_s = 0.0
        self.rng = random.Random(seed)
        self.events = 0
        self._count = itertools.count()
        self._heap: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []

    def at(self, time_s: float, call: Callable[..., object], *args: Any) -> None:
        """Call it then, or now if that is over."""
        time_s = max(self.now_s, time_s)
        heapq.heappush(self._heap, (time_s, next(self._count), call, args))

    def after(self, wait_s: float, call: Callable[..., object], *args: Any) -> None:
        """Call it so much later."""
        heapq.heappush(self._heap, (self.now_s + wait_s, next(self._count), call, args))

    def run(self, until_s: float = math.inf, *, unless: Callable[[], bool] | None = None) -> None:
        """Let things happen until then, until nothing is left, or until `unless` says so."""
        heap = self._heap
        while heap and heap[0][0] <= until_s:
            self.now_s, _, call, args = heapq.heappop(heap)
            self.events += 1
            call(*args)
            if unless is not None and unless():
                return
        if until_s < math.inf:
            self.now_s = max(self.now_s, until_s)


class Alarm:
    """One machine's next tick: set again and again, rings once, and never for a time taken back."""

    __slots__ = ("_at_s", "_call", "_heap", "_set_s")

    def __init__(self, heap: Heap, call: Callable[[], object]) -> None:
        self._heap, self._call = heap, call
        self._set_s = math.inf  # when it should ring
        self._at_s = math.inf  # when the heap calls next; never later than that

    def set(self, time_s: float) -> None:
        """Ring then; infinity: not at all."""
        self._set_s = time_s
        if time_s < self._at_s:
            self._at_s = time_s
            self._heap.at(time_s, self._ring, time_s)

    def _ring(self, time_s: float) -> None:
        if time_s != self._at_s:
            return  # an earlier one was set after this
        self._at_s = math.inf
        if self._set_s <= self._heap.now_s:
            self._set_s = math.inf
            self._call()
        else:
            self.set(self._set_s)


class LinkOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Section [links]: what lies between two machines."""

    delay_ms: Positive = 40.0  # one way, median
    spread: Annotated[float, Meta(ge=0.0, le=2.0)] = 0.5  # sigma of the log-normal of delays
    loss: Share = 0.0  # of messages; the driver above sees a time-out
    unreachable: Share = 0.0  # machines behind a NAT: nobody dials them


class Links:
    """Who hears whom, and when.

    A delay is the way from the one to the core of the network and from there to the other: each
    machine has its own log-normal share, so a far machine is far from all; and some jitter.
    """

    def __init__(self, heap: Heap, options: LinkOptions, count: int = 0) -> None:
        self._heap, self._options, self._rng = heap, options, random.Random(heap.rng.random())
        self._access_s: list[float] = []
        self.is_up: list[bool] = []
        self.is_hidden: list[bool] = []
        self._sides: list[int] | None = None
        self.sent = self.lost = 0
        for _ in range(count):
            self.add()

    def add(self, *, is_hidden: bool | None = None) -> int:
        """Bring in a machine; return its index. is_hidden: unreachable, else by the options."""
        options, rng = self._options, self._rng
        half_s = options.delay_ms / 2000
        self._access_s.append(half_s * math.exp(options.spread * rng.gauss(0.0, 1.0)))
        chance = rng.random() < options.unreachable
        self.is_hidden.append(chance if is_hidden is None else is_hidden)
        self.is_up.append(True)
        if self._sides is not None:
            self._sides.append(0)
        return len(self.is_up) - 1

    def delay_s(self, a: int, b: int) -> float:
        """Return the time of a message from the one to the other, this time."""
        jitter = 1.0 + JITTER * (2.0 * self._rng.random() - 1.0)
        return (self._access_s[a] + self._access_s[b]) * jitter

    def way_s(self, a: int, b: int) -> float:
        """Return how long a message takes that is sent now; infinity: it is lost."""
        self.sent += 1
        loss = self._options.loss
        if not self.hears(a, b) or (loss > 0.0 and self._rng.random() < loss):
            self.lost += 1
            return math.inf
        return self.delay_s(a, b)

    def send(self, a: int, b: int, call: Callable[..., object], *args: Any) -> None:
        """Call it when the message is there: never, if it is lost, or the other not up then."""
        way_s = self.way_s(a, b)
        if way_s < math.inf:
            self._heap.after(way_s, self._arrive, b, call, args)

    def _arrive(self, b: int, call: Callable[..., object], args: tuple[Any, ...]) -> None:
        if self.is_up[b]:
            call(*args)

    def hears(self, a: int, b: int) -> bool:
        """Whether no partition is between them."""
        return self._sides is None or self._sides[a] == self._sides[b]

    def part(self, share: float) -> None:
        """Cut off this share of the machines from the others: by chance, or none with 0."""
        rng = self._rng
        self._sides = [int(rng.random() < share) for _ in self.is_up] if share > 0.0 else None


class ChurnOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Section [churn]: machines leave, and new ones come in their place.

    shape: of the Weibull distribution of session times: 1 is exponential; measured swarms have
    about 0.6, many short and few very long ones (Stutzbach and Rejaie, IMC 2006).
    """

    median_session_s: Positive = 1800.0
    shape: Annotated[float, Meta(ge=0.3, le=5.0)] = 1.0
    graceful: Share = 0.0  # say good-bye; the others are gone like after kill -9
    absent_s: Annotated[float, Meta(ge=0.0, le=1e6)] = 1.0  # until somebody new is in its place


class Churn:
    """Calls `left(machine, is_graceful)` and later `came()`, whose machine begins a session."""

    def __init__(
        self,
        heap: Heap,
        options: ChurnOptions,
        left: Callable[[int, bool], object],
        came: Callable[[], int],
    ) -> None:
        self._heap, self._options, self._left, self._came = heap, options, left, came
        self._rng = random.Random(heap.rng.random())
        self._scale_s: float = options.median_session_s / math.log(2) ** (1 / options.shape)

    @property
    def mean_s(self) -> float:
        """Mean session."""
        return float(self._scale_s * math.gamma(1 + 1 / self._options.shape))

    def session_s(self) -> float:
        """Draw how long somebody stays."""
        return self._rng.weibullvariate(self._scale_s, self._options.shape)

    def rest_s(self) -> float:
        """Draw how much longer somebody stays who is there already: renewals up to a moment."""
        left_s = SETTLED_SESSIONS * self.mean_s * (1 + self._rng.random())
        while left_s > 0.0:
            left_s -= self.session_s()
        return -left_s

    def begin(self, machines: Iterator[int] | range) -> None:
        """These are there at the beginning."""
        for machine in machines:
            self._heap.after(self.rest_s(), self._leave, machine)

    def _leave(self, machine: int) -> None:
        self._left(machine, self._rng.random() < self._options.graceful)
        self._heap.after(self._options.absent_s, self._come)

    def _come(self) -> None:
        self._heap.after(self.session_s(), self._leave, self._came())
