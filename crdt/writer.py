"""The one task that changes the replica: disk first, then memory, then those who wait.

Writers that come while a commit is on its way go together into the next one (group commit), so a
lone write never waits for company and a thousand share one sync of the disk.
"""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from crdt.entry import Record
from crdt.merge import QUOTAS, Replica
from crdt.storage import Storage, StoreFailed
from wire.errors import ShoalError
from wire.ports import Clock, OffLoop

BATCHES_MAX = 256  # writers waiting for the disk; when full the next writer waits
COMMIT_RECORDS_MAX = 1000  # records in one transaction: about 10 ms (facts: state, 193k rows/s)
CLOSE_S = 3.0  # to fold the log into the file at the end


@dataclass
class Batch:
    """Records that one writer hands in together; `news` are those that won and are on the disk."""

    records: list[Record]
    dead: list[Record] = field(default_factory=list[Record])
    is_spread: bool = False  # tell the others of the news
    news: list[Record] = field(default_factory=list[Record])
    error: ShoalError | None = field(default_factory=lambda: StoreFailed("the store is closed"))
    done: trio.Event = field(default_factory=trio.Event)


class Writer:
    """Owns the file; calls `on_news` after each commit, once per batch that changed something."""

    def __init__(
        self,
        path: Path | str,
        replica: Replica,
        clock: Clock,
        disk: OffLoop,
        on_news: Callable[[Batch], None],
    ) -> None:
        self._path, self._replica, self._clock = path, replica, clock
        self._disk, self._on_news = disk, on_news
        self._send, self._receive = trio.open_memory_channel[Batch](BATCHES_MAX)
        self._storage: Storage | None = None
        self.refused: dict[str, int] = {}

    async def submit(self, batch: Batch) -> list[Record]:
        """Wait until a batch is durable; returns its news. Raises StoreFailed."""
        try:
            await self._send.send(batch)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise StoreFailed("the store is closed") from error
        await batch.done.wait()
        if batch.error is not None:
            raise batch.error
        return batch.news

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[list[Record]]:
        """Hold the file open while the block runs; gives what is in it.

        Raises StoreCorrupt, StoreFailed.
        """
        self._storage = storage = await self._disk(lambda: Storage(self._path))
        try:
            yield await self._disk(storage.load)
        finally:
            self._refuse_waiting()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_S):
                await self._disk(storage.close)

    async def run(self) -> None:
        """Write until cancelled."""
        assert self._storage is not None, "opened first"
        while True:
            await self._commit(self._storage, await self._gather())

    async def _gather(self) -> list[Batch]:
        batches = [await self._receive.receive()]
        size = len(batches[0].records)
        while size < COMMIT_RECORDS_MAX:
            try:
                batches.append(self._receive.receive_nowait())
            except trio.WouldBlock:
                break
            size += len(batches[-1].records)
        return batches

    async def _commit(self, storage: Storage, batches: list[Batch]) -> None:
        winners = self._winners(batches)
        dead = [record for batch in batches for record in batch.dead]
        try:
            if winners or dead:
                await self._disk(lambda: storage.write(list(winners.values()), dead))
            for record in winners.values():
                self._replica.merge(record)
            for batch in batches:
                batch.error = None
                batch.news = [one for one in batch.records if winners.get(one.slot) is one]
                if batch.news:
                    self._on_news(batch)
        except StoreFailed as error:
            for batch in batches:
                batch.error = error
        finally:
            for batch in batches:  # also when we are cancelled: nobody waits for ever
                batch.done.set()

    def _winners(self, batches: list[Batch]) -> dict[str, Record]:
        """Fold what came in: the winner of each key, if it beats what we hold."""
        winners: dict[str, Record] = {}
        now_ms = self._clock.wall_ms()
        for record in (one for batch in batches for one in batch.records):
            reason = self._replica.refusal(record, now_ms)
            if reason is not None:
                self.refused[reason] = self.refused.get(reason, 0) + 1
                if reason in QUOTAS:
                    self._replica.refused(record, now_ms)
            elif self._replica.is_news(record):
                rival = winners.get(record.slot)
                if rival is None or record.order > rival.order:
                    winners[record.slot] = record
        return winners

    def _refuse_waiting(self) -> None:
        with self._receive:
            while True:
                try:
                    self._receive.receive_nowait().done.set()
                except trio.WouldBlock:
                    return
