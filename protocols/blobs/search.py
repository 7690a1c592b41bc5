"""Who has a blob: those the caller names, members that are connected, and what the DHT says.

It goes on while a fetch runs, so a provider that comes late is found too.
"""

import functools
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

import trio

from protocols.blobs.wire import WHO, Cid, Who
from wire.errors import ShoalError
from wire.ids import PeerId
from wire.ports import Rpc

ASKED_MAX = 64  # connected peers that are asked in a round
WHO_TIMEOUT_S = 3.0  # for the word of one of them
DHT_TIMEOUT_S = 10.0  # for a lookup
FIRST_WAIT_S = 0.5  # before others are looked for, if the caller has named some
INTERVAL_S = 10.0  # between two rounds
RETRY_S = 10.0  # before a provider that was lost may come again


class Finder(Protocol):
    """What blobs need of `dht.service.DhtService`. Keys are any bytes."""

    async def provide_many(self, keys: Iterable[bytes], /) -> int:
        """Say that we have these, now and again, until they are withdrawn."""
        ...

    def withdraw(self, key: bytes, /) -> None:
        """Stop saying so."""
        ...

    async def providers(self, key: bytes, /) -> list[PeerId]:
        """Return who says to have `key`."""
        ...


class Source:
    """Where one `fetch` may look; shared by all the files of a tree."""

    def __init__(
        self,
        rpc: Rpc,
        named: Iterable[PeerId],
        *,
        peers: Callable[[], list[PeerId]],
        finder: Finder | None,
    ) -> None:
        self.rpc, self.peers, self.finder = rpc, peers, finder
        self.named = [peer for peer in dict.fromkeys(named) if peer != rpc.peer]
        self.liars: set[PeerId] = set()  # never asked again


class Search:
    """Collects candidates in `pending`; `changed` is unparked when there are more."""

    def __init__(self, source: Source, cid: Cid, changed: trio.lowlevel.ParkingLot) -> None:
        self._source, self._cid, self._changed = source, cid, changed
        self._lost: dict[PeerId, float] = {}  # when
        self._taken: set[PeerId] = set()  # pending or being asked
        self._wake = trio.Event()
        self.pending: deque[PeerId] = deque()
        self.is_spent = False  # a whole round has found nobody new since the last loss
        for peer in source.named:
            self._offer(peer)

    def lost(self, peer: PeerId) -> None:
        """A provider is gone, or of no use; others are looked for at once."""
        self._taken.discard(peer)
        self._lost[peer] = trio.current_time()
        self._wake.set()

    async def run(self) -> None:
        """Look for providers until cancelled."""
        if self.pending:
            await self._pause(FIRST_WAIT_S)
        while True:
            self._wake = trio.Event()
            await self._round()
            if not self._wake.is_set():  # nobody was lost meanwhile
                self.is_spent = True
                self._changed.unpark_all()
                await self._pause(INTERVAL_S)
            self.is_spent = False

    async def _pause(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            await self._wake.wait()

    async def _round(self) -> None:
        source = self._source
        connected = [peer for peer in source.peers() if self._is_new(peer)][:ASKED_MAX]
        async with trio.open_nursery() as nursery:
            for peer in connected:
                nursery.start_soon(self._ask, peer)
            if source.finder is not None:
                nursery.start_soon(self._look_up, source.finder)
            await trio.lowlevel.checkpoint()
        for peer in source.named:
            self._offer(peer)

    async def _ask(self, peer: PeerId) -> None:
        try:
            call = functools.partial(self._source.rpc.call, timeout_s=WHO_TIMEOUT_S)
            here = await call(peer, WHO, Who(self._cid))
        except ShoalError:
            return
        if here.chunks or here.is_fetching:
            self._offer(peer, first=not here.is_fetching)

    async def _look_up(self, finder: Finder) -> None:
        with trio.move_on_after(DHT_TIMEOUT_S):
            try:
                for peer in await finder.providers(self._cid.encode()):
                    self._offer(peer)
            except ShoalError:
                return

    def _is_new(self, peer: PeerId) -> bool:
        lost_s = self._lost.get(peer)
        may_come = lost_s is None or trio.current_time() - lost_s >= RETRY_S
        is_bad = peer in self._source.liars or peer == self._source.rpc.peer
        return may_come and not is_bad and peer not in self._taken

    def _offer(self, peer: PeerId, *, first: bool = False) -> None:
        if self._is_new(peer):
            self._taken.add(peer)
            if first:  # before those that fetch it themselves
                self.pending.appendleft(peer)
            else:
                self.pending.append(peer)
            self._changed.unpark_all()
