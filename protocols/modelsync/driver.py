"""Drives the machine of one lane: announces that we are ready, leads and follows attempts."""

import logging
import math
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from protocols.modelsync.accounts import Accounts
from protocols.modelsync.aggregate import aggregator_named
from protocols.modelsync.ballots import Electorate
from protocols.modelsync.codecs import Vector
from protocols.modelsync.exchange import Exchange
from protocols.modelsync.exchanges import Exchanges
from protocols.modelsync.follow import Follow
from protocols.modelsync.herald import Herald, SchemaMismatch, is_alike
from protocols.modelsync.lead import Lead
from protocols.modelsync.machine import Behind, Diverged, Propose, Rounds
from protocols.modelsync.part import Attachment, Census, Outcome, RunFailed, Wish
from protocols.modelsync.rates import Rates
from protocols.modelsync.tally import Aborted
from protocols.modelsync.trust import Trust
from protocols.modelsync.verify import suspect
from protocols.modelsync.wire import (
    Answer,
    Bound,
    Certificate,
    Heard,
    Order,
    Piece,
    Prepare,
    Ready,
    result_of,
)
from protocols.modelsync.work import Work, suited
from wire.errors import BadMessage, ShoalError
from wire.ids import PeerId, Signer
from wire.ports import Bulk, Call, Rpc

LOOK_S = 0.5  # seconds between two looks at the members' leases while we wait
STORE_LOOK_S = 3.0  # seconds of waiting between two looks for our round's certificate in the store
OWN_FAILURES_MAX = 2  # such attempts of a round: then we would only hold up the others
FAILED_WAIT_S = 1.0  # seconds before the next attempt after one that failed by our own fault

_log = logging.getLogger(__name__)


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
        stored: Callable[[Electorate], list[Certificate]],
        accounts: Accounts,
        work: Work,
        trust: Trust | None = None,
        bulk: Bulk | None = None,
        owns: Callable[[], bool] = lambda: True,
        is_back: bool = False,
    ) -> None:
        """`is_back`: this node has been in the run before, and has forgotten its promises."""
        self.attachment, self.number = attachment, number
        self.shape = attachment.lane_shape(number)
        self._slice = list(attachment.slices())[number]
        self.rounds = Rounds(
            attachment.run,
            rpc.peer,
            Electorate(attachment.min_members, attachment.sample),
            attachment.patience_s,
            lane=number,
            replicas_differ=attachment.replicas_differ,
            is_verified=attachment.is_verified,
        )
        self._rpc, self._signer = rpc, signer
        self._census, self._on_commit, self._stored = census, on_commit, stored
        self._accounts, self._work, self._owns, self._trust = accounts, work, owns, trust
        self._herald = Herald(rpc, self.rounds.roster, census, self._announced, self._on_heard)
        self._current: Lead | Follow | None = None
        self._exchanges = Exchanges(
            rpc,
            bulk,
            work,
            contribution=self.contribution,
            aggregator=aggregator_named(attachment.aggregator),
            wants_sent=attachment.sent is not None,
            on_bad=self.rounds.roster.bar,
        )
        self._outcome: Outcome | None = None
        self._submitted_at = self._looked_at = 0.0
        self._is_back, self._rates = is_back, Rates()
        self._first_round: int | None = None  # of this driver, which remembers nothing before it
        self._waited: set[PeerId] = set()  # for whose readiness we have counted the seconds
        self._wake, self._changed = trio.Event(), trio.Event()
        self._own_failures, self.failure = 0, ""  # why this lane has ended here
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Drive rounds until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._herald.run)
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
                if waits and now - self._looked_at > STORE_LOOK_S:
                    self._looked_at = now
                    self._look_in_store()
                until = min(self.rounds.deadline, now + LOOK_S if waits else math.inf)
                with trio.move_on_at(until):
                    await self._wake.wait()

    @property
    def contribution(self) -> Vector:
        """This lane's slice of the trainer's exchange buffer."""
        return self.attachment.exchange[self._slice]

    @property
    def is_busy(self) -> bool:
        """True while an attempt moves data."""
        return self._current is not None

    @property
    def next_round(self) -> int:
        """The round that this lane is to make next."""
        return self.rounds.electorate.next_round

    @property
    def electorate(self) -> Electorate:
        """Who speaks for the members of the last certificate that we know."""
        return self.rounds.electorate

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
        elements: int = 0,
    ) -> None:
        """The buffer holds our contribution to a round (nothing to read there at weight 0)."""
        if self._first_round is None:
            self._first_round = round_
        may_have_promised = self._is_back or self.rounds.certificate is not None
        wish = wish or Wish()
        ready = Ready(
            self.attachment.run,
            round_,
            root,
            weight,
            *self.shape._replace(elements=elements or self.shape.elements),
            lane=self.number,
            topology=topology,
            rate=self._rates.best,
            owns=self._owns(),
            is_new=is_new or (may_have_promised and round_ == self._first_round),
            wish_codec=wish.codec,
            wish_every=wish.every,
        )
        self._outcome, self._own_failures = None, 0
        self._submitted_at = self._looked_at = trio.current_time()
        self._waited.clear()
        self._herald.start_round()
        self.rounds.submit(ready)
        self._poke()
        self._herald.poke()

    async def outcome(self, timeout_s: float) -> Outcome | None:
        """Wait for the end of the submitted round. Raises SchemaMismatch if others refuse us."""
        with trio.move_on_after(timeout_s):
            while self._outcome is None:
                if self.failure:
                    raise RunFailed(self.failure)
                self._herald.check(self.rounds.certificate)
                await self._changed.wait()
        return self._outcome

    def fail(self, failure: str) -> None:
        """Driving this lane has failed: tell the trainer, take part no more."""
        self.failure = failure
        self.rounds.withdraw()
        self._change()

    def stop(self) -> None:
        """Our trainer leaves: nothing is signed or written any more."""
        self.rounds.withdraw()
        self._supersede()

    def adopt(self, certificate: Certificate | None) -> None:
        """Our trainer has loaded a state; its certificate names the electorate."""
        self.rounds.adopt(certificate)

    # -- what peers ask of us ----------------------------------------------------------------

    def on_ready(self, peer: PeerId, ready: Ready) -> Heard:
        """Note that a peer is ready; tell it what we know."""
        if not is_alike(ready, self.shape, self.rounds.mine):
            raise SchemaMismatch(f"run {ready.run} has {self.shape}; not {ready.shape}")
        self._hear(peer, ready)
        self._poke()
        return Heard(self.rounds.mine, self.rounds.ending(ready.round))

    async def on_attempt(self, call: Call[Answer, Order], first: Order) -> None:
        """Take part in the attempt of the peer that opened this stream."""
        order = first.body
        if not isinstance(order, Prepare) or order.proposer != call.peer:
            raise BadMessage("the stream of an attempt opens with the proposer's PREPARE")
        if reason := self.rounds.offered(order):
            await call.send(Answer(self.rounds.refusal(order, reason)))
            return
        self._supersede()
        bound = self.rounds.bound
        follow = Follow(
            order, call, self._signer, self._exchanges.open, hold=self._hold, bound=bound
        )
        self._current = follow
        outcome: Certificate | Aborted = Aborted(frozenset({order.proposer}))
        try:
            outcome = await follow.run()
        finally:  # also when the proposer cancels the call
            self._settle(outcome, follow)

    async def on_reduce(self, call: Call[Piece, Piece], first: Piece) -> None:
        """Serve the data of an attempt to the peer that opened this stream."""
        await self._exchanges.serve(call, first)

    # -- attempts ----------------------------------------------------------------------------

    async def _lead(self, prepare: Prepare) -> None:
        if self.rounds.ballot != prepare.ballot:
            return  # a better attempt began meanwhile
        self._supersede()
        terms = (prepare, self._rpc, self._signer, self._exchanges.open)
        lead = Lead(*terms, hold=self._hold, bound=lambda: self.rounds.bound)
        self._current = lead
        outcome: Certificate | Aborted = Aborted()
        try:
            outcome = await lead.run()
        except* ShoalError as errors:  # of this attempt; the next may do better
            _log.warning("run.attempt_failed run=%s error=%r", prepare.run, errors.exceptions[0])
            self._own_failures += 1
            await trio.sleep(FAILED_WAIT_S)
        if self._own_failures >= OWN_FAILURES_MAX:
            self.fail(f"{OWN_FAILURES_MAX} attempts at round {prepare.round} failed here")
        self._settle(outcome, lead)

    def _hold(self, bound: Bound, exchange: Exchange) -> None:
        """We sign a result: until we know how the round ended, we stand by it."""
        self._exchanges.held = exchange
        self.rounds.hold(bound)
        if self._trust is not None and exchange.brought:
            commitment = bound.commitments[bound.members.index(self._rpc.peer)]
            data = [bytes(chunk) for chunk in exchange.brought]
            self._trust.brought(self.attachment.run, self.number, commitment, data)

    def _supersede(self) -> None:
        if self._current is not None:
            self._current.supersede(self.rounds.attempt)
        self._current = None

    def _settle(self, outcome: Certificate | Aborted, attempt: Lead | Follow) -> None:
        """Take in how an attempt ended."""
        ballot, exchange = attempt.prepare.ballot, attempt.seat.exchange
        attempt.seat.leave()
        self._exchanges.close(ballot)
        if self._current is attempt:
            self._current = None
        self._rates.add(exchange.rate)
        self._accounts.moved(exchange.bytes_by_peer)
        self._poke()
        if isinstance(outcome, Certificate):
            self._learn(outcome)
            return
        if outcome.certificate is not None:
            self._learn(outcome.certificate)
        self._accounts.left_out(outcome.excluded)
        self.rounds.failed(
            *(ballot, outcome.excluded),
            stale=outcome.stale,
            attempt=outcome.attempt,
            bounds=outcome.bounds,
            is_void=outcome.is_void and attempt.prepare.adopt is None,
        )
        self._herald.poke()  # of what we are bound to; and who was left out is welcome again

    # -- how a round ends --------------------------------------------------------------------

    def _learn(self, certificate: Certificate) -> None:
        """A round is over somewhere: apply its result if we hold it, else we are behind."""
        mine, held = self.rounds.mine, self._exchanges.held
        of = (certificate.run, certificate.lane)
        if mine is None or of != (mine.run, mine.lane) or certificate.round < mine.round:
            return
        if not self.rounds.electorate.is_quorum(certificate.members) or not certificate.is_signed():
            return
        self._supersede()
        is_held = held is not None and certificate.result == result_of(held.shards)
        if held is None or not is_held or certificate.round != mine.round:
            self._fall_behind(certificate.round + 1, None)
            return
        self.rounds.committed(certificate)
        self._exchanges.held = None
        self._accounts.committed(certificate)
        if self._nursery is not None:
            self._nursery.start_soon(self._apply, certificate, held)

    async def _apply(self, certificate: Certificate, held: Exchange) -> None:
        """Put the result where the trainer finds it, then tell it and the world."""
        sent, size = self.attachment.sent, held.prepare.elements
        own = sent[self._slice][:size] if sent is not None else None
        work = suited(self._work, size)
        await work(partial(held.take, self.contribution[:size], own))
        outcome = Outcome(
            certificate,
            at_least=certificate.round + 1,
            bytes_in=held.bytes_in,
            bytes_out=held.bytes_out,
            seconds=trio.current_time() - self._submitted_at,
            rate=held.rate,
        )
        if self._trust is not None:
            shards = (held.prepare.adopt or held.prepare).shards
            self._trust.committed(certificate, shards, suspect=suspect(held.lengths))
        self._end(outcome)
        await self._on_commit(certificate)

    def _fall_behind(self, at_least: int, root: bytes | None) -> None:
        self.rounds.withdraw()
        self._end(Outcome(None, at_least=at_least, root=root))

    def _end(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._change()
        self._poke()

    def _look_in_store(self) -> None:
        """The round may be over without anybody in reach who knows."""
        chain, mine = self._stored(self.rounds.electorate), self.rounds.mine
        if len(chain) == 1:
            self._learn(chain[0])
        elif chain and mine is not None and chain[-1].round >= mine.round:
            self._supersede()
            self._fall_behind(chain[-1].round + 1, None)

    # -- telling others ----------------------------------------------------------------------

    def _announced(self) -> Ready | None:
        """What the others should hear of us: nothing while we are in an attempt."""
        return self.rounds.mine if self.rounds.ballot is None else None

    def _on_heard(self, peer: PeerId, heard: Heard) -> None:
        """What a peer has answered to our readiness."""
        if heard.ready is not None and is_alike(heard.ready, self.shape, self.rounds.mine):
            self._hear(peer, heard.ready)
        if heard.certificate is not None:
            self._learn(heard.certificate)
        self._change()
        self._poke()

    def _hear(self, peer: PeerId, ready: Ready) -> None:
        mine = self.rounds.mine
        if ready.lane != self.number or ready.run != self.attachment.run:
            return
        if mine is not None and mine.round == ready.round and peer not in self._waited:
            self._waited.add(peer)
            self._accounts.waited(peer, trio.current_time() - self._submitted_at)
        self.rounds.hear(peer, ready)

    def _poke(self) -> None:
        self._wake.set()

    def _change(self) -> None:
        """Wake all who wait for something to change; each looks for itself."""
        self._changed.set()
        self._changed = trio.Event()
