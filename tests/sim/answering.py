"""A swarm that answers, on the virtual clock: real services, workers that pretend.

swarm = await AnswerSwarm.start(nursery, {"a": (0, 2), "b": (2, 4)}, latency_s=0.01)
async with swarm.generate(PROMPT, 8) as generation: ...
swarm.kill("a"); swarm.freeze("b"); swarm.change_path()
"""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, field, replace

import msgspec
import trio

from protocols.sharding.generate import (
    EntryServices,
    Finished,
    Generation,
    PrefixKeys,
    Shape,
    open_generation,
)
from protocols.sharding.route import Candidate
from protocols.sharding.service import StageService
from protocols.sharding.wire import Sampling
from tests.sim.net import Net
from tests.sim.pretend_worker import (
    MODEL,
    VOCABULARY,
    PretendSpan,
    PretendWorker,
    reference,
    stage_info,
)
from wire.clock import SystemClock
from wire.ids import PeerId, Signer

ENTRY = PeerId("entry")
N_LAYERS = 6
HIDDEN = 8
PROMPT = [5, 17, 3, 88, 41, 9, 60, 2, 33, 71, 12, 50]


@dataclass
class AnswerSwarm:
    """An entry, and nodes with a span each. Every node believes that all are there, always."""

    net: Net
    nursery: trio.Nursery
    step_s: float
    row_s: float
    history_bytes: int
    services: dict[PeerId, StageService] = field(default_factory=dict[PeerId, StageService])
    workers: dict[PeerId, PretendWorker] = field(default_factory=dict[PeerId, PretendWorker])
    spans: dict[PeerId, tuple[int, int]] = field(default_factory=dict[PeerId, tuple[int, int]])
    finished: list[Finished] = field(default_factory=list[Finished])
    told_rtt_s: float | None = None  # what leases say of links; as it is if None
    entry: EntryServices | None = None
    avoided: set[PeerId] = field(default_factory=set[PeerId])  # by routes, unless nobody else is

    @classmethod
    async def start(
        cls,
        nursery: trio.Nursery,
        spans: dict[str, tuple[int, int]],
        *,
        latency_s: float = 0.01,
        step_s: float = 0.01,
        row_s: float = 0.0,
        history_bytes: int = 1 << 28,
    ) -> "AnswerSwarm":
        swarm = cls(Net(nursery, latency_s=latency_s), nursery, step_s, row_s, history_bytes)
        await swarm._add_node(ENTRY)
        for name, span in spans.items():
            await swarm.add(name, *span)
        return swarm

    def __post_init__(self) -> None:
        self.keys = PrefixKeys(bytes(32))

    async def _add_node(self, peer: PeerId) -> StageService:
        service = StageService(
            self.net.rpc(peer),
            Signer(bytes(32)),
            clock=SystemClock(),
            history_bytes=self.history_bytes,
        )
        self.services[peer] = service
        await self.nursery.start(service.run)
        return service

    async def add(
        self, name: str, start: int, end: int, *, tokens: int = 4096, truncates: bool = True
    ) -> None:
        peer = PeerId(name)
        service = self.services.get(peer) or await self._add_node(peer)
        span = PretendSpan(start, end, n_layers=N_LAYERS, hidden_size=HIDDEN)
        worker = PretendWorker(span, step_s=self.step_s, row_s=self.row_s)
        self.nursery.start_soon(worker.run)
        info = stage_info(span, tokens=tokens)
        ready = msgspec.structs.replace(info.ready, truncates=truncates)
        service.attach(replace(info, ready=ready), worker)
        self.workers[peer], self.spans[peer] = worker, (start, end)

    def candidates(self, name: str) -> Sequence[Candidate]:
        assert name == "pretend"
        rtt_s = 2 * self.net.latency_s if self.told_rtt_s is None else self.told_rtt_s
        delays = dict.fromkeys([ENTRY, *self.spans], rtt_s)
        return [
            Candidate(
                peer,
                start,
                end,
                self.step_s,
                self.row_s,
                delays=delays,
                penalty=1000.0 * (peer in self.avoided),
            )
            for peer, (start, end) in self.spans.items()
        ]

    def generate(
        self,
        prompt: list[int],
        count: int,
        *,
        sampling: Sampling | None = None,
        speculate: bool = True,
        codec: str = "auto",
    ) -> AbstractAsyncContextManager[Generation]:
        return open_generation(
            self.entry or self._entry(),
            Shape("pretend", MODEL, N_LAYERS, HIDDEN, VOCABULARY),
            prompt,
            max_tokens=count,
            sampling=sampling or Sampling(),
            keys=self.keys,
            speculate=speculate,
            codec=codec,
        )

    def _entry(self) -> EntryServices:
        self.entry = EntryServices(self.services[ENTRY], self, self.finished.append)
        return self.entry

    def kill(self, name: str) -> None:
        """The process ends: its connections are closed at once."""
        self.net.kill(PeerId(name))

    def freeze(self, name: str) -> None:
        """The machine is gone, and nobody is told."""
        for other in self.net.hosts:
            if other != name:
                self.net.cut(PeerId(name), other, silent=True)

    def change_path(self) -> None:
        """All connections of the entry break; new ones can be made at once."""
        for other in self.net.hosts:
            if other != ENTRY:
                self.net.cut(ENTRY, other)
        self.net.heal()


def expected(prompt: list[int], count: int, *, sampling: Sampling | None = None) -> list[int]:
    return reference(prompt, count, n_layers=N_LAYERS, sampling=sampling)


async def answer_of(generation: Generation) -> list[int]:
    async with aclosing(generation.tokens()) as tokens:
        return [pick.token async for picks in tokens for pick in picks]
