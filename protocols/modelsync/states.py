"""States of runs: which one a joiner takes, fetching it, and giving ours to others.

ModelSync owns one `States` and passes calls through; it knows lanes only as `Lane` below.
"""

import logging
from collections.abc import Callable, Collection
from typing import Protocol

import trio

from protocols.modelsync import state as states
from protocols.modelsync.codecs import Vector
from protocols.modelsync.donors import Offer, offers
from protocols.modelsync.part import Attachment, Fetched
from protocols.modelsync.registry import Registry
from protocols.modelsync.latest_wire import LATEST, STATE, Latest, StatePart
from protocols.modelsync.wire import Ask, Certificate
from protocols.modelsync.work import Work
from wire.errors import BadMessage, Busy, DeadlineExceeded, NotFound, ShoalError
from wire.ids import PeerId
from wire.ports import Call, Rpc

SURVEY_WAIT_S = 3.0  # seconds for a peer to say which state it has
SURVEY_REST_S = 0.5  # seconds for the rest, once half of them have answered
FETCH_WAIT_S = 60.0  # seconds to find and load a state that must exist
FETCH_RETRY_S = 0.25  # seconds between two surveys: donors publish within milliseconds
DONORS_MAX = 32  # peers asked for a state
DOWNLOADS_MAX = 4  # states given at a time: the training goes first

_log = logging.getLogger(__name__)


class Lane(Protocol):
    """What the states of a lane need of the rounds of that lane (driver.LaneDriver)."""

    @property
    def attachment(self) -> Attachment:
        """The run that it belongs to."""
        ...

    @property
    def number(self) -> int:
        """Which lane of the run."""
        ...

    def is_electorate(self, members: Collection[PeerId]) -> bool:
        """True if these speak for the members of the last certificate that we know."""
        ...

    def adopt(self, certificate: Certificate | None) -> None:
        """A downloaded state is in the trainer's buffer; its certificate names the electorate."""
        ...


class States:
    """The states that this node gives to others, and where it gets its own from."""

    def __init__(
        self, rpc: Rpc, registry: Registry, work: Work, *, lane_of: Callable[[str, int], Lane]
    ) -> None:
        self._rpc, self._registry, self._work, self._lane_of = rpc, registry, work, lane_of
        self._states: dict[tuple[str, int], state_files.State] = {}
        self._downloads = 0
        rpc.serve(LATEST, self._on_latest)
        rpc.serve_stream(STATE, self._on_state)

    # -- for the trainer of this node --------------------------------------------------------

    async def join(self, run: str, lane: int, round_: int, target: Vector) -> Fetched | None:
        """If members hold a later state than that before `round_`, load it into `target`."""
        part = self._lane_of(run, lane)
        with trio.move_on_after(FETCH_WAIT_S):
            while later := [o for o in await self._offers(part) if o.round > round_]:
                fetched = await self._load(part, target, later)
                if fetched is not None:
                    return fetched
                await trio.sleep(FETCH_RETRY_S)
        return None

    async def fetch(
        self, run: str, lane: int, target: Vector, *, at_least: int, root: bytes | None = None
    ) -> Fetched:
        """Load a state that must exist somewhere. Raises DeadlineExceeded if nobody gives it."""
        part = self._lane_of(run, lane)
        with trio.move_on_after(FETCH_WAIT_S):
            while True:
                fitting = [
                    offer
                    for offer in await self._offers(part)
                    if offer.round >= at_least and root in (None, offer.root)
                ]
                fetched = await self._load(part, target, fitting)
                if fetched is not None:
                    return fetched
                await trio.sleep(FETCH_RETRY_S)
        raise DeadlineExceeded(f"no member of run {run} gives the state before round {at_least}")

    def announce(
        self,
        run: str,
        lane: int,
        round_: int,
        root: bytes,
        vector: Vector,
        certificate: Certificate | None,
    ) -> None:
        """Offer a state to joiners; the buffer stays untouched until the announce after next."""
        self._states[run, lane] = state_files.State(round_, root, vector, certificate)

    def leave(self, run: str, keep: list[Vector] | None) -> dict[int, int]:
        """Go on giving only copies of the announced states; return their rounds by lane."""
        kept: dict[int, int] = {}
        for name, lane in [key for key in self._states if key[0] == run]:
            last = self._states.pop((name, lane))
            kept[lane] = last.round
            if keep is not None:
                self._states[run, lane] = state_files.State(
                    last.round, last.root, keep[lane], last.certificate
                )
        return kept

    def state_of(self, run: str, lane: int) -> state_files.State | None:
        """The state that this node gives to joiners."""
        return self._states.get((run, lane))

    # -- fetching ----------------------------------------------------------------------------

    async def _offers(self, part: Lane) -> list[Offer]:
        """Ask the run's members which state they hold; the most credible first."""
        run, lane = part.attachment.run, part.number
        last = self._registry.last_certificate(run, lane)
        known = list(last.members) if last is not None else []
        peers = dict.fromkeys([*known, *self._registry.leases(run)])
        asked = [peer for peer in peers if peer != self._rpc.peer][:DONORS_MAX]
        claims: dict[PeerId, Latest] = {}

        async def ask(peer: PeerId, scope: trio.CancelScope) -> None:
            try:
                claims[peer] = await self._rpc.call(
                    peer, LATEST, Ask(run, lane), timeout_s=SURVEY_WAIT_S
                )
            except ShoalError:
                return  # it has no state, or is not there
            if 2 * len(claims) >= len(asked):
                scope.deadline = min(scope.deadline, trio.current_time() + SURVEY_REST_S)

        async with trio.open_nursery() as nursery:
            for peer in asked:
                nursery.start_soon(ask, peer, nursery.cancel_scope)
        return offers(
            claims,
            run=run,
            lane=lane,
            elements=part.attachment.lanes[lane].state,
            is_quorum=part.is_electorate,
        )

    async def _load(self, part: Lane, target: Vector, found: list[Offer]) -> Fetched | None:
        """Try offers and their donors in turn; None if nobody gives what it claims to have."""
        ask = Ask(part.attachment.run, part.number)
        for offer in found:
            for donor in offer.donors:
                try:
                    await state_files.fetch(self._rpc, donor, ask, target, self._work, root=offer.root)
                except ShoalError as error:
                    _log.info("run.fetch_failed run=%s donor=%s error=%s", ask.run, donor, error)
                    continue
                part.adopt(offer.certificate)
                return Fetched(offer.round, offer.root)
        return None

    # -- for peers ---------------------------------------------------------------------------

    def _state(self, ask: Ask) -> state_files.State:
        state = self._states.get((ask.run, ask.lane))
        if state is None:
            raise NotFound(f"no state of run {ask.run}, lane {ask.lane} here")
        return state

    async def _on_latest(self, peer: PeerId, ask: Ask) -> Latest:
        return self._state(ask).latest()

    async def _on_state(self, call: Call[StatePart, Ask]) -> None:
        try:
            state = self._state(await call.receive())
        except trio.EndOfChannel:
            raise BadMessage("a call without a request") from None
        if self._downloads >= DOWNLOADS_MAX:
            raise Busy(f"{DOWNLOADS_MAX} nodes load a state from here already")
        self._downloads += 1
        try:
            await state_files.give(call, state)
        finally:
            self._downloads -= 1
