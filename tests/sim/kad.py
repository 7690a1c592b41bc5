"""A swarm of DHT machines on the event heap: no bytes, no signatures, virtual time, seeded.

`World` is the network and the driver of every node: it carries their `Ask`s as objects over links,
and takes care of who is dead, hidden behind a NAT or hostile. Nothing is signed here: hostile nodes
replay what was said, and never forge (`tests/unit` has those who do).
"""

import math
import random
from collections.abc import Callable
from enum import Enum

import base58

from dht.key import Key, key_of
from dht.messages import Answer, Ask, Contact, Done, Moment, Ping, Provision, Request
from dht.node import Node
from dht.operation import Operation
from dht.size import NetworkSize
from tests.sim.heap import Alarm, Heap, Links
from tests.sim.kad_ring import Ring
from tests.sim.scenario import Scenario
from wire.ids import PeerId

WALL_MS = 1_800_000_000_000  # Unix time at the beginning
DAY_MS = 24 * 3600 * 1000
RENEW_MS = 3600 * 1000  # own peer records are as old as that at most
DIAL_ROUNDS = 3  # round trips of TCP, Noise and Yamux before the first request
CONNECTIONS = 64  # that a node keeps: requests to others dial again
SEALED = b"s"  # stands for a signed envelope
STEADY_TARGETS = 12  # buckets that were refreshed: lookups that the size was estimated from
K = 20

Start = Callable[[Node, Moment], int]
Then = Callable[[Operation], object]


class State(Enum):
    """What a member does with a connection."""

    ALIVE = "alive"
    REFUSES = "refuses"  # its machine is up, or a router says no: known after a round trip
    HANGS = "hangs"


class Stranger:
    """Somebody who is not a Node: what it answers is up to it. None: no answer at all."""

    def received(self, member: "Member", peer: PeerId, request: Request) -> Answer | None:
        """Answer."""
        raise NotImplementedError


class Member:
    """Who takes part: an honest node (its machine made when it is needed), or a stranger."""

    __slots__ = (
        "address", "alarm", "connected", "contact", "index", "is_joined", "is_new", "is_server",
        "key", "name", "node", "peer", "running", "state", "stranger",
    )  # fmt: skip

    def __init__(self, index: int, name: bytes, key: Key, address: str, *, is_server: bool) -> None:
        self.index, self.name, self.key, self.address = index, name, key, address
        self.peer = PeerId(base58.b58encode(name).decode())
        self.is_server = is_server
        self.is_new = False  # it has to find its table itself
        self.is_joined = True  # its bootstrap has ended
        self.contact = Contact(self.peer, key, (address,), WALL_MS, WALL_MS, SEALED)
        self.node: Node | None = None
        self.alarm: Alarm | None = None
        self.running: dict[int, Then] = {}
        self.connected: dict[PeerId, None] = {}
        self.state = State.ALIVE
        self.stranger: Stranger | None = None

    def claim(self, *addresses: str) -> None:
        """Say that it can be reached there too."""
        addrs = (self.address, *addresses)
        self.contact = Contact(self.peer, self.key, addrs, WALL_MS, WALL_MS, SEALED)


class Author:
    """A member's own word, without cryptography."""

    def __init__(self, member: Member) -> None:
        self.peer, self._member = member.peer, member

    def contact(self, wall_ms: int) -> Contact:
        """Its record, renewed every hour."""
        old = self._member.contact
        if wall_ms - old.issued_ms > RENEW_MS:
            new = Contact(old.peer, old.key, old.addrs, wall_ms, wall_ms, SEALED)
            self._member.contact = new
        return self._member.contact

    def provision(self, name: bytes, wall_ms: int) -> Provision:
        """A provider record."""
        return Provision(name, self.peer, wall_ms + DAY_MS, SEALED, self._member.contact.addrs)


class _Narrow(NetworkSize):
    """Says that nobody but the k-closest belongs to a close set."""

    def region(self, count: int = K) -> int:
        """No region."""
        return 0


class NarrowNode(Node):
    """A node without the defence of regions: it stores to the k-closest that it finds."""

    @property
    def size(self) -> NetworkSize:
        """What its own operations go by."""
        return _Narrow()


class World:
    """The network, and everybody in it."""

    def __init__(self, scenario: Scenario, seed: int) -> None:
        self.scenario = scenario
        self.heap = Heap(seed)
        self.rng = self.heap.rng
        self.links = Links(self.heap, scenario.links)
        self.members: list[Member] = []
        self.by_peer: dict[PeerId, Member] = {}
        self.ring: Ring[Member] = Ring()  # servers that a steady table may hold
        self.kinds: dict[str, int] = {}  # requests
        self.asked = self.timeouts = self.unreachable = 0
        self.is_steady = scenario.swarm.tables == "steady"

    # --- members ----------------------------------------------------------------------------------

    def populate(self, count: int) -> None:
        """Bring in so many at once."""
        for _ in range(count):
            self.enter()
        self.ring = Ring([one for one in self.members if one.is_server])

    def enter(
        self, *, key: Key | None = None, address: str = "", is_hidden: bool | None = None
    ) -> Member:
        """Bring in one. It is not in the ring yet, and has no machine."""
        index = self.links.add(is_hidden=is_hidden)
        name = b"\x00\x24\x08\x01\x12\x20" + self.rng.randbytes(32)
        is_server = not self.links.is_hidden[index]
        where = key_of(name) if key is None else key
        member = Member(index, name, where, address or self._address(), is_server=is_server)
        self.members.append(member)
        self.by_peer[member.peer] = member
        return member

    def _address(self) -> str:
        per_group = self.scenario.swarm.per_group
        if not per_group or not self.scenario.defences.diversity:
            return f"/ip4/10.{_three(self.rng.randrange(1 << 24))}/tcp/4001"
        group = self.rng.randrange(max(1, round(self.scenario.swarm.nodes / per_group)))
        return address_in(group, self.rng.randrange(1, 255))

    def node_of(self, member: Member) -> Node:
        """Return its machine, making it if this is the first time."""
        if member.node is None:
            assert member.stranger is None
            rng = random.Random(self.rng.random())
            kind = Node if self.scenario.defences.region else NarrowNode
            member.node = node = kind(Author(member), rng, is_server=member.is_server)
            member.alarm = Alarm(self.heap, lambda: self._tick(member))
            if self.is_steady and not member.is_new:
                self._settle(member, node, rng)
        return member.node

    def _settle(self, member: Member, node: Node, rng: random.Random) -> None:
        """Give it the table and the estimate that it would have after a long time."""
        now_s, ring = self.heap.now_s, self.ring
        for bucket in ring.buckets(member.key, K, rng):
            for other in bucket:
                if other is not member:
                    node.table.answered(other.contact, other.address, now_s)
        node.table.changes()
        targets = [member.key, *(Key(rng.getrandbits(256)) for _ in range(STEADY_TARGETS))]
        for target in targets:
            nearest = [one.contact for one in ring.nearest(target, K + 1) if one is not member]
            node.state.size.saw(target, nearest[:K])

    # --- driving nodes ----------------------------------------------------------------------------

    @property
    def moment(self) -> Moment:
        """Now."""
        return Moment(self.heap.now_s, WALL_MS + int(self.heap.now_s * 1000))

    def begin(self, member: Member, start: Start, then: Then) -> None:
        """Let a node begin an operation; `then` gets it when it has ended."""
        node = self.node_of(member)
        member.running[start(node, self.moment)] = then
        self._drain(member, node)

    def _tick(self, member: Member) -> None:
        if member.state is State.ALIVE and member.node is not None:
            member.node.tick(self.moment)
            self._drain(member, member.node)

    def _drain(self, member: Member, node: Node) -> None:
        while effects := node.effects():
            for effect in effects:
                if isinstance(effect, Ask):
                    self._ask(member, effect)
                else:
                    self._done(member, node, effect)
        if member.alarm is not None:  # else it has just left
            member.alarm.set(node.wake_at)

    def _done(self, member: Member, node: Node, done: Done) -> None:
        then = member.running.pop(done.operation, None)
        if then is not None:
            operation = node.end(done.operation)
            assert operation is not None
            then(operation)

    # --- requests ---------------------------------------------------------------------------------

    def _ask(self, member: Member, ask: Ask) -> None:
        """Carry a request there, after dialling; or find out that it cannot be."""
        self.asked += 1
        kind = "Check" if ask.is_check else type(ask.request).__name__
        self.kinds[kind] = self.kinds.get(kind, 0) + 1
        heap, links, now_s = self.heap, self.links, self.heap.now_s
        end_s = now_s + ask.timeout_s
        other = self.by_peer.get(ask.contact.peer)
        way_s = math.inf
        if other is not None and other.address in ask.contact.addrs:
            if not links.is_hidden[other.index]:
                way_s = links.way_s(member.index, other.index)
            if ask.contact.peer not in member.connected:
                way_s *= 1 + 2 * DIAL_ROUNDS
        if other is None or now_s + way_s >= end_s or other.state is State.HANGS:
            heap.at(end_s, self._failed, member, ask.number, "timeout")
        elif other.state is State.REFUSES:
            heap.after(
                2 * way_s / (1 + 2 * DIAL_ROUNDS), self._failed, member, ask.number, "unreachable"
            )
        else:
            heap.after(way_s, self._arrive, member, other, ask, end_s)

    def knock(self, member: Member, other: Member) -> None:
        """Somebody who is no node of ours says hello to one."""
        node = self.node_of(other)
        node.received(member.peer, member.contact, Ping(), self.moment)
        self._drain(other, node)

    def _arrive(self, member: Member, other: Member, ask: Ask, end_s: float) -> None:
        answer = sender = None
        if other.state is State.ALIVE:
            if other.stranger is not None:
                answer, sender = (
                    other.stranger.received(other, member.peer, ask.request),
                    other.contact,
                )
            else:
                node, moment = self.node_of(other), self.moment
                asking = member.contact if member.is_server else None
                answer = node.received(member.peer, asking, ask.request, moment)
                sender = node.sender(moment)
                self._drain(other, node)
        back_s = self.links.way_s(other.index, member.index)
        if answer is None or self.heap.now_s + back_s >= end_s:
            self.heap.at(end_s, self._failed, member, ask.number, "timeout")
            return
        self._connect(member, ask.contact.peer)
        self.heap.after(back_s, self._answered, member, ask.number, answer, sender, other.address)

    def _connect(self, member: Member, peer: PeerId) -> None:
        connected = member.connected
        connected.pop(peer, None)
        connected[peer] = None
        if len(connected) > CONNECTIONS:
            del connected[next(iter(connected))]

    def _answered(
        self, member: Member, number: int, answer: Answer, sender: Contact | None, address: str
    ) -> None:
        node = member.node
        if node is not None and member.state is State.ALIVE:
            node.answered(number, answer, sender, address, self.moment)
            self._drain(member, node)

    def _failed(self, member: Member, number: int, why: str) -> None:
        node = member.node
        if why == "timeout":
            self.timeouts += 1
        else:
            self.unreachable += 1
        if node is not None and member.state is State.ALIVE:
            node.failed(number, why, self.moment)
            self._drain(member, node)

    def live(self) -> Ring[Member]:
        """Return the honest or hostile servers that are alive: the truth for looks."""
        return Ring([one for one in self.ring if one.state is State.ALIVE])


def address_in(group: int, host: int, first: int = 20) -> str:
    """Return an address in the /24 of this number; `first` byte of it."""
    return f"/ip4/{first + (group >> 16)}.{group >> 8 & 255}.{group & 255}.{host}/tcp/4001"


def _three(number: int) -> str:
    return f"{number >> 16}.{number >> 8 & 255}.{number & 255}"
