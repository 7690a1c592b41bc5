"""Race several attempts, the next one starting a moment after the last: the first success wins.

libp2p 0.8.1 tries one address per transport and always waits 250 ms; a dead first address hides a
good second one there. Source of the idea: RFC 8305 (happy eyeballs).
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Generic, TypeVar

import trio

from wire.errors import PeerUnreachable
from wire.faults import OnFailure

C = TypeVar("C")
R = TypeVar("R")


class Lanes(Generic[C]):
    """Who runs in a race. More may come while it goes on."""

    def __init__(self, lanes: Iterable[Sequence[C]]) -> None:
        self.waiting = list(lanes)
        self.news = trio.lowlevel.ParkingLot()

    def add(self, lane: Sequence[C]) -> None:
        """Let these run, too."""
        self.waiting.append(lane)
        self.news.unpark_all()


async def race(
    lanes: Lanes[C],
    attempt: Callable[[C], Awaitable[R]],
    discard: Callable[[R], None],
    *,
    stagger_s: float,
) -> R:
    """Return the first result; later ones are discarded, attempts in progress cancelled.

    The candidates of each lane start one after the other, the lanes at once.
    An attempt fails by raising PeerUnreachable, and then the next starts at once. Raises
    PeerUnreachable with every reason if all fail.
    """
    won: list[R] = []
    reasons: list[str] = []
    runners = 0

    async def run(candidate: C, failed: trio.Event) -> None:
        try:
            result = await attempt(candidate)
        except PeerUnreachable as error:
            reasons.append(f"{candidate}: {error}")
            failed.set()
            lanes.news.unpark_all()
            return
        if won:
            discard(result)
        else:
            won.append(result)
            nursery.cancel_scope.cancel()

    async def start(candidates: Sequence[C]) -> None:
        for candidate in candidates:
            failed = trio.Event()
            nursery.start_soon(run, candidate, failed)
            with trio.move_on_after(stagger_s):
                await failed.wait()

    def give_up() -> None:
        for result in won:
            discard(result)

    with OnFailure(give_up):  # the caller is cancelled as one has won
        async with trio.open_nursery() as nursery:
            while lanes.waiting or len(reasons) < runners:
                while lanes.waiting:
                    candidates = lanes.waiting.pop(0)
                    runners += len(candidates)
                    nursery.start_soon(start, candidates)
                if len(reasons) < runners:
                    await lanes.news.park()
    if won:
        return won[0]
    raise PeerUnreachable("; ".join(reasons) or "no address known")
