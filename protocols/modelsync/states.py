"""States of runs: loading them from members, and giving ours to others.

ModelSync owns one `States` and passes calls through; it knows lanes only as `Lane` below.
"""

import logging
from collections.abc import Callable
from functools import partial
from typing import Protocol

import numpy as np

from protocols.modelsync.ballots import Electorate
from protocols.modelsync.codecs import Vector
from protocols.modelsync.donor import Donor
from protocols.modelsync.download import Progress
from protocols.modelsync.joining import Aim, Joining, Loaded, StateLost
from protocols.modelsync.part import Attachment, Fetched
from protocols.modelsync.registry import Registry
from protocols.modelsync.state import State
from protocols.modelsync.wire import Certificate
from protocols.modelsync.work import Work
from wire.errors import NotFound
from wire.ids import PeerId
from wire.ports import Rpc

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

    @property
    def next_round(self) -> int:
        """The round that it is to make next."""
        ...

    @property
    def electorate(self) -> Electorate:
        """Who speaks for the members of the last certificate that we know."""
        ...

    def adopt(self, certificate: Certificate | None) -> None:
        """A downloaded state is in the trainer's buffer; its certificate names the electorate."""
        ...


class States:
    """The states that this node gives to others, and where it gets its own from.

    `is_busy`: a round of this node moves data now, which goes first.
    """

    def __init__(
        self,
        rpc: Rpc,
        registry: Registry,
        work: Work,
        *,
        lane_of: Callable[[str, int], Lane],
        is_busy: Callable[[], bool],
    ) -> None:
        self._registry, self._lane_of, self._work = registry, lane_of, work
        self._donor = Donor(rpc, work, is_busy=is_busy, next_round=self._next_round)
        self._joining = Joining(rpc, work)
        self._lanes: dict[str, set[int]] = {}  # that were announced, by run

    # -- for the trainer of this node --------------------------------------------------------

    async def join(
        self, run: str, lane: int, round_: int, target: Vector, progress: Progress | None = None
    ) -> Fetched | None:
        """If members hold a later state than that before `round_`, load it into `target`.

        Raises DeadlineExceeded if one is claimed, but nobody gives it.
        """
        aim = self._aim(run, lane, round_ + 1, None)
        loaded = await self._joining.load(aim, target, must_exist=False, progress=progress)
        return self._taken(run, lane, loaded) if loaded is not None else None

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
        """Load a state that must exist somewhere; only chunks that neither `target` nor our
        announced state has are fetched. If it is lost, the latest that can be had, of an earlier
        round. Raises DeadlineExceeded if nobody gives it.
        """
        state = self._donor.state_of(run, lane)
        held = None if state is None or np.may_share_memory(state.vector, target) else state.vector
        aim = self._aim(run, lane, at_least, root)
        try:
            loaded = await self._joining.load(aim, target, held=held, progress=progress)
        except StateLost as error:
            _log.warning("run.state_lost run=%s lane=%d error=%s", run, lane, error)
            loaded = await self._latest_left(run, lane, target)
            self._registry.give_up(run, lane, loaded.round)
        assert loaded is not None, "a state that must exist is loaded or an error"
        return self._taken(run, lane, loaded)

    async def _latest_left(self, run: str, lane: int, target: Vector) -> Loaded:
        """Load the latest state that there is: another member's, or our own. Raises StateLost."""
        ours = self._donor.state_of(run, lane)
        aim = self._aim(run, lane, ours.round + 1 if ours is not None else 0, None)
        loaded = await self._joining.load(aim, target, must_exist=False)
        if loaded is not None:
            return loaded
        if ours is None:
            raise StateLost(f"no member has any state of lane {lane} of run {run}")
        await self._work(partial(np.copyto, target, ours.vector))
        return Loaded(ours.round, ours.root, ours.certificate)

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
        self._lanes.setdefault(run, set()).add(lane)
        self._donor.announce(run, lane, State(round_, root, vector, certificate))

    def leave(self, run: str, keep: list[Vector] | None) -> dict[int, int]:
        """Go on giving only copies of the announced states; return their rounds by lane."""
        found = {lane: self.state_of(run, lane) for lane in self._lanes.pop(run, set())}
        if keep is None:
            self._donor.forget(run)
        else:
            self._donor.keep(run, keep)
        return {lane: state.round for lane, state in found.items() if state is not None}

    def state_of(self, run: str, lane: int) -> State | None:
        """The state that this node gives to joiners."""
        return self._donor.state_of(run, lane)

    def tidy(self) -> None:
        """Drop copies that nobody loads. Call it every few seconds."""
        self._donor.tidy()

    # -- inside ------------------------------------------------------------------------------

    def _aim(self, run: str, lane: int, at_least: int, root: bytes | None) -> Aim:
        part = self._lane_of(run, lane)

        def makers() -> list[PeerId]:
            return self._registry.makers(run, lane, part.electorate)

        def members() -> list[PeerId]:
            return list(dict.fromkeys([*makers(), *self._registry.leases(run)]))

        return Aim(run, lane, at_least, members, part.electorate.is_quorum, root, makers)

    def _next_round(self, run: str, lane: int) -> int:
        try:
            return self._lane_of(run, lane).next_round
        except NotFound:
            return 0  # we have left

    def _taken(self, run: str, lane: int, loaded: Loaded) -> Fetched:
        self._lane_of(run, lane).adopt(loaded.certificate)
        return Fetched(loaded.round, loaded.root)
