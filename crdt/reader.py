"""What users read of the store: from memory, without waiting."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import trio

from crdt import reading
from crdt.entry import peer_of
from crdt.hall import Hall
from crdt.proof import prove
from crdt.replica import Replica
from crdt.shown import GrantInfo, LogLine, NamespaceInfo, Shown, StoreStats
from wire.errors import BadMessage
from wire.ids import Signer
from wire.ports import Clock, Item

LIST_MAX = 1000  # keys in one answer of `listing`: 2 MB of the largest values
LOG_MAX = 1000
LOOK_SLICE = 500  # keys looked at between turns of the event loop: 3 ms
ROOT_TURNS_MAX = 2000  # of 300 keys each: then the root is made, whatever is written meanwhile
LOG_SLICE = 2000  # entries: 1 ms


class StoreReader:
    """The reading half of `StoreService`.

    A `namespace` is a built-in one (`kv`, `swarm`), or one of the directory: its name, NAME@PEER,
    or hex digits of its ID. What names one raises NotFound, or UsageError if several fit.
    """

    def __init__(self, hall: Hall, clock: Clock, signer: Signer) -> None:
        self._hall, self._clock, self._signer = hall, clock, signer
        self._malformed_values = 0

    def get(self, namespace: str, key: str) -> Item | None:
        """Read a register or lease from memory; None if absent, deleted or expired."""
        view = self._hall.spaces.find(namespace).view(key, self._clock.wall_ms())
        try:
            return reading.item_of(view)
        except BadMessage:
            self._malformed_values += 1
            return None

    def scan(self, namespace: str, prefix: str = "") -> list[Item]:
        """Read all live registers and leases whose key starts with `prefix`, in key order."""
        items: list[Item] = []
        for view in self._hall.spaces.find(namespace).scan(prefix, self._clock.wall_ms()):
            try:
                item = reading.item_of(view)
            except BadMessage:
                self._malformed_values += 1
                continue
            if item is not None:
                items.append(item)
        return items

    def show(self, namespace: str, key: str) -> Shown | None:
        """Read a key of any kind; None if it shows nothing."""
        view = self._hall.spaces.find(namespace).view(key, self._clock.wall_ms())
        return reading.shown(namespace, view) if view is not None else None

    async def listing(
        self, namespace: str, prefix: str = "", *, after: str = "", limit: int = LIST_MAX
    ) -> list[Shown]:
        """Read up to `limit` keys that start with `prefix`, from the one behind `after`."""
        found: list[Shown] = []
        replica, now_ms = self._hall.spaces.find(namespace), self._clock.wall_ms()
        for at, key in enumerate(replica.keys(prefix, after), 1):
            if at % LOOK_SLICE == 0:
                await trio.lowlevel.checkpoint()
            view = replica.view(key, now_ms)
            if view is None:
                continue
            if len(found) >= min(limit, LIST_MAX):
                break
            try:
                found.append(reading.shown(namespace, view))
            except BadMessage:
                self._malformed_values += 1
        return found

    async def log(self, namespace: str, prefix: str = "", *, limit: int = 100) -> list[LogLine]:
        """Return retained entries whose key starts with `prefix`, the latest first."""
        replica, lines = self._hall.spaces.find(namespace), list[LogLine]()
        now_ms = self._clock.wall_ms()
        for at, stamp in enumerate(list(reversed(replica.timeline)), 1):
            if at % LOG_SLICE == 0:
                await trio.lowlevel.checkpoint()
            record = replica.records.get(stamp)  # it may be gone meanwhile
            if record is not None and record.key.startswith(prefix):
                lines.append(reading.log_line(record, counts=replica.counts(record, now_ms)))
                if len(lines) >= min(limit, LOG_MAX):
                    break
        return lines

    @asynccontextmanager
    async def watch(self, namespace: str, prefix: str = "") -> AsyncGenerator[AsyncIterator[str]]:
        """Yield keys that changed: written, deleted, or a lease that died (within a second)."""
        replica = self._hall.spaces.find(namespace)
        with self._hall.watchers.open(replica.id, prefix) as watcher:
            yield watcher

    def id_of(self, namespace: str) -> bytes:
        """Return the ID of a namespace."""
        return self._hall.spaces.find(namespace).id

    def root(self, namespace: str) -> bytes:
        """32 bytes; equal on two replicas if they hold the same entries. Cost: 10 µs for each key
        that has changed lately, 1 s for 100,000: `hash_ahead` spreads it.
        """
        return self._hall.spaces.find(namespace).root()

    async def hash_ahead(self, namespace: str = "") -> None:
        """Prepare the root of a namespace, or of all, without keeping others waiting."""
        spaces = self._hall.spaces
        for replica in [spaces.find(namespace)] if namespace else list(spaces):
            await self._hall.hash_ahead(replica, ROOT_TURNS_MAX)

    state_root = root

    async def prove(self, namespace: str, key: str) -> bytes:
        """Return a document that shows a third party what `key` holds here, or that it holds
        nothing; `crdt.proof.verify` checks it by the namespace's ID alone.
        """
        replica = self._hall.spaces.find(namespace)
        await self._hall.check_shown(replica, key)
        await self.hash_ahead(namespace)
        return prove(replica, key, self._signer, self._clock.wall_ms())

    def namespaces(self) -> list[NamespaceInfo]:
        """Return all that this node replicates, the built-in ones first."""
        infos = [self._info(replica) for replica in self._hall.spaces]
        return sorted(infos, key=lambda one: (not one.is_built_in, one.name, one.id))

    def namespace(self, name: str) -> NamespaceInfo:
        """Return one of them."""
        return self._info(self._hall.spaces.find(name))

    def grants(self, namespace: str) -> list[GrantInfo]:
        """Return all grants of a namespace, the oldest first."""
        replica = self._hall.spaces.find(namespace)
        return [
            GrantInfo(
                record.id,
                record.peer,
                peer_of(grant.subject),
                grant.prefix,
                grant.kinds,
                grant.not_before_ms,
                grant.not_after_ms,
                grant.depth,
                is_revoked=replica.authority.is_revoked(record.id),
                above=record.entry.grant,
            )
            for record, grant in replica.authority.grants()
        ]

    @property
    def clock_skew_ms(self) -> int:
        """How far this clock is ahead of the median of the peers'; 0 if fewer than 3 are known."""
        return self._hall.syncer.clock_skew_ms

    def stats(self) -> StoreStats:
        """Count what happened."""
        return self._hall.stats(malformed_values=self._malformed_values)

    def _info(self, replica: Replica) -> NamespaceInfo:
        genesis = replica.genesis
        return NamespaceInfo(
            replica.id,
            genesis.name,
            peer_of(genesis.owner) if genesis.owner is not None else None,
            genesis.write,
            genesis.rules,
            len(replica.records),
            replica.size,
            replica.root(),
            len(replica.faults),
            replica.author_count,
            is_built_in=self._hall.spaces.is_built_in(replica),
        )
