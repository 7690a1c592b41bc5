"""Drives the machine of one lane: announces that we are ready, leads and follows attempts."""

import logging
import math
from collections.abc import Awaitable, Callable, Collection
from functools import partial

import numpy as np
import trio

from protocols.modelsync.attempt import Aborted, Follow, Lead
from protocols.modelsync.codecs import Vector
from protocols.modelsync.exchange import Complete, Exchange, Fault
from protocols.modelsync.machine import Behind, Diverged, Propose, Rounds
from protocols.modelsync.part import Attachment, Census, Outcome, Wish
from protocols.modelsync.wire import (
    READY,
    Answer,
    Ballot,
    Certificate,
    Heard,
    Nack,
    Order,
    Piece,
    Prepare,
    Ready,
    result_of,
)
from protocols.modelsync.work import Work
from wire.errors import BadMessage, RemoteError, ShoalError
from wire.ids import PeerId, Signer
from wire.ports import Call, Rpc

REPEAT_S = 2.0  # seconds between two announcements that we are ready, for those who missed one
LOOK_S = 0.5  # seconds between two looks at the members' leases while we wait
READY_WAIT_S = 3.0  # seconds for an answer to it; who does not answer is not waited for
PREPARE_WAIT_S = 4.0  # seconds that data may come before its PREPARE
MESSAGE_MAX = 512  # characters kept of a refusal
OWN_FAILURES_MAX = 2  # such attempts of a round: then we would only hold up the others
FAILED_WAIT_S = 1.0  # seconds before the next attempt after one that failed by our own fault

_log = logging.getLogger(__name__)


class SchemaMismatch(ShoalError):
    """Another member's run of this name has other parameters or another codec."""

    code = "schema"
    hint = "give the run another --name, or start all its members with the same settings"


class RunFailed(ShoalError):
    """This node's part in a run has ended by an error; the others go on."""

    hint = "see the daemon's log; `shoal train` joins again"


class LaneDriver:
    """The rounds of one lane of a run that a trainer of this node takes part in."""

    def __init__(
        self,
        attachment: Attachment,
        number: int,
        rpc: Rpc,
        signer: Signer,
        *,
        census: Callable[[], Census],
        on_commit: Callable[[Certificate], Awaitable[None]],
        work: Work,
    ) -> None:
        self.attachment, self.number = attachment, number
        self.shape = attachment.lane_shape(number)
        self._slice = list(attachment.slices())[number]
        self.rounds = Rounds(
            attachment.run, rpc.peer, attachment.min_members, attachment.patience_s
        )
        self._rpc, self._signer = rpc, signer
        self._census, self._on_commit, self._work = census, on_commit, work
        self._current: Lead | Follow | None = None
        self._exchanges: dict[Ballot, Exchange] = {}
        self._held: Exchange | None = None  # a whole mean whose COMMIT we have not seen
        self._outcome: Outcome | None = None
        self._submitted_at = 0.0
        self._wake = trio.Event()
        self._spread_wake = trio.Event()
        self._changed = trio.Event()
        self._refusals: dict[PeerId, str] = {}
        self._own_failures = 0
        self.failure = ""  # why this run has ended here, if it has
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Drive rounds until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._spread)
            while True:
                self._wake = trio.Event()
                census = self._census()
                self.rounds.see(live=census.live, left=census.left)
                now = trio.current_time()
                for effect in self.rounds.tick(now):
                    match effect:
                        case Propose(prepare):
                            nursery.start_soon(self._lead, prepare)
                        case Behind(at_least):
                            self._fall_behind(at_least, None)
                        case Diverged(root):
                            assert self.rounds.mine is not None
                            self._fall_behind(self.rounds.mine.round, root)
                waits = self.rounds.mine is not None
                with trio.move_on_at(
                    min(self.rounds.deadline, now + LOOK_S if waits else math.inf)
                ):
                    await self._wake.wait()

    @property
    def contribution(self) -> Vector:
        """This lane's slice of the trainer's exchange buffer."""
        return self.attachment.exchange[self._slice]

    @property
    def is_busy(self) -> bool:
        """True while an attempt is going on."""
        return self._current is not None

    @property
    def is_bound(self) -> bool:
        """True if we signed a result and do not know how the round ended."""
        return self.rounds.mine is not None and self.rounds.mine.bound is not None

    @property
    def next_round(self) -> int:
        """The round that this lane is to make next."""
        certificate = self.rounds.certificate
        return certificate.round + 1 if certificate is not None else 0

    def is_electorate(self, members: Collection[PeerId]) -> bool:
        """True if these speak for the members of the last certificate that we know."""
        return self.rounds.is_quorum(members)

    # -- the trainer's side ------------------------------------------------------------------

    def submit(
        self,
        round_: int,
        root: bytes,
        weight: float,
        *,
        topology: str = "all",
        wish: Wish | None = None,
        is_new: bool = False,
    ) -> None:
        """The buffer holds our contribution to a round (nothing to read there at weight 0)."""
        self._outcome = None
        self._refusals.clear()
        self._own_failures = 0
        self._submitted_at = trio.current_time()
        self.rounds.submit(
            Ready(
                self.attachment.run,
                round_,
                root,
                weight,
                *self.shape,
                lane=self.number,
                topology=topology,
                is_new=is_new,
                wish_codec=(wish or Wish()).codec,
                wish_every=(wish or Wish()).every,
            )
        )
        self._poke()
        self._spread_wake.set()

    async def outcome(self, timeout_s: float) -> Outcome | None:
        """Wait for the end of the submitted round. Raises SchemaMismatch if others refuse us."""
        with trio.move_on_after(timeout_s):
            while self._outcome is None:
                if self.failure:
                    raise RunFailed(self.failure)
                self._check_refusals()
                await self._changed.wait()
        return self._outcome

    def fail(self, failure: str) -> None:
        """Driving this run has failed: tell the trainer, take part no more."""
        self.failure = failure
        self.rounds.withdraw()
        self._change()

    def adopt(self, certificate: Certificate | None) -> None:
        """Our trainer has loaded a downloaded state; its certificate names the electorate."""
        self._held = None
        self.rounds.adopt(certificate)

    # -- what peers ask of us ----------------------------------------------------------------

    def on_ready(self, peer: PeerId, ready: Ready) -> Heard:
        """Note that a peer is ready; tell it what we know."""
        if ready.shape != self.shape:
            raise SchemaMismatch(f"run {ready.run} has {self.shape}; not {ready.shape}")
        self.rounds.hear(peer, ready)
        self._poke()
        certificate = self.rounds.certificate
        if certificate is not None and certificate.round < ready.round:
            certificate = None
        return Heard(self.rounds.mine, certificate)

    async def on_attempt(self, call: Call[Answer, Order], first: Order) -> None:
        """Take part in the attempt of the peer that opened this stream."""
        order = first.body
        if not isinstance(order, Prepare) or order.proposer != call.peer:
            raise BadMessage("the stream of an attempt opens with the proposer's PREPARE")
        reason = self.rounds.offered(order)
        if reason:
            known = self.rounds.certificate
            is_over = known is not None and known.round >= order.round
            nack = Nack(reason, self.rounds.attempt, known if is_over else None)
            await call.send(Answer(nack))
            return
        self._supersede()
        follow = Follow(order, call, self._signer, self._open_exchange)
        self._current = follow
        outcome: Certificate | Aborted = Aborted(frozenset({order.proposer}))
        try:
            outcome = await follow.run()
        finally:  # also when the proposer cancels the call
            self._settle(order.ballot, outcome, follow)

    async def on_reduce(self, call: Call[Piece, Piece], first: Piece) -> None:
        """Average our shard for the peer that opened this stream."""
        with trio.move_on_after(PREPARE_WAIT_S):
            while first.ballot not in self._exchanges:
                await self._changed.wait()
        exchange = self._exchanges.get(first.ballot)
        if exchange is None:
            raise ShoalError("no such attempt here")
        await exchange.serve(call, first)

    # -- attempts ----------------------------------------------------------------------------

    async def _lead(self, prepare: Prepare) -> None:
        lead = Lead(prepare, self._rpc, self._signer, self._open_exchange)
        self._supersede()
        self._current = lead
        outcome: Certificate | Aborted = Aborted(frozenset())
        try:
            outcome = await lead.run()
        except* ShoalError as errors:  # of this attempt; the next may do better
            _log.warning("run.attempt_failed run=%s error=%r", prepare.run, errors.exceptions[0])
            self._own_failures += 1
            await trio.sleep(FAILED_WAIT_S)
        if self._own_failures >= OWN_FAILURES_MAX:
            self.fail(f"{OWN_FAILURES_MAX} attempts at round {prepare.round} failed here")
        self._settle(prepare.ballot, outcome, lead)

    def _open_exchange(
        self, prepare: Prepare, news: Callable[[Fault | Complete], None]
    ) -> Exchange:
        def note(event: Fault | Complete) -> None:
            if isinstance(event, Fault) and event.reason == "bad":
                self.rounds.bar(event.accused)  # we saw it ourselves: its stream is its own
            news(event)

        exchange = Exchange(prepare, self._rpc, self.contribution, self._work, note)
        self._exchanges[prepare.ballot] = exchange
        self._change()
        return exchange

    def _supersede(self) -> None:
        if isinstance(self._current, Follow):
            self._current.supersede(self.rounds.attempt)
        elif self._current is not None:
            self._current.supersede()
        self._current = None

    def _settle(
        self, ballot: Ballot, outcome: Certificate | Aborted, attempt: Lead | Follow
    ) -> None:
        """Take in how an attempt ended."""
        exchange, prepare = attempt.exchange, attempt.prepare
        exchange.close()
        self._exchanges.pop(ballot, None)
        if self._current is attempt:
            self._current = None
        if exchange.shards:
            self._held = exchange
            if self.rounds.ballot == ballot or self.rounds.ballot is None:
                self.rounds.hold(prepare.bound(result_of(exchange.shards)))
        self._poke()
        certificate = outcome if isinstance(outcome, Certificate) else outcome.certificate
        if certificate is not None:
            self._learn(certificate)
        if isinstance(outcome, Certificate):
            return
        for peer in outcome.stale:
            self.rounds.refused(peer)
        self.rounds.failed(ballot, outcome.excluded, attempt=outcome.attempt)

    def _learn(self, certificate: Certificate) -> None:
        """A round is over somewhere: apply its mean if we hold it, else we are behind."""
        mine, held = self.rounds.mine, self._held
        if mine is None or certificate.run != mine.run or certificate.round < mine.round:
            return
        if not self.rounds.is_quorum(certificate.members):
            return
        is_held = (
            held is not None
            and certificate.ballot == held.prepare.ballot
            and certificate.result == result_of(held.shards)
        )
        if held is None or not is_held:
            self._supersede()
            self._fall_behind(certificate.round + 1, None)
            return
        np.copyto(self.contribution, held.mean)
        self._held = None
        self.rounds.committed(certificate)
        self._end(
            Outcome(
                certificate,
                at_least=certificate.round + 1,
                bytes_in=held.bytes_in,
                bytes_out=held.bytes_out,
                seconds=trio.current_time() - self._submitted_at,
            )
        )
        if self._nursery is not None:
            self._nursery.start_soon(self._on_commit, certificate)

    def _fall_behind(self, at_least: int, root: bytes | None) -> None:
        self.rounds.withdraw()
        self._end(Outcome(None, at_least=at_least, root=root))

    def _end(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._change()
        self._poke()

    # -- telling others ----------------------------------------------------------------------

    async def _spread(self) -> None:
        """While we wait for a round, tell the others that we are ready."""
        while True:
            self._spread_wake = trio.Event()
            mine = self.rounds.mine
            if mine is not None and self.rounds.ballot is None:
                await self._tell_all(mine)
            wait_s = REPEAT_S if mine is not None else math.inf
            with trio.move_on_after(wait_s):
                await self._spread_wake.wait()

    async def _tell_all(self, ready: Ready) -> None:
        census = self._census()
        peers = set(census.live) | set(census.others)
        async with trio.open_nursery() as nursery:
            for peer in peers - {self._rpc.peer}:
                nursery.start_soon(partial(self._tell, peer, ready))

    async def _tell(self, peer: PeerId, ready: Ready) -> None:
        try:
            heard = await self._rpc.call(peer, READY, ready, timeout_s=READY_WAIT_S)
        except RemoteError as error:
            self.rounds.lose(peer)  # not in the run, or in another of the same name
            if error.code == SchemaMismatch.code:
                self._refusals[peer] = str(error)[:MESSAGE_MAX]
                self._change()
        except ShoalError:
            self.rounds.lose(peer)
        else:
            self.rounds.meet(peer)
            if heard.ready is not None:
                self.rounds.hear(peer, heard.ready)
            if heard.certificate is not None and heard.certificate.is_signed():
                self._learn(heard.certificate)
        self._poke()

    def _check_refusals(self) -> None:
        """Believe that we do not fit the run if most of its other members say so, and it has not
        had a round with us.
        """
        certificate, others = self.rounds.certificate, set(self._census().live) - {self._rpc.peer}
        if certificate is not None and self._rpc.peer in certificate.members:
            return
        said = sorted(others & self._refusals.keys())
        if 2 * len(said) > len(others):
            raise SchemaMismatch(self._refusals[said[0]])

    def _poke(self) -> None:
        self._wake.set()

    def _change(self) -> None:
        """Wake all who wait for something to change; each looks for itself."""
        self._changed.set()
        self._changed = trio.Event()
