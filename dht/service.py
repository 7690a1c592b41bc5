"""Finding peers and providers: the trio driver over table, lookup and records.

Stands on requests by bytes and on the host's address book. Every query has a deadline of its own;
peers enter the table only after they answered us.
"""

import itertools
from collections.abc import Callable, Iterable
from typing import Protocol

import trio

from dht import wire
from dht.key import Key, from_bytes, key_at, key_of_peer
from dht.lookup import ALPHA, Lookup
from dht.providers import Providers
from dht.records import (
    PEER_RECORD_MS,
    Contact,
    Signed,
    content_key,
    open_peer,
    open_provider,
    sign_peer,
    sign_provider,
)
from dht.table import K, Table
from wire import codec
from wire.errors import BadMessage, DeadlineExceeded, ShoalError, UsageError
from wire.ids import PeerId, Signer
from wire.ports import Clock, Network

QUERY_S = 3.0  # for one answer, with dialling; a slower peer is no use in a lookup
LOOKUP_S = 30.0  # for a whole lookup; 40 queries, 8 at a time, with a third of the peers dead
EARLY_REFRESH_S = (5.0, 30.0)  # a swarm that starts together knows few at the first look
REFRESH_S = 600.0  # between looks at ourselves and at buckets that heard of nobody since
PROVIDER_TTL_MS = 3_600_000  # how long our records live when we are gone
REPUBLISH_S = PROVIDER_TTL_MS / 3000  # two republishings may fail
RETRY_S = 30.0  # until a record that nobody took is offered again
PROVIDED_MAX = 10_000  # keys that we provide
CHECKS_MAX = 64  # peers waiting to be pinged into the table; when full, newcomers are dropped
CHECKED_MAX = 4096  # signed records remembered as genuine, 3 MB: a signature costs 60 µs to check
RECORD_AGE_MS = PEER_RECORD_MS // 24  # our own record is signed anew after this


class AddressBook(Protocol):
    """What the DHT needs of the host; `node.host.service.LibP2pHost` has these methods."""

    def addresses(self) -> list[str]:
        """Our own dialable multiaddrs."""
        ...

    def addresses_of(self, peer: PeerId, /) -> list[str]:
        """What we know of a peer's addresses."""
        ...

    def learn(self, peer: PeerId, addrs: list[str], /) -> object:
        """Remember addresses of a peer, so that a request to it can be dialled."""
        ...


class DhtService:
    """`node` wires `rpc.answer("dht", dht.answer)`."""

    def __init__(
        self,
        network: Network,
        addresses: AddressBook,
        signer: Signer,
        clock: Clock,
        *,
        peers: Callable[[], list[PeerId]],
    ) -> None:
        """`peers` lists who is connected now: where lookups start while the table is empty."""
        self._network, self._addresses, self._signer = network, addresses, signer
        self._clock, self._peers = clock, peers
        self._table, self._records = Table(signer.peer), Providers()
        self._checks, self._to_check = trio.open_memory_channel[PeerId](CHECKS_MAX)
        self._queued: set[PeerId] = set()
        self._genuine: dict[Signed, Contact] = {}
        self._mine: Contact | None = None
        self._provided: dict[bytes, float] = {}  # key -> when to publish it again
        self._acquainted = trio.Event()  # somebody is in the table

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the table fresh and our records published until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(ALPHA):
                nursery.start_soon(self._check)
            nursery.start_soon(self._refresh)
            nursery.start_soon(self._republish)
            task_status.started()

    def peer_up(self, peer: PeerId) -> None:
        """A connection to a peer is there: ask it in, if the table has room."""
        if peer in self._queued or not self._table.has_room_for(peer):
            return
        try:
            self._checks.send_nowait(peer)
        except trio.WouldBlock:
            return
        self._queued.add(peer)

    def table(self) -> list[Contact]:
        """Return the contacts in the routing table, nearest first."""
        return self._table.closest(self._table.own_key, len(self._table))

    async def bootstrap(self) -> int:
        """Look for ourselves, starting from who is connected; returns how many contacts we know."""
        async with trio.open_nursery() as nursery:
            for peer in self._peers()[:K]:
                if self._table.has_room_for(peer):
                    nursery.start_soon(self._ping, peer)
        await self._find(self._table.own_key)
        await self._refresh_buckets(before=self._clock.now())
        return len(self._table)

    async def find_peer(self, peer: PeerId) -> list[str]:
        """Return a peer's own signed addresses, newest word; [] if nobody knows it."""
        known = self._table.get(peer)
        best = [known] if known is not None else []

        def look(_: PeerId, answer: wire.Answer) -> bool:
            if isinstance(answer, wire.Nodes):
                best.extend(c for c in self._open_all(answer.contacts) if c.peer == peer)
            return bool(best)

        if not best:
            key = key_of_peer(peer)
            await self._search(key, wire.FindNode(self._me(), key.to_bytes(32)), look)
        return list(max(best, key=lambda one: one.seq).addrs) if best else []

    async def provide(self, key: bytes) -> int:
        """Say that we have `key`, now and again; returns how many peers took the record."""
        if key not in self._provided and len(self._provided) >= PROVIDED_MAX:
            raise UsageError(f"this node provides {PROVIDED_MAX} keys already")
        raw, now_ms = content_key(key), self._clock.wall_ms()
        self._provided[key] = self._clock.now() + RETRY_S
        record = sign_provider(self._signer, raw, expires_ms=now_ms + PROVIDER_TTL_MS)
        self._records.store(open_provider(record, now_ms), record, now_ms)
        closest = await self._find(from_bytes(raw))
        kept: list[PeerId] = []

        async def offer(contact: Contact) -> None:
            try:
                answer = await self._ask(contact.peer, wire.Provide(self._me(), record))
            except ShoalError:
                return
            if isinstance(answer, wire.Stored) and answer.is_kept:
                kept.append(contact.peer)

        async with trio.open_nursery() as nursery:
            for contact in closest:
                nursery.start_soon(offer, contact)
        if kept and key in self._provided:
            self._provided[key] = self._clock.now() + REPUBLISH_S
        return len(kept)

    def withdraw(self, key: bytes) -> None:
        """Stop saying that we have `key`; what is out there dies within an hour."""
        self._provided.pop(key, None)

    async def providers(self, key: bytes) -> list[PeerId]:
        """Return who says to have `key`, as far as the peers nearest to it know."""
        raw = content_key(key)
        found: dict[PeerId, None] = {}

        def look(_: PeerId, answer: wire.Answer) -> bool:
            if isinstance(answer, wire.Found):
                found.update(dict.fromkeys(self._providers_in(raw, answer.records)))
            return False

        local = self._records.get(raw, self._clock.wall_ms())
        found.update(dict.fromkeys(self._providers_in(raw, local)))
        await self._search(from_bytes(raw), wire.GetProviders(self._me(), raw), look)
        return list(found)

    async def answer(self, peer: PeerId, message: bytes) -> bytes:
        """Answer one request of a peer. Raises BadMessage."""
        request = codec.decode(message, wire.request_decoder, wire.FRAME_MAX)
        caller = self._open(request.me)
        if caller.peer != peer:
            raise BadMessage(f"{peer} shows the record of {caller.peer}")
        self._addresses.learn(peer, list(caller.addrs))
        self.peer_up(peer)
        return codec.encode(self._reply(peer, request))

    # --- inside --------------------------------------------------------------------------------

    def _reply(self, peer: PeerId, request: wire.Request) -> wire.Answer:
        now_ms = self._clock.wall_ms()
        match request:
            case wire.Ping():
                return wire.Pong(self._me())
            case wire.FindNode():
                return wire.Nodes(self._me(), self._near(request.target, peer))
            case wire.GetProviders():
                records = self._records.get(request.key, now_ms)
                return wire.Found(self._me(), records, self._near(request.key, peer))
            case wire.Provide():
                record = open_provider(request.record, now_ms)
                if record.peer != peer:
                    raise BadMessage(f"{peer} offers a record of {record.peer}")
                return wire.Stored(self._me(), self._records.store(record, request.record, now_ms))

    def _near(self, target: bytes, asker: PeerId) -> list[Signed]:
        now_ms = self._clock.wall_ms()
        contacts = self._table.closest(from_bytes(target), K + 1)
        return [c.signed for c in contacts if c.peer != asker and c.is_fresh(now_ms)][:K]

    def _me(self) -> Signed:
        """Our own record, signed anew when our addresses change or it gets old."""
        now_ms, addrs = self._clock.wall_ms(), self._addresses.addresses()
        mine = self._mine
        if mine is None or now_ms - mine.issued_ms > RECORD_AGE_MS or set(mine.addrs) != set(addrs):
            signed = sign_peer(self._signer, addrs, seq=now_ms, now_ms=now_ms)
            self._mine = mine = Contact(self._signer.peer, tuple(addrs), now_ms, now_ms, signed)
        return mine.signed

    def _open(self, signed: Signed) -> Contact:
        """Check a peer record, remembering the genuine ones. Raises BadMessage."""
        now_ms = self._clock.wall_ms()
        known = self._genuine.get(signed)
        if known is not None and known.is_fresh(now_ms):
            return known
        contact = open_peer(signed, now_ms)
        while len(self._genuine) >= CHECKED_MAX:
            del self._genuine[next(iter(self._genuine))]
        self._genuine[signed] = contact
        return contact

    def _open_all(self, records: Iterable[Signed]) -> list[Contact]:
        """Keep the genuine ones; an old or false record is no reason to lose the others."""
        found: list[Contact] = []
        for signed in records:
            try:
                found.append(self._open(signed))
            except BadMessage:
                continue
        return found

    def _providers_in(self, key: bytes, records: Iterable[Signed]) -> list[PeerId]:
        found: list[PeerId] = []
        for signed in records:
            try:
                record = open_provider(signed, self._clock.wall_ms())
            except BadMessage:
                continue
            if record.key == key:
                found.append(record.peer)
        return found

    async def _ask(self, peer: PeerId, request: wire.Request) -> wire.Answer:
        """One query; tells the table how it went. Raises ShoalError."""
        try:
            frame = codec.encode(request)
            with trio.fail_after(QUERY_S):  # the port's own deadline may leave dialling out
                reply = await self._network.request(peer, frame, timeout_s=QUERY_S)
            answer = codec.decode(reply, wire.answer_decoder, wire.FRAME_MAX)
            contact = self._open(answer.me)
            if contact.peer != peer:
                raise BadMessage(f"{peer} shows the record of {contact.peer}")
        except trio.TooSlowError as error:
            self._table.failed(peer)
            raise DeadlineExceeded(f"{peer} did not answer in {QUERY_S} s") from error
        except ShoalError:
            self._table.failed(peer)
            raise
        for check in self._table.answered(contact, self._clock.now()):
            self._enqueue(check.contact.peer)
        self._acquainted.set()
        return answer

    async def _find(self, target: Key) -> list[Contact]:
        """Return the live contacts nearest to a key."""
        request = wire.FindNode(self._me(), target.to_bytes(32))
        return await self._search(target, request, lambda _peer, _answer: False)

    async def _search(
        self, target: Key, request: wire.Request, look: Callable[[PeerId, wire.Answer], bool]
    ) -> list[Contact]:
        """Drive one lookup until it ends, or `look` says after an answer that it is enough."""
        lookup = Lookup(target, self._signer.peer)
        lookup.learn(self._table.closest(target, K))
        send, receive = trio.open_memory_channel[tuple[PeerId, wire.Answer | None]](ALPHA)

        async def query(contact: Contact) -> None:
            self._addresses.learn(contact.peer, list(contact.addrs))
            try:
                answer: wire.Answer | None = await self._ask(contact.peer, request)
            except ShoalError:
                answer = None
            await send.send((contact.peer, answer))

        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.deadline = trio.current_time() + LOOKUP_S
            while not lookup.is_done:
                for contact in lookup.next_queries():
                    nursery.start_soon(query, contact)
                peer, answer = await receive.receive()
                if answer is None:
                    lookup.failed(peer)
                    continue
                near = answer.contacts if isinstance(answer, wire.Nodes | wire.Found) else []
                lookup.answered(peer, self._open_all(near))
                if look(peer, answer):
                    break
            nursery.cancel_scope.cancel()
        return lookup.closest()

    async def _ping(self, peer: PeerId) -> None:
        try:
            await self._ask(peer, wire.Ping(self._me()))
        except ShoalError:
            return  # the table knows

    def _enqueue(self, peer: PeerId) -> None:
        if peer not in self._queued:
            try:
                self._checks.send_nowait(peer)
            except trio.WouldBlock:
                self._table.unchecked(peer)
                return
            self._queued.add(peer)

    async def _check(self) -> None:
        async for peer in self._to_check:
            await self._ping(peer)
            self._queued.discard(peer)

    async def _refresh(self) -> None:
        await self._acquainted.wait()
        for wait_s in itertools.chain(EARLY_REFRESH_S, itertools.repeat(REFRESH_S)):
            await self.bootstrap()
            await trio.sleep(wait_s)

    async def _refresh_buckets(self, *, before: float) -> None:
        for index in self._table.idle_buckets(before - REFRESH_S):
            self._table.refreshed(index, self._clock.now())
            rest = int.from_bytes(content_key(str((index, before)).encode()))
            await self._find(key_at(self._table.own_key, index, rest))

    async def _republish(self) -> None:
        while True:
            await trio.sleep(RETRY_S)
            now = self._clock.now()
            for key in [key for key, due in self._provided.items() if due <= now]:
                await self.provide(key)
            self._records.expire(self._clock.wall_ms())
