"""A ring of stages with pretended workers, and the least entry that can drive one.

It does what docs/protocols/sharding.md says of an entry, and nothing by itself: tests say when.
"""

import itertools
import secrets
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import trio

from protocols.sharding.feeder import Feeder
from protocols.sharding.history import FIRST_NUMBER, History, step_rows_max
from protocols.sharding.rows import ids_to_rows
from protocols.sharding.service import StageService
from protocols.sharding.wire import (
    SESSION,
    Broken,
    End,
    Open,
    Opened,
    Picks,
    Ping,
    Place,
    Pong,
    Receipt,
    Rewire,
    Sampling,
    Step,
)
from tests.sim.net import Net
from tests.sim.pretend_worker import MODEL, PretendSpan, PretendWorker, reference, stage_info
from wire.clock import SystemClock
from wire.errors import ShoalError
from wire.ids import PeerId, Signer

ENTRY = PeerId("entry")
LAYERS = 4
PROMPT = [5, 17, 3, 88, 41]
LONG = [(7 * i + i * i) % 97 for i in range(60)]
TWIN = PeerId("twin")
KEYS = [bytes([i]) * 16 for i in range(8)]
PATIENCE_S = 60.0  # on the virtual clock


class RingNode:
    """A node: its service, and a worker for each span, by its start."""

    def __init__(self, net: Net, peer: PeerId, **options: int) -> None:
        self.peer = peer
        self.service = StageService(
            net.rpc(peer), Signer(peer.encode().ljust(32)), clock=SystemClock(), **options
        )
        self.workers: dict[int, PretendWorker] = {}
        self.stuck = 0

    def host(
        self,
        nursery: trio.Nursery,
        start: int,
        end: int,
        *,
        n_layers: int,
        tokens: int = 4096,
        hidden_size: int = 8,
        step_s: float = 0.01,
    ) -> PretendWorker:
        """Load a span."""
        span = PretendSpan(start, end, n_layers=n_layers, hidden_size=hidden_size)
        worker = PretendWorker(span, step_s=step_s)
        nursery.start_soon(worker.run)
        self.service.attach(stage_info(span, tokens=tokens), worker, on_stuck=self._on_stuck)
        self.workers[start] = worker
        return worker

    def _on_stuck(self) -> None:
        self.stuck += 1


class Control:
    """The entry's stream to one stage: what it said is in `said`, why it ended in `error`."""

    def __init__(self, peer: PeerId, opening: Open) -> None:
        self.peer, self.opening = peer, opening
        self.said = list[Opened | Pong | Broken | Receipt]()
        self.error: ShoalError | None = None
        self.ended = trio.Event()
        self.scope = trio.CancelScope()
        self.call: Any = None
        self._heard = trio.lowlevel.ParkingLot()

    async def run(
        self,
        service: StageService,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Hold the stream until it ends, or `scope` is cancelled."""
        is_open = False
        try:
            with self.scope:
                async with service.calls.stream(self.peer, SESSION, timeout_s=5) as self.call:
                    await self.call.send(self.opening)
                    self.said.append(await self.call.receive())
                    task_status.started()
                    is_open = True
                    async for message in self.call:
                        self.said.append(message)
                        self._heard.unpark_all()
        except ShoalError as error:
            self.error = error
        finally:
            if not is_open:
                task_status.started()
            self.ended.set()
            self._heard.unpark_all()

    async def heard(self, kind: type[Any]) -> Any:
        """Wait until it says something of this kind, and return it."""
        with trio.fail_after(PATIENCE_S):
            while True:
                for message in self.said:
                    if isinstance(message, kind):
                        return message
                assert not self.ended.is_set(), f"ended by {self.error!r}, no {kind.__name__}"
                await self._heard.park()

    @property
    def opened(self) -> Opened:
        """What it answered first. Raises why it did not."""
        if self.error is not None and not self.said:
            raise self.error
        first = self.said[0]
        assert isinstance(first, Opened)
        return first


class Ring:
    """One session over some stages: (peer, start, end) each."""

    def __init__(
        self,
        nursery: trio.Nursery,
        service: StageService,
        route: list[tuple[PeerId, int, int]],
        *,
        n_layers: int,
        hidden_size: int = 8,
        max_tokens: int = 512,
        sampling: Sampling | None = None,
        codec: str = "float32",
        keys: list[bytes] | None = None,
    ) -> None:
        self.session = secrets.token_bytes(16)
        self.service, self.route, self.n_layers = service, route, n_layers
        self.max_tokens, self.sampling, self.codec = max_tokens, sampling or Sampling(), codec
        self.keys = keys or []
        self.controls: list[Control] = []
        self.broken = list[str]()
        self.picks: list[Picks] = []
        self.tokens = list[int]()  # prompt and answer
        self.history = History(4, step_rows_max(hidden_size))
        self.feeder = Feeder(service.calls, self.session, self.history, on_broken=self._on_broken)
        self.inlet: Any = None
        self.number = FIRST_NUMBER - 1
        self._nursery = nursery
        self._picked = trio.lowlevel.ParkingLot()

    def opening(self, index: int) -> Open:
        """Return what the stage of this index is told first."""
        _, start, end = self.route[index]
        before = self.route[index - 1][0] if index else self.service.peer
        after = self.route[index + 1][0] if index + 1 < len(self.route) else self.service.peer
        return Open(
            self.session,
            MODEL,
            start,
            end,
            self.max_tokens,
            self.sampling,
            before,
            Place(after, end),
            self.codec if start else "ids",
            self.codec if end < self.n_layers else "picks",
            self.keys,
        )

    async def open(self, index: int, opening: Open | None = None) -> Control:
        """Open, or open again, the stage of this index; in other words if there are any."""
        control = Control(self.route[index][0], opening or self.opening(index))
        await self._nursery.start(control.run, self.service)
        return control

    async def start(self) -> None:
        """Open all stages and begin to feed the first."""
        self.controls = [await self.open(index) for index in range(len(self.route))]
        for control in self.controls:
            _ = control.opened
        self._nursery.start_soon(self.feeder.run)
        self.feeder.point(Place(self.route[0][0], 0))

    def step(self, tokens: list[int], *, position: int | None = None, picks: int = 1) -> None:
        """Send token ids; those from `position` on are other ones now."""
        if position is not None:
            del self.tokens[position:]
        place = len(self.tokens)
        self.tokens += tokens
        self.number += 1
        self.history.add(Step(self.number, place, ids_to_rows(tokens), picks))
        self.feeder.wake()

    async def picked(self, number: int | None = None) -> list[int]:
        """Wait for the picks of a step, the last one sent unless said otherwise."""
        wanted = number or self.number
        with trio.fail_after(PATIENCE_S):
            while not self.picks or self.picks[-1].number < wanted:
                await self._picked.park()
        return [pick.token for pick in self.picks[-1].picks]

    async def say(self, prompt: list[int], count: int) -> list[int]:
        """Answer a prompt, token by token."""
        found = list[int]()
        self.step(prompt)
        while True:
            found += await self.picked()
            if len(found) == count:
                return found
            self.step(found[-1:])

    async def replace(self, index: int, peer: PeerId) -> None:
        """Put another node in the place of one that is lost, and rewire its neighbours."""
        _, start, end = self.route[index]
        self.route[index] = (peer, start, end)
        self.controls[index] = await self.open(index)
        _ = self.controls[index].opened
        await self.rewire(index - 1)
        await self.rewire(index + 1)

    async def rewire(self, index: int) -> None:
        """Tell a stage, or our own ends, who the neighbours are now."""
        if index < 0:
            self.feeder.point(Place(self.route[0][0], 0))
        elif index == len(self.route):
            self.inlet.expect(self.route[-1][0])
        elif not self.controls[index].ended.is_set():
            opening = self.opening(index)
            await self.controls[index].call.send(Rewire(opening.previous, opening.next))

    async def ping(self, index: int) -> None:
        """Ask a stage if it is there."""
        await self.controls[index].call.send(Ping())

    async def end(self, keys: list[bytes] | None = None) -> list[Receipt]:
        """End the session everywhere."""
        for control in self.controls:
            await control.call.send(End(keys or []))
        return [await control.heard(Receipt) for control in self.controls]

    def on_picks(self, picks: Picks) -> None:
        """The last stage has fed us."""
        self.picks.append(picks)
        self._picked.unpark_all()

    def _on_broken(self, target: Place, error: ShoalError) -> None:
        self.broken.append(str(error))


class Swarm:
    """An entry node, and nodes that have spans of a model of `n_layers`."""

    def __init__(self, nursery: trio.Nursery, *, n_layers: int = 4, latency_s: float = 0.01):
        self.nursery, self.n_layers = nursery, n_layers
        self.net = Net(nursery, latency_s=latency_s)
        self.nodes: dict[PeerId, RingNode] = {}

    async def add(self, name: str, **options: int) -> RingNode:
        """Add a node that hosts nothing yet."""
        node = RingNode(self.net, PeerId(name), **options)
        self.nodes[node.peer] = node
        await self.nursery.start(node.service.run)
        return node

    async def chain(self, *cuts: int, tokens: int = 4096) -> list[tuple[PeerId, int, int]]:
        """Add the entry and a node for each span between cuts; return the route over them."""
        await self.add(ENTRY)
        route = list[tuple[PeerId, int, int]]()
        for index, (start, end) in enumerate(itertools.pairwise(cuts)):
            node = await self.add(f"s{index}")
            node.host(self.nursery, start, end, n_layers=self.n_layers, tokens=tokens)
            route.append((node.peer, start, end))
        return route

    @asynccontextmanager
    async def ring(
        self, route: list[tuple[PeerId, int, int]], *, entry: PeerId = ENTRY, **options: Any
    ) -> AsyncGenerator[Ring]:
        """Hold a session for the length of the block."""
        service = self.nodes[entry].service
        async with AsyncExitStack() as stack:
            nursery = await stack.enter_async_context(trio.open_nursery())
            ring = Ring(nursery, service, list(route), n_layers=self.n_layers, **options)
            ring.inlet = stack.enter_context(
                service.expect(ring.session, self.n_layers, route[-1][0], ring.on_picks)
            )
            await ring.start()
            yield ring
            nursery.cancel_scope.cancel()


async def until(condition: Callable[[], object]) -> None:
    """Wait on the virtual clock."""
    with trio.fail_after(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - many things may bring it about
            await trio.sleep(0.01)


def expected(count: int, prompt: list[int] = PROMPT) -> list[int]:
    """Return what the whole model answers."""
    return reference(prompt, count, n_layers=LAYERS)


async def go_on(ring: Ring, found: list[int], count: int) -> list[int]:
    """Go on with an answer, token by token."""
    while len(found) < count:
        ring.step(found[-1:])
        found += await ring.picked()
    return found


def open_tickets(swarm: Swarm) -> int:
    """Count the sessions that all workers have."""
    workers = [worker for node in swarm.nodes.values() for worker in node.workers.values()]
    return sum(len(worker.span.sessions) for worker in workers)
