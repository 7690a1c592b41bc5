"""Simulated training: real modelsync over in-memory streams, random numbers for learning."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import trio

from protocols.modelsync import codecs
from protocols.modelsync.part import Attachment, LaneShape, Outcome, Wish
from protocols.modelsync.service import ModelSync
from protocols.modelsync.state import state_root
from protocols.rpc.service import RpcService
from shoal.learn.exact import nesterov, weighted_mean
from tests.sim.net import Net
from wire.ids import PeerId, Signer
from wire.ports import Item

T = TypeVar("T")
ELEMENTS = 300_000  # more than one chunk where one member owns all; three chunks of a state
RUN = "test"


async def in_place(work: Callable[[], T], /) -> T:
    """Blocking work on the loop: a mock clock would jump while a thread works."""
    await trio.lowlevel.checkpoint()
    return work()


@dataclass
class SharedStore:
    """A store that all nodes see at once; leases expire by virtual time."""

    me: PeerId
    items: dict[tuple[str, str], tuple[Item, float]]

    async def put(
        self, namespace: str, key: str, value: object, *, ttl_s: float | None = None
    ) -> Item:
        await trio.lowlevel.checkpoint()
        item = Item(key, value, self.me, 0, 0)
        until = float("inf") if ttl_s is None else trio.current_time() + ttl_s
        self.items[namespace, key] = (item, until)
        return item

    async def delete(self, namespace: str, key: str) -> None:
        await trio.lowlevel.checkpoint()
        self.items.pop((namespace, key), None)

    def get(self, namespace: str, key: str) -> Item | None:
        item, until = self.items.get((namespace, key), (None, 0.0))
        return item if until > trio.current_time() else None

    def scan(self, namespace: str, prefix: str = "") -> list[Item]:
        keys = sorted(k for n, k in self.items if n == namespace and k.startswith(prefix))
        return [item for key in keys if (item := self.get(namespace, key)) is not None]

    def watch(self, namespace: str, prefix: str = "") -> object:
        raise NotImplementedError


@dataclass
class Trainer:
    """What shoal.Trainer does, with random numbers instead of learning: one lane of a run.

    With several `lanes` it is the first of them, and `siblings` are the others, in one exchange
    buffer. A state is the parameters, then the momentum.
    """

    number: int
    sync: ModelSync
    codec: str = "float32"
    min_members: int = 1
    patience_s: float = 20.0
    lanes: int = 1
    sizes: tuple[int, ...] = field(default_factory=lambda: (ELEMENTS,))  # by round
    lane: int = 0
    sample: int = 0
    topology: str = "all"
    replicas_differ: bool = False
    is_verified: bool = False
    aggregator: str = "mean"
    wish: Wish = field(default_factory=Wish)
    sent: codecs.Vector | None = None
    round: int = 0
    exchange: codecs.Vector = field(default_factory=lambda: np.zeros(0, np.float32))
    states: list[codecs.Vector] = field(
        default_factory=lambda: [np.zeros(2 * ELEMENTS, np.float32) for _ in range(2)]
    )
    outcomes: list[Outcome] = field(default_factory=list[Outcome])
    roots: dict[int, bytes] = field(default_factory=dict[int, bytes])
    fetched: int = 0
    seconds_a_round: float = 1.0
    committed_at: list[float] = field(default_factory=list[float])
    siblings: list["Trainer"] = field(default_factory=list["Trainer"])

    def __post_init__(self) -> None:
        if self.lane:
            return
        self.exchange = np.zeros(self.lanes * ELEMENTS, np.float32)
        for lane in range(1, self.lanes):
            states = [np.zeros(2 * ELEMENTS, np.float32) for _ in range(2)]
            sibling = replace(self, lane=lane, exchange=self.exchange, states=states)
            for name in ("outcomes", "committed_at", "siblings"):
                setattr(sibling, name, [])
            sibling.roots = {}
            self.siblings.append(sibling)

    @property
    def buffer(self) -> codecs.Vector:
        return self.exchange[self.lane * ELEMENTS : (self.lane + 1) * ELEMENTS]

    @property
    def phi(self) -> codecs.Vector:
        return self.states[0][:ELEMENTS]

    def contribution(self, round_: int) -> codecs.Vector:
        random = np.random.default_rng((self.number, self.lane, round_))
        vector = random.standard_normal(ELEMENTS, dtype=np.float32)
        vector[self.size(round_) :] = 0
        return vector

    def size(self, round_: int) -> int:
        return self.sizes[round_ % len(self.sizes)]

    async def attach(self) -> None:
        if self.lane == 0:
            await self.sync.attach(self.attachment())
        fetched = await self.sync.join(RUN, self.lane, self.round, self.states[1])
        if fetched is not None:
            self.take(fetched.round)
        self.announce()

    def attachment(self) -> Attachment:
        return Attachment(
            RUN,
            (LaneShape(ELEMENTS, 2 * ELEMENTS),) * self.lanes,
            self.codec,
            100,
            self.min_members,
            self.patience_s,
            self.exchange,
            sent=self.sent,
            aggregator=self.aggregator,
            sample=self.sample,
            replicas_differ=self.replicas_differ,
            is_verified=self.is_verified,
        )

    def take(self, round_: int) -> None:
        self.states.reverse()
        self.round = round_
        self.fetched += 1

    def announce(self) -> None:
        root = state_root(self.states[0])
        self.roots[self.round] = root
        self.sync.announce(RUN, self.lane, self.round, root, self.states[0])

    async def train(self, rounds: int) -> None:
        """Attach, then take part until `rounds` are done, in all lanes."""
        await self.attach()
        async with trio.open_nursery() as nursery:
            for sibling in self.siblings:
                nursery.start_soon(sibling.train, rounds)
            await self.go_on(rounds)

    async def go_on(self, rounds: int) -> None:
        """Take part until `rounds` are done."""
        weight = 0.0 if self.fetched else 1.0
        while self.round < rounds:
            if self.sample and not await self.is_our_turn():
                await self.fetch(self.round + 1)
                continue
            if weight or self.sample:
                await trio.sleep(self.seconds_a_round)
                weight = 1.0
                self.buffer[:] = self.contribution(self.round)
            weight = await self.one_round(weight)

    async def is_our_turn(self) -> bool:
        turn = None
        while turn is None:
            turn = await self.sync.turn(RUN, self.lane, self.round, timeout_s=20)
        return turn

    async def fetch(self, at_least: int, root: bytes | None = None) -> None:
        fetched = await self.sync.fetch(
            RUN, self.lane, self.states[1], at_least=at_least, root=root
        )
        self.take(fetched.round)
        self.announce()

    async def one_round(self, weight: float) -> float:
        await self.sync.submit(
            RUN,
            self.lane,
            self.round,
            self.roots[self.round],
            weight,
            topology=self.topology,
            wish=self.wish,
            elements=self.size(self.round),
        )
        outcome = await self.sync.outcome(RUN, self.lane, timeout_s=600)
        assert outcome is not None
        if outcome.certificate is None:
            await self.fetch(outcome.at_least, outcome.root)
            return 0.0
        self.outcomes.append(outcome)
        self.committed_at.append(trio.current_time())
        phi, momentum = self.states[0][:ELEMENTS], self.states[0][ELEMENTS:]
        new = self.states[1]
        new[:ELEMENTS], new[ELEMENTS:] = nesterov(phi, momentum, self.buffer, lr=0.7, momentum=0.5)
        self.states.reverse()
        self.round += 1
        self.announce()
        return 1.0


@dataclass
class Tripwire:
    """An Rpc that calls `on_send(message)` before each message that this node sends.

    If that returns True the message is not sent and nothing more happens: the node is dead.
    """

    inner: RpcService
    on_send: Callable[[object], bool]
    delay_s: Callable[[object], float] = lambda message: 0.0

    @property
    def peer(self) -> PeerId:
        return self.inner.peer

    async def call(self, peer: PeerId, method: Any, message: Any, *, timeout_s: float) -> Any:
        await self._pass(message)
        return await self.inner.call(peer, method, message, timeout_s=timeout_s)

    @asynccontextmanager
    async def stream(self, peer: PeerId, method: Any, *, timeout_s: float) -> AsyncGenerator[Any]:
        async with self.inner.stream(peer, method, timeout_s=timeout_s) as call:
            yield TrippedCall(call, self)

    def serve(self, method: Any, handler: Any) -> None:
        self.inner.serve(method, handler)

    def serve_stream(self, method: Any, handler: Any) -> None:
        self.inner.serve_stream(method, lambda call: handler(TrippedCall(call, self)))

    async def _pass(self, message: object) -> None:
        if self.on_send(message):
            await trio.sleep_forever()
        if (delay_s := self.delay_s(message)) > 0:
            await trio.sleep(delay_s)


@dataclass
class TrippedCall:
    """A call of a Tripwire."""

    inner: Any
    wire: Tripwire

    @property
    def peer(self) -> PeerId:
        return self.inner.peer

    async def send(self, message: object) -> None:
        await self.wire._pass(message)
        await self.inner.send(message)

    async def receive(self) -> Any:
        return await self.inner.receive()

    async def finish(self) -> None:
        await self.inner.finish()


class Swarm:
    """Some nodes with a trainer each."""

    def __init__(self, net: Net, nursery: trio.Nursery) -> None:
        self.net, self.nursery = net, nursery
        self.items: dict[tuple[str, str], tuple[Item, float]] = {}
        self.trainers: list[Trainer] = []
        self.scopes: dict[int, trio.CancelScope] = {}
        self.on_send: Callable[[int, object], bool] = lambda number, message: False
        self.delay_s: Callable[[int, object], float] = lambda number, message: 0.0
        self.dead: dict[int, float] = {}
        self.ends: dict[int, trio.Event] = {}

    async def restart(self, number: int, **options: object) -> Trainer:
        """As a new daemon and a new trainer with the same identity, after `kill`."""
        self.net.restart(self.peer(number))
        del self.dead[number]
        return await self.add(number=number, **options)

    async def add(self, *, number: int | None = None, **options: Any) -> Trainer:
        number = len(self.trainers) if number is None else number
        signer = Signer(bytes([number + 1]) * 32)
        rpc = Tripwire(
            self.net.rpc(signer.peer),
            partial(self._on_send, number),
            lambda message: self.delay_s(number, message),
        )
        store = SharedStore(signer.peer, self.items)
        peers = self.net.host(signer.peer).connected
        sync = ModelSync(rpc, store, signer, peers=peers, work=in_place)
        trainer = Trainer(number, sync, **options)
        self.ends[number] = trio.Event()
        self.trainers[number : number + 1] = [trainer]
        await self.nursery.start(self._life, trainer)
        return trainer

    async def _life(self, trainer: Trainer, *, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            self.scopes[trainer.number] = nursery.cancel_scope
            await nursery.start(trainer.sync.run)
            task_status.started()

    def peer(self, number: int) -> PeerId:
        return Signer(bytes([number + 1]) * 32).peer

    def kill(self, number: int) -> None:
        """As kill -9 of the daemon, which takes its trainer along."""
        self.dead[number] = trio.current_time()
        self.ends[number].set()
        self.net.kill(self.peer(number))
        self.scopes[number].cancel()

    def _on_send(self, number: int, message: object) -> bool:
        return number in self.dead or self.on_send(number, message)

    @property
    def alive(self) -> list[Trainer]:
        return [t for t in self.trainers if t.number not in self.dead]

    async def train(self, rounds: int, *, within_s: float = 600) -> None:
        """Let all trainers train to the end; those that are killed stop."""
        with trio.fail_after(within_s):
            async with trio.open_nursery() as nursery:
                for trainer in self.trainers:
                    nursery.start_soon(self._train, trainer, rounds)

    async def _train(self, trainer: Trainer, rounds: int) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_with_daemon, trainer.number, nursery.cancel_scope)
            await trainer.train(rounds)
            nursery.cancel_scope.cancel()

    async def _end_with_daemon(self, number: int, scope: trio.CancelScope) -> None:
        await self.ends[number].wait()
        scope.cancel()

    def check(self, rounds: int) -> None:
        """All who live hold the same state, and every mean was the exact mean."""
        self.check_lane(self.trainers, rounds)
        for lane in range(len(self.trainers[0].siblings)):
            self.check_lane([t.siblings[lane] for t in self.trainers], rounds)

    def check_lane(self, trainers: list[Trainer], rounds: int) -> None:
        """Replay the certificates: their contributions must lead to the state that all hold."""
        alive = [t for t in trainers if t.number not in self.dead]
        assert len({t.roots[rounds] for t in alive}) == 1
        certificates = {}
        for trainer in trainers:
            for outcome in trainer.outcomes:
                c = outcome.certificate
                assert c is not None
                assert c.is_signed()
                assert c.lane == trainer.lane
                assert certificates.setdefault(c.round, c).result == c.result
        by_peer = {self.peer(t.number): t for t in trainers}
        phi, momentum = np.zeros(ELEMENTS, np.float32), np.zeros(ELEMENTS, np.float32)
        for round_ in range(rounds):
            c = certificates[round_]
            vectors = [by_peer[m].contribution(round_) for m in c.contributors]
            mean = weighted_mean(vectors, c.weights)
            phi, momentum = nesterov(phi, momentum, mean, lr=0.7, momentum=0.5)
        assert state_root(np.concatenate([phi, momentum])) == alive[0].roots[rounds]
