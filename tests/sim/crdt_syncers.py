"""Nodes that sync over links in memory: real replicas, real syncs, no disk and no channel."""

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import trio

from crdt.entry import Record, Signed
from crdt.fault import Fault, check
from crdt.intake import proven
from crdt.namespace import Genesis
from crdt.replica import Replica
from crdt.sync import Syncer
from tests.sim.replicas import in_place
from tests.unit.crdt_making import NOW_MS, OPEN, signer
from wire.errors import DeadlineExceeded, PeerUnreachable, RemoteError, ShoalError
from wire.ids import PeerId


@dataclass
class Links:
    """Who hears whom. `loses`: whether an answer gets lost, by its sender."""

    latency_s: float = 0.02
    loses: Callable[[PeerId], bool] = lambda _: False
    nodes: "dict[PeerId, Node]" = field(default_factory=dict[PeerId, "Node"])
    messages: list[bytes] = field(default_factory=list[bytes])


class Node:
    """One peer: the `Network`, `Clock` and `Store` that its syncer sees."""

    def __init__(
        self,
        links: Links,
        number: int,
        geneses: tuple[Genesis, ...] = (OPEN,),
        *,
        ahead_ms: int = 0,
        interval_s: float = math.inf,
    ) -> None:
        self.peer, self.links, self.ahead_ms = signer(number).peer, links, ahead_ms
        self.spaces = {genesis.id: Replica(genesis) for genesis in geneses}
        self.refusals: list[str] = []
        self.bad: list[Record] = []
        self.synced: list[PeerId] = []
        self.batches: list[int] = []
        self.faults_taken = 0
        self.take_s = 0.0  # how long a batch takes
        self.at_once = self.at_once_max = 0
        self.syncer = Syncer(
            self,
            self,
            self,
            off_loop=in_place,
            peers=lambda: [peer for peer in links.nodes if peer != self.peer],
            interval_s=interval_s,
            rng=random.Random(number),
        )
        links.nodes[self.peer] = self

    @property
    def replica(self) -> Replica:
        """The only one, or the first."""
        return next(iter(self.spaces.values()))

    def put(self, *records: Record) -> None:
        """Hold these."""
        for record in records:
            self.spaces[record.namespace].merge(record, NOW_MS)

    # -- Clock

    def now(self) -> float:
        return trio.current_time()

    def wall_ms(self) -> int:
        return NOW_MS + 3_600_000 + round(trio.current_time() * 1000) + self.ahead_ms

    # -- Network

    async def request(self, peer: PeerId, message: bytes, *, timeout_s: float) -> bytes:
        await trio.sleep(self.links.latency_s)
        node = self.links.nodes.get(peer)
        if node is None:
            raise PeerUnreachable(peer)
        try:
            reply = await node.syncer.answer(self.peer, message)
        except ShoalError as error:
            raise RemoteError(error.code, str(error)) from error
        await trio.sleep(self.links.latency_s)
        if self.links.loses(peer):
            await trio.sleep(timeout_s)
            raise DeadlineExceeded(peer)
        self.links.messages += [message, reply]
        return reply

    # -- Store

    def replicas(self) -> Mapping[bytes, Replica]:
        return self.spaces

    async def take(self, peer: PeerId, namespace: bytes, signed: list[Signed]) -> int:
        assert peer in self.links.nodes
        self.at_once += 1
        self.at_once_max = max(self.at_once, self.at_once_max)
        await trio.sleep(self.take_s)
        self.at_once -= 1
        replica, news = self.spaces[namespace], 0
        for record in proven(signed):
            reason = replica.refusal(record, self.wall_ms())
            if reason:
                self.refusals.append(reason)
            elif replica.is_news(record):
                news += replica.merge(record, self.wall_ms()).is_added
        self.batches.append(len(signed))
        return news

    async def take_faults(self, namespace: bytes, faults: list[Fault]) -> None:
        await trio.lowlevel.checkpoint()
        for fault in faults:
            self.spaces[namespace].merge_fault(check(fault))
            self.faults_taken += 1

    def quiet_ms(self) -> int:
        return 0

    def forget(self, namespace: bytes, records: list[Record]) -> None:
        raise AssertionError("nobody was away")

    def on_synced(self, peer: PeerId) -> None:
        self.synced.append(peer)

    def on_bad(self, namespace: bytes, record: Record) -> None:
        self.bad.append(record)
        self.spaces[namespace].drop(record)
