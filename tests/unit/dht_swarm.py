"""Nodes of the DHT in memory, on a virtual clock: messages take `WAY_S` there and back.

Everybody drives itself: what a node wants done is put on one heap of events, in order.
"""

import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import base58

from dht.key import key_of
from dht.messages import Ask, Contact, Done, Moment, Provision, Value
from dht.node import Node
from dht.operation import Operation
from wire.ids import PeerId

WALL_MS = 1_800_000_000_000
DAY_MS = 24 * 3600 * 1000
WAY_S = 0.05
SEALED = b"sealed"  # no cryptography here: nobody lies in these tests


class Author:
    """Signs nothing."""

    def __init__(self, number: int) -> None:
        name = b"\x00\x24\x08\x01\x12\x20" + random.Random(number).randbytes(32)
        self.peer = PeerId(base58.b58encode(name).decode())
        self.signed = 0  # provider records
        self.life_ms = DAY_MS  # of these
        addrs = (f"/ip4/10.0.{number >> 8}.{number & 255}/tcp/4001",)
        self._word = Contact(self.peer, key_of(name), addrs, WALL_MS, WALL_MS, SEALED)

    def contact(self, wall_ms: int) -> Contact:
        """Where we are: the same word for twelve hours, then the next."""
        if wall_ms - self._word.issued_ms >= DAY_MS // 2:
            self._word = replace(self._word, seq=wall_ms, issued_ms=wall_ms)
        return self._word

    def provision(self, name: bytes, wall_ms: int) -> Provision:
        """Good for a day."""
        self.signed += 1
        return Provision(name, self.peer, wall_ms + self.life_ms, SEALED)


def head(author: Author, name: bytes, seq: int, data: bytes = b"data") -> Value:
    """A value of somebody, that lives for a day."""
    return Value(name, author.peer, seq, WALL_MS + DAY_MS, data, b"%s %d" % (data, seq))


class Swarm:
    """The network. `dead`: nobody there answers."""

    def __init__(self, count: int = 0, *, seed: int = 1) -> None:
        self.now_s = 1000.0
        self.rng = random.Random(seed)
        self.authors: dict[PeerId, Author] = {}
        self.nodes: dict[PeerId, Node] = {}
        self.dead: set[PeerId] = set()
        self.asks: list[tuple[PeerId, Ask]] = []
        self.done: dict[tuple[PeerId, int], Operation] = {}
        self._numbers = itertools.count()
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._wakes: dict[PeerId, float] = {}
        for _ in range(count):
            self.add()

    def add(self, **options: bool) -> Node:
        """One more; it knows nobody."""
        author = Author(len(self.authors))
        self.authors[author.peer] = author
        node = Node(author, random.Random(len(self.authors)), **options)
        self.nodes[author.peer] = node
        self.drive(node)
        return node

    def join(self) -> None:
        """Everybody asks one who was there before, one after the other."""
        nodes = list(self.nodes.values())
        for number, node in enumerate(nodes[1:]):
            self.do(node, node.bootstrap, [self.contact(nodes[number // 2])])

    def contact(self, node: Node) -> Contact:
        """Its own word."""
        return self.authors[node.state.author.peer].contact(WALL_MS)

    @property
    def moment(self) -> Moment:
        """Now."""
        return Moment(self.now_s, WALL_MS + round((self.now_s - 1000) * 1000))

    def do(self, node: Node, start: Callable[..., int], *args: Any, **options: Any) -> Any:
        """Run an operation of a node to its end and return its result."""
        number = start(*args, self.moment, **options)
        self.drive(node)
        place = node.state.author.peer, number
        while place not in self.done:
            assert self.step(), "it waits for nothing"
        return self.done.pop(place).result

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end_s = self.now_s + seconds
        while self._heap and self._heap[0][0] <= end_s:
            self.step()
        self.now_s = end_s

    def step(self) -> bool:
        """One event; False if there is none."""
        if not self._heap:
            return False
        at_s, _, event = heapq.heappop(self._heap)
        self.now_s = max(self.now_s, at_s)
        event()
        return True

    def drive(self, node: Node) -> None:
        """Do what a node wants done."""
        peer = node.state.author.peer
        for effect in node.effects():
            match effect:
                case Ask():
                    self.asks.append((peer, effect))
                    self._later(WAY_S, partial(self._arrive, node, effect))
                case Done(number):
                    operation = node.end(number)
                    assert operation is not None
                    self.done[peer, number] = operation
        if node.wake_at < math.inf and node.wake_at != self._wakes.get(peer):
            self._wakes[peer] = node.wake_at
            self._later(node.wake_at - self.now_s, partial(self._wake, node, node.wake_at))

    def _later(self, seconds: float, event: Callable[[], None]) -> None:
        at_s = self.now_s + max(0.0, seconds)
        heapq.heappush(self._heap, (at_s, next(self._numbers), event))

    def _wake(self, node: Node, at_s: float) -> None:
        if at_s == self._wakes.get(node.state.author.peer):
            del self._wakes[node.state.author.peer]
            if node.state.author.peer not in self.dead:
                node.tick(self.moment)
                self.drive(node)

    def _arrive(self, node: Node, ask: Ask) -> None:
        other = self.nodes[ask.contact.peer]
        if ask.contact.peer in self.dead:
            self._later(ask.timeout_s - WAY_S, lambda: self._fail(node, ask.number))
            return
        answer = other.received(
            node.state.author.peer, node.sender(self.moment), ask.request, self.moment
        )
        sender, address = other.sender(self.moment), self.contact(other).addrs[0]
        self.drive(other)

        def answered() -> None:
            node.answered(ask.number, answer, sender, address, self.moment)
            self.drive(node)

        self._later(WAY_S, answered)

    def _fail(self, node: Node, number: int) -> None:
        node.failed(number, "timeout", self.moment)
        self.drive(node)


def nearest(nodes: Iterable[Node], key: int, count: int) -> list[PeerId]:
    """The truth."""
    ordered = sorted(nodes, key=lambda node: node.state.key ^ key)
    return [node.state.author.peer for node in ordered[:count]]
