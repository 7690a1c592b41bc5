"""Gives states to joiners, from copies, so that no trainer ever waits for one."""

from collections.abc import Callable

from protocols.modelsync.codecs import Vector
from protocols.modelsync.state import State
from protocols.modelsync.work import Work
from wire.ports import Rpc


class Donor:
    """The states of this node's runs, and the copies that joiners load them from.

    Serves HOLDING and CHUNKS. `is_busy`: a round of this node moves data now; giving then takes
    at most a twentieth of the time. Call `tidy` every few seconds: it drops copies nobody loads.
    """

    def __init__(self, rpc: Rpc, work: Work, *, is_busy: Callable[[], bool]) -> None:
        raise NotImplementedError

    def announce(self, run: str, lane: int, state: State) -> None:
        """Offer a state. Its vector must not change until the announce after next."""

    def keep(self, run: str, vectors: list[Vector]) -> None:
        """Go on giving the announced states from these vectors (lane by lane), never to change:
        the trainer's own buffers go away.
        """

    def forget(self, run: str) -> None:
        """Offer nothing of a run any more."""

    def state_of(self, run: str, lane: int) -> State | None:
        """The state that was announced last."""

    def tidy(self) -> None:
        """Drop the copies that nobody has loaded from for a while."""
