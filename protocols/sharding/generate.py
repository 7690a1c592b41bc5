"""A generation, seen from the node that asked: token ids through a chain of stages.

The entry node calls each stage in turn (first form: activations come back to it between stages).
It keeps what it sent to each hop, so a hop that is lost is replaced by another node with the same
span, which gets the same steps again: the answer goes on, token for token the same.
"""

from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog
import trio

from protocols.sharding.hop import Connector, Hop, is_busy, is_loss
from protocols.sharding.placement import Span
from protocols.sharding.wire import Open, Output, Sampling, Step, tokens_of_step
from wire.errors import BadMessage, PeerUnreachable, ShoalError
from wire.ids import PeerId

REPLACEMENTS_MAX = 4  # lost hops in one answer; more is not bad luck

Replace = Callable[[Span, Collection[PeerId]], Span | None]  # (lost, not these) -> who has it too

log = structlog.get_logger(__name__)


class HopLost(PeerUnreachable):
    """A stage broke in mid-answer and no other node has its layers."""

    code = "hop_lost"
    hint = "try again; `shoal models` shows which node is missing"


@dataclass(frozen=True)
class Shape:
    """What the driver must know of a model."""

    model: str
    n_layers: int
    hidden_size: int


@asynccontextmanager
async def open_generation(
    connector: Connector,
    shape: Shape,
    route: list[Span],
    *,
    max_tokens: int,
    sampling: Sampling,
    replace: Replace,
) -> AsyncGenerator["Generation"]:
    """Open a session on every stage of a route for the length of the block.

    Raises ShoalError if a stage refuses or cannot be reached.
    """
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        generation = Generation(nursery, connector, shape, max_tokens, sampling, replace)
        try:
            await generation.open(route)
            yield generation
        except Exception as error:
            failure = error  # raised below: the nursery would wrap it in a group
        finally:
            generation.close()
    if failure is not None:
        raise failure


class Generation:
    """One session over a whole route."""

    def __init__(
        self,
        nursery: trio.Nursery,
        connector: Connector,
        shape: Shape,
        max_tokens: int,
        sampling: Sampling,
        replace: Replace,
    ) -> None:
        self._nursery = nursery
        self._connector = connector
        self._shape = shape
        self._max_tokens = max_tokens
        self._sampling = sampling
        self._replace = replace
        self._hops: list[Hop] = []
        self._lost: set[PeerId] = set()
        self.position = 0
        self.replaced = 0

    @property
    def route(self) -> list[Span]:
        """The stages in use now."""
        return [hop.span for hop in self._hops]

    async def open(self, route: list[Span]) -> None:
        """Open every stage, in order; one that is not there, or is full, is replaced at once."""
        for index, span in enumerate(route):
            self._hops.append(Hop(span))
            try:
                self._hops[index] = await self._open(span)
            except ShoalError as error:
                if not is_loss(error) and not is_busy(error):
                    raise
                await self._replace_hop(index, error)

    def close(self) -> None:
        """End all sessions."""
        for hop in self._hops:
            hop.close()

    async def advance(self, tokens: list[int]) -> int:
        """Feed the next tokens (the prompt, then each answer); return the token that follows."""
        chunk = tokens_of_step(self._shape.hidden_size)
        token: int | None = None
        for at in range(0, len(tokens), chunk):
            last = at + chunk >= len(tokens)
            token = await self._through(tokens[at : at + chunk], sample=last)
        if token is None:
            raise BadMessage("the last stage returned no token")
        return token

    async def _through(self, tokens: list[int], *, sample: bool) -> int | None:
        step = Step(self.position, tokens, b"", sample)
        end = self.position + len(tokens)
        token: int | None = None
        for index in range(len(self._hops)):
            output = await self._step(index, step)
            is_last = index == len(self._hops) - 1
            self._check(output, end, 0 if is_last else self._connector.row_bytes * len(tokens))
            step = Step(self.position, [], output.hidden, sample)
            token = output.token
        self.position = end
        return token

    def _check(self, output: Output, end: int, expected_bytes: int) -> None:
        if output.position != end or len(output.hidden) != expected_bytes:
            raise BadMessage(
                f"a stage is at {output.position} with {len(output.hidden)} B, "
                f"not at {end} with {expected_bytes} B"
            )

    async def _open(self, span: Span) -> Hop:
        request = Open(self._shape.model, span.start, span.end, self._max_tokens, self._sampling)
        hop = Hop(span)
        await self._nursery.start(hop.run, self._connector, request)
        hop.check()
        return hop

    async def _step(self, index: int, step: Step) -> Output:
        """One step on one hop; a lost hop is replaced and the step asked again."""
        while True:
            try:
                return await self._hops[index].step(step)
            except ShoalError as error:
                if not is_loss(error):
                    raise
                await self._replace_hop(index, error)

    async def _replace_hop(self, index: int, cause: ShoalError) -> None:
        """Open the lost span on another node and send it everything that the lost one got.

        With the same boundaries between steps, so that its cache is the same bit for bit. Raises
        HopLost, or what a full stage said, if there is no other node.
        """
        lost = self._hops[index]
        lost.close()
        while True:
            self._lost.add(lost.span.peer)
            span = self._replace(lost.span, self._lost)
            if span is None or lost.history is None or self.replaced >= REPLACEMENTS_MAX:
                if is_busy(cause):
                    raise cause
                layers = f"layers {lost.span.start}-{lost.span.end}"
                raise HopLost(f"{layers} on {lost.span.peer} are lost: {cause}") from cause
            self.replaced += 1
            log.info("hop.replaced", lost=lost.span.peer, by=span.peer, cause=str(cause))
            try:
                self._hops[index] = await self._replayed(span, lost.history)
            except ShoalError as error:
                if not is_loss(error) and not is_busy(error):
                    raise
                self._lost.add(span.peer)
                cause = error
            else:
                return

    async def _replayed(self, span: Span, history: list[Step]) -> Hop:
        hop = await self._open(span)
        try:
            for step in history:
                await hop.step(step)
        except ShoalError:
            hop.close()
            raise
        return hop
