"""Nodes around a chain that open, answer, break and come back, on a clock of their own."""

import heapq
import itertools
import random
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial

from protocols.sharding.chain import ENTRY, Chain
from protocols.sharding.parts import (
    DropStage,
    Effect,
    EndStage,
    FeedStage,
    GiveUp,
    Loss,
    OpenStage,
    PingStage,
    RewireStage,
)
from protocols.sharding.route import Candidate, RouteHop, find_route
from protocols.sharding.wire import PING_S, Place
from wire.ids import PeerId

US = PeerId("us")
LAYERS = 6
HOME = Place(US, LAYERS)
Event = Callable[[], list[Effect]]


def finder(spans: dict[PeerId, tuple[int, int]]) -> Callable[..., list[RouteHop]]:
    def find(
        start: int, end: int, previous: PeerId, following: PeerId, without: Collection[PeerId]
    ) -> list[RouteHop]:
        return find_route(
            LAYERS,
            [Candidate(peer, *span, decode_s=0.01) for peer, span in spans.items()],
            entry=US,
            start=start,
            end=end,
            previous=previous,
            following=following,
            tokens=10,
            prompt_tokens=5,
            without=without,
            rng=random.Random(0),
        )

    return find


@dataclass
class World:
    """Nodes that open, answer, break and come back, around a chain, on a clock of its own."""

    rng: random.Random
    spans: dict[PeerId, tuple[int, int]]
    dead: dict[PeerId, float] = field(default_factory=dict[PeerId, float])  # until when
    frozen: dict[PeerId, float] = field(default_factory=dict[PeerId, float])
    full: dict[PeerId, float] = field(default_factory=dict[PeerId, float])
    stages: dict[int, OpenStage] = field(default_factory=dict[int, OpenStage])
    told: dict[int, tuple[PeerId, Place]] = field(default_factory=dict[int, tuple[PeerId, Place]])
    fed: Place | None = None
    now: float = 0.0
    gave_up: list[GiveUp] = field(default_factory=list[GiveUp])
    queue: list[tuple[float, int, Event]] = field(default_factory=list[tuple[float, int, Event]])
    count: "itertools.count[int]" = field(default_factory=itertools.count)
    picks: int = 0

    def start(self) -> None:
        self.chain = Chain(US, LAYERS, finder(self.spans), now=0.0)
        route = finder(self.spans)(0, LAYERS, US, US, ())
        self.apply(self.chain.begin(route))

    def later(self, delay_s: float, event: Event) -> None:
        heapq.heappush(self.queue, (self.now + delay_s, next(self.count), event))

    def apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case OpenStage(number=number):
                    self.stages[number] = effect
                    self.told[number] = effect.previous, effect.next
                    self.later(self.rng.uniform(0.01, 0.3), partial(self.open, number))
                case RewireStage(number, previous, following):
                    if number in self.stages:
                        self.told[number] = previous, following
                case DropStage(number):
                    self.stages.pop(number, None)
                case PingStage(number):
                    self.later(0.02, partial(self.ping, number))
                case EndStage(number):
                    self.later(0.1, partial(self.end, number))
                case FeedStage(place):
                    self.fed = place
                case GiveUp():
                    self.gave_up.append(effect)

    def end(self, number: int) -> list[Effect]:
        return self.chain.lost(number, Loss.ENDED, "ended", self.now)

    def is_bad(self, peer: PeerId, what: dict[PeerId, float]) -> bool:
        return what.get(peer, 0.0) > self.now

    def open(self, number: int) -> list[Effect]:
        stage = self.stages.get(number)
        if stage is None or self.is_bad(stage.hop.peer, self.frozen):
            return []
        if self.is_bad(stage.hop.peer, self.dead):
            return self.chain.lost(number, Loss.BROKEN, "refused", self.now)
        if self.is_bad(stage.hop.peer, self.full):
            return self.chain.lost(number, Loss.BUSY, "full", self.now)
        return self.chain.opened(number, 0, truncates=True, now=self.now)

    def ping(self, number: int) -> list[Effect]:
        stage = self.stages.get(number)
        if stage is None or self.is_bad(stage.hop.peer, self.frozen):
            return []
        if self.is_bad(stage.hop.peer, self.dead):
            return self.chain.lost(number, Loss.BROKEN, "reset", self.now)
        return self.chain.heard(number, self.now)

    def fault(self) -> list[Effect]:
        peer = self.rng.choice(list(self.spans))
        lasts_s = self.rng.uniform(0.1, 5.0)
        effects: list[Effect] = []
        match self.rng.randrange(6):
            case 0:
                self.dead[peer] = self.now + lasts_s
            case 1:
                self.frozen[peer] = self.now + lasts_s
            case 2:
                self.full[peer] = self.now + lasts_s
            case 3:  # our own path changes
                for number in list(self.stages):
                    effects += self.chain.lost(number, Loss.BROKEN, "reset", self.now)
            case 4 if self.chain.hops:
                number, _ = self.rng.choice(self.chain.hops)
                to = self.told[number][1]
                forgot = self.rng.random() < 0.3
                effects = self.chain.broken(number, to, forgot=forgot, now=self.now)
            case _ if self.fed:
                effects = self.chain.broken(ENTRY, self.fed, forgot=False, now=self.now)
            case _:
                pass
        return effects

    def run(self, until: float) -> None:
        """Events until a moment; every stage is pinged, and tokens come while all is well."""
        beat = self.now
        while self.now < until:
            due = self.queue[0][0] if self.queue else until
            self.now = max(self.now, min(due, self.chain.deadline, beat, until))
            if self.now >= beat:
                beat = self.now + PING_S
                for number in list(self.stages):
                    self.later(0.02, partial(self.ping, number))
                if self.is_right():
                    self.picks += 1
                    self.chain.picked(self.now)
            if self.chain.deadline <= self.now:
                self.apply(self.chain.tick(self.now))
            while self.queue and self.queue[0][0] <= self.now:
                self.apply(heapq.heappop(self.queue)[2]())

    def is_right(self) -> bool:
        """Whether a token would come through: all stages there, each told of its neighbours."""
        hops = self.chain.hops
        if not self.chain.is_whole or not hops or self.fed != Place(hops[0][1].peer, 0):
            return False
        peers = [US, *(hop.peer for _, hop in hops)]
        places = [*(Place(hop.peer, hop.start) for _, hop in hops[1:]), HOME]
        takes = ["ids", *(hop.codec for _, hop in hops)]
        starts = [0, *(hop.end for _, hop in hops)]
        return takes[-1] == "picks" and all(
            number in self.stages
            and self.told[number] == (peers[index], places[index])
            and self.stages[number].takes == takes[index]
            and hop.start == starts[index]
            for index, (number, hop) in enumerate(hops)
        )
