"""A generation, seen from the node that asked: token ids in, picked tokens out.

The entry feeds token ids to the first stage of a ring and gets picks from the last one; what is
between is the stages' own business (docs/protocols/sharding.md). Here is the loop over tokens:
the prompt in steps, then one step per round trip, with guesses where they pay.
"""

import hashlib
import hmac
import random
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

import trio

from protocols.sharding.chain import Chain
from protocols.sharding.draft import Drafter, StepCost, right_guesses
from protocols.sharding.history import step_rows_max
from protocols.sharding.parts import OpenStage
from protocols.sharding.reputation import Losses
from protocols.sharding.ring import Ring
from protocols.sharding.route import Candidate, NoRoute, RouteHop, find_route, kept_codec
from protocols.sharding.rows import ids_to_rows
from protocols.sharding.service import StageService
from protocols.sharding.wire import (
    PREFIX_TOKENS,
    SESSION_TOKENS_MAX,
    Open,
    Pick,
    Receipt,
    Sampling,
)
from wire.errors import UsageError
from wire.faults import open_helpers
from wire.ids import PeerId

END_S = 2.0  # seconds for all stages together to sign their receipts
SENT_S = 10.0  # seconds between two leases of a stage: until then its load lacks what we sent
STEP_S = 0.01  # what a step takes beside computing, until it is measured


class Routes(Protocol):
    """Where candidates come from (`node.models.Models`)."""

    def candidates(self, name: str, /) -> Sequence[Candidate]:
        """Return the ready spans of a model."""
        ...


@dataclass(frozen=True)
class Shape:
    """What the driver must know of a model."""

    name: str
    model: str
    n_layers: int
    hidden_size: int
    vocab_size: int
    dtype: str = "float32"


@dataclass(frozen=True)
class Finished:
    """A session that has ended, for audits. `receipts`: one per hop, None where none came.

    `replaced`: stages that were lost on the way; `picks`: the answer's tokens.
    """

    session: bytes
    shape: Shape
    hops: list[RouteHop]
    receipts: list[Receipt | None]
    sampling: Sampling
    prompt: list[int]
    picks: list[int]
    replaced: int = 0


class PrefixKeys:
    """Names of prompts' prefixes that only this process can make: one object per node process."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def of(self, model: str, tokens: Sequence[int]) -> list[bytes]:
        """Return the keys of all prefixes, each 16 tokens longer than the one before."""
        found: list[bytes] = []
        last = model.encode()
        for end in range(PREFIX_TOKENS, len(tokens) + 1, PREFIX_TOKENS):
            rows = ids_to_rows(list(tokens[end - PREFIX_TOKENS : end]))
            last = hmac.digest(self._key, last + rows, hashlib.sha256)[:16]
            found.append(last)
        return found


@dataclass
class EntryServices:
    """What generations on one node share."""

    stages: StageService
    routes: Routes
    on_receipts: Callable[[Finished], None]
    losses: Losses = field(default_factory=Losses)
    _sent: list[tuple[float, PeerId]] = field(default_factory=list[tuple[float, PeerId]])

    def sent_lately(self) -> Counter[PeerId]:
        """Return how many sessions we opened on each node since its load was told."""
        now = trio.current_time()
        self._sent = [(at, peer) for at, peer in self._sent if at > now - SENT_S]
        return Counter(peer for _, peer in self._sent)

    def note_sent(self, hops: list[RouteHop]) -> None:
        """Count a session."""
        now = trio.current_time()
        self._sent += [(now, hop.peer) for hop in hops]


@dataclass(frozen=True)
class HopTiming:
    """Of one stage in use: half the round trip to it, its compute as it was told, its tokens."""

    peer: str
    start: int
    end: int
    link_ms: float
    compute_ms: float
    tokens: int


@asynccontextmanager
async def open_generation(
    services: EntryServices,
    shape: Shape,
    prompt: list[int],
    *,
    max_tokens: int,
    sampling: Sampling,
    keys: PrefixKeys,
    speculate: bool = True,
    codec: str = "auto",
) -> AsyncGenerator["Generation"]:
    """Open a session on every stage of a route for the length of the block.

    max_tokens: of the answer. codec: of activations between stages; "auto" chooses by
    the links when the session begins, and keeps to it: the same answer is that of the same codecs.
    Raises NoRoute, NoRoom (a Busy), HopLost, UsageError or another ShoalError.
    """
    room = len(prompt) + max_tokens
    if not prompt or max_tokens < 1 or room > SESSION_TOKENS_MAX:
        raise UsageError(f"{len(prompt)} and {max_tokens} tokens make no session")
    generation = Generation(
        services, shape, prompt, room, sampling, keys, speculate=speculate, codec=codec
    )
    async with open_helpers() as nursery, generation.opened(nursery):
        yield generation


class Generation:
    """One session over a whole route. Made by `open_generation`."""

    def __init__(
        self,
        services: EntryServices,
        shape: Shape,
        prompt: list[int],
        room: int,
        sampling: Sampling,
        keys: PrefixKeys,
        *,
        speculate: bool,
        codec: str,
    ) -> None:
        self.reused_tokens = 0  # of the prompt, that the stages had from an earlier session
        self._services, self._shape, self._sampling, self._keys = services, shape, sampling, keys
        self._speculate, self._codec = speculate, codec
        self._session = secrets.token_bytes(16)
        self._rng = random.Random(self._session)
        self._said, self._prompt_tokens, self._room = list(prompt), len(prompt), room
        # a token must be left to compute
        self._reuse = keys.of(shape.model, prompt[:-1])
        self._entry = services.stages.calls.peer
        self._chain = Chain(self._entry, shape.n_layers, self._find, now=trio.current_time())
        rows_max = step_rows_max(shape.hidden_size)
        self._ring = Ring(
            services.stages,
            self._chain,
            self._session,
            rows_max,
            vocab_size=shape.vocab_size,
            reusable=PREFIX_TOKENS * len(self._reuse),
            opening=self._opening,
        )
        self._drafter: Drafter | None = None
        self._steps: dict[int, int] = {}  # tokens that were picked before a stage came

    @property
    def route(self) -> list[RouteHop]:
        """The stages in use now."""
        return [hop for _, hop in self._chain.hops]

    @property
    def replaced(self) -> int:
        """Stages that were lost, and replaced by others."""
        return self._chain.replaced

    @property
    def drafted(self) -> int:
        """Tokens that were guessed."""
        return self._drafter.drafted if self._drafter else 0

    @property
    def accepted(self) -> int:
        """Guesses that were right."""
        return self._drafter.accepted if self._drafter else 0

    @property
    def timings(self) -> list[HopTiming]:
        """What is known of each stage in use."""
        found: list[HopTiming] = []
        for number, hop in self._chain.hops:
            stage = self._ring.held.get(number)
            link_s = (stage.rtt_s or 0.0) / 2 if stage else 0.0
            tokens = len(self._said) - self._prompt_tokens - self._steps.get(number, 0)
            found.append(
                HopTiming(hop.peer, hop.start, hop.end, 1e3 * link_s, 1e3 * hop.decode_s, tokens)
            )
        return found

    async def tokens(self) -> AsyncGenerator[list[Pick]]:
        """Yield the picks as they come, `max_tokens` in all; several where guesses were right.

        Raises HopLost, or what else ended the session.
        """
        picks = await self._prefill()
        while True:
            self._said += [pick.token for pick in picks]
            if self._drafter is not None:
                self._drafter.add([pick.token for pick in picks])
            yield picks
            if len(self._said) >= self._room:
                return
            picks = await self._decode()

    # The ring.

    @asynccontextmanager
    async def opened(self, nursery: trio.Nursery) -> AsyncGenerator[None]:
        """Hold the sessions for the length of the block; `nursery` ends with it."""
        route = self._find(0, self._shape.n_layers, self._entry, self._entry, ())
        self._codec = kept_codec(route, self._codec, self._shape.dtype)
        with self._ring.open(nursery, route):
            is_good = False
            try:
                await self._ring.whole()
                self.reused_tokens = self._chain.position
                yield
                is_good = True
            finally:
                await self._close(park=is_good)

    async def _close(self, *, park: bool) -> None:
        keys = self._keys.of(self._shape.model, self._said[:-1]) if park else []
        hops = self.route
        receipts = await self._ring.end(keys, END_S)
        kept = [hop.peer for hop, receipt in zip(hops, receipts, strict=False) if receipt]
        self._services.losses.note(self._chain.failed, kept, trio.current_time())
        if any(receipts):
            prompt, picks = self._said[: self._prompt_tokens], self._said[self._prompt_tokens :]
            finished = Finished(
                self._session,
                self._shape,
                hops,
                receipts,
                self._sampling,
                prompt,
                picks,
                self.replaced,
            )
            self._services.on_receipts(finished)

    def _find(
        self, start: int, end: int, previous: PeerId, following: PeerId, without: Collection[PeerId]
    ) -> list[RouteHop]:
        avoided = self._services.losses.avoided(trio.current_time())
        try:
            route = self._route(start, end, previous, following, avoided.union(without))
        except NoRoute:
            route = self._route(start, end, previous, following, without)
        self._services.note_sent(route)
        return route

    def _route(
        self, start: int, end: int, previous: PeerId, following: PeerId, without: Collection[PeerId]
    ) -> list[RouteHop]:
        return find_route(
            self._shape.n_layers,
            self._services.routes.candidates(self._shape.name),
            entry=self._entry,
            start=start,
            end=end,
            previous=previous,
            following=following,
            tokens=self._room,
            prompt_tokens=self._prompt_tokens,
            without=without,
            rng=self._rng,
            sent_lately=self._services.sent_lately(),
            codec=self._codec,
            dtype=self._shape.dtype,
        )

    def _opening(self, stage: OpenStage) -> Open:
        self._steps[stage.number] = len(self._said) - self._prompt_tokens
        return Open(
            self._session,
            self._shape.model,
            stage.hop.start,
            stage.hop.end,
            self._room,
            self._sampling,
            stage.previous,
            stage.next,
            stage.takes,
            stage.hop.codec,
            [] if stage.is_fresh else self._reuse,
        )

    # The loop over tokens.

    async def _prefill(self) -> list[Pick]:
        """Send the prompt, all its steps one after the other; return the first pick."""
        start = self.reused_tokens = self._chain.position
        prompt, history = self._said, self._ring.history
        if start:
            history.begin(ids_to_rows(prompt[:start]))
        for at in range(start, len(prompt), history.rows_max):
            rows = prompt[at : at + history.rows_max]
            is_last = at + len(rows) == len(prompt)
            self._ring.push(at, rows, picks=int(is_last))
        if self._speculate:
            hops = self.route
            base_s = STEP_S + sum(hop.decode_s for hop in hops)
            row_s = sum(hop.prefill_s or hop.decode_s for hop in hops)
            self._drafter = Drafter(StepCost(base_s, row_s))
            self._drafter.add(prompt)
        return await self._ring.picked(4 * self._step_s())

    async def _decode(self) -> list[Pick]:
        """One step: the last token, and guesses; return its picks, up to the first wrong guess."""
        guesses: list[int] = []
        if self._drafter is not None and self._chain.truncates:
            guesses = self._drafter.draft(self._room - len(self._said) - 1)
        position, began = len(self._said) - 1, trio.current_time()
        self._ring.push(position, [self._said[-1], *guesses], picks=1 + len(guesses))
        picks = await self._ring.picked(4 * self._step_s())
        right = right_guesses(guesses, [pick.token for pick in picks])
        if self._drafter is not None:
            self._drafter.learn(len(guesses), right, trio.current_time() - began)
        return picks[: right + 1]

    def _step_s(self) -> float:
        """What a step should take if all that was said has to be replayed before it."""
        rows = len(self._said)
        return sum(hop.decode_s + (hop.prefill_s or hop.decode_s) * rows for hop in self.route)
