"""Which blobs our own entries refer to: those are pinned here, and let go with the last of them."""

from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Protocol

import trio

from crdt.entry import Record
from crdt.replica import Replica
from wire.errors import ShoalError

LOOK_SLICE = 2000  # records between turns of the event loop: 5 ms if all are our own


class Blobs(Protocol):
    """Where large values rest: `protocols.blobs` provides it, node/ passes it in."""

    async def put_bytes(self, data: bytes, *, name: str = "", pin: bool = False) -> object:
        """Store a blob; returns its CID, whose `str` is what is kept here."""
        ...

    async def pin(self, cid: str, *, is_pinned: bool = True) -> object:
        """Keep a blob, or let it go. Raises NotFound."""
        ...


class Pins:
    """Keeps what is pinned in line with what is held. Bounded by our own entries."""

    def __init__(self, author: bytes, blobs: Blobs | None) -> None:
        self._author, self._blobs = author, blobs
        self._stamps: dict[str, set[bytes]] = {}  # our own entries, by the blob that they refer to
        self._writing: Counter[str] = Counter()  # blobs whose entry is on its way
        self._changed: dict[str, None] = {}  # blobs that are to be pinned or let go
        self._wake = trio.lowlevel.ParkingLot()

    def note(self, added: Iterable[Record], dropped: Iterable[Record]) -> None:
        """Follow what came in and what went."""
        for record in added:
            self._hold(record, is_news=True)
        for record in dropped:
            cid = self._cid(record)
            if cid:
                stamps = self._stamps.get(cid, set())
                stamps.discard(record.stamp)
                if not stamps:
                    self._stamps.pop(cid, None)
                self._change(cid)

    @contextmanager
    def writing(self, cid: str) -> Generator[None]:
        """Keep a pinned blob while its entry is written; if none is, it is let go."""
        self._writing[cid] += 1
        try:
            yield
        finally:
            self._writing -= Counter([cid])
            self._change(cid)

    async def run(self, replicas: Sequence[Replica]) -> None:
        """See what the replicas hold, then pin and let go until cancelled."""
        for replica in replicas:
            records = list(replica.records.values())
            for start in range(0, len(records), LOOK_SLICE):
                await trio.lowlevel.checkpoint()
                for record in records[start : start + LOOK_SLICE]:
                    if record.stamp in replica.records:
                        self._hold(record, is_news=False)
        while self._blobs is not None:
            while not self._changed:
                await self._wake.park()
            cid = next(iter(self._changed))
            del self._changed[cid]
            try:
                await self._blobs.pin(cid, is_pinned=cid in self._stamps or cid in self._writing)
            except ShoalError:
                continue  # it is not here, or the disk does not take it

    def _cid(self, record: Record) -> str:
        if record.author != self._author or record.is_tombstone:
            return ""
        ref = record.entry.blob
        return "" if ref is None else ref.cid

    def _hold(self, record: Record, *, is_news: bool) -> None:
        cid = self._cid(record)
        if cid:
            self._stamps.setdefault(cid, set()).add(record.stamp)
            if is_news:
                self._change(cid)

    def _change(self, cid: str) -> None:
        self._changed[cid] = None
        self._wake.unpark()
