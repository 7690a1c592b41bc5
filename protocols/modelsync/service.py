"""ModelSync: averaging over the live members of named runs, without a coordinator.

The trainer's process owns the numbers and does the outer step; this service moves them. Numpy
only, no torch. The mean is made of separate float32 ufuncs (no fused multiply-add), so that all
replicas hold the same bits on any mix of processors.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import trio

from protocols.modelsync import state as states
from protocols.modelsync.codecs import CONTRIBUTION_MAX, Vector, is_within
from protocols.modelsync.donors import Offer, offers
from protocols.modelsync.driver import RunDriver
from protocols.modelsync.part import Attachment, Census, Outcome
from protocols.modelsync.registry import MemberLease, Registry
from protocols.modelsync.wire import (
    ATTEMPT,
    LATEST,
    READY,
    REDUCE,
    STATE,
    Answer,
    Ask,
    Certificate,
    Heard,
    Latest,
    Order,
    Piece,
    Ready,
    StatePart,
)
from protocols.modelsync.work import Work, in_threads
from wire.errors import BadMessage, Busy, DeadlineExceeded, NotFound, ShoalError, UsageError
from wire.ids import PeerId, Signer
from wire.ports import Bulk, Call, In, Out, Rpc, Store

LEASE_TTL_S = 15.0  # seconds without renewal until a member is not waited for any more
LEASE_RENEW_S = 5.0  # three chances per lease
FAREWELL_TTL_S = 24 * 3600.0  # seconds that a farewell is kept: longer than a round may take
PUBLISH_WAIT_S = 2.0  # seconds for the proposer to publish before another member does
SURVEY_WAIT_S = 3.0  # seconds for a peer to say which state it has
SURVEY_REST_S = 0.5  # seconds for the rest, once half of them have answered
FETCH_WAIT_S = 60.0  # seconds to find and load a state that must exist
FETCH_RETRY_S = 0.25  # seconds between two surveys: donors publish within milliseconds
DONORS_MAX = 32  # peers asked for a state
DOWNLOADS_MAX = 4  # states given at a time: the training goes first

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fetched:
    """A state was downloaded into the target buffer."""

    round: int
    root: bytes


class ModelSync:
    """The runs that trainers of this node take part in, and the states it can give to others."""

    def __init__(
        self,
        rpc: Rpc,
        store: Store,
        signer: Signer,
        *,
        peers: Callable[[], list[PeerId]],
        work: Work | None = None,
        bulk: Bulk | None = None,
    ) -> None:
        self._bulk = bulk
        self._rpc, self._signer, self._peers = rpc, signer, peers
        self._registry = Registry(store, rpc.peer)
        self._downloads = 0
        self._drivers: dict[str, RunDriver] = {}
        self._scopes: dict[str, trio.CancelScope] = {}
        self._states: dict[str, states.State] = {}
        self._work = work or in_threads()
        self._nursery: trio.Nursery | None = None
        rpc.serve(READY, self._on_ready)
        rpc.serve(LATEST, self._on_latest)
        rpc.serve_stream(ATTEMPT, self._on_attempt)
        rpc.serve_stream(REDUCE, self._on_reduce)
        rpc.serve_stream(STATE, self._on_state)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Drive attached runs and renew their leases until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            while True:
                await trio.sleep(LEASE_RENEW_S)
                for run in list(self._drivers):
                    await self._renew(run)

    # -- for the trainer of this node --------------------------------------------------------

    async def attach(self, attachment: Attachment) -> None:
        """Take part in a run from now on. Raises UsageError if a trainer is attached already,
        or if most of the run's members have other parameters, codec or settings.
        """
        run = attachment.run
        if run in self._drivers:
            raise UsageError(f"a trainer of run {run} is attached to this node already")
        others = [
            lease.shape
            for peer, lease in self._registry.leases(run).items()
            if not lease.left and peer != self._rpc.peer
        ]
        unlike = [shape for shape in others if shape != attachment.shape]
        if 2 * len(unlike) > len(others):
            raise UsageError(
                f"run {run} has {unlike[0]}; not {attachment.shape}",
                hint="give the run another --name, or use the settings of its members",
            )
        assert self._nursery is not None, "the service does not run"
        driver = RunDriver(
            attachment,
            self._rpc,
            self._signer,
            census=partial(self._census, run),
            on_commit=self._publish,
            work=self._work,
            bulk=self._bulk,
        )
        self._drivers[run] = driver
        await self._nursery.start(self._drive, run, driver)

    async def join(self, run: str, round_: int, target: Vector) -> Fetched | None:
        """If members hold a later state than that before `round_`, load it into `target`.

        Then the run counts us as a member. Call it once, before the first submit.
        """
        driver = self._driver(run)
        fetched = None
        with trio.move_on_after(FETCH_WAIT_S):
            while later := [o for o in await self._offers(driver) if o.round > round_]:
                fetched = await self._load(driver, target, later)
                if fetched is not None:
                    break
                await trio.sleep(FETCH_RETRY_S)
        await self._renew(run)
        return fetched

    async def fetch(
        self, run: str, target: Vector, *, at_least: int, root: bytes | None = None
    ) -> Fetched:
        """Load a state that must exist somewhere. Raises DeadlineExceeded if nobody gives it."""
        driver = self._driver(run)
        with trio.move_on_after(FETCH_WAIT_S):
            while True:
                fitting = [
                    offer
                    for offer in await self._offers(driver)
                    if offer.round >= at_least and root in (None, offer.root)
                ]
                fetched = await self._load(driver, target, fitting)
                if fetched is not None:
                    return fetched
                await trio.sleep(FETCH_RETRY_S)
        raise DeadlineExceeded(f"no member of run {run} gives the state before round {at_least}")

    async def submit(self, run: str, round_: int, root: bytes, weight: float) -> None:
        """The exchange buffer holds our contribution; at weight 0 it is not read.

        Raises UsageError if other members would refuse it.
        """
        driver = self._driver(run)
        check = partial(is_within, driver.attachment.exchange, CONTRIBUTION_MAX)
        if weight > 0 and not await self._work(check):
            raise UsageError(
                f"the contribution to round {round_} holds values that are not finite "
                f"or beyond {CONTRIBUTION_MAX:g}",
                hint="submit it with weight 0, and lower the learning rate",
            )
        driver.submit(round_, root, weight)

    def failure_of(self, run: str) -> str:
        """Why driving an attached run has ended; "" if it has not."""
        driver = self._drivers.get(run)
        return driver.failure if driver is not None else ""

    async def outcome(self, run: str, *, timeout_s: float) -> Outcome | None:
        """Wait for the end of the submitted round; None if it takes longer."""
        return await self._driver(run).outcome(timeout_s)

    def waiting_for(self, run: str) -> list[PeerId]:
        """Members that the submitted round waits for."""
        return self._driver(run).rounds.waiting_for()

    def announce(self, run: str, round_: int, root: bytes, vector: Vector) -> None:
        """Offer a state (parameters, then momentum) to joiners; keep the buffer until the next."""
        certificate = self._driver(run).rounds.certificate
        self._states[run] = states.State(round_, root, vector, certificate)

    async def leave(self, run: str, *, keep: Vector | None = None) -> None:
        """Leave a run. `keep` is a copy of the announced state to go on giving to others."""
        driver = self._drivers.pop(run, None)
        if driver is None:
            return
        self._scopes.pop(run).cancel()
        last = self._states.pop(run, None)
        if last is not None and keep is not None:
            self._states[run] = states.State(last.round, last.root, keep, last.certificate)
        certificate = driver.rounds.certificate
        known = certificate.round + 1 if certificate is not None else 0
        farewell = MemberLease(round=max(known, last.round if last else 0), left=True)
        await self._registry.put_lease(run, farewell, FAREWELL_TTL_S)

    def members(self, run: str) -> list[PeerId]:
        """Live members of a run, by lease."""
        return [peer for peer, lease in self._registry.leases(run).items() if not lease.left]

    def run_names(self) -> list[str]:
        """Every run that has a member in the swarm."""
        return self._registry.run_names()

    def state_of(self, run: str) -> states.State | None:
        """The state that this node gives to joiners."""
        return self._states.get(run)

    def certificates(self, run: str) -> list[Certificate]:
        """Signed certificates of a run's rounds in the store, oldest first."""
        return self._registry.certificates(run)

    # -- leases and certificates -------------------------------------------------------------

    async def _drive(
        self,
        run: str,
        driver: RunDriver,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        with trio.CancelScope() as scope:
            self._scopes[run] = scope
            task_status.started()
            try:
                await driver.run()
            except* Exception as errors:  # the boundary of one run: the daemon and others go on
                _log.exception("run.failed run=%s", run)
                driver.fail(f"training {run} failed in the daemon: {errors.exceptions[0]!r}")

    async def _renew(self, run: str) -> None:
        driver = self._drivers.get(run)
        if driver is None or driver.failure:
            return  # it left while another run's lease was written
        shape, certificate = driver.attachment, driver.rounds.certificate
        round_ = certificate.round + 1 if certificate is not None else 0
        lease = MemberLease(
            round=round_,
            elements=shape.elements,
            codec=shape.codec,
            rounds=shape.rounds,
            settings=shape.settings,
        )
        await self._registry.put_lease(run, lease, LEASE_TTL_S)

    def _census(self, run: str) -> Census:
        leases = self._registry.leases(run)
        return Census(
            live=[peer for peer, lease in leases.items() if not lease.left],
            left={peer: lease.round for peer, lease in leases.items() if lease.left},
            others=self._peers()[:DONORS_MAX],
        )

    async def _publish(self, certificate: Certificate) -> None:
        """Put the certificate into the store: the proposer at once, others if it did not."""
        if certificate.proposer != self._rpc.peer:
            await trio.sleep(PUBLISH_WAIT_S)
            if self._registry.certificates(certificate.run, certificate.round):
                return
        await self._registry.publish(certificate)

    # -- fetching ----------------------------------------------------------------------------

    async def _offers(self, driver: RunDriver) -> list[Offer]:
        """Ask the run's members which state they hold; the most credible first."""
        run, last = driver.attachment.run, self._registry.last_certificate(driver.attachment.run)
        known = list(last.members) if last is not None else []
        peers = dict.fromkeys([*known, *self._registry.leases(run)])
        asked = [peer for peer in peers if peer != self._rpc.peer][:DONORS_MAX]
        claims: dict[PeerId, Latest] = {}

        async def ask(peer: PeerId, scope: trio.CancelScope) -> None:
            try:
                claims[peer] = await self._rpc.call(peer, LATEST, Ask(run), timeout_s=SURVEY_WAIT_S)
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
            elements=driver.attachment.elements,
            is_quorum=driver.rounds.is_quorum,
        )

    async def _load(self, driver: RunDriver, target: Vector, found: list[Offer]) -> Fetched | None:
        """Try offers and their donors in turn; None if nobody gives what it claims to have."""
        run = driver.attachment.run
        for offer in found:
            for donor in offer.donors:
                try:
                    await states.fetch(self._rpc, donor, run, target, self._work, root=offer.root)
                except ShoalError as error:
                    _log.info("run.fetch_failed run=%s donor=%s error=%s", run, donor, error)
                    continue
                driver.adopt(offer.certificate)
                return Fetched(offer.round, offer.root)
        return None

    # -- for peers ---------------------------------------------------------------------------

    def _driver(self, run: str) -> RunDriver:
        driver = self._drivers.get(run)
        if driver is None:
            raise NotFound(f"no trainer of run {run} is attached here")
        return driver

    async def _on_ready(self, peer: PeerId, ready: Ready) -> Heard:
        if ready.run in self._drivers:
            return self._drivers[ready.run].on_ready(peer, ready)
        finished = self._states.get(ready.run)
        if finished is not None and finished.round > ready.round:
            return Heard(None, finished.certificate)
        raise NotFound(f"no trainer of run {ready.run} is attached here")

    async def _on_latest(self, peer: PeerId, ask: Ask) -> Latest:
        state = self._states.get(ask.run)
        if state is None:
            raise NotFound(f"no state of run {ask.run} here")
        return state.latest()

    async def _on_attempt(self, call: Call[Answer, Order]) -> None:
        order = await _first(call)
        run = getattr(order.body, "run", "")
        await self._driver(run).on_attempt(call, order)

    async def _on_reduce(self, call: Call[Piece, Piece]) -> None:
        piece = await _first(call)
        await self._driver(piece.run).on_reduce(call, piece)

    async def _on_state(self, call: Call[StatePart, Ask]) -> None:
        ask = await _first(call)
        state = self._states.get(ask.run)
        if state is None:
            raise NotFound(f"no state of run {ask.run} here")
        if self._downloads >= DOWNLOADS_MAX:
            raise Busy(f"{DOWNLOADS_MAX} nodes load a state from here already")
        self._downloads += 1
        try:
            await states.give(call, state)
        finally:
            self._downloads -= 1


async def _first(call: Call[Out, In]) -> In:
    try:
        return await call.receive()
    except trio.EndOfChannel:
        raise BadMessage("a call without a request") from None
