"""Members of a verified run over in-memory streams; their rounds are made by the test."""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, cast

import msgspec
import numpy as np
import trio

from protocols.modelsync.registry import NAMESPACE
from protocols.modelsync.sealed import commitment_to, encode_chunks
from protocols.modelsync.shards import equal_shards
from protocols.modelsync.trust import Trust
from protocols.modelsync.vectors import Vector
from protocols.modelsync.verify import certificate_hash
from protocols.modelsync.verify_wire import (
    Case,
    Finding,
    Sample,
    Verdict,
    case_key,
)
from protocols.modelsync.wire import CERTIFICATE_TAG, Certificate, seal_of
from protocols.rpc.service import RpcService
from tests.sim.net import Net
from tests.sim.training import SharedStore, in_place
from wire.ids import PeerId, Signer
from wire.ports import Item, Rpc

RUN = "test"
ELEMENTS = 9000
ROUND_S = 5.0


def honest(peer: PeerId, round_: int) -> Vector:
    """What a member's data and the state before the round make."""
    seed = hashlib.sha256(f"{peer}/{round_}".encode()).digest()
    generator = np.random.default_rng(list(seed))
    return generator.standard_normal(ELEMENTS, dtype=np.float32)


@dataclass
class Garbled:
    """A call whose answers are not what was committed to."""

    inner: Any

    @property
    def peer(self) -> PeerId:
        return self.inner.peer

    async def receive(self) -> Any:
        return await self.inner.receive()

    async def send(self, sample: Sample) -> None:
        await self.inner.send(Sample(sample.index, bytes(len(sample.data))))


@dataclass
class Gate:
    """An Rpc that does not answer some peers, or with something else."""

    inner: RpcService
    withholds_from: set[PeerId]
    is_garbled: bool = False

    @property
    def peer(self) -> PeerId:
        return self.inner.peer

    def stream(self, peer: PeerId, method: Any, *, timeout_s: float) -> Any:
        return self.inner.stream(peer, method, timeout_s=timeout_s)

    def serve_stream(self, method: Any, handler: Callable[[Any], Awaitable[None]]) -> None:
        async def sometimes(call: Any) -> None:
            if call.peer in self.withholds_from:
                if not self.is_garbled:
                    await trio.sleep_forever()
                call = Garbled(call)
            await handler(call)

        self.inner.serve_stream(method, sometimes)


@dataclass
class Member:
    """One node: real verification; its rounds are made by the test."""

    signer: Signer
    trust: Trust
    store: SharedStore
    gate: Gate
    bring: Callable[[PeerId, int], Vector] = honest
    recompute: Callable[[PeerId, int], Vector] = honest
    votes: Verdict | None = None  # whatever is true

    @property
    def peer(self) -> PeerId:
        return self.signer.peer

    async def work_off(self) -> None:
        """What a trainer does after each round: its duties."""
        for duty in self.trust.duties(RUN, 0):
            if self.votes is None:
                vector = self.recompute(duty.case.target, duty.case.round)
                await self.trust.verdict(RUN, duty.case, vector)

    async def accuse(self, certificate: Certificate, target: PeerId, verdict: Verdict) -> None:
        case = Case(0, certificate.round, target)
        charge = "withheld" if verdict == "withheld" else "differs"
        finding = Finding(certificate_hash(certificate), verdict, charge)
        key = case_key(RUN, case, self.peer)
        await self.store.put(NAMESPACE, key, msgspec.to_builtins(finding), ttl_s=1e5)


class Swarm:
    """Members of one verified run."""

    def __init__(self, nursery: trio.Nursery, codec: str = "float32") -> None:
        self.net, self.nursery, self.codec = Net(nursery), nursery, codec
        self.items: dict[tuple[str, str], tuple[Item, float]] = {}
        self.members: list[Member] = []
        self.round = 0

    async def add(self) -> Member:
        signer = Signer(bytes([len(self.members) + 1]) * 32)
        rpc, store = self.net.rpc(signer.peer), SharedStore(signer.peer, self.items)
        gate = Gate(rpc, set())
        trust = Trust(cast(Rpc, gate), store, in_place)
        member = Member(signer, trust, store, gate)
        self.members.append(member)
        await self.nursery.start(trust.run, RUN)
        return member

    async def one_round(
        self,
        suspect: PeerId | None = None,
        *,
        then: Callable[[Certificate], None] = lambda certificate: None,
    ) -> Certificate:
        """Commit a sealed round of all who are not banned; then everybody does its duties."""
        members = [m for m in self.members if not self.is_banned(m.peer)]
        shards = equal_shards(ELEMENTS, len(members))
        brought = [encode_chunks(m.bring(m.peer, self.round), shards, self.codec) for m in members]
        reveals = tuple(hashlib.sha256(f"{m.peer}/{self.round}".encode()).digest() for m in members)
        certificate = Certificate(
            run=RUN,
            round=self.round,
            attempt=0,
            proposer=members[0].peer,
            members=[m.peer for m in members],
            contributors=[m.peer for m in members],
            weights=[1.0] * len(members),
            codec=self.codec,
            base_root=bytes(32),
            result=bytes(32),
            commitments=tuple(commitment_to(data, shards) for data in brought),
            seals=tuple(map(seal_of, reveals)),
        )
        body = certificate.body()
        certificate = msgspec.structs.replace(
            certificate,
            signatures=tuple(m.signer.sign(CERTIFICATE_TAG, body) for m in members),
            reveals=reveals,
        )
        for member, data in zip(members, brought, strict=True):
            member.trust.brought(RUN, 0, commitment_to(data, shards), data)
            member.trust.committed(certificate, shards, suspect=suspect)
        self.round += 1
        then(certificate)
        await trio.sleep(ROUND_S)
        for member in members:
            await member.work_off()
        return certificate

    def is_banned(self, peer: PeerId) -> bool:
        return any(m.trust.is_banned(RUN, peer) for m in self.members if m.peer != peer)

    def banned(self) -> list[set[PeerId]]:
        """Whom each honest member takes for banned."""
        return [set(m.trust.bans(RUN)) for m in self.members]


async def four(nursery: trio.Nursery, codec: str = "float32") -> Swarm:
    made = Swarm(nursery, codec)
    for _ in range(4):
        await made.add()
    return made


async def end(swarm: Swarm) -> None:
    assert swarm.net.errors == []
    swarm.nursery.cancel_scope.cancel()
