"""Trying what mDNS has found: anybody on the LAN can announce anything, so a finding is a hint.

Each leads to one attempt to connect, few at a time and not faster than `PAUSE_S` allows; only who
is admitted to the swarm is kept (and remembered) from then on.
"""

from collections.abc import Awaitable, Callable

import trio

from node.host.mdns import Found

WAITING_MAX = 64  # findings not tried yet; when full, new ones are dropped: a LAN has fewer nodes
WORKERS = 4  # attempts at a time
ATTEMPT_S = 5.0  # for TCP, Noise and admission on a LAN
PAUSE_S = 1.0  # of a worker after each attempt: somebody who invents nodes costs 4 dials a second


class Nearby:
    """`found` is told by mDNS; `attempt` connects, and keeps who was admitted."""

    def __init__(self, attempt: Callable[[Found], Awaitable[None]]) -> None:
        self._attempt = attempt
        self._waiting: set[Found] = set()
        self._send, self._receive = trio.open_memory_channel[Found](WAITING_MAX)
        self.dropped = 0

    def found(self, found: Found) -> None:
        """Try it soon, unless it waits already or too many do."""
        if found in self._waiting:
            return
        try:
            self._send.send_nowait(found)
        except trio.WouldBlock:
            self.dropped += 1
            return
        self._waiting.add(found)

    async def run(self) -> None:
        """Try until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(WORKERS):
                nursery.start_soon(self._work)

    async def _work(self) -> None:
        async for found in self._receive:
            self._waiting.discard(found)
            with trio.move_on_after(ATTEMPT_S):
                await self._attempt(found)
            await trio.sleep(PAUSE_S)
