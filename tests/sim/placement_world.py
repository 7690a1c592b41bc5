"""A swarm that places one model: real placers, a store that is late, a virtual clock."""

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import msgspec

from protocols.sharding.placement import COVERING, Host, Wish
from protocols.sharding.placer import LOOK_S, Begin, Claim, Leave, Placer, Sight, Withdraw
from protocols.sharding.records import StageRecord
from protocols.sharding.sharing import Shape
from wire.ids import PeerId

DOWN_S = 3.0  # until a dead node is seen to be dead
DELAY_MAX_S = 2.0  # until a write is everywhere
QUIET_S = 1.0  # between two looks of a node, at least
FETCH_S, LOAD_S, DRAIN_S = 3.0, 2.0, 2.0
MODEL = "ab" * 32


@dataclass
class Node:
    """A node: what it sees, what it holds."""

    peer: PeerId
    room_blocks: int
    pace_us: int  # per block
    placer: Placer
    hosts: set[PeerId] = field(default_factory=set[PeerId])
    board: dict[tuple[PeerId, int], tuple[int, StageRecord | None]] = field(
        default_factory=dict[tuple[PeerId, int], tuple[int, StageRecord | None]]
    )
    own: dict[int, StageRecord] = field(default_factory=dict[int, StageRecord])
    alive: bool = True
    looks_at: float = 0.0
    wish: Wish | None = None
    load: int = 0
    offered_speed: float = 0.0


class World:
    """All nodes, on one heap of events."""

    def __init__(self, *, blocks: int, seed: int, replicas: int = 1, nodes: int = 0) -> None:
        self.rng = random.Random(seed)
        self.shape = Shape(MODEL, (1,) * blocks)
        self.replicas, self.split = replicas, nodes
        self.now = 0.0
        self.nodes: dict[PeerId, Node] = {}
        self.begun = 0
        self.left = 0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()

    def at(self, delay_s: float, do: Callable[[], None]) -> None:
        """Do something later."""
        heapq.heappush(self._heap, (self.now + delay_s, next(self._count), do))

    def run(self, seconds: float, until: Callable[[], bool] | None = None) -> bool:
        """Go on for so long, or until something is so."""
        end = self.now + seconds
        while self._heap and self._heap[0][0] <= end:
            self.now, _, do = heapq.heappop(self._heap)
            do()
            if until is not None and until():
                return True
        self.now = end
        return False

    def add(
        self, *, room: int, pace_us: int = 1000, knows: bool = True, wish: Wish | None = None
    ) -> Node:
        """A node joins; with `knows` it and the others know each other at once."""
        peer = PeerId(f"peer{len(self.nodes):03}")
        node = Node(peer, room, pace_us, Placer(peer, random.Random(self.rng.random())), wish=wish)
        node.offered_speed = 1e6 / pace_us
        self.nodes[peer] = node
        node.hosts.add(peer)
        for other in self.nodes.values():
            if other is node or not other.alive:
                continue
            delay_s = 0.0 if knows else self.rng.uniform(0, DELAY_MAX_S)
            self.at(delay_s, partial(other.hosts.add, peer))
            self.at(delay_s, partial(self._meet, node, other))
        self.at(self.rng.uniform(0, LOOK_S), lambda: self._look_often(node))
        return node

    def _meet(self, node: Node, other: Node) -> None:
        node.hosts.add(other.peer)
        for start in other.own:
            node.board[other.peer, start] = other.board[other.peer, start]

    def kill(self, node: Node) -> None:
        """A node dies; the others see it `DOWN_S` later."""
        node.alive = False
        for other in self.nodes.values():
            self.at(DOWN_S, partial(self._forget, other, node.peer))

    def _forget(self, node: Node, peer: PeerId) -> None:
        node.hosts.discard(peer)
        self._look_soon(node)

    def cover(self, states: tuple[str, ...] = ("ready",)) -> list[int]:
        """On how many living nodes each block truly is."""
        counts = [0] * self.shape.blocks
        for node in self.nodes.values():
            for record in node.own.values() if node.alive else ():
                if record.state in states:
                    for block in range(record.start, record.end):
                        counts[block] += 1
        return counts

    def is_covered(self) -> bool:
        """Whether each block has a living node that has decided for it."""
        return all(self.cover(COVERING))

    def rates(self) -> list[float]:
        """The true throughput of each block, in sessions' steps per second."""
        found = [0.0] * self.shape.blocks
        for node in self.nodes.values():
            held = [x for x in node.own.values() if node.alive and x.state == "ready"]
            total = sum(x.end - x.start for x in held)
            for record in held:
                for block in range(record.start, record.end):
                    found[block] += 1e6 / (total * node.pace_us)
        return found

    def spans(self) -> list[tuple[str, int, int]]:
        """What every living node holds, by block."""
        alive = [node for node in self.nodes.values() if node.alive]
        own = [(node, record) for node in alive for record in node.own.values()]
        held = [(r.start, r.end, node.peer) for node, r in own if r.state == "ready"]
        return [(peer, start, end) for start, end, peer in sorted(held)]

    # --- one node ----------------------------------------------------------------------------

    def _look_often(self, node: Node) -> None:
        if node.alive:
            self._look(node)
            self.at(LOOK_S, lambda: self._look_often(node))

    def _look_soon(self, node: Node) -> None:
        if node.alive and node.looks_at <= self.now:
            node.looks_at = self.now + QUIET_S
            self.at(QUIET_S, lambda: self._look(node))

    def sight(self, node: Node) -> Sight:
        """What a node sees."""
        hosts = [
            Host(peer, self.nodes[peer].room_blocks, self.nodes[peer].offered_speed)
            for peer in sorted(node.hosts)
            if self.nodes[peer].room_blocks
        ]
        leases = [
            (peer, record)
            for (peer, _), (_, record) in sorted(node.board.items())
            if record is not None and peer in node.hosts and peer != node.peer
        ]
        leases += [(node.peer, record) for record in node.own.values()]
        return Sight(self.shape, hosts, leases, self.replicas, self.split, node.wish)

    def _look(self, node: Node) -> None:
        if not node.alive:
            return
        for effect in node.placer.look(self.sight(node), self.now):
            match effect:
                case Claim((start, end)):
                    self._withdraw(node)
                    self._say(node, start, end, "claimed")
                case Withdraw():
                    self._withdraw(node)
                case Begin((start, end), instead_of):
                    self._withdraw(node)
                    self.begun += 1
                    self._say(node, start, end, "fetching")
                    self.at(FETCH_S, partial(self._fetched, node, start, instead_of))
                case Leave(start):
                    self._leave(node, start)

    def _fetched(self, node: Node, start: int, instead_of: int | None) -> None:
        if instead_of is not None:
            if not node.placer.can_leave(self.sight(node), instead_of, self.now):
                self._drop(node, start)
                return
            self._leave(node, instead_of)
        self._step(node, start, "loading")
        self.at(LOAD_S, lambda: self._step(node, start, "ready"))

    def _leave(self, node: Node, start: int) -> None:
        self.left += 1
        self._step(node, start, "draining")
        self.at(DRAIN_S, lambda: self._drop(node, start))

    def _step(self, node: Node, start: int, state: str) -> None:
        record = node.own.get(start)
        if record is not None:
            self._say(node, start, record.end, state)

    def _withdraw(self, node: Node) -> None:
        for start, record in list(node.own.items()):
            if record.state == "claimed":
                self._drop(node, start)

    def _say(self, node: Node, start: int, end: int, state: str) -> None:
        before = node.own.get(start)
        claimed_ms = int(self.now * 1000) if before is None else before.claimed_ms
        decode_us = int((end - start) * node.pace_us * self.rng.uniform(0.9, 1.1))
        record = StageRecord(
            MODEL, start, end, state, claimed_ms, decode_us=decode_us, load=node.load
        )
        node.own[start] = record
        self._spread(node, start, record)

    def renew(self, node: Node) -> None:
        """Say again what it holds, with its load of now."""
        for record in list(node.own.values()):
            self._spread(node, record.start, msgspec.structs.replace(record, load=node.load))

    def _drop(self, node: Node, start: int) -> None:
        if node.own.pop(start, None) is not None:
            self._spread(node, start, None)

    def _spread(self, node: Node, start: int, record: StageRecord | None) -> None:
        if not node.alive:
            return
        version, key = next(self._count), (node.peer, start)
        if record is not None and start in node.own:
            node.own[start] = record
        node.board[key] = version, record

        def arrive(other: Node) -> None:
            if other.board.get(key, (-1, None))[0] < version:
                other.board[key] = version, record
                self._look_soon(other)

        for other in self.nodes.values():
            if other is not node:
                self.at(self.rng.uniform(0.05, DELAY_MAX_S), partial(arrive, other))
