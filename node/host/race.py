"""Race several attempts, the next one starting a moment after the last: the first success wins.

libp2p 0.8.1 tries one address per transport and always waits 250 ms; a dead first address hides a
good second one there. Source of the idea: RFC 8305 (happy eyeballs).
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Generic, TypeVar

import trio

from wire.errors import PeerUnreachable

C = TypeVar("C")
R = TypeVar("R")


class Starters(Generic[C]):
    """Who runs in a race. More may come while it goes on."""

    def __init__(self, candidates: Iterable[C]) -> None:
        self.waiting = list(candidates)
        self.news = trio.lowlevel.ParkingLot()

    def add(self, candidates: Iterable[C]) -> None:
        """Let these run, too."""
        self.waiting.extend(candidates)
        self.news.unpark_all()


async def race(
    lanes: Sequence[Starters[C]],
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
    started = 0

    async def run(candidate: C, failed: trio.Event) -> None:
        try:
            result = await attempt(candidate)
        except PeerUnreachable as error:
            reasons.append(f"{candidate}: {error}")
            failed.set()
            for lane in lanes:
                lane.news.unpark_all()
            return
        if won:
            discard(result)
        else:
            won.append(result)
            nursery.cancel_scope.cancel()

    async def start(lane: Starters[C]) -> None:
        nonlocal started
        while lane.waiting or len(reasons) < started or any(each.waiting for each in lanes):
            if not lane.waiting:
                await lane.news.park()
                continue
            failed = trio.Event()
            nursery.start_soon(run, lane.waiting.pop(0), failed)
            started += 1
            with trio.move_on_after(stagger_s):
                await failed.wait()

    async with trio.open_nursery() as nursery:
        for lane in lanes:
            nursery.start_soon(start, lane)
    if won:
        return won[0]
    raise PeerUnreachable("; ".join(reasons) or "no address known")
