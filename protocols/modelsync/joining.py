"""A state of a run, from many donors at once: chosen by what members claim, checked by the chunk.

A download survives the loss of all its donors for a while, moves on to a newer state if the
members do, and ends with exactly the state that a root names, or with an error.
"""

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import trio

from protocols.modelsync.codecs import Vector
from protocols.modelsync.donors import Offer, donors_of, offers
from protocols.modelsync.download import Download, Progress
from protocols.modelsync.state_wire import HOLDING, Holding
from protocols.modelsync.wire import Ask, Certificate
from protocols.modelsync.work import Work
from wire.errors import DeadlineExceeded, NotFound, RemoteError, ShoalError
from wire.ids import PeerId
from wire.ports import Rpc

SURVEY_WAIT_S = 3.0  # seconds for a peer to say which state it has
SURVEY_REST_S = 0.5  # seconds for the rest, once half of them have answered
ASKED_MAX = 32  # peers asked which state they hold
GRACE_S = 3.0  # seconds until a state is taken that less than half of the members claim
RETRY_S = 0.25  # seconds between two surveys: members announce within milliseconds of each other
RESURVEY_S = 2.0  # seconds between two while a download goes on: new donors, newer states
BARREN_S = 8.0  # seconds without a chunk until another offer is tried, if there is one
STALL_S = 120.0  # seconds without a chunk until it is given up: all donors may be cut off for less
LOST_S = 15.0  # seconds until a state is given up that most of its makers do not have: a lease
SILENT_S = 5.0  # seconds that who did not answer is not asked again: lanes are joined one by one
MOVES_MAX = 8  # to newer states: members that are faster than the download are not chased forever

_log = logging.getLogger(__name__)


class StateLost(NotFound):
    """A state that was made is nowhere: most of those who made it are here, and back at an earlier
    round, as after a power cut that hit all of them.
    """

    code = "state_lost"


@dataclass(frozen=True)
class Aim:
    """Which state is sought.

    `at_least`: the earliest round that it may precede; a state before that very round must have
    `root`, if that is given. `members`: whom to ask, those of the last certificate first, then
    by lease. `is_quorum` says if peers speak for the members that we know (Rounds.is_quorum).
    `makers`: the members of the last certificate, without whom no state is given up.
    """

    run: str
    lane: int
    at_least: int
    members: Callable[[], list[PeerId]]
    is_quorum: Callable[[Collection[PeerId]], bool]
    root: bytes | None = None
    makers: Callable[[], Collection[PeerId]] = tuple

    def __str__(self) -> str:
        """As a person is told of it."""
        return f"the state of lane {self.lane} of run {self.run} before round {self.at_least}"

    def fits(self, offer: Offer) -> bool:
        """True if this state is sought."""
        if offer.round == self.at_least:
            return self.root in (None, offer.root)
        return offer.round > self.at_least

    def is_lost(self, claims: Mapping[PeerId, Holding], me: PeerId) -> bool:
        """True if more than half of the makers are here, and no member knows of such a round."""
        makers, here = set(self.makers()), claims.keys() | {me}
        is_earlier = all(holding.next < self.at_least for holding in claims.values())
        return is_earlier and 2 * len(makers & here) > len(makers)


@dataclass(frozen=True)
class Loaded:
    """A state is in the target: which, under which certificate, and what it took."""

    round: int
    root: bytes
    certificate: Certificate | None
    bytes_in: int = 0  # of chunks that came
    corrupt: int = 0  # chunks that were not what their hash said
    donors: tuple[PeerId, ...] = ()  # who gave at least one chunk of this state


@dataclass
class _Load:
    """One call of `load`, over all the states that it goes through."""

    aim: Aim
    target: Vector
    held: Vector | None
    progress: Progress | None
    stall: trio.CancelScope
    last: float  # time of the last chunk
    moves: int = 0
    bytes_in: int = 0
    corrupt: int = 0
    liars: set[PeerId] = field(default_factory=set[PeerId])
    barren: set[bytes] = field(default_factory=set[bytes])  # roots that nobody gives

    def went_on(self, right: int, chunks: int) -> None:
        """A chunk has come."""
        self.last = trio.current_time()
        self.stall.deadline = self.last + STALL_S
        if self.progress is not None:
            self.progress(right, chunks)

    def fitting(self, found: list[Offer]) -> list[Offer]:
        """Return the offers that are sought and not known to be empty, unless all are."""
        found = [offer for offer in found if self.aim.fits(offer)]
        fertile = [offer for offer in found if offer.root not in self.barren]
        if not fertile:
            self.barren.clear()
        return fertile or found

    def better(self, now: Offer, found: list[Offer]) -> Offer | None:
        """Return what to load instead of `now`: a newer state that is sure, or one that can be
        had, if this one cannot.
        """
        others = [offer for offer in found if offer.root != now.root]
        newer = [offer for offer in others if offer.is_sure and offer.round > now.round]
        if newer and newer[0] is found[0] and self.moves < MOVES_MAX:
            self.moves += 1
            return newer[0]
        if others and trio.current_time() - self.last > BARREN_S:
            self.barren.add(now.root)
            return others[0]
        return None


class Joining:
    """Loads states from the members of runs."""

    def __init__(self, rpc: Rpc, work: Work) -> None:
        self._rpc, self._work = rpc, work
        self._silent_until: dict[PeerId, float] = {}

    async def load(
        self,
        aim: Aim,
        target: Vector,
        *,
        held: Vector | None = None,
        must_exist: bool = True,
        progress: Progress | None = None,
    ) -> Loaded | None:
        """Load the state that is sought into `target`. None: nobody has one (not `must_exist`).
        Raises StateLost if it did exist, and does not any more.

        `target` may hold an old state or part of a download, and `held` a state of ours (not the
        same memory): chunks that are right already are not fetched. Raises DeadlineExceeded if
        nothing has come for STALL_S; each chunk of `target` is then a right one or what it was.
        """
        with trio.move_on_after(STALL_S) as stall:
            load = _Load(aim, target, held, progress, stall, trio.current_time())
            offer = await self._choose(load, must_exist=must_exist)
            while offer is not None:
                done = await self._download(load, offer)
                if isinstance(done, Loaded):
                    return done
                offer = done
            return None
        raise DeadlineExceeded(f"no member gives {aim}")

    async def _choose(self, load: _Load, *, must_exist: bool) -> Offer | None:
        """Wait for a state that most members claim; for a while only, if there is any."""
        sure_until, lost_at = trio.current_time() + GRACE_S, trio.current_time() + LOST_S
        while True:
            claims = await self._survey(load.aim)
            found, now = load.fitting(self._offers(load, claims)), trio.current_time()
            if not found and not must_exist:
                return None
            if found:
                is_named = found[0].root == load.aim.root  # by the certificate, or by most voters
                if found[0].is_sure or is_named or now >= sure_until:
                    return found[0]
            if not load.aim.is_lost(claims, self._rpc.peer):
                lost_at = now + LOST_S
            elif now >= lost_at:
                raise StateLost(f"{load.aim} is lost: its makers have earlier ones only")
            await trio.sleep(RETRY_S)

    async def _download(self, load: _Load, offer: Offer) -> Loaded | Offer:
        """Load a state; or return a better one, once there is one."""
        aim, better = load.aim, list[Offer]()
        download = Download(
            self._rpc,
            self._work,
            aim.run,
            aim.lane,
            offer.root,
            load.target,
            load.held,
            load.went_on,
        )
        download.liars = load.liars
        load.last = trio.current_time()  # of this state: it has BARREN_S for its first chunk

        async def watch(scope: trio.CancelScope) -> None:
            while not better:
                await trio.sleep(RESURVEY_S)
                claims = await self._survey(aim)
                download.add(donors_of(claims, offer.round, offer.root))
                found = load.better(offer, load.fitting(self._offers(load, claims)))
                better.extend([found] if found is not None else [])
            scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, nursery.cancel_scope)
            await download.run(offer.donors)
            better.clear()
            nursery.cancel_scope.cancel()
        load.bytes_in += download.bytes_in
        load.corrupt += download.corrupt
        if better:
            _log.info("run.load_moves run=%s from=%d to=%d", aim.run, offer.round, better[0].round)
            return better[0]
        donors = download.givers
        _log.info("run.loaded run=%s round=%d donors=%d", aim.run, offer.round, len(donors))
        return Loaded(
            offer.round, offer.root, offer.certificate, load.bytes_in, load.corrupt, donors
        )

    def _offers(self, load: _Load, claims: dict[PeerId, Holding]) -> list[Offer]:
        """Judge the claims of those who have not lied to us."""
        aim = load.aim
        return offers(
            {peer: holding for peer, holding in claims.items() if peer not in load.liars},
            me=self._rpc.peer,
            run=aim.run,
            lane=aim.lane,
            elements=len(load.target),
            members=aim.members(),
            is_quorum=aim.is_quorum,
        )

    async def _survey(self, aim: Aim) -> dict[PeerId, Holding]:
        """Ask the members which state they hold."""
        now = trio.current_time()
        self._silent_until = {p: until for p, until in self._silent_until.items() if until > now}
        unasked = {*self._silent_until, self._rpc.peer}
        asked = [peer for peer in aim.members() if peer not in unasked][:ASKED_MAX]
        claims: dict[PeerId, Holding] = {}
        silent = set(asked)

        async def ask(peer: PeerId, scope: trio.CancelScope) -> None:
            try:
                question = Ask(aim.run, aim.lane)
                claims[peer] = await self._rpc.call(
                    peer, HOLDING, question, timeout_s=SURVEY_WAIT_S
                )
            except RemoteError:
                pass  # it has no state
            except ShoalError:
                return  # it is not there
            silent.discard(peer)
            if 2 * len(claims) > len(asked):
                scope.deadline = min(scope.deadline, trio.current_time() + SURVEY_REST_S)

        async with trio.open_nursery() as nursery:
            for peer in asked:
                nursery.start_soon(ask, peer, nursery.cancel_scope)
        self._silent_until.update(dict.fromkeys(silent, now + SILENT_S))
        return claims
