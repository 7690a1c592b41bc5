"""The one task that changes the replicas: disk first, then memory, then those who wait.

Writers that come while a commit is on its way go together into the next one (group commit), so a
lone write never waits for company and many share one sync of the disk. What merging drops is
deleted with a later commit: a crash between the two is healed when the file is loaded.
"""

import math
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from crdt.batch import Batch, Group, News, Write, refusal
from crdt.change import Change
from crdt.entry import Record
from crdt.kept_proofs import KeptProofs
from crdt.namespace import Genesis
from crdt.own import Build, OwnChains, Pending
from crdt.replica import Replica
from crdt.storage import Changes, Kept, Storage, StoreFailed
from wire.errors import ShoalError
from wire.ids import Signer
from wire.ports import Clock, OffLoop

DEAD_MAX = 2000  # rows deleted in one transaction: 6 ms
COMMIT_RECORDS_MAX = 1000  # of peers in one transaction: 5 ms. When so many wait, others wait
WRITES_MAX = 128  # of our own, which are signed as well: 4 ms
MERGE_SLICE = 200  # records between turns of the event loop: 2 ms
ADMIT_SLICE = 100  # the same for what may be refused: 1 ms, 15 if each is held to a key of 64
LOAD_SLICE = 4000  # rows read at a time: 20 ms, then 12 to take them back; nobody waits yet
UNJUDGED_MAX = 8192  # last rows that are held against their chains again when a file is opened:
# more than one commit has. What merging one finds is a proof on the disk with the next
DELETE_S = 1.0  # dead rows wait so long for a commit to go with
PROBE_MIN_S, PROBE_MAX_S = 0.25, 5.0  # between attempts to write to a full disk
SYNCED_STEP_MS = 60_000  # how exactly the file knows when the last sync ended
CLOSE_S = 3.0  # to fold the log into the file at the end
SYNCED = "synced_ms"
PROBE = "probe_ms"


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
        """`on_refused` hears of each entry of others that may not come in, and why."""
        self._path, self._replicas, self._clock = path, replicas, clock
        self._disk, self._on_news, self._on_refused = disk, on_news, on_refused
        self._own = OwnChains(signer)
        self._storage: Storage | None = None
        self._group = Group()
        self._wake = trio.lowlevel.ParkingLot()
        self._is_closed = False
        self._dead: list[int] = []
        self._geneses: list[Genesis] = []
        self._proofs = KeptProofs()
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
        write = Write(namespace, key, build)
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

    def keep(self, genesis: Genesis) -> None:
        """Put a namespace on the disk with the next commit, and so before its entries."""
        self._geneses.append(genesis)
        self._wake.unpark()

    def settle(self, replica: Replica, change: Change) -> None:
        """Bring the file in line, some time soon, with what a replica did by itself: `pop_due`,
        `drop`.
        """
        self._forget(change.dropped)
        self._wake.unpark()
        if change.fault is not None:
            self._proofs.accused.add(replica.id)
            if self._own.is_current(replica.id, change.fault.chain):
                self._own.restart()

    @property
    def synced_ms(self) -> int:
        """When the last sync ended, by the wall clock; 0 if none has yet."""
        return self._synced_ms

    def note_synced(self, wall_ms: int) -> None:
        """Remember when the last sync ended, to the minute; also if our clock was ahead before."""
        self._synced_ms = wall_ms
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
            self._proofs.digests = kept.digests
            yield kept
        finally:
            self._is_closed = True
            self._group.done.set()
            self._group.taken.set()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_S):
                await self._disk(storage.close)

    async def load(self, *, has_proofs: bool) -> list[Record]:
        """Give the replicas all entries of the file; those of unknown namespaces stay where they
        are. Returns those that a crash left behind, superseded. has_proofs: the replicas have every
        proof of the file. Raises StoreCorrupt.
        """
        storage, now_ms, row = self._storage, self._clock.wall_ms(), 0
        superseded: list[Record] = []
        assert storage is not None, "opened first"
        judged = await self._disk(partial(storage.last_rows, UNJUDGED_MAX)) if has_proofs else 0
        while True:
            records, damaged, row = await self._disk(partial(storage.read, row, LOAD_SLICE))
            if not row:
                return superseded
            self.damaged += len(damaged)
            self._dead.extend(damaged)
            known = [record for record in records if record.namespace in self._replicas]
            for namespace in {record.namespace for record in known}:
                replica = self._replicas[namespace]
                some = [record for record in known if record.namespace == namespace]
                change = replica.restore(some, is_judged=row <= judged)
                self.settle(replica, change)
                superseded += change.dropped
            self._observe(known, now_ms)

    async def run(self) -> None:
        """Write until cancelled."""
        assert self._storage is not None, "opened first"
        while True:
            await self._gather()
            group, self._group = self._group, Group()
            group.taken.set()
            try:
                await self._commit(self._storage, group)
            finally:  # also when we are cancelled: nobody waits for ever
                group.done.set()

    async def _join(self, records: int) -> Group:
        """Return the group that goes next, once it has room; the order of waiting is kept by it."""
        while True:
            if self._is_closed:
                raise StoreFailed("the store is closed")
            group = self._group
            has_room = group.records + records <= COMMIT_RECORDS_MAX or not group.records
            if has_room and len(group.writes) < WRITES_MAX:
                group.records += records
                if self._wake:  # else the writer is at work, and looks again
                    self._wake.unpark()
                return group
            await group.taken.wait()

    async def _gather(self) -> None:
        """Wait until there is something to commit, or it is time for chores or another try."""
        deadline = math.inf if self.is_writable else trio.current_time() + self._probe_s
        while not self._group.writes and not self._group.batches:
            if self.is_writable and self._has_chores():
                deadline = min(deadline, trio.current_time() + DELETE_S)
            with trio.move_on_at(deadline) as scope:
                await self._wake.park()
            if scope.cancelled_caught:
                return

    def _has_chores(self) -> bool:
        is_late = abs(self._synced_ms - self._synced_kept_ms) >= SYNCED_STEP_MS
        return bool(self._dead or self._proofs.accused or self._geneses) or is_late

    async def _commit(self, storage: Storage, group: Group) -> None:
        now_ms = self._clock.wall_ms()
        news = [self._judge(batch) for batch in group.batches]
        fresh = await self._admit(group.batches, now_ms)
        pending = self._draft(group.writes, now_ms)
        changes = self._changes([record for records in fresh for record in records], now_ms)
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
            self._failed(changes)
            for write, _ in pending:
                write.error = error
            for batch, told in zip(group.batches, news, strict=True):
                batch.error = error
                self._tell(told)
            return
        self._kept(changes)
        for (write, _), record in zip(pending, own, strict=True):
            write.record, write.error = record, None
        await self._take(own, News("own"), now_ms)
        for batch, records, told in zip(group.batches, fresh, news, strict=True):
            await self._take(records, told, now_ms)
            batch.news, batch.error = told.added, None

    def _judge(self, batch: Batch) -> News:
        """Merge proofs. They stand for themselves, so here memory may be ahead of the disk, and
        the replica says which are kept at all.
        """
        news = News(batch.source)
        for proven in batch.faults:
            replica = self._replicas.get(proven.namespace)
            if replica is not None:
                change = replica.merge_fault(proven)
                self.settle(replica, change)
                news.note(replica.id, change)
        return news

    def _changes(self, records: list[Record], now_ms: int) -> Changes:
        """Return what the next transaction does; the dead rows in it are its own from here on."""
        dead, self._dead = self._dead[:DEAD_MAX], self._dead[DEAD_MAX:]
        meta = {SYNCED: self._synced_ms} if self._synced_ms != self._synced_kept_ms else {}
        if not self.is_writable:
            meta[PROBE] = now_ms
        geneses, self._geneses = self._geneses, []
        proofs = self._proofs.pop_changes(self._replicas)
        return Changes(records, dead, proofs, geneses, meta)

    def _failed(self, changes: Changes) -> None:
        """The disk did not take it, or did and failed to say so: our chains end here."""
        self._own.restart()
        self.is_writable = False
        self._probe_s = min(self._probe_s * 2, PROBE_MAX_S)
        self._dead.extend(changes.dead)
        self._geneses.extend(changes.geneses)
        self._proofs.retry(changes.faults)

    def _kept(self, changes: Changes) -> None:
        """The disk took it."""
        self.is_writable, self._probe_s = True, PROBE_MIN_S
        self._synced_kept_ms = changes.meta.get(SYNCED, self._synced_kept_ms)
        self._proofs.note(changes.faults)

    async def _admit(self, batches: list[Batch], now_ms: int) -> list[list[Record]]:
        """Return what of each batch is new and allowed, each entry once."""
        taken = set[bytes]()
        fresh: list[list[Record]] = []
        for batch in batches:
            news = list[Record]()
            for at, record in enumerate(batch.records, 1):
                if at % ADMIT_SLICE == 0:
                    await trio.lowlevel.checkpoint()
                replica = self._replicas.get(record.namespace)
                reason = replica.refusal(record, now_ms) if replica is not None else "unknown"
                if reason:
                    self.refused[reason] += 1
                    self._on_refused(record, reason)
                elif replica and (record.stamp in taken or not replica.is_news(record)):
                    self.refused["known"] += 1  # held, or no longer the latest at its place
                else:
                    taken.add(record.stamp)
                    news.append(record)
                    if self._own.is_current(record.namespace, record.chain):
                        self._own.restart()  # it is not by us: this process has a double
            fresh.append(news)
        return fresh

    def _draft(self, writes: list[Write], now_ms: int) -> list[tuple[Write, Pending]]:
        """Prepare our own writes; one that is refused fails alone. Several at one key see each
        other.
        """
        pending: list[tuple[Write, Pending]] = []
        before: dict[tuple[bytes, str], list[Record]] = {}
        for write in writes:
            place = write.namespace, write.key
            replica = self._replicas[write.namespace]
            held = [*replica.at(write.key), *before.get(place, ())]
            try:
                counts = partial(replica.counts, now_ms=now_ms)
                made = self._own.draft(
                    replica.genesis, replica.id, write.key, write.build, held, now_ms, counts
                )
                if made is None:
                    write.error = None
                    continue
                reason = replica.refusal(made.shape, now_ms)
                if not reason and replica.crowds_out(made.shape, len(pending)):
                    reason = "author_full"  # of others the oldest would go; what we have said stays
                if reason:
                    self.refused[reason] += 1
                    raise refusal(reason, write.key, replica.genesis.write)
            except ShoalError as error:
                write.error = error
                continue
            self._own.take(made)
            pending.append((write, made))
            before.setdefault(place, []).append(made.shape)
        return pending

    async def _take(self, records: list[Record], news: News, now_ms: int) -> None:
        for start in range(0, len(records), MERGE_SLICE):
            if start:
                await trio.lowlevel.checkpoint()
            self._merge(records[start : start + MERGE_SLICE], news, now_ms)
        self._tell(news)

    def _tell(self, news: News) -> None:
        if news.added or news.faults or news.keys:
            self._on_news(news)

    def _merge(self, records: list[Record], news: News, now_ms: int) -> None:
        for record in records:
            replica = self._replicas[record.namespace]
            change = replica.merge(record, now_ms)
            if change.dropped or change.fault is not None:
                self.settle(replica, change)
            if change.is_added:
                news.added.append(record)
            else:
                self._dead.append(record.row)
            news.note(record.namespace, change)
        self._observe(records, now_ms)

    def _forget(self, dropped: Sequence[Record]) -> None:
        self._dead.extend(record.row for record in dropped if record.row)

    def _observe(self, records: list[Record], now_ms: int) -> None:
        """Have our clocks follow the latest of each namespace."""
        latest: dict[bytes, bytes] = {}
        for record in records:
            if record.stamp > latest.get(record.namespace, b""):
                latest[record.namespace] = record.stamp
        for namespace, stamp in latest.items():
            hlc = int.from_bytes(stamp[:8])
            self._own.observe(self._replicas[namespace].genesis, namespace, hlc, now_ms)
