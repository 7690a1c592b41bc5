"""The store's parts at work together: replicas, file, channel, syncs, and what waits.

Everything that changes a replica goes through the writer; everything that a change means to others
(watchers, the channel, the directory, deferred entries) starts in `_on_news`.
"""

import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import trio

from crdt import storage
from crdt.absence import NEVER_SYNCED_MS, is_away
from crdt.batch import Batch, News
from crdt.change import Change
from crdt.entry import GRANT, Record, Signed, is_signed
from crdt.fault import FAULT_MAX, Fault, Proven, check, fault_decoder
from crdt.intake import LATER, Deferred, proven
from crdt.live import Channel, Live, topic_of
from crdt.pins import Pins
from crdt.proof import shown_records
from crdt.replica import Replica
from crdt.shown import StoreStats
from crdt.spaces import Spaces
from crdt.storage import StoreFailed
from crdt.sync import Syncer
from crdt.watch import Watchers
from crdt.writer import Writer
from wire import codec
from wire.errors import BadMessage, ShoalError
from wire.ids import PeerId, Signer, public_key_of
from wire.ports import Clock, Network, OffLoop
from wire.threads import Threads

HOUSEKEEPING_S = 1.0  # between looks for leases that died: how late a watcher hears of it
FAULTS_MAX = 10_000  # proofs of faults of all namespaces, 1 to 8 kB each: whoever invents authors
# and proves their faults must not fill the disk
INLINE_MAX = 4  # entries checked on the loop, 60 us each; more go to a thread
HASHES = 300  # keys that a state tree hashes in one turn of the loop, ahead of need: 2 ms
CALM_CHANGES = 1000  # a second: of more, hashing waits, as a large batch is cheaper for each key
TURNS_MAX = 50  # of looking or hashing for one namespace, then it is the next one's time
PAUSE_S = 0.005  # between two, for others
ADOPT_SLICE = 100  # keys of the directory between turns of the event loop: 3 ms
log = logging.getLogger(__name__)
OWN, SYNC, CHANNEL, DEFERRED = "own", "sync", "channel", "deferred"  # sources of a batch


class Hall:
    """Owns the parts; `StoreService` is what others see of it."""

    def __init__(
        self,
        network: Network,
        channel: Channel,
        clock: Clock,
        signer: Signer,
        path: Path | str,
        *,
        peers: Callable[[], list[PeerId]],
        salt: bytes,
        interval_s: float,
        off_loop: OffLoop | None,
        rng: random.Random,
        pins: Pins,
    ) -> None:
        self._clock, self._path, self._pins = clock, Path(path), pins
        self.spaces = Spaces(salt, public_key_of(signer.peer))
        self.watchers = Watchers()
        self._cpu = off_loop or Threads()
        self._slow_disk = off_loop or Threads()
        self.writer = Writer(
            path,
            self.spaces.replicas,
            clock,
            signer,
            off_loop or Threads(),
            self._on_news,
            on_refused=self._on_refused,
        )
        self.syncer = Syncer(
            network, self, clock, peers=peers, interval_s=interval_s, rng=rng, off_loop=self._cpu
        )
        self._live = Live(channel)
        self._deferred = Deferred()
        self.is_loaded = False
        self._is_off = False  # our clock, by those of peers
        self._again: list[Record] = []  # deferred entries whose grant has come
        self._bad: Counter[str] = Counter()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open the file, merge what it holds, then work until cancelled."""
        async with self.writer.open() as kept, trio.open_nursery() as nursery:
            for genesis in kept.geneses:
                self.spaces.restore(genesis)
            faults = await self._cpu(lambda: _checked_faults(kept.faults))
            self._restore_faults(faults)
            self._pause()
            has_proofs = len(faults) == len(kept.faults)
            self._pins.note([], await self.writer.load(has_proofs=has_proofs))
            self.is_loaded = True
            if self.writer.damaged:
                log.warning("store.damaged rows=%d, deleted", self.writer.damaged)
            nursery.start_soon(self.writer.run)
            nursery.start_soon(self._live.run)
            nursery.start_soon(self._pins.run, list(self.spaces))
            self.spaces.on_new = self._welcome
            for replica in list(self.spaces):
                self._follow(replica)
            keys = self.spaces.directory.keys("")
            for start in range(0, len(keys), ADOPT_SLICE):
                self._adopt(keys[start : start + ADOPT_SLICE])
                await trio.lowlevel.checkpoint()
            nursery.start_soon(self._keep_house)
            nursery.start_soon(self.syncer.run)
            task_status.started()

    # --- what syncs need -----------------------------------------------------------------------

    def replicas(self) -> Mapping[bytes, Replica]:
        """All of them, by ID."""
        return self.spaces.replicas

    async def take(self, peer: PeerId, namespace: bytes, signed: Sequence[Signed]) -> int:
        """Check what a sync brought and keep it; returns how many were news.

        Raises BadMessage, StoreFailed.
        """
        return len(await self._take(list(signed), [namespace], SYNC))

    async def take_faults(self, namespace: bytes, faults: Sequence[Fault]) -> None:
        """Check proofs and keep them. Of very many only those of authors of whom something is held:
        the others hide nothing here. Raises BadMessage, StoreFailed.
        """
        found = await self._cpu(lambda: [check(fault) for fault in faults])
        if any(one.namespace != namespace for one in found):
            raise BadMessage("a proof of another namespace")
        if self.spaces.faults >= FAULTS_MAX:
            replica, before = self.spaces.replicas[namespace], len(found)
            found = [
                one for one in found if one.chain in replica.faults or replica.held_by(one.author)
            ]
            self._bad["faults_full"] += before - len(found)
        await self.writer.submit(Batch(faults=found, source=SYNC))

    def on_bad(self, namespace: bytes, record: Record) -> None:
        """An entry that we hold by its successor's word has a wrong signature: its author's fault.

        With the successor at hand that is a proof; else the entry goes, as nobody else takes it.
        """
        self._bad["signature"] += 1
        replica = self.spaces.replicas[namespace]
        self._settle(replica, replica.drop(record))

    def on_synced(self, peer: PeerId) -> None:
        """A sync was completed."""
        self.writer.note_synced(self._clock.wall_ms())

    def quiet_ms(self) -> int:
        """How long ago that was; NEVER_SYNCED_MS if it never was."""
        synced_ms = self.writer.synced_ms
        return max(0, self._clock.wall_ms() - synced_ms) if synced_ms else NEVER_SYNCED_MS

    def forget(self, namespace: bytes, records: list[Record]) -> None:
        """Let go of what was deleted elsewhere while we were away."""
        replica = self.spaces.replicas[namespace]
        change = replica.forget(records)
        self._bad["gone"] += len(change.dropped)
        self._settle(replica, change)

    # --- for the service -----------------------------------------------------------------------

    async def snapshot(self, path: Path) -> None:
        """Copy the file while writes go on; one copy at a time. Raises StoreFailed."""
        await self._slow_disk(lambda: storage.snapshot(self._path, path))

    async def hash_ahead(self, replica: Replica, turns: int) -> None:
        """Hash what the state root needs, in some turns of the event loop instead of one."""
        for _ in range(turns):
            if replica.tree.settle(HASHES):
                return
            await trio.sleep(PAUSE_S)

    async def check_shown(self, replica: Replica, key: str) -> None:
        """Check the signatures of all that a proof of a key shows; wrong ones go."""
        while True:
            shown = [record for part in shown_records(replica, key) for record in part]
            wrong = await self._cpu(partial(_unsigned, shown))
            if not wrong:
                return
            for record in wrong:
                self.on_bad(replica.id, record)

    def stats(self, *, malformed_values: int) -> StoreStats:
        """Count what happened."""
        totals, syncer = self.syncer.totals, self.syncer
        return StoreStats(
            entries=self.spaces.entries,
            namespaces=len(self.spaces.replicas),
            syncs=syncer.done,
            syncs_failed=syncer.failed,
            entries_in=totals.entries_in,
            entries_out=totals.entries_out,
            malformed_values=malformed_values,
            news_dropped=self._live.dropped,
            deferred=len(self._deferred),
            faults=sum(len(replica.faults) for replica in self.spaces),
            clock_skew_ms=syncer.clock_skew_ms,
            is_writable=self.writer.is_writable,
            damaged=self.writer.damaged,
            refused=dict(self.writer.refused + self._bad + syncer.refused),
        )

    # --- inside --------------------------------------------------------------------------------

    async def _take(
        self, signed: list[Signed], namespaces: list[bytes], source: str
    ) -> list[Record]:
        try:
            if len(signed) > INLINE_MAX:
                records = await self._cpu(lambda: proven(signed))
            else:
                records = proven(signed)
        except BadMessage:
            self._bad["forged"] += 1
            raise
        if any(record.namespace not in namespaces for record in records):
            self._bad["namespace"] += 1
            raise BadMessage("an entry of another namespace")
        return await self.writer.submit(Batch(records, source=source))

    async def _hear(self, namespaces: list[bytes], signed: list[Signed]) -> bool:
        try:
            return bool(await self._take(signed, namespaces, CHANNEL))
        except StoreFailed:
            return False  # our disk is full; a sync brings it again

    def _welcome(self, replica: Replica) -> None:
        """A namespace that the directory lists since now."""
        self.writer.keep(replica.genesis)
        self._follow(replica)
        self.syncer.fill()

    def _follow(self, replica: Replica) -> None:
        """Listen to a namespace's channel; the built-in ones share one."""
        topic = topic_of(replica)
        if not self.spaces.is_built_in(replica):
            namespaces = [replica.id]
        elif replica is self.spaces.directory:
            namespaces = [one.id for one in self.spaces if self.spaces.is_built_in(one)]
        else:
            return
        self._live.listen(topic, lambda peer, signed: self._hear(namespaces, signed))

    def _on_refused(self, record: Record, reason: str) -> None:
        if reason in LATER:
            self._deferred.hold(record, reason, self._clock.wall_ms())

    def _on_news(self, news: News) -> None:
        for namespace, key in news.keys:
            self.watchers.touch(namespace, key)
        directory = self.spaces.directory.id
        self._adopt({key for namespace, key in news.keys if namespace == directory})
        self._pins.note(news.added, news.dropped)
        if news.source != CHANNEL:  # the channel passes on what came by it
            self._spread(news.added)
        granted = {record.namespace for record in news.added if record.kind == GRANT}
        for namespace in granted:
            self._again.extend(self._deferred.granted(namespace))

    def _spread(self, records: list[Record]) -> None:
        topics: dict[str, list[Record]] = {}
        for record in records:
            replica = self.spaces.replicas[record.namespace]
            topics.setdefault(topic_of(replica), []).append(record)
        for topic, found in topics.items():
            self._live.offer(topic, found, self._clock.wall_ms())

    def _adopt(self, keys: Iterable[str]) -> None:
        for key in keys:
            reason = self.spaces.adopt(key, self._clock.wall_ms())
            if reason:
                self._bad[reason] += 1

    def _restore_faults(self, faults: list[Proven]) -> None:
        for found in faults:
            replica = self.spaces.replicas.get(found.namespace)
            if replica is not None:
                replica.merge_fault(found)

    def _settle(self, replica: Replica, change: Change) -> None:
        """Tell of what a replica did without the writer."""
        for key in change.keys:
            self.watchers.touch(replica.id, key)
        self.writer.settle(replica, change)
        self._pins.note([], change.dropped)

    def _pause(self) -> None:
        quiet_ms = self.quiet_ms()
        for replica in self.spaces:
            replica.pause(is_paused=is_away(quiet_ms, replica.rules))

    def _look_at_clock(self) -> None:
        skew_ms = self.syncer.clock_skew_ms
        is_off = abs(skew_ms) > self.spaces.directory.rules.max_skew_ms // 2
        if is_off and not self._is_off:
            log.warning("store.clock_is_off ahead_ms=%d of the median of peers", skew_ms)
        self._is_off = is_off

    async def _keep_house(self) -> None:
        versions: dict[bytes, int] = {}
        while True:
            await trio.sleep(HOUSEKEEPING_S)
            now_ms = self._clock.wall_ms()
            self._pause()
            self._look_at_clock()
            for replica in list(self.spaces):
                self._settle(replica, replica.pop_due(now_ms))
                for _ in range(TURNS_MAX):
                    if not replica.is_due(now_ms):
                        break
                    await trio.sleep(PAUSE_S)
                    self._settle(replica, replica.pop_due(now_ms))
                before, versions[replica.id] = versions.get(replica.id, 0), replica.version
                if replica.version <= before + CALM_CHANGES:
                    await self.hash_ahead(replica, TURNS_MAX)
            due, self._again = (
                [*self._again, *self._deferred.due(now_ms, self.spaces.max_skew_ms)],
                [],
            )
            if due:
                try:
                    await self.writer.submit(Batch(due, source=DEFERRED))
                except ShoalError:
                    continue  # the disk is full: syncs bring them again


def _unsigned(records: list[Record]) -> list[Record]:
    return [record for record in records if not is_signed(record)]


def _checked_faults(kept: list[tuple[bytes, bytes]]) -> list[Proven]:
    found: list[Proven] = []
    for _, raw in kept:
        try:
            found.append(check(codec.decode(raw, fault_decoder, FAULT_MAX)))
        except BadMessage:
            continue  # the file is damaged there: another peer has it
    return found
