"""A swarm whose stages compute tiny real models in this process, and audit each other.

swarm = await AuditedSwarm.start(nursery, ROUTE, cheats={"b": skip_layer})
found = await swarm.audit()  # a fresh answer, every stage of it audited
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import trio

from node.model_audits import Audits
from protocols.sharding.generate import EntryServices, PrefixKeys, Shape, open_generation
from protocols.sharding.route import Candidate
from protocols.sharding.service import StageService
from protocols.sharding.spans import StageInfo
from protocols.sharding.stage import Stage
from protocols.sharding.wire import Sampling
from protocols.sharding.worker import Worker
from protocols.sharding.worker_wire import Ready, WorkerAnswer, WorkerAsk, WorkerStep
from shoal.audits import Audit
from tests.sim.boards import Board, SharedStore
from tests.sim.net import Net
from tests.sim.pretend_worker import PretendWorker
from tests.unit.sharding_models import PROMPT, VOCABULARY, make_model
from wire.clock import SystemClock
from wire.ids import PeerId, Signer

NAME, MODEL, HIDDEN, TOKEN_BYTES = "tiny", "c0de" * 16, 32, 64
LAYERS = 4
ROUTE = {"a": (0, 1), "b": (1, 3), "c": (3, 4)}  # who computes
REPLICAS = ("x", "y")  # who have all blocks, and are asked to compute again
DEAR = 1000.0  # penalty of who shall not be on a route
ANSWER_TOKENS = 24

Cheat = Callable[[Stage], None]
Lie = Callable[[WorkerAnswer], WorkerAnswer]


class RealSpan:
    """Blocks of a real model, asked as `PretendWorker` asks."""

    def __init__(self, stage: Stage) -> None:
        self.worker = Worker(stage, batches=False)
        self.start, self.end = stage.start, stage.end

    def answer(self, ask: WorkerAsk) -> WorkerAnswer:
        """Do what is asked, at once."""
        answers = self.worker.take(1, ask)
        while not answers:
            answers = list(self.worker.turn())
        return answers[0][1]  # type: ignore[return-value]

    def rows_of(self, _: WorkerStep) -> int:
        """As one row: time is pretended."""
        return 1


@dataclass
class AuditedSwarm:
    """An entry without blocks, and nodes with some."""

    net: Net
    nursery: trio.Nursery
    board: Board = field(default_factory=Board)
    peers: dict[str, PeerId] = field(default_factory=dict[str, PeerId])
    spans: dict[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])
    workers: dict[str, PretendWorker] = field(default_factory=dict[str, PretendWorker])
    services: dict[str, StageService] = field(default_factory=dict[str, StageService])
    audits: dict[str, Audits] = field(default_factory=dict[str, Audits])
    dear: set[str] = field(default_factory=set[str])
    codec: str = "auto"
    rng: random.Random = field(default_factory=random.Random)
    said: list[list[int]] = field(default_factory=list[list[int]])

    @classmethod
    async def start(
        cls,
        nursery: trio.Nursery,
        *,
        cheats: Mapping[str, Cheat] | None = None,
        lies: Mapping[str, Lie] | None = None,
        codec: str = "auto",
        share: float = 0.0,
        replicas: Sequence[str] = REPLICAS,
        seed: int = 0,
    ) -> "AuditedSwarm":
        swarm = cls(Net(nursery), nursery, codec=codec, rng=random.Random(seed))
        swarm.dear |= set(replicas)
        await swarm._add("entry", share)
        everywhere = dict.fromkeys(replicas, (0, LAYERS))
        for name, span in {**ROUTE, **everywhere}.items():
            await swarm.add(name, span, cheat=(cheats or {}).get(name), lie=(lies or {}).get(name))
        return swarm

    async def add(
        self,
        name: str,
        span: tuple[int, int],
        *,
        cheat: Cheat | None = None,
        lie: Lie | None = None,
    ) -> None:
        """Start a node with some blocks."""
        stage = Stage(make_model("llama", num_hidden_layers=LAYERS), *span)
        if cheat is not None:
            cheat(stage)
        await self._add(name, 0.0)
        worker = PretendWorker(RealSpan(stage))  # type: ignore[arg-type]
        if lie is not None:
            worker.tamper = lie
        self.nursery.start_soon(worker.run)
        ready = Ready(1 << 20, token_bytes=TOKEN_BYTES * (span[1] - span[0]))
        info = StageInfo(
            model=MODEL,
            name=NAME,
            start=span[0],
            end=span[1],
            n_layers=LAYERS,
            hidden_size=HIDDEN,
            vocab_size=VOCABULARY,
            dtype="float32",
            ready=ready,
            cache_bytes=1 << 24,
        )
        self.services[name].attach(info, worker, on_stuck=lambda: None)
        self.spans[name], self.workers[name] = span, worker

    async def _add(self, name: str, share: float) -> None:
        signer = Signer(name.encode().ljust(32, b"-"))
        self.peers[name] = signer.peer
        service = StageService(self.net.rpc(signer.peer), signer, clock=SystemClock())
        self.services[name] = service
        self.audits[name] = Audits(
            stages=service,
            store=SharedStore(self.board, signer.peer),
            clock=SystemClock(),
            candidates=self.candidates,
            share=share,
            ask=self.ask,
            rng=self.rng,
        )
        await self.nursery.start(service.run)
        await self.nursery.start(self.audits[name].run)

    def candidates(self, _: str) -> list[Candidate]:
        """All spans, with the entry's penalties; who shall not be on a route is dear."""
        found: list[Candidate] = []
        for name, (start, end) in self.spans.items():
            cost = self.audits["entry"].penalty(self.peers[name]) + DEAR * (name in self.dear)
            found.append(Candidate(self.peers[name], start, end, 0.01, penalty=cost))
        return found

    async def ask(self, _: str = NAME, *, sampling: Sampling | None = None) -> None:
        """Let the model go on with a prompt of its own each time."""
        services = EntryServices(self.services["entry"], self, self.audits["entry"].finished)
        prompt = [1 + len(self.said), *PROMPT]
        async with open_generation(
            services,
            Shape(NAME, MODEL, LAYERS, HIDDEN, VOCABULARY),
            prompt,
            max_tokens=ANSWER_TOKENS,
            sampling=sampling or Sampling(),
            keys=PrefixKeys(bytes(32)),
            codec=self.codec,
        ) as generation:
            said = [pick.token async for picks in generation.tokens() for pick in picks]
        self.said.append(said)

    async def audit(self) -> list[Audit]:
        """Ask, and audit every stage."""
        return await self.audits["entry"].now(NAME)

    def blamed(self, found: list[Audit]) -> set[str]:
        """Return the names of all who were found at fault."""
        names = {peer: name for name, peer in self.peers.items()}
        return {names[PeerId(peer)] for one in found for peer in one.blamed}
