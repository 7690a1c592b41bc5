"""A swarm of GossipSub machines on one event heap: virtual time, seeded, no tasks.

Links have a fixed delay each and lose RPCs; a node sends one byte after the other through an
uplink of its own. Subscriptions, which a real stream carries when it opens, are not lost.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from protocols.channels.effects import Drop, Effect, Send, Validate, Verdict
from protocols.channels.machine import GossipSub
from protocols.channels.params import Params
from protocols.channels.wire import (
    PROTOCOLS,
    IHave,
    Message,
    Rpc,
    Subscription,
    author_of,
    message,
)
from tests.sim.heap import Heap
from wire.ids import PeerId, peer_id_of

TOPIC = "news"
SUBSCRIBED = (Subscription(TOPIC, True),)
VALID = b"valid"  # the signature that passes
RPC_BYTES = 60  # of headers, around each RPC: TCP, IP, Noise, Yamux
DOWN_AFTER_S = 3.0  # until the peers of a node that left notice


@dataclass(frozen=True)
class Scenario:
    """What happens in one run."""

    nodes: int
    messages: int
    payload_bytes: int
    seed: int = 1
    degree: int = 30  # peers that each node is connected to, about
    loss: float = 0.0  # share of RPCs
    leaving: float = 0.0  # share of nodes that leave while messages are published
    hostile: float = 0.0  # share of nodes that work against the others
    gap_s: float = 0.25  # between two messages
    publishers: int = 10
    warm_up_s: float = 5.0
    settle_s: float = 12.0  # after the last message
    uplink: float = 12.5e6  # bytes per second: 100 Mbit/s
    params: Params = field(default_factory=Params)


@dataclass
class Outcome:
    """What came of it, over honest nodes that were there at the end."""

    expected: int = 0
    delivered: int = 0
    payloads: int = 0  # copies that arrived, the first one included
    control: int = 0  # RPCs without payload
    hops: list[int] = field(default_factory=list[int])
    delays_s: list[float] = field(default_factory=list[float])
    dropped: int = 0  # Drop effects against hostile nodes
    wronged: int = 0  # Drop effects against honest ones
    pushed_bytes: int = 0

    @property
    def share(self) -> float:
        """Share of deliveries that happened."""
        return self.delivered / self.expected

    @property
    def copies(self) -> float:
        """Payloads received per delivery."""
        return self.payloads / max(1, self.delivered)

    def hops_at(self, share: float) -> int:
        """Quantile of the hops."""
        return sorted(self.hops)[int(len(self.hops) * share)]

    def delay_ms(self, share: float) -> float:
        """Quantile of the time from publishing to delivery."""
        return 1000 * sorted(self.delays_s)[int(len(self.delays_s) * share)]


class Hostile:
    """Takes part in every mesh and forwards nothing; lies, floods and forges as it can."""

    def __init__(self, own: PeerId, rng: random.Random) -> None:
        self._own, self._rng = own, rng
        self._peers: list[PeerId] = []
        self._names: list[bytes] = []  # of true messages: to promise and not to send
        self.deadline = 0.0

    def peer_up(self, peer: PeerId) -> list[Effect]:
        """Subscribe, like everybody."""
        self._peers.append(peer)
        return []

    def receive(self, peer: PeerId, rpc: Rpc) -> list[Effect]:
        """Announce to all what came, forge a message under its id, and send nothing else."""
        effects: list[Effect] = []
        for item in rpc.messages:
            if item.id in self._names[-50:] or item.signature != VALID:
                continue
            self._names.append(item.id)
            ihave = (IHave(TOPIC, (item.id, _next_id(item))),)
            effects.append(Send(tuple(self._peers), Rpc(ihave=ihave)))
            forged = message(
                author=item.author, seqno=item.seqno, topic=TOPIC, data=b"forged", signature=b"no"
            )
            victim = self._rng.choice(self._peers)
            effects.append(Send((victim,), Rpc(messages=(forged,))))
        return effects

    def tick(self, now: float) -> list[Effect]:
        """Flood: GRAFTs, promises of messages that do not exist."""
        self.deadline = now + 0.5
        names = tuple(self._rng.randbytes(46) for _ in range(20))
        rpc = Rpc(graft=(TOPIC,), ihave=(IHave(TOPIC, names),))
        return [Send(tuple(self._peers), rpc)]


def _next_id(item: Message) -> bytes:
    """Guess the id of the author's next message: to promise it before it exists."""
    return item.author + (int.from_bytes(item.seqno, "big") + 1).to_bytes(8, "big")


class _Node:
    def __init__(self, peer: PeerId) -> None:
        self.peer = peer
        self.machine: GossipSub | None = None
        self.hostile: Hostile | None = None
        self.is_alive = True
        self.links: dict[PeerId, float] = {}  # delay
        self.cut: set[PeerId] = set()  # dropped by us, or who dropped us
        self.uplink_free_at = 0.0
        self.alarm_at = float("inf")
        self.leaves = False


class Swarm:
    """Runs one scenario."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario, self.outcome = scenario, Outcome()
        self._heap = Heap(scenario.seed)
        self.rng = self._heap.rng
        self._published: dict[bytes, tuple[float, PeerId]] = {}
        self._hops: dict[tuple[PeerId, bytes], int] = {}
        self._times: dict[tuple[PeerId, bytes], float] = {}
        self._received: Counter[tuple[PeerId, bytes]] = Counter()
        names = [peer_id_of(n.to_bytes(32, "big")) for n in range(1, scenario.nodes + 1)]
        self.nodes = {name: _Node(name) for name in names}
        self._build()

    def run(self) -> Outcome:
        """Publish, wait, count."""
        self._heap.run(self._plan())
        assert len(self._published) == self.scenario.messages
        return self._count_up()

    def _build(self) -> None:
        scenario, rng = self.scenario, self.rng
        nodes = list(self.nodes.values())
        for node in nodes:
            node.leaves = rng.random() < scenario.leaving
            if rng.random() < scenario.hostile:
                node.hostile = Hostile(node.peer, random.Random(rng.random()))
            else:
                node.machine = GossipSub(node.peer, scenario.params, random.Random(rng.random()))
                node.machine.subscribe(TOPIC, 0.0)
        for node in nodes:
            others = rng.sample(nodes, min(scenario.degree // 2, len(nodes) - 1))
            for other in others:
                if other is not node and other.peer not in node.links:
                    delay_s = rng.uniform(0.01, 0.05)
                    node.links[other.peer] = other.links[node.peer] = delay_s
                    self._up(node, other.peer, rng.random(), outbound=True)
                    self._up(other, node.peer, rng.random(), outbound=False)

    def _up(self, node: _Node, peer: PeerId, now: float, *, outbound: bool) -> None:
        """Connect: the subscriptions pass at once and for certain."""
        if node.hostile is not None:
            node.hostile.peer_up(peer)
            self._arm(node, 0.5)
            return
        assert node.machine is not None
        hello = Rpc(subscriptions=SUBSCRIBED)
        node.machine.peer_up(peer, PROTOCOLS[0], now, outbound=outbound)
        self._apply(node, node.machine.receive(peer, hello, now), now)

    def _plan(self) -> float:
        """Put the publishing and leaving of the scenario on the heap; return its end."""
        scenario, rng = self.scenario, self.rng
        honest = [node for node in self.nodes.values() if node.machine and not node.leaves]
        publishers = rng.sample(honest, min(scenario.publishers, len(honest)))
        for number in range(scenario.messages):
            at = scenario.warm_up_s + number * scenario.gap_s
            self._at(at, self._publish, rng.choice(publishers), number)
        last = scenario.warm_up_s + scenario.messages * scenario.gap_s
        for node in self.nodes.values():
            if node.leaves:
                self._at(rng.uniform(scenario.warm_up_s, last), self._leave, node)
        return last + scenario.settle_s

    def _at(self, time: float, call: Callable[..., None], node: _Node, *args: object) -> None:
        self._heap.at(time, self._happen, call, node, args)

    def _happen(self, call: Callable[..., None], node: _Node, args: tuple[object, ...]) -> None:
        if node.is_alive:
            call(node, *args, self._heap.now_s)

    def _leave(self, node: _Node, now: float) -> None:
        node.is_alive = False
        for other in node.links:
            self._at(now + DOWN_AFTER_S, self._cut, self.nodes[other], node.peer)

    def _arm(self, node: _Node, deadline: float) -> None:
        if deadline < node.alarm_at:
            node.alarm_at = deadline
            self._at(deadline, self._tick, node)

    def _tick(self, node: _Node, now: float) -> None:
        if now < node.alarm_at:
            return  # an older alarm
        node.alarm_at = float("inf")
        if node.hostile is not None:
            self._apply(node, node.hostile.tick(now), now)
        elif node.machine is not None:
            self._apply(node, node.machine.tick(now), now)

    def _publish(self, node: _Node, number: int, now: float) -> None:
        assert node.machine is not None
        data = number.to_bytes(4, "big") * (self.scenario.payload_bytes // 4)
        item = message(
            author=author_of(node.peer),
            seqno=number.to_bytes(8, "big"),
            topic=TOPIC,
            data=data,
            signature=VALID,
        )
        self._published[item.id] = (now, node.peer)
        self._hops[node.peer, item.id] = 0
        self._apply(node, node.machine.publish(item, now), now)

    def _arrive(self, node: _Node, peer: PeerId, rpc: Rpc, now: float) -> None:
        if peer in node.cut:
            return
        if node.hostile is not None:
            self._apply(node, node.hostile.receive(peer, rpc), now)
            return
        assert node.machine is not None
        for item in rpc.messages:
            if item.signature == VALID:
                self._received[node.peer, item.id] += 1
        self.outcome.control += not rpc.messages
        self._apply(node, node.machine.receive(peer, rpc, now), now)

    def _apply(self, node: _Node, effects: list[Effect], now: float) -> None:
        for effect in effects:
            match effect:
                case Send(peers, rpc):
                    self._send(node, peers, rpc, now)
                case Validate(peer, item, name):
                    self._validate(node, peer, item, name, now)
                case Drop(peer, _):
                    is_hostile = self.nodes[peer].hostile is not None
                    self.outcome.dropped += is_hostile
                    self.outcome.wronged += not is_hostile
                    self._cut(node, peer, now)
                    self._at(now + node.links[peer], self._cut, self.nodes[peer], node.peer)
        machine = node.machine or node.hostile
        assert machine is not None
        self._arm(node, machine.deadline)

    def _validate(self, node: _Node, peer: PeerId, item: Message, name: bytes, now: float) -> None:
        assert node.machine is not None
        is_valid = item.signature == VALID
        if is_valid:
            assert (node.peer, name) not in self._times, "delivered twice"
            self._times[node.peer, name] = now
            self._hops[node.peer, name] = self._hops[peer, name] + 1
        verdict = Verdict.ACCEPT if is_valid else Verdict.REJECT
        self._apply(node, node.machine.validated(name, verdict, now), now)

    def _send(self, node: _Node, peers: tuple[PeerId, ...], rpc: Rpc, now: float) -> None:
        size = RPC_BYTES + rpc_bytes(rpc)
        is_hello = bool(rpc.subscriptions)
        for peer in peers:
            if peer in node.cut:
                continue
            node.uplink_free_at = max(now, node.uplink_free_at) + size / self.scenario.uplink
            self.outcome.pushed_bytes += size
            if is_hello or self.rng.random() >= self.scenario.loss:
                at = node.uplink_free_at + node.links[peer]
                self._at(at, self._arrive, self.nodes[peer], node.peer, rpc)

    def _cut(self, node: _Node, peer: PeerId, now: float) -> None:
        if peer not in node.cut:
            node.cut.add(peer)
            if node.machine is not None:
                self._apply(node, node.machine.peer_down(peer, now), now)

    def _count_up(self) -> Outcome:
        outcome = self.outcome
        for node in self.nodes.values():
            if node.machine is None or not node.is_alive:
                continue
            for name, (since, author) in self._published.items():
                if author == node.peer:
                    continue
                outcome.expected += 1
                outcome.payloads += self._received[node.peer, name]
                at = self._times.get((node.peer, name))
                if at is not None:
                    outcome.delivered += 1
                    outcome.delays_s.append(at - since)
                    outcome.hops.append(self._hops[node.peer, name])
        return outcome


def rpc_bytes(rpc: Rpc) -> int:
    """Return about how long an RPC is on the wire."""
    size = sum(len(item.raw) + 4 for item in rpc.messages)
    size += sum(len(item.topic) + 4 + 48 * len(item.ids) for item in rpc.ihave)
    size += 48 * (len(rpc.iwant) + len(rpc.idontwant))
    return size + 16 * (len(rpc.graft) + len(rpc.prune) + len(rpc.subscriptions))
