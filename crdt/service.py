"""The store as a service: reads from memory, writes through the disk, spreads what is new.

New entries go out at once on the channel; `crdt.sync` repairs the rest, peer by peer. What is
readable here is on the disk here.
"""

import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import msgspec
import trio

from crdt import wire
from crdt.clock import ClockError, HybridClock, wall_of
from crdt.entry import REGISTER, VALUE_MAX, Entry, Record, Signed, is_signed, seal, unseal
from crdt.merge import QUOTAS, Replica
from crdt.storage import StoreFailed
from crdt.sync import Syncer, SyncReport
from crdt.watch import Watchers
from crdt.writer import Batch, Writer
from wire import codec
from wire.errors import BadMessage, ShoalError, UsageError
from wire.ids import PeerId, Signer
from wire.ports import Clock, Item, Network, OffLoop
from wire.threads import Threads

TOPIC = "shoal/crdt"
SYNC_INTERVAL_S = 30.0  # between syncs with a random peer; 1 round trip when nothing differs
HOUSEKEEPING_S = 1.0  # between looks for leases that died: how late a watcher hears of it
INLINE_MAX = 16  # signatures checked on the loop, 60 µs each; more go to a thread
OUTBOX_MAX = 64  # batches of news waiting for the channel; when full, news wait for the next sync
PUBLISH_S = 10.0  # for one message on the channel
NEWS_MAX_AGE_MS = 60_000  # older entries that a sync brings are not news to the others
CLOCK_TRIES = 20  # of 1 ms: a stamp at the very bound becomes free with the next millisecond

ChannelHandler = Callable[[PeerId, bytes], Awaitable[bool]]


class StoreFull(ShoalError):
    """A limit on the number of keys is reached."""

    code = "store_full"
    hint = "delete keys, or let leases run out"


class Channel(Protocol):
    """Gossip, as the store needs it: `protocols.channels` provides it, node/ passes it in."""

    def subscribe(self, topic: str, handler: ChannelHandler, /) -> object:
        """Hand each message of a topic to `handler`, once; True: news, goes on to our peers."""
        ...

    def publish(self, topic: str, data: bytes, /) -> Awaitable[object]:
        """Send to everybody who is subscribed, up to 64 KiB."""
        ...


@dataclass(frozen=True)
class StoreStats:
    """Counts since the start, and what is held now."""

    entries: int
    syncs: int
    syncs_failed: int
    entries_in: int
    entries_out: int
    malformed_values: int
    news_dropped: int
    refused: dict[str, int] = field(default_factory=dict[str, int])


class StoreService:
    """Implements `wire.ports.Store`. `node` wires `rpc.answer("crdt.sync", store.answer)`."""

    def __init__(
        self,
        network: Network,
        channel: Channel,
        clock: Clock,
        signer: Signer,
        path: Path | str,
        *,
        peers: Callable[[], list[PeerId]],
        sync_interval_s: float = SYNC_INTERVAL_S,
        off_loop: OffLoop | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """`peers` lists who is connected now. `off_loop` is for simulators: no threads there."""
        self._channel, self._clock, self._signer = channel, clock, signer
        self._replica, self._hybrid, self._watchers = Replica(), HybridClock(), Watchers()
        self._cpu = off_loop or Threads()
        self._writer = Writer(path, self._replica, clock, off_loop or Threads(), self._on_news)
        self._syncer = Syncer(
            network,
            self._replica,
            self._take,
            peers=peers,
            interval_s=sync_interval_s,
            rng=rng or random.Random(),
        )
        self._outbox, self._outgoing = trio.open_memory_channel[list[Signed]](OUTBOX_MAX)
        self._malformed_values = self._news_dropped = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open the file, start to sync; ready (`started`) when reads and writes work.

        Raises StoreCorrupt or StoreFailed if the file cannot be opened.
        """
        async with self._writer.open() as records, trio.open_nursery() as nursery:
            for record in records:
                self._replica.merge(record)
                self._hybrid.observe(record.entry.hlc, self._clock.wall_ms())
            self._channel.subscribe(TOPIC, self._hear)
            nursery.start_soon(self._writer.run)
            nursery.start_soon(self._publish_news)
            nursery.start_soon(self._keep_house)
            nursery.start_soon(self._syncer.run)
            task_status.started()

    # --- reading -------------------------------------------------------------------------------

    def get(self, namespace: str, key: str) -> Item | None:
        """Read from memory; None if absent, deleted or expired."""
        record = self._replica.get(namespace, key, self._clock.wall_ms())
        return self._item(record) if record is not None else None

    def scan(self, namespace: str, prefix: str = "") -> list[Item]:
        """Read all live items whose key starts with `prefix`, in key order."""
        records = self._replica.scan(namespace, prefix, self._clock.wall_ms())
        return [item for record in records if (item := self._item(record)) is not None]

    @asynccontextmanager
    async def watch(self, namespace: str, prefix: str = "") -> AsyncGenerator[AsyncIterator[str]]:
        """Yield keys that changed: written, deleted, or a lease that died (within a second)."""
        with self._watchers.open(namespace, prefix) as watcher:
            yield watcher

    def state_root(self, namespace: str) -> bytes:
        """32 bytes; equal on two replicas if they hold the same entries."""
        return self._replica.root(namespace)

    def stats(self) -> StoreStats:
        """Count what happened."""
        totals = self._syncer.totals
        return StoreStats(
            entries=self._replica.digest.count(),
            syncs=self._syncer.done,
            syncs_failed=self._syncer.failed,
            entries_in=totals.entries_in,
            entries_out=totals.entries_out,
            malformed_values=self._malformed_values,
            news_dropped=self._news_dropped,
            refused=dict(self._writer.refused),
        )

    # --- writing -------------------------------------------------------------------------------

    async def put(
        self, namespace: str, key: str, value: object, *, ttl_s: float | None = None
    ) -> Item:
        """Write; durable when it returns, then spread. `ttl_s` makes it a lease that dies.

        Raises UsageError (a limit, or somebody else's key), StoreFull, StoreFailed, ClockError.
        """
        try:
            raw = codec.encode(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise UsageError(f"the store cannot take the value of {key!r}: {error}") from error
        if len(raw) > VALUE_MAX:
            raise UsageError(
                f"the value of {key!r} takes {len(raw)} bytes, the limit is {VALUE_MAX}",
                hint="put it into a blob and store its CID",
            )
        expires_ms = 0 if ttl_s is None else self._clock.wall_ms() + round(ttl_s * 1000)
        record = await self._write(namespace, key, raw, expires_ms)
        return Item(key, value, self._signer.peer, record.entry.hlc, expires_ms)

    async def delete(self, namespace: str, key: str) -> None:
        """Write a tombstone, if there is something to delete."""
        held = self._replica.held(namespace, key)
        if held is not None and held.entry.value is not None:
            await self._write(namespace, key, None, 0)

    # --- peers ---------------------------------------------------------------------------------

    async def answer(self, peer: PeerId, message: bytes) -> bytes:
        """Answer one request of a peer's sync. Raises BadMessage."""
        return await self._syncer.answer(peer, message)

    def peer_up(self, peer: PeerId) -> None:
        """A connection to a peer is there: sync with it soon."""
        self._syncer.peer_up(peer)

    async def sync_with(self, peer: PeerId) -> SyncReport:
        """Exchange what either side lacks. Raises PeerUnreachable, DeadlineExceeded, PeerError."""
        return await self._syncer.sync_with(peer)

    # --- inside --------------------------------------------------------------------------------

    async def _write(self, namespace: str, key: str, raw: bytes | None, expires_ms: int) -> Record:
        held = self._replica.held(namespace, key)
        hlc = await self._stamp(after=held.entry.hlc if held is not None else 0)
        author = self._signer.peer
        record = seal(
            Entry(1, namespace, key, author, hlc, REGISTER, raw, expires_ms), self._signer
        )
        refusal = self._replica.refusal(record, self._clock.wall_ms())
        if refusal in QUOTAS:
            raise StoreFull(f"no room for {key!r}: {refusal}")
        await self._writer.submit(Batch([record], is_spread=True))
        return record

    async def _stamp(self, *, after: int) -> int:
        for _ in range(CLOCK_TRIES):
            try:
                return self._hybrid.tick(self._clock.wall_ms(), after=after)
            except ClockError:
                await trio.sleep(0.001)
        return self._hybrid.tick(self._clock.wall_ms(), after=after)

    async def _take(self, entries: list[Signed], *, is_spread: bool = True) -> list[Record]:
        """Check what a peer sent and merge it; returns the news. Raises BadMessage, StoreFailed.

        What a sync brings is news to others too, and goes out on the channel (`is_spread`): so a
        newcomer's entries get further than to those it syncs with.
        """
        now_ms = self._clock.wall_ms()
        records = [unseal(entry) for entry in entries]
        fresh = [record for record in records if self._is_wanted(record)]
        # On the channel it goes on as it came: what is no news here may be to those it reaches,
        # and a wrong signature in it would then count against us.
        doubtful = fresh if is_spread or not fresh else records
        if len(doubtful) > INLINE_MAX:
            are_signed = await self._cpu(lambda: all(map(is_signed, doubtful)))
        else:
            are_signed = all(map(is_signed, doubtful))
        if not are_signed:
            raise BadMessage("an entry with a wrong signature")
        for record in fresh:
            self._hybrid.observe(record.entry.hlc, now_ms)
        return await self._writer.submit(Batch(fresh, is_spread=is_spread)) if fresh else []

    def _is_wanted(self, record: Record) -> bool:
        return self._replica.is_news(record) and not self._replica.was_refused(
            record.slot, record.id
        )

    async def _hear(self, peer: PeerId, data: bytes) -> bool:
        """Take news from the channel; True if it changed our state, and so may others'.

        Nothing else goes on: an old entry in ever new messages ends here. Raises PeerError.
        """
        push = codec.decode(data, wire.push_decoder, wire.FRAME_MAX)
        try:
            return bool(await self._take(push.entries, is_spread=False))  # the channel passes it on
        except StoreFailed:
            return False  # our disk is full; a sync brings it again

    def _on_news(self, batch: Batch) -> None:
        now_ms = self._clock.wall_ms()
        for record in batch.news:
            self._watchers.touch(record.entry.namespace, record.entry.key)
        young = [r.signed for r in batch.news if wall_of(r.entry.hlc) > now_ms - NEWS_MAX_AGE_MS]
        if batch.is_spread and young:
            try:
                self._outbox.send_nowait(young)
            except trio.WouldBlock:
                self._news_dropped += len(young)

    async def _publish_news(self) -> None:
        async for entries in self._outgoing:
            rest = entries
            while rest:
                fit = wire.fitting(rest)
                frame, rest = codec.encode(wire.Push(rest[:fit])), rest[fit:]
                with trio.move_on_after(PUBLISH_S):
                    try:
                        await self._channel.publish(TOPIC, frame)
                    except ShoalError:
                        self._news_dropped += fit

    async def _keep_house(self) -> None:
        while True:
            await trio.sleep(HOUSEKEEPING_S)
            expired, dead = self._replica.pop_due(self._clock.wall_ms())
            for record in expired:
                self._watchers.touch(record.entry.namespace, record.entry.key)
            if dead:
                try:
                    await self._writer.submit(Batch([], dead=dead))
                except ShoalError:
                    continue  # still on the disk: the next start throws it away again

    def _item(self, record: Record) -> Item | None:
        entry = record.entry
        assert entry.value is not None
        try:
            value = msgspec.msgpack.decode(entry.value)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            self._malformed_values += 1
            return None
        return Item(entry.key, value, entry.author, entry.hlc, entry.expires_ms)
