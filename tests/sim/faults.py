"""Faults at a node of a simulated training, from a chosen moment on: what a matrix is made of.

The moment is a state of the protocol: the first message of that kind that anybody sends in the
round under test. The fault then is at one node, by its role in that round:

    kill        the daemon and its trainer are gone
    freeze      it neither sends nor hears, and nobody is told; it thaws later
    slow        each of its messages but beats takes seconds, chunks of data too
    cut         its connection to one other member is gone, and comes back later
    corrupt     what it sends of this kind is damaged: wrong types, lengths, numbers, signatures
    lie         what it sends of this kind is well-formed and false: to one, means to all

Corrupt and lying nodes do so in the round under test, and are sound afterwards.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import trio

from protocols.modelsync import wire
from protocols.modelsync.ballots import order_of
from tests.sim.training import RUN, Swarm, TrippedCall, Tripwire
from wire.ids import PeerId

FAULTS = ("kill", "freeze", "slow", "cut", "corrupt", "lie")
ROLES = ("proposer", "owner", "member")
ROUND = 1  # under test: the one before it has made the electorate
SLOW_S = 6.0  # for each message of a slow node: under any minimum rate
AWAY_S = 30.0  # that a frozen or cut node stays so
FALSE = bytes(32)


def is_order(kind: type) -> Callable[[object], bool]:
    return lambda message: isinstance(message, wire.Order) and isinstance(message.body, kind)


def is_answer(kind: type) -> Callable[[object], bool]:
    return lambda message: isinstance(message, wire.Answer) and isinstance(message.body, kind)


PHASES: dict[str, Callable[[object], bool]] = {
    "ready": lambda message: isinstance(message, wire.Ready),
    "prepare": is_order(wire.Prepare),
    "ack": is_answer(wire.Ack),
    "go": is_order(wire.Go),
    "data": lambda message: isinstance(message, wire.Piece),
    "done": is_answer(wire.Done),
    "commit": is_order(wire.Commit),
}


def is_beat(message: object) -> bool:
    return isinstance(message, wire.Order | wire.Answer) and isinstance(message.body, wire.Beat)


@dataclass
class Injector:
    """Watches all that is sent, and does one thing once."""

    swarm: Swarm
    fault: str
    phase: str
    role: str
    nth: int = 0  # messages of the phase that pass before
    at: float | None = None  # when it happened
    acted: bool = False  # the node with the fault did something that others can notice
    _seen: int = 0
    _cut: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])

    @property
    def ranks(self) -> list[int]:
        """The nodes in the order in which they propose the round under test."""
        numbers = range(len(self.swarm.trainers))
        return sorted(numbers, key=lambda n: order_of(RUN, 0, ROUND, 0, self.swarm.peer(n)))

    @property
    def victim(self) -> int:
        """The node with the fault. An owner other than the proposer is the first by peer ID."""
        proposer, *others = self.ranks
        others.sort(key=self.swarm.peer)
        return {"proposer": proposer, "owner": others[0], "member": others[-1]}[self.role]

    @property
    def healthy(self) -> list[int]:
        """All others."""
        return [n for n in range(len(self.swarm.trainers)) if n != self.victim]

    def observe(self, number: int, message: object) -> None:
        """Before each message: begin the fault if this is its moment."""
        if self.at is not None or self.swarm.trainers[number].round != ROUND:
            return
        if PHASES[self.phase](message):
            self._seen += 1
            if self._seen > self.nth:
                self.at = trio.current_time()
                self._begin()

    def _begin(self) -> None:
        swarm, victim = self.swarm, self.victim
        self.acted = self.fault in ("kill", "freeze", "cut")
        if self.fault == "kill":
            swarm.kill(victim)
        elif self.fault == "freeze":
            for other in self.healthy:
                swarm.net.cut(swarm.peer(victim), swarm.peer(other), silent=True)
            swarm.nursery.start_soon(self._heal)
        elif self.fault == "cut":
            swarm.net.cut(swarm.peer(victim), swarm.peer(self.dupe))
            swarm.nursery.start_soon(self._heal)

    async def _heal(self) -> None:
        await trio.sleep(AWAY_S)
        self.swarm.net.heal()

    async def pass_on(self, number: int, to: str, message: Any, *, is_answer: bool) -> Any:
        """Return what is really sent, after a while. is_answer: on a stream that `to` opened."""
        self.observe(number, message)
        if self.at is None or number != self.victim:
            return message
        in_round = self.swarm.trainers[number].round == ROUND
        if self.fault == "slow" and in_round and not is_beat(message):
            self.acted = True
            await trio.sleep(SLOW_S)
        if not in_round or not PHASES[self.phase](message):
            return message
        other = message
        if self.fault == "corrupt":
            other = _corrupt(message)
        elif self.fault == "lie" and (self.phase == "data" or to == self.swarm.peer(self.dupe)):
            other = _lie(message, to, is_answer=is_answer)
        self.acted = self.acted or other is not message
        return other

    @property
    def dupe(self) -> int:
        """Whom it lies to or is cut from: the proposer; if that is itself, the next in order."""
        return next(n for n in self.ranks if n != self.victim)


def _corrupt(message: Any) -> Any:
    """Damage a message, as memory or a bug would."""
    replace = msgspec.structs.replace
    match message:
        case wire.Ready():
            return replace(message, elements=message.elements + 1)
        case wire.Piece(data=data):
            return replace(message, data=b"\xff" * len(data))
        case wire.Order(wire.Prepare() as prepare):
            return wire.Order(replace(prepare, weights=[*prepare.weights, 1.0]))
        case wire.Order(wire.Commit(certificate)):
            nothing = tuple(bytes(64) for _ in certificate.signatures)
            return wire.Order(wire.Commit(replace(certificate, signatures=nothing)))
        case wire.Order(wire.Go()):
            return wire.Order(_PREPARE)
        case wire.Answer(wire.Ack()):
            return wire.Answer(wire.Done([FALSE] * 64, bytes(64)))
        case wire.Answer(wire.Done() as done):
            return wire.Answer(replace(done, signature=bytes(64)))
    return message


def _lie(message: Any, to: str, *, is_answer: bool) -> Any:
    """Say something that is well-formed and not true; of data, means, which others can compare."""
    replace = msgspec.structs.replace
    match message:
        case wire.Ready():
            return replace(message, root=FALSE)
        case wire.Piece(data=data) if data and is_answer:
            false = np.frombuffer(data, np.float32) + np.float32(ord(to[-1]))
            return replace(message, data=false.tobytes())
        case wire.Order(wire.Prepare() as prepare):
            return wire.Order(replace(prepare, base_root=FALSE))
        case wire.Order(wire.Commit(certificate)):
            return wire.Order(wire.Commit(replace(certificate, result=FALSE)))
        case wire.Order(wire.Go()):
            return wire.Order(wire.Go((FALSE,), (FALSE,)))
        case wire.Answer(wire.Ack()):
            return wire.Answer(wire.Ack(commitment=FALSE, seal=FALSE))
        case wire.Answer(wire.Done() as done):
            return wire.Answer(replace(done, shards=[FALSE] * len(done.shards)))
    return message


_NOBODY = PeerId("nobody")
_PREPARE = wire.Prepare(
    RUN, ROUND, 0, _NOBODY, [_NOBODY], [1.0], [1], "float32", FALSE, 1
)  # out of place wherever it comes


@dataclass
class FaultyRpc(Tripwire):
    """A Tripwire whose messages pass through an Injector (`Swarm.injector`), if there is one."""

    async def through(self, to: str, message: Any, *, is_answer: bool = False) -> Any:
        await self._pass(message)
        swarm: Any = self.on_send.func.__self__  # type: ignore[attr-defined]  # a partial of Swarm's
        number: int = self.on_send.args[0]  # type: ignore[attr-defined]
        injector: Injector | None = getattr(swarm, "injector", None)
        if injector is not None:
            message = await injector.pass_on(number, to, message, is_answer=is_answer)
            await self._pass(message)  # it may have died of it
        return message

    async def call(self, peer: Any, method: Any, message: Any, *, timeout_s: float) -> Any:
        message = await self.through(peer, message)
        return await self.inner.call(peer, method, message, timeout_s=timeout_s)

    @asynccontextmanager
    async def stream(self, peer: Any, method: Any, *, timeout_s: float) -> AsyncGenerator[Any]:
        async with self.inner.stream(peer, method, timeout_s=timeout_s) as call:
            yield FaultyCall(call, self)

    def serve_stream(self, method: Any, handler: Any) -> None:
        self.inner.serve_stream(
            method, lambda call: handler(FaultyCall(call, self, is_answer=True))
        )


@dataclass
class FaultyCall(TrippedCall):
    """A call of a FaultyRpc. `is_answer`: the other side opened it."""

    is_answer: bool = False

    async def send(self, message: object) -> None:
        faulty: Any = self.wire
        await self.inner.send(await faulty.through(self.peer, message, is_answer=self.is_answer))
