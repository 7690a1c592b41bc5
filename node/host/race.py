"""Race several attempts, the next one starting a moment after the last: the first success wins.

libp2p 0.8.1 tries one address per transport and always waits 250 ms; a dead first address hides a
good second one there. Source of the idea: RFC 8305 (happy eyeballs).
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import trio

from wire.errors import PeerUnreachable

C = TypeVar("C")
R = TypeVar("R")


async def race(
    lanes: Sequence[Sequence[C]],
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

    async def run(candidate: C, failed: trio.Event) -> None:
        try:
            result = await attempt(candidate)
        except PeerUnreachable as error:
            reasons.append(f"{candidate}: {error}")
            failed.set()
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

    async with trio.open_nursery() as nursery:
        for candidates in lanes:
            nursery.start_soon(start, candidates)
    if won:
        return won[0]
    raise PeerUnreachable("; ".join(reasons) or "no address known")
