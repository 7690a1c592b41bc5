"""A state of a run, from many donors at once: chosen by what members claim, checked by the chunk.

A download survives the loss of all its donors for a while, moves on to a newer state if the
members do, and ends with exactly the state that a root names, or with an error.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from protocols.modelsync.codecs import Vector
from protocols.modelsync.wire import Certificate
from protocols.modelsync.work import Work
from wire.ids import PeerId
from wire.ports import Rpc


@dataclass(frozen=True)
class Aim:
    """Which state is sought.

    `at_least`: the earliest round that it may precede; a state before that very round must have
    `root`, if that is given. `members`: whom to ask, those of the last certificate first, then
    by lease. `is_quorum` says if peers speak for the members that we know (Rounds.is_quorum).
    """

    run: str
    lane: int
    at_least: int
    members: Callable[[], list[PeerId]]
    is_quorum: Callable[[Collection[PeerId]], bool]
    root: bytes | None = None


@dataclass(frozen=True)
class Loaded:
    """A state is in the target: which, under which certificate, and what it took."""

    round: int
    root: bytes
    certificate: Certificate | None
    bytes_in: int = 0  # of chunks that came
    corrupt: int = 0  # chunks that were not what their hash said
    donors: tuple[PeerId, ...] = ()  # who gave at least one chunk


Progress = Callable[[int, int], None]  # chunks that are right, and all chunks


class Joining:
    """Loads states from the members of runs."""

    def __init__(self, rpc: Rpc, work: Work) -> None:
        self._rpc, self._work = rpc, work

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

        `target` may hold an old state or part of a download, and `held` a state of ours (not the
        same memory): chunks that are right already are not fetched. Raises DeadlineExceeded if
        nothing has come for STALL_S; chunks of `target` are then right ones or what they were.
        """
        raise NotImplementedError
