"""The one task that changes the replicas: disk first, then memory, then those who wait.

Writers that come while a commit is on its way go together into the next one (group commit), so a
lone write never waits for company and many share one sync of the disk. What merging drops is
deleted with a later commit: a crash between the two is healed when the file is loaded.
"""

from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from crdt.batch import Batch, News, NotAllowed, StoreFull, closed
from crdt.clock import ClockError
from crdt.entry import Record
from crdt.fault import Proven
from crdt.namespace import Genesis
from crdt.own import Build, OwnChains, Pending
from crdt.replica import Change, Replica
from crdt.storage import Changes, Kept, Storage, StoreFailed
from wire import codec
from wire.errors import ShoalError
from wire.ids import Signer
from wire.ports import Clock, OffLoop

DEAD_MAX = 2000  # rows deleted in one transaction: 6 ms
COMMIT_RECORDS_MAX = 1000  # of peers in one transaction: 5 ms. When so many wait, others wait
WRITES_MAX = 128  # of our own, which are signed as well: 4 ms
MERGE_SLICE = 200  # records between turns of the event loop: 2 ms
LOAD_SLICE = 1000  # rows read at a time: 7 ms
DELETE_S = 1.0  # dead rows wait so long for a commit to go with
PROBE_MIN_S, PROBE_MAX_S = 0.25, 5.0  # between attempts to write to a full disk
SYNCED_STEP_MS = 60_000  # how exactly the file knows when the last sync ended
CLOSE_S = 3.0  # to fold the log into the file at the end
SYNCED = "synced_ms"
PROBE = "probe_ms"


@dataclass
class _Write:
    """One write of our own that waits."""

    namespace: bytes
    key: str
    build: Build
    record: Record | None = None
    error: ShoalError | None = field(default_factory=closed)


@dataclass
class _Group:
    """What goes into one commit."""

    writes: list[_Write] = field(default_factory=list[_Write])
    batches: list[Batch] = field(default_factory=list[Batch])
    records: int = 0
    taken: trio.Event = field(default_factory=trio.Event)
    done: trio.Event = field(default_factory=trio.Event)


class Writer:
    """Owns the file; calls `on_news` after each commit, once per batch that changed something."""

    def __init__(
        self,
        path: Path | str,
        replicas: Mapping[bytes, Replica],
        clock: Clock,
        signer: Signer,
        disk: OffLoop,
        on_news: Callable[[News], None],
        *,
        on_refused: Callable[[Record, str], None] = lambda record, reason: None,
    ) -> None:
        self._on_refused = on_refused
        self._geneses: list[Genesis] = []  # to be on the disk before their entries
        self._path, self._replicas, self._clock = path, replicas, clock
        self._disk, self._on_news = disk, on_news
        self._own = OwnChains(signer)
        self._storage: Storage | None = None
        self._group = _Group()
        self._wake = trio.lowlevel.ParkingLot()
        self._is_closed = False
        self._dead: list[int] = []
        self._faults: dict[bytes, Proven] = {}  # found while merging, by digest; not on the disk
        self._synced_ms = self._synced_kept_ms = 0
        self._probe_s = PROBE_MIN_S
        self.is_writable = True
        self.damaged = 0  # rows of the file that were no entries any more
        self.refused: Counter[str] = Counter()

    # --- for everybody -------------------------------------------------------------------------

    async def write(self, namespace: bytes, key: str, build: Build) -> Record | None:
        """Write an entry of our own; returns it once it is durable, None if `build` had nothing
        to write. Raises StoreFailed, StoreFull, NotAllowed, ClockError, UsageError and what
        `build` raises. Cancelled, it may still be written.
        """
        group = await self._join(0)
        write = _Write(namespace, key, build)
        group.writes.append(write)
        await group.done.wait()
        if write.error is not None:
            raise write.error
        return write.record

    async def submit(self, batch: Batch) -> list[Record]:
        """Wait until a batch is durable; returns its news. Raises StoreFailed."""
        group = await self._join(len(batch.records))
        group.batches.append(batch)
        await group.done.wait()
        if batch.error is not None:
            raise batch.error
        return batch.news

    def forget(self, dropped: Sequence[Record]) -> None:
        """Delete what a replica has dropped, some time soon."""
        self._dead.extend(record.row for record in dropped if record.row)

    def keep(self, genesis: Genesis) -> None:
        """Put a namespace on the disk with the next commit, and so before its entries."""
        self._geneses.append(genesis)

    def found(self, proven: Proven) -> None:
        """Put a proof that a replica has taken in already on the disk, some time soon."""
        self._faults[proven.digest] = proven
        self._wake.unpark()

    def note_synced(self, wall_ms: int) -> None:
        """Remember when the last sync ended, to the minute."""
        self._synced_ms = max(self._synced_ms, wall_ms)
        self._wake.unpark()

    # --- the task ------------------------------------------------------------------------------

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[Kept]:
        """Hold the file open while the block runs; gives what it holds besides entries.

        Raises StoreCorrupt, StoreFailed.
        """
        self._storage = storage = await self._disk(lambda: Storage(self._path))
        try:
            kept = await self._disk(storage.kept)
            self._synced_ms = self._synced_kept_ms = kept.meta.get(SYNCED, 0)
            yield kept
        finally:
            self._is_closed = True
            self._group.done.set()
            self._group.taken.set()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_S):
                await self._disk(storage.close)

    async def load(self) -> None:
        """Merge all entries of the file into the replicas; those of unknown namespaces stay where
        they are. Raises StoreCorrupt.
        """
        storage, now_ms, row = self._storage, self._clock.wall_ms(), 0
        assert storage is not None, "opened first"
        while True:
            records, damaged, row = await self._disk(partial(storage.read, row, LOAD_SLICE))
            if not row:
                return
            self.damaged += len(damaged)
            self._dead.extend(damaged)
            known = [record for record in records if record.namespace in self._replicas]
            for record in known:
                self._settle(record, self._replicas[record.namespace].merge(record, now_ms))
            self._observe(known, now_ms)

    async def run(self) -> None:
        """Write until cancelled."""
        assert self._storage is not None, "opened first"
        while True:
            await self._gather()
            group, self._group = self._group, _Group()
            group.taken.set()
            try:
                await self._commit(self._storage, group)
            finally:  # also when we are cancelled: nobody waits for ever
                group.done.set()

    async def _join(self, records: int) -> _Group:
        """Return the group that goes next, once it has room; the order of waiting is kept by it."""
        while True:
            if self._is_closed:
                raise StoreFailed("the store is closed")
            group = self._group
            has_room = group.records + records <= COMMIT_RECORDS_MAX or not group.records
            if has_room and len(group.writes) < WRITES_MAX:
                group.records += records
                self._wake.unpark()
                return group
            await group.taken.wait()

    async def _gather(self) -> None:
        """Wait until there is something to commit."""
        while not self._group.writes and not self._group.batches:
            wait_s = DELETE_S if self._has_chores() else float("inf")
            with trio.move_on_after(wait_s if self.is_writable else self._probe_s) as scope:
                await self._wake.park()
            if scope.cancelled_caught:
                return

    def _has_chores(self) -> bool:
        is_late = self._synced_ms >= self._synced_kept_ms + SYNCED_STEP_MS
        return bool(self._dead or self._faults or self._geneses) or is_late

    async def _commit(self, storage: Storage, group: _Group) -> None:
        now_ms = self._clock.wall_ms()
        fresh = self._admit(group.batches, now_ms)
        pending = self._draft(group.writes, now_ms)
        changes = self._changes(group, [one for batch in fresh for one in batch], now_ms)
        is_probe = not self.is_writable and not pending and not changes.records

        def work() -> list[Record]:
            own = self._own.sign([one for _, one in pending])
            changes.records = [*own, *changes.records]
            if is_probe:
                storage.fold_log()
            storage.commit(changes)
            return own

        try:
            own = await self._disk(work)
        except StoreFailed as error:
            self._own.restart()
            self.is_writable = False
            self._probe_s = min(self._probe_s * 2, PROBE_MAX_S)
            self._dead.extend(changes.dead)
            for write, _ in pending:
                write.error = error
            for batch in group.batches:
                batch.error = error
            return
        self._kept(changes)
        await self._publish([write for write, _ in pending], own, group.batches, fresh, now_ms)

    def _changes(self, group: _Group, records: list[Record], now_ms: int) -> Changes:
        """Return what the next transaction does; the dead rows in it are its own from here on."""
        handed_in = (one for batch in group.batches for one in batch.faults if self._is_news(one))
        faults = [*self._faults.values(), *handed_in]
        faults.sort(key=lambda one: one.rank, reverse=True)  # of a chain the smallest stays: last
        dead, self._dead = self._dead[:DEAD_MAX], self._dead[DEAD_MAX:]
        meta = {SYNCED: self._synced_ms} if self._synced_ms > self._synced_kept_ms else {}
        if not self.is_writable:
            meta[PROBE] = now_ms
        return Changes(
            records,
            dead,
            [(one.namespace, one.chain, codec.encode(one.fault)) for one in faults],
            list(self._geneses),
            meta,
        )

    def _is_news(self, proven: Proven) -> bool:
        replica = self._replicas.get(proven.namespace)
        known = replica.faults.get(proven.chain) if replica is not None else proven
        return known is None or proven.rank < known.rank

    def _admit(self, batches: list[Batch], now_ms: int) -> list[list[Record]]:
        """Return what of each batch is new and allowed, each entry once."""
        taken = set[bytes]()
        fresh: list[list[Record]] = []
        for batch in batches:
            news = list[Record]()
            for record in batch.records:
                replica = self._replicas.get(record.namespace)
                reason = replica.refusal(record, now_ms) if replica is not None else "unknown"
                if reason:
                    self.refused[reason] += 1
                    self._on_refused(record, reason)
                elif replica and replica.is_news(record) and record.stamp not in taken:
                    taken.add(record.stamp)
                    news.append(record)
                    if self._own.is_current(record):  # not by us: this process has a double
                        self._own.restart()
            fresh.append(news)
        return fresh

    def _draft(self, writes: list[_Write], now_ms: int) -> list[tuple[_Write, Pending]]:
        """Prepare our own writes; one that is refused fails alone. Several at one key see each
        other.
        """
        pending: list[tuple[_Write, Pending]] = []
        before: dict[tuple[bytes, str], list[Record]] = {}
        for write in writes:
            place = write.namespace, write.key
            replica = self._replicas[write.namespace]
            held = [*replica.at(write.key), *before.get(place, ())]
            try:
                made = self._own.draft(
                    replica.genesis, replica.id, write.key, write.build, held, now_ms
                )
                if made is None:
                    write.error = None
                    continue
                self._check(replica.refusal(made.shape, now_ms), write.key)
            except ShoalError as error:
                write.error = error
                continue
            self._own.take(made)
            pending.append((write, made))
            before.setdefault(place, []).append(made.shape)
        return pending

    def _check(self, reason: str, key: str) -> None:
        if not reason:
            return
        self.refused[reason] += 1
        if reason == "future":
            raise ClockError(f"{key!r} would be stamped too far ahead of this clock")
        if reason in ("full", "author_full"):
            raise StoreFull(f"no room for {key!r}: {reason}")
        raise NotAllowed(f"{key!r} may not be written here: {reason}")

    async def _publish(
        self,
        writes: list[_Write],
        own: list[Record],
        batches: list[Batch],
        fresh: list[list[Record]],
        now_ms: int,
    ) -> None:
        """Merge what is on the disk now, and tell of it."""
        for write, record in zip(writes, own, strict=True):
            write.record, write.error = record, None
        if own:
            await self._take(own, News("own"), now_ms)
        for batch, records in zip(batches, fresh, strict=True):
            news = News(batch.source)
            for proven in filter(self._is_news, batch.faults):
                replica = self._replicas[proven.namespace]
                change = replica.merge_fault(proven)
                news.note(replica.id, change)
                self.forget(change.dropped)
            await self._take(records, news, now_ms)
            batch.news, batch.error = news.added, None

    async def _take(self, records: list[Record], news: News, now_ms: int) -> None:
        for start in range(0, len(records), MERGE_SLICE):
            if start:
                await trio.lowlevel.checkpoint()
            self._merge(records[start : start + MERGE_SLICE], news, now_ms)
        if news.added or news.faults or news.keys:
            self._on_news(news)

    def _merge(self, records: list[Record], news: News, now_ms: int) -> None:
        for record in records:
            change = self._replicas[record.namespace].merge(record, now_ms)
            self._settle(record, change)
            if change.is_added:
                news.added.append(record)
            news.note(record.namespace, change)
        self._observe(records, now_ms)

    def _settle(self, record: Record, change: Change) -> None:
        """Bring the disk in line, later, with what merging a record of it has changed."""
        if not change.is_added:
            self._dead.append(record.row)
        if change.dropped:
            self.forget(change.dropped)
        if change.fault is not None:
            self._faults[change.fault.digest] = change.fault

    def _observe(self, records: list[Record], now_ms: int) -> None:
        """Have our clocks follow the latest of each namespace."""
        latest: dict[bytes, bytes] = {}
        for record in records:
            if record.stamp > latest.get(record.namespace, b""):
                latest[record.namespace] = record.stamp
        for namespace, stamp in latest.items():
            hlc = int.from_bytes(stamp[:8])
            self._own.observe(self._replicas[namespace].genesis, namespace, hlc, now_ms)

    def _kept(self, changes: Changes) -> None:
        """The disk took it."""
        self.is_writable, self._probe_s = True, PROBE_MIN_S
        self._synced_kept_ms = changes.meta.get(SYNCED, self._synced_kept_ms)
        for genesis in changes.geneses:
            self._geneses.remove(genesis)
        self._faults.clear()  # none are found while a commit is on its way
