"""Holders of a run's states in the simulator, honest and not, and somebody who joins."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import msgspec
import numpy as np
import trio

from protocols.modelsync import wire
from protocols.modelsync.codecs import Vector
from protocols.modelsync.donor import Donor
from protocols.modelsync.download import Progress
from protocols.modelsync.joining import Aim, Joining, Loaded
from protocols.modelsync.state import CHUNK_ELEMENTS, State, state_root
from protocols.modelsync.state_wire import Chunk, Page, StateAnswer
from protocols.modelsync.wire import Certificate
from tests.sim.net import Net
from tests.sim.training import in_place
from wire.ids import PeerId, Signer

RUN, LANE = "run", 1
CHUNKS = 12
ELEMENTS = (CHUNKS - 1) * CHUNK_ELEMENTS + 1000

OnSend = Callable[[Any], Any]  # what becomes of an answer; may wait or raise


def vector(round_: int) -> Vector:
    """The state before a round."""
    return _vector(round_).copy()


@cache
def _vector(round_: int) -> Vector:
    return np.random.default_rng(round_).standard_normal(ELEMENTS, dtype=np.float32)


def certificate(signers: list[Signer], round_: int) -> Certificate:
    """A certificate of a round that all of them signed."""
    who = [signer.peer for signer in signers]
    unsigned = Certificate(
        RUN, round_, 0, who[0], who, who, [1.0] * len(who), "int8", bytes(32), bytes(32), LANE
    )
    signatures = tuple(s.sign(wire.CERTIFICATE_TAG, unsigned.body()) for s in signers)
    return msgspec.structs.replace(unsigned, signatures=signatures)


async def honest(answer: Any) -> Any:
    """Send it as it is."""
    return answer


async def corrupting(answer: Any) -> Any:
    """Flip one bit of each chunk."""
    if isinstance(answer.body, Chunk):
        data = bytearray(answer.body.data)
        data[len(data) // 2] ^= 1
        return StateAnswer(Chunk(answer.body.index, bytes(data)))
    return answer


async def other_hashes(answer: Any) -> Any:
    """Change a hash of the manifest."""
    if isinstance(answer.body, Page):
        return StateAnswer(Page(answer.body.start, [bytes(32), *answer.body.hashes[1:]]))
    return answer


async def wrong_chunk(answer: Any) -> Any:
    """Send chunks under another number."""
    if isinstance(answer.body, Chunk):
        return StateAnswer(Chunk((answer.body.index + 1) % CHUNKS, answer.body.data))
    return answer


async def unasked(answer: Any) -> Any:
    """Lack chunks that nobody asked for."""
    if isinstance(answer.body, Chunk):
        return StateAnswer(Chunk((answer.body.index + CHUNKS // 2) % CHUNKS, b""))
    return answer


async def empty_handed(answer: Any) -> Any:
    """Have no chunk."""
    return StateAnswer(Chunk(answer.body.index, b"")) if isinstance(answer.body, Chunk) else answer


async def stalling(answer: Any) -> Any:
    """Never send a chunk."""
    if isinstance(answer.body, Chunk):
        await trio.sleep_forever()
    return answer


def slow(chunk_s: float) -> OnSend:
    """Need this long for a chunk."""

    async def send(answer: Any) -> Any:
        if isinstance(answer.body, Chunk):
            await trio.sleep(chunk_s)
        return answer

    return send


@dataclass
class _Call:
    """A call whose answers pass through `on_send`."""

    inner: Any
    holder: "Holder"

    @property
    def peer(self) -> PeerId:
        return self.inner.peer

    async def send(self, answer: Any) -> None:
        answer = await self.holder.on_send(answer)
        if isinstance(answer.body, Chunk):
            self.holder.given.append(answer.body.index)
        await self.inner.send(answer)

    async def receive(self) -> Any:
        return await self.inner.receive()


@dataclass
class _Rpc:
    """An Rpc whose streams are calls like that."""

    inner: Any
    holder: "Holder"

    def serve(self, method: Any, handler: Any) -> None:
        self.inner.serve(method, handler)

    def serve_stream(self, method: Any, handler: Any) -> None:
        self.inner.serve_stream(method, lambda call: handler(_Call(call, self.holder)))


class Holder:
    """A member that holds a state and gives it as `on_send` says."""

    def __init__(self, swarm: "StateSwarm", signer: Signer) -> None:
        self.swarm, self.signer, self.peer = swarm, signer, signer.peer
        self.on_send: OnSend = honest
        self.is_busy = False
        self.given: list[int] = []
        self.copies = self.next_round = 0
        rpc: Any = _Rpc(swarm.net.rpc(self.peer), self)
        self.donor = Donor(
            rpc,
            self._work,
            is_busy=lambda: self.is_busy,
            next_round=lambda run, lane: self.next_round,
        )

    async def _work(self, work: Any) -> Any:
        self.copies += 1
        return await in_place(work)

    def announce(self, round_: int, state: Vector | None = None) -> Vector:
        state = vector(round_) if state is None else state
        before = self.swarm.certificate(round_ - 1) if round_ else None
        self.donor.announce(RUN, LANE, State(round_, state_root(state), state, before))
        return state


@dataclass
class StateSwarm:
    """Some holders, and a joiner that knows them by lease."""

    net: Net
    count: int
    holders: list[Holder] = field(default_factory=list[Holder])
    makers: list[PeerId] = field(default_factory=list[PeerId])  # by the last certificate

    def __post_init__(self) -> None:
        self.signers = sorted((Signer(bytes([n + 1]) * 32) for n in range(self.count)),
                              key=lambda s: s.peer)  # fmt: skip
        self.holders = [Holder(self, signer) for signer in self.signers]
        self.makers = [signer.peer for signer in self.signers]
        self.rpc = self.net.rpc(Signer(b"j" * 32).peer)
        self.joining = Joining(self.rpc, in_place)
        self._certificates: dict[int, Certificate] = {}

    def certificate(self, round_: int) -> Certificate:
        if round_ not in self._certificates:
            self._certificates[round_] = certificate(self.signers, round_)
        return self._certificates[round_]

    def announce(self, round_: int) -> None:
        for holder in self.holders:
            holder.announce(round_)

    async def load(
        self,
        target: Vector,
        *,
        at_least: int = 1,
        root: bytes | None = None,
        held: Vector | None = None,
        must_exist: bool = True,
        progress: Progress | None = None,
    ) -> Loaded | None:
        members = [holder.peer for holder in self.holders]
        aim = Aim(RUN, LANE, at_least, lambda: members, lambda _: True, root, lambda: self.makers)
        return await self.joining.load(
            aim, target, held=held, must_exist=must_exist, progress=progress
        )
