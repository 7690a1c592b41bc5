"""ModelSync: averaging over the live members of named runs, without a coordinator.

The trainer's process owns the numbers and learns; this service moves and averages them. Numpy
only, no torch. One `LaneDriver` runs the rounds of each lane; leases are shared by the lanes of a
run; `States` gives and takes states.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import trio

from protocols.modelsync import state as state_files
from protocols.modelsync.accounts import Accounts
from protocols.modelsync.codecs import CONTRIBUTION_MAX, Vector, is_within
from protocols.modelsync.download import Progress
from protocols.modelsync.driver import LaneDriver
from protocols.modelsync.members import Members
from protocols.modelsync.part import Attachment, Census, Contribution, Fetched, Outcome, Wish
from protocols.modelsync.registry import BOUND, Registry
from protocols.modelsync.sampling import PING, Pong, Sampler
from protocols.modelsync.states import States
from protocols.modelsync.trust import Trust, check_verifiable
from protocols.modelsync.verify import Duty
from protocols.modelsync.verify_wire import Case
from protocols.modelsync.wire import (
    ATTEMPT,
    LANES_MAX,
    READY,
    REDUCE,
    Answer,
    Ask,
    Certificate,
    Heard,
    Order,
    Piece,
    Ready,
)
from protocols.modelsync.work import Work, in_threads, suited
from wire.errors import BadMessage, NotFound, UsageError
from wire.ids import PeerId, Signer
from wire.ports import Bulk, Call, In, Out, Rpc, Store

LEASE_RENEW_S = 5.0  # three chances per lease (members.LEASE_TTL_S)
PUBLISH_WAIT_S = 2.0  # seconds for the proposer to publish before another member does

_log = logging.getLogger(__name__)


@dataclass
class _Part:
    """A run that a trainer of this node takes part in."""

    attachment: Attachment
    accounts: Accounts = field(default_factory=Accounts)
    lanes: list[LaneDriver] = field(default_factory=list[LaneDriver])
    samplers: list[Sampler] = field(default_factory=list[Sampler])
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    @property
    def failure(self) -> str:
        """Why a lane has ended by an error; "" if none has."""
        return next((lane.failure for lane in self.lanes if lane.failure), "")


class ModelSync:
    """The runs that trainers of this node take part in, and the states it can give to others.

    `owns` says if we can average shards for others (not behind a relay).
    """

    def __init__(
        self,
        rpc: Rpc,
        store: Store,
        signer: Signer,
        *,
        peers: Callable[[], list[PeerId]],
        bulk: Bulk | None = None,
        work: Work | None = None,
        owns: Callable[[], bool] = lambda: True,
    ) -> None:
        self._bulk, self._owns = bulk, owns
        self._rpc, self._signer = rpc, signer
        self._registry = Registry(store, rpc.peer)
        self._members = Members(self._registry, rpc.peer, peers)
        self._parts: dict[str, _Part] = {}
        self._work = work or in_threads()
        self._states = States(
            rpc, self._registry, self._work, lane_of=self._lane, is_busy=self._is_busy
        )
        self._trust = Trust(rpc, store, self._work, on_ban=self.ban)
        self._nursery: trio.Nursery | None = None
        rpc.serve(READY, self._on_ready)
        rpc.serve(PING, self._on_ping)
        rpc.serve_stream(ATTEMPT, self._on_attempt)
        rpc.serve_stream(REDUCE, self._on_reduce)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Drive attached runs and renew their leases until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            while True:
                await trio.sleep(LEASE_RENEW_S)
                self._states.tidy()
                for run in list(self._parts):
                    await self._renew(run)

    # -- for the trainer of this node --------------------------------------------------------

    async def attach(self, attachment: Attachment) -> None:
        """Take part in a run from now on. Raises UsageError if a trainer is attached already,
        or if most of the run's members have another shape.
        """
        run = attachment.run
        if run in self._parts:
            raise UsageError(f"a trainer of run {run} is attached to this node already")
        self._members.check(attachment)
        check_verifiable(attachment)
        assert self._nursery is not None, "the service does not run"
        part, is_back = _Part(attachment), self._rpc.peer in self._members.live(run)
        for lane in range(len(attachment.lanes)):
            self._add_lane(part, lane, is_back=is_back)
        self._parts[run] = part
        await self._nursery.start(self._drive, run, part)

    def adopt(self, run: str, lane: int, certificate: Certificate | None) -> None:
        """The trainer goes on from a checkpoint: its certificate names the lane's electorate."""
        self._lane(run, lane).adopt(certificate)

    async def join(
        self, run: str, lane: int, round_: int, target: Vector, progress: Progress | None = None
    ) -> Fetched | None:
        """If members hold a later state than that before `round_`, load it into `target`.

        `progress` is told how many chunks are right, and how many there are. Then the run counts
        us as a member. Call it once for each lane, before its first submit.
        """
        fetched = await self._states.join(run, lane, round_, target, progress)
        await self._renew(run)
        return fetched

    async def fetch(
        self,
        run: str,
        lane: int,
        target: Vector,
        *,
        at_least: int,
        root: bytes | None = None,
        progress: Progress | None = None,
    ) -> Fetched:
        """Load a state that must exist somewhere. Raises DeadlineExceeded if nobody gives it.

        `target` may hold an old state of the lane. `progress`: as in `join`.
        """
        return await self._states.fetch(
            run, lane, target, at_least=at_least, root=root, progress=progress
        )

    async def submit(
        self,
        run: str,
        lane: int,
        round_: int,
        root: bytes,
        weight: float,
        *,
        topology: str = "all",
        wish: Wish | None = None,
        is_new: bool = False,
        elements: int = 0,
    ) -> None:
        """The lane's slice of the exchange buffer holds our contribution; at weight 0 it is not
        read. `is_new`: we joined at this round. `elements`: of this round's contributions, alike on
        all members; 0: as many as the lane has. Raises UsageError if members would refuse it.
        """
        driver = self._lane(run, lane)
        check = partial(is_within, driver.contribution, CONTRIBUTION_MAX)
        work = suited(self._work, len(driver.contribution))
        if weight > 0 and not await work(check):
            raise UsageError(
                f"the contribution to round {round_} holds values that are not finite "
                f"or beyond {CONTRIBUTION_MAX:g}",
                hint="submit it with weight 0, and lower the learning rate",
            )
        if not 0 <= elements <= driver.shape.elements:
            raise UsageError(f"{elements} elements, where the lane has {driver.shape.elements}")
        at = round_, root, weight
        driver.submit(*at, topology=topology, wish=wish, is_new=is_new, elements=elements)

    async def turn(self, run: str, lane: int, round_: int, *, timeout_s: float) -> bool | None:
        """Of a sampled run: True if we are in this round's sample; False if the round is over
        without us; None if neither is so yet: ask again.
        """
        self._lane(run, lane)
        part = self._parts[run]
        if not part.samplers:
            raise UsageError(f"run {run} has no samples: every round is everybody's turn")
        return await part.samplers[lane].turn(round_, timeout_s=timeout_s)

    def failure_of(self, run: str) -> str:
        """Why driving an attached run has ended; "" if it has not."""
        part = self._parts.get(run)
        return part.failure if part is not None else ""

    async def outcome(self, run: str, lane: int, *, timeout_s: float) -> Outcome | None:
        """Wait for the end of the submitted round; None if it takes longer."""
        return await self._lane(run, lane).outcome(timeout_s)

    def waiting_for(self, run: str, lane: int) -> list[PeerId]:
        """Members that the submitted round waits for."""
        return self._lane(run, lane).rounds.waiting_for()

    def announce(self, run: str, lane: int, round_: int, root: bytes, vector: Vector) -> None:
        """Offer a state to joiners; the buffer stays untouched until the announce after next."""
        certificate = self._lane(run, lane).rounds.certificate
        self._states.announce(run, lane, round_, root, vector, certificate)

    async def leave(self, run: str, *, keep: list[Vector] | None = None) -> None:
        """Leave a run. `keep`: copies of the lanes' announced states to go on giving to others."""
        part = self._parts.pop(run, None)
        if part is None:
            return
        for lane in part.lanes:
            lane.stop()  # before we say what we are bound to
        part.scope.cancel()
        announced = self._states.leave(run, keep)
        at = [
            BOUND if lane.rounds.bound else max(lane.next_round, announced.get(lane.number, 0))
            for lane in part.lanes
        ]
        await self._members.farewell(run, at)

    def members(self, run: str) -> list[PeerId]:
        """Live members of a run, by lease."""
        return list(self._members.live(run))

    def run_names(self) -> list[str]:
        """Every run that has a member in the swarm."""
        return self._registry.run_names()

    def state_of(self, run: str, lane: int) -> state_files.State | None:
        """The state that this node gives to joiners."""
        return self._states.state_of(run, lane)

    def certificates(self, run: str, lane: int | None = None) -> list[Certificate]:
        """Signed certificates of a run's last rounds in the store, by lane, oldest first."""
        if lane is not None:
            return self._registry.certificates(run, lane)
        lanes = max((len(lease.at) for lease in self._registry.leases(run).values()), default=1)
        numbers = range(min(lanes, LANES_MAX))
        return [c for number in numbers for c in self._registry.certificates(run, number)]

    def contributions(self, run: str) -> list[Contribution]:
        """What each member has brought to the rounds that this node took part in."""
        part = self._parts.get(run)
        return part.accounts.table() if part is not None else []

    def ban(self, run: str, peer: PeerId) -> None:
        """A member was found guilty: no round of ours has it any more. We are out if we are it."""
        part = self._parts.get(run)
        if part is not None:
            part.accounts.ban(peer)
            for lane in part.lanes:
                lane.rounds.roster.ban(peer)
                if peer == self._rpc.peer:
                    lane.fail(f"the members of run {run} have banned this node")

    def duties(self, run: str, lane: int) -> list[Duty]:
        """Contributions that our trainer is to make anew before it goes on, oldest first.

        It brings nothing to the next round then: it has no time for it.
        """
        return self._trust.duties(run, lane)

    async def verdict(self, run: str, case: Case) -> bool:
        """The lane's slice of the exchange buffer holds a contribution that was made anew.

        Returns True if its bits are those that were committed to; else they are compared, and
        what comes of it is told to the others. Raises NotFound if that is no duty of ours.
        """
        return await self._trust.verdict(run, case, self._lane(run, case.lane).contribution)

    # -- leases and certificates -------------------------------------------------------------

    def _add_lane(self, part: _Part, number: int, *, is_back: bool) -> None:
        run, sample = part.attachment.run, part.attachment.sample

        def is_over(round_: int) -> bool:
            last = self._registry.last_certificate(run, number, lane.rounds.electorate)
            return last is not None and last.round >= round_

        census = partial(self._members.census, run, number)
        if sample:
            members = partial(self.members, run)
            least = part.attachment.min_members
            sampler = Sampler(self._rpc, run, number, sample, members, is_over, least)
            part.samplers.append(sampler)
            census = partial(self._census_of, run, number, sampler)
        lane = LaneDriver(
            part.attachment,
            number,
            self._rpc,
            self._signer,
            census=census,
            on_commit=self._committed,
            stored=partial(self._registry.continuing, run, number),
            accounts=part.accounts,
            work=self._work,
            owns=self._owns,
            trust=self._trust if part.attachment.is_verified else None,
            bulk=self._bulk,
            is_back=is_back,
        )
        part.lanes.append(lane)

    async def _drive(
        self,
        run: str,
        part: _Part,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        with part.scope:
            task_status.started()
            async with trio.open_nursery() as nursery:
                if part.attachment.is_verified:
                    await nursery.start(self._trust.run, run)
                for lane in part.lanes:
                    nursery.start_soon(self._drive_lane, run, lane)

    async def _drive_lane(self, run: str, lane: LaneDriver) -> None:
        try:
            await lane.run()
        except* Exception as errors:  # the boundary of one run: the daemon and others go on
            _log.exception("run.failed run=%s lane=%d", run, lane.number)
            lane.fail(f"training {run} failed in the daemon: {errors.exceptions[0]!r}")

    async def _renew(self, run: str) -> None:
        part = self._parts.get(run)
        if part is not None and not part.failure:  # or it left while another lease was written
            await self._members.renew(part.attachment, [lane.next_round for lane in part.lanes])

    def _census_of(self, run: str, lane: int, sampler: Sampler) -> Census:
        """In a sampled run only the sample is waited for, and told."""
        return Census(live=sampler.sample, left=self._members.census(run, lane).left)

    async def _committed(self, certificate: Certificate) -> None:
        """Put the certificate into the store: the proposer at once, others if it did not."""
        part = self._parts.get(certificate.run)
        if certificate.proposer != self._rpc.peer:
            await trio.sleep(PUBLISH_WAIT_S)
            run, lane, round_ = certificate.run, certificate.lane, certificate.round
            stored = self._registry.certificate(run, lane, round_)
            if stored is not None and stored.result == certificate.result:
                return
        lanes = len(part.lanes) if part is not None else 1
        await self._registry.publish(certificate, lanes=lanes)

    def _is_busy(self) -> bool:
        """True while a round moves data: states are given slowly then."""
        return any(lane.is_busy for part in self._parts.values() for lane in part.lanes)

    # -- for peers ---------------------------------------------------------------------------

    def _lane(self, run: str, lane: int) -> LaneDriver:
        part = self._parts.get(run)
        if part is None or not 0 <= lane < len(part.lanes):
            raise NotFound(f"no trainer of run {run}, lane {lane} is attached here")
        return part.lanes[lane]

    async def _on_ready(self, peer: PeerId, ready: Ready) -> Heard:
        finished = self._states.state_of(ready.run, ready.lane)
        if ready.run not in self._parts and finished and finished.round > ready.round:
            return Heard(None, finished.certificate)
        return self._lane(ready.run, ready.lane).on_ready(peer, ready)

    async def _on_ping(self, peer: PeerId, ask: Ask) -> Pong:
        return Pong(self._lane(ask.run, ask.lane).next_round)

    async def _on_attempt(self, call: Call[Answer, Order]) -> None:
        order = await _first(call)
        run, lane = getattr(order.body, "run", ""), getattr(order.body, "lane", 0)
        await self._lane(run, lane).on_attempt(call, order)

    async def _on_reduce(self, call: Call[Piece, Piece]) -> None:
        piece = await _first(call)
        await self._lane(piece.run, piece.lane).on_reduce(call, piece)


async def _first(call: Call[Out, In]) -> In:
    try:
        return await call.receive()
    except trio.EndOfChannel:
        raise BadMessage("a call without a request") from None
