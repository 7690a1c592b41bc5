"""The DHT as a service: looking and storing for whoever asks, our own records, the snapshot.

The machine is `dht.node.Node`, driven by `dht.driver.Driver`; whoever waits for an operation and is
cancelled ends it.
"""

import logging
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import trio

from dht import snapshot
from dht.driver import Driver
from dht.messages import Answer, Contact, Provision, Request, Trace, Value, hearsay
from dht.node import Node
from dht.operation import OPERATION_S, QUERY_S
from dht.own import Own
from dht.ports import Book, Transport
from dht.records import NAME_MAX, open_peer
from dht.regions import Provided
from dht.snapshot import NAMES_MAX, Snapshot
from dht.storing import Kept
from dht.table import K
from dht.values import head_name
from dht.view import TableView, view_of
from wire.errors import BadMessage, Busy, UsageError
from wire.ids import PeerId, Signer, public_key_of
from wire.ports import Clock, OffLoop
from wire.threads import Threads

WHERE = "peer"  # `/shoal/head/PEER/peer` has the peer record of a client
EARLY_S = (5.0, 25.0)  # after the first look: those who start together meet at these
PROVIDED_MAX = 20_000  # names that we provide: their records take 8 MB while they are sent
SEALED_AT_ONCE = 500  # provider records that a thread signs before others have their turn: 20 ms
SAVE_S = 60.0  # between two snapshots
LEAVE_S = 1.0  # for handing over what we hold
SETTLE_S = 1.0  # after our addresses changed: what changes with them comes with them
PUBLISH_LOOK_S = 30.0  # between two looks for values of ours that are due

log = logging.getLogger(__name__)


class DhtService:
    """`node.finding` wires it to the host. Every call raises ShoalError at worst."""

    def __init__(
        self,
        transport: Transport,
        book: Book,
        signer: Signer,
        clock: Clock,
        *,
        peers: Callable[[], list[PeerId]],
        rng: random.Random | None = None,
        is_public: bool = False,
        file: Path | None = None,
        off_loop: OffLoop | None = None,
    ) -> None:
        """`peers` lists who is connected now: where lookups start while the table is empty.

        is_public: other implementations take part, so unsigned records are taken as they mean them.
        file: where table, own values and names provided are kept; None: nowhere. off_loop: for
        simulators.
        """
        self._book, self._clock, self._peers = book, clock, peers
        self._own = Own(signer, book.addresses)
        self.node = Node(self._own, rng or random.Random(), is_public=is_public)
        self._driver = Driver(self.node, transport, clock)
        self._off_loop: OffLoop = off_loop or Threads()
        self._file, self._kept, self._saved = file, Snapshot(), b""
        self._is_joining, self._joined = False, trio.Event()
        self._saving = trio.Lock()
        self._by_hand = set[bytes]()  # of the names that we provide: also after a restart
        self._news = trio.Event()  # there may be something to publish
        self._publishing = trio.CancelScope()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read the snapshot, then drive the machine until cancelled."""
        self._kept = await self._read()
        self._own.adopt(self._kept.values)
        self._by_hand.update(self._kept.names)
        async with trio.open_nursery() as nursery:
            await nursery.start(self._driver.run)
            nursery.start_soon(self._publish)
            nursery.start_soon(self._save_often)
            nursery.start_soon(self._look_early)
            if self._kept.contacts:
                nursery.start_soon(self._rejoin)
            task_status.started()

    # --- what the transport and the host tell ----------------------------------------------------

    def answer(self, peer: PeerId, sender: Contact | None, request: Request) -> Answer:
        """Answer a peer's request. Never raises."""
        answer = self.node.received(peer, sender, request, self._driver.moment())
        self._driver.pump()
        return answer

    def peer_up(self, peer: PeerId) -> None:
        """A connection to a peer is there: it is asked in, if the table wants it."""
        self.node.peer_up(self._hearsay(peer), self._driver.moment())
        self._driver.pump()

    @property
    def contacts(self) -> int:
        """How many servers are in our table."""
        return len(self.node.table)

    @property
    def is_server(self) -> bool:
        """Whether we answer others, and are in their tables."""
        return self.node.is_server

    def sender(self) -> Contact | None:
        """Our own record, which goes with every message; None as a client."""
        return self.node.sender(self._driver.moment())

    def set_mode(self, *, is_server: bool) -> None:
        """Become a server, or a client, which hands over what it holds."""
        if is_server != self.node.is_server:
            self.node.set_mode(is_server=is_server, moment=self._driver.moment())
            self._driver.pump()
            self._news.set()

    def moved(self) -> None:
        """Our addresses have changed: a client says so soon; a server's record goes with all."""
        self._news.set()

    # --- looking ---------------------------------------------------------------------------------

    async def bootstrap(self) -> int:
        """Look for ourselves, from who is connected and in the table; how many contacts we know."""
        seeds = [self._hearsay(peer) for peer in self._peers()[:K]]
        await self._join(seeds)
        return self.contacts

    async def closest(
        self, name: bytes, *, paths: int = 1, trace: Trace | None = None
    ) -> list[Contact]:
        """Return the live servers nearest to a name (any bytes), nearest first."""
        await self._met()
        found: list[Contact] = await self._driver.do(
            partial(self.node.find_closest, name, paths=paths, trace=trace)
        )
        return found

    async def find_peer(self, peer: PeerId, *, trace: Trace | None = None) -> list[str]:
        """Return a peer's addresses, its newest word; [] if nobody knows it."""
        await self._met()
        found: Contact | None = await self._driver.do(
            partial(self.node.find_peer, peer, trace=trace)
        )
        with suppress(BadMessage):  # an ID without a key in it signs no values
            if found is None and public_key_of(peer):
                found = next(_told_by(peer, await self.get(head_name(peer, WHERE))), None)
        return [] if found is None else list(found.addrs)

    async def providers(
        self, name: bytes, *, paths: int = 1, trace: Trace | None = None
    ) -> list[PeerId]:
        """Return who says to have what this names, as far as the servers nearest to it know.

        Where they are, as far as it was told, can be dialled then.
        """
        await self._met()
        found: tuple[Provision, ...] = await self._driver.do(
            partial(self.node.providers, name, paths=paths, trace=trace)
        )
        for one in found:
            self._book.learn(one.peer, list(one.addrs), is_hearsay=True)
        return list(dict.fromkeys(one.peer for one in found))

    async def get(
        self, name: bytes, *, paths: int = 1, trace: Trace | None = None
    ) -> tuple[Value, ...]:
        """Return the newest value of a name, or of each author under `/shoal/multi`; () if none."""
        await self._met()
        found: tuple[Value, ...] = await self._driver.do(
            partial(self.node.get, name, paths=paths, trace=trace)
        )
        return found

    # --- storing ---------------------------------------------------------------------------------

    async def provide(self, name: bytes, *, trace: Trace | None = None) -> Kept:
        """Say that we have `name`, now and again until `withdraw`, also after a restart; who keeps
        it, as `put` says. Raises UsageError if we provide too many already.
        """
        if len(self._by_hand | {name}) > NAMES_MAX:
            raise UsageError(f"a node is told to provide {NAMES_MAX} names at most")
        self._promise([name])
        self._by_hand.add(name)
        await self._settled()
        kept: Kept = await self._driver.do(partial(self.node.provide, name, trace=trace))
        await self.save()
        return kept

    async def provide_many(self, names: Iterable[bytes]) -> int:
        """Say that we have these, by regions of keys, until a restart; how many records servers
        keep of it. Raises UsageError if we would provide too many.
        """
        wanted = list(dict.fromkeys(names))
        self._promise(wanted)
        try:
            for first in range(0, len(wanted), SEALED_AT_ONCE):
                part = wanted[first : first + SEALED_AT_ONCE]
                wall_ms = self._clock.wall_ms()
                await self._off_loop(partial(self._own.prepare, part, wall_ms))
            await self._settled()
            provided: Provided = await self._driver.do(partial(self.node.provide_many, wanted))
        finally:
            self._own.drop_prepared(wanted)
        return provided.kept

    def withdraw(self, name: bytes) -> None:
        """Stop saying that we have `name`; what is out there dies within a day. `save` keeps it."""
        self._by_hand.discard(name)
        self.node.withdraw(name)

    async def put(self, value: Value, *, trace: Trace | None = None) -> Kept:
        """Store a value once; how many servers keep it, and why one did not."""
        await self._settled()
        kept: Kept = await self._driver.do(partial(self.node.put, value, trace=trace))
        return kept

    async def put_head(self, name: str, data: bytes, *, trace: Trace | None = None) -> Kept:
        """Sign and store `/shoal/head/US/NAME`, and store it again at half-life until `forget`.

        Raises UsageError if it does not fit, there are too many, or the name is kept for ourselves.
        """
        if name == WHERE:
            raise UsageError(f"the name {WHERE!r} says where a client is: choose another one")
        return await self._put_own(self._own.head(name, data, self._clock.wall_ms()), trace)

    async def put_multi(self, name: str, data: bytes, *, trace: Trace | None = None) -> Kept:
        """Sign and store our value of `/shoal/multi/NAME`, and again until `forget`."""
        return await self._put_own(self._own.multi(name, data, self._clock.wall_ms()), trace)

    async def forget(self, name: bytes) -> None:
        """Stop republishing our value of this (whole) name, also after a crash."""
        self._own.forget(name)
        await self.save()

    async def leave(self) -> None:
        """Hand over what we hold (1 s at most), and save the snapshot. We publish nothing more."""
        self._publishing.cancel()
        await self.save()
        with trio.move_on_after(LEAVE_S):
            await self._driver.do(self.node.leave)

    def provides(self, name: bytes) -> bool:
        """Whether we say to have it."""
        return name in self.node.provided

    def provided(self) -> list[bytes]:
        """Return the names that we provide, sorted."""
        return sorted(self.node.provided)

    def published(self) -> list[Value]:
        """Return our own values, which are stored again and again."""
        return self._own.values()

    # --- for people ------------------------------------------------------------------------------

    def view(self) -> TableView:
        """What we know of the network."""
        return view_of(
            self.node,
            self._clock.now(),
            published=len(self._own.values()),
        )

    # --- inside ----------------------------------------------------------------------------------

    def _promise(self, names: Sequence[bytes]) -> None:
        if not all(0 < len(name) <= NAME_MAX for name in names):
            raise UsageError(f"names have 1 to {NAME_MAX} bytes")
        if len(self.node.provided | set(names)) > PROVIDED_MAX:
            raise UsageError(f"a node provides {PROVIDED_MAX} names at most")
        self.node.promise(names, self._driver.moment())
        self._driver.pump()

    async def _put_own(self, value: Value, trace: Trace | None) -> Kept:
        kept = await self.put(value, trace=trace)
        if kept.kept:
            self._own.stored(value.name, self._clock.wall_ms())
        await self.save()  # what is answered for is stored again after a crash, too
        return kept

    def _hearsay(self, peer: PeerId) -> Contact:
        return hearsay(peer, tuple(self._book.addresses_of(peer)))

    async def _rejoin(self) -> None:
        """Ask those that were in the table when we stopped."""
        await self._join(self._kept.contacts)
        log.info("dht.rejoined contacts=%d of=%d", self.contacts, len(self._kept.contacts))

    async def _join(self, seeds: Sequence[Contact]) -> None:
        self._is_joining = True
        try:
            await self._driver.do(partial(self.node.bootstrap, seeds))
        finally:
            self._joined.set()
            self._news.set()  # now there may be somebody to store it

    async def _settled(self) -> None:
        """While we join, nobody knows how far a store has to go: it would go to everybody."""
        if self._is_joining:
            with trio.move_on_after(OPERATION_S):
                await self._joined.wait()

    async def _met(self) -> None:
        """Who asks in the moment between the first connection and the first contact waits."""
        if not self.contacts and self._peers():
            with trio.move_on_after(QUERY_S):
                await self._joined.wait()

    async def _look_early(self) -> None:
        """Look for ourselves again soon, if we know few: the others may have come with us."""
        await self._joined.wait()
        for wait_s in EARLY_S:
            await trio.sleep(wait_s)
            if self.contacts < K:
                with suppress(Busy):
                    await self.bootstrap()

    async def _publish(self) -> None:
        """Store our values again at half-life, and after a restart."""
        with self._publishing:
            while True:
                self._news = trio.Event()
                if self.contacts:
                    with suppress(Busy, UsageError):  # the next look may find a place
                        await self._publish_due()
                with trio.move_on_after(PUBLISH_LOOK_S):
                    await self._news.wait()
                    await trio.sleep(SETTLE_S)

    async def _publish_due(self) -> None:
        await self._say_where()
        for name in self._own.due(self._clock.wall_ms()):
            await self._put_again(name)
        if after_restart := self._by_hand - self.node.provided:
            await self.provide_many(after_restart)  # last: there may be too many of others

    async def _say_where(self) -> None:
        """A client is in no table: its peer record is a value."""
        if self.is_server:
            self._own.forget(head_name(self._own.peer, WHERE))
            return
        mine = self._own.contact(self._clock.wall_ms())
        told = [one.addrs for value in self._own.values() for one in _told_by(mine.peer, [value])]
        if mine.addrs not in told:
            await self._put_own(self._own.head(WHERE, mine.sealed, self._clock.wall_ms()), None)

    async def _put_again(self, name: bytes) -> None:
        value = self._own.again(name, self._clock.wall_ms())
        if value is not None:
            await self._put_own(value, None)

    async def _read(self) -> Snapshot:
        if self._file is None:
            return Snapshot()
        return await self._off_loop(partial(snapshot.read, self._file))

    async def _save_often(self) -> None:
        while True:
            await trio.sleep(SAVE_S)
            await self.save()

    async def save(self) -> None:
        """Write the snapshot, if there is something new in it. An empty table forgets nothing."""
        if self._file is None:
            return
        async with self._saving:
            contacts = self.node.snapshot() or self._kept.contacts
            data = snapshot.pack(contacts, self._own.values(), sorted(self._by_hand))
            if data != self._saved:
                await self._off_loop(partial(snapshot.write, self._file, data))
                self._saved = data


def _told_by(peer: PeerId, values: Iterable[Value]) -> Iterator[Contact]:
    """Yield a client's peer record out of its value; nothing of other values."""
    for value in values:
        if value.name == head_name(peer, WHERE):
            with suppress(BadMessage):
                yield open_peer(value.data)
