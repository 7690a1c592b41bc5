"""Who is in the swarm: each member's lease in the store, and connections to the others.

A member writes `member/@PEER` in namespace `swarm` and renews it; what it says is free of trust:
it is typed and bounded here, and a lease that is not is ignored and counted.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Protocol

import msgspec
import trio
from msgspec import Meta

from node.kept import Kept
from wire.errors import NotFound, ShoalError, UsageError
from wire.ids import PeerId, public_key_of
from wire.ports import Clock, Item, Store

NAMESPACE = "swarm"
PREFIX = "member/@"
LEASE_S = 60.0  # a node that is gone without a word leaves the list after this, if not connected
RENEW_S = LEASE_S / 3  # two renewals may fail
SETTLE_S = 0.2  # after our addresses changed: what changes with them comes with them
TELL_S = 5.0  # between two leases whose addresses differ: each goes to the whole swarm
LOOK_S = 10.0  # between two looks for members that we cannot reach
TELL_MAX = 32  # members that a farewell goes to; they tell the others
ADDRESSES_MAX = 16
ADDRESS_MAX = 256  # characters
LEASE_BYTES = 1536  # of the 2 KiB that a store value may take; the last addresses are left out
SEEN_MAX_MS = 3_600_000  # how long a member that died stays in the list, as not alive
SEEN_MAX = 1024  # members remembered after their lease died
FIND_MAX = 4  # DHT lookups for members without addresses per round of `LOOK_S`
SHORT_ID_MIN = 4  # characters of a peer ID that may stand for it
PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f]*\Z"  # it ends up on people's terminals

Address = Annotated[str, Meta(min_length=1, max_length=ADDRESS_MAX, pattern=r"^/[!-~]+\Z")]


@dataclass(frozen=True)
class MemberInfo:
    """What a node says about itself. `offers` is small: a lease takes up to 2 KiB."""

    name: str
    addrs: list[str]  # the most useful first
    version: str
    started_ms: int
    offers: dict[str, object] = field(default_factory=dict[str, object])


class Lease(msgspec.Struct, frozen=True):
    """The value of `member/@PEER`. Unknown fields are left to newer versions."""

    name: Annotated[str, Meta(max_length=64, pattern=PRINTABLE)]
    addrs: Annotated[list[Address], Meta(max_length=ADDRESSES_MAX)]
    version: Annotated[str, Meta(max_length=32, pattern=PRINTABLE)]
    started_ms: Annotated[int, Meta(ge=0)]
    offers: dict[str, object] = msgspec.field(default_factory=dict[str, object])


@dataclass(frozen=True)
class Member:
    """One member of the swarm, as we see it. `alive`: connected to us, or its lease is live."""

    peer: PeerId
    name: str
    addrs: list[str]
    version: str
    offers: dict[str, object]
    started_ms: int
    alive: bool
    connected: bool


class SyncedStore(Store, Protocol):
    """What membership needs of the store."""

    async def sync_with(self, peer: PeerId, /) -> object:
        """Exchange with a peer what either side lacks. Raises ShoalError."""
        ...


class Connector(Protocol):
    """What membership needs of the host."""

    @property
    def peer(self) -> PeerId:
        """Our own peer ID."""
        ...

    def connected(self) -> list[PeerId]:
        """Peers that we hold a connection to now."""
        ...

    def learn(self, peer: PeerId, addrs: list[str], /) -> object:
        """Remember addresses of a peer."""
        ...

    def keep(self, peer: PeerId, addrs: list[str], /) -> object:
        """Stay connected to a peer, reconnecting with back-off. May be said again."""
        ...

    def forget(self, peer: PeerId, /) -> object:
        """Stop keeping a peer."""
        ...


class Finder(Protocol):
    """What membership needs of the DHT."""

    async def find_peer(self, peer: PeerId) -> list[str]:
        """Return a peer's addresses; [] if nobody knows."""
        ...


@dataclass(frozen=True)
class _Seen:
    lease: Lease
    expires_ms: int


class Membership:
    """Keeps our own lease alive, follows those of the others, asks the host to stay connected."""

    def __init__(
        self,
        store: SyncedStore,
        host: Connector,
        info: Callable[[], MemberInfo],
        clock: Clock,
        *,
        finder: Finder | None = None,
    ) -> None:
        """`info` is asked at every renewal, so that a changed address or offer gets out."""
        self._store, self._host, self._info, self._clock = store, host, info, clock
        self._finder = finder
        self._seen: dict[PeerId, _Seen] = {}
        self._kept = Kept()
        self._found: dict[PeerId, list[str]] = {}  # addresses that the DHT knows
        self._renewing = trio.CancelScope()
        self._news = trio.Event()
        self.on_moved: Callable[[PeerId], None] = lambda _: None  # a member has other addresses
        self.malformed = 0  # leases of others that are not leases
        self.renewals_failed = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write and renew our lease; follow the others'. `started` once the lease is durable."""
        await self.refresh()
        async with trio.open_nursery() as nursery:
            await nursery.start(self._follow)
            nursery.start_soon(self._renew)
            nursery.start_soon(self._find_lost)
            task_status.started()

    async def refresh(self) -> None:
        """Write our lease again now: what we offer has changed. Raises ShoalError."""
        if self._renewing.cancel_called:
            return  # we have left
        lease = _fitted(self._info(), self._host.peer)
        await self._store.put(NAMESPACE, PREFIX + self._host.peer, lease, ttl_s=LEASE_S)

    def moved(self) -> None:
        """Write our lease again soon: we can be reached elsewhere, or not as before."""
        self._news.set()

    async def leave(self, *, timeout_s: float = 2.0) -> None:
        """Withdraw our lease on a clean shutdown, while store and host still run.

        Returns once the connected members know, or at the deadline.
        """
        self._renewing.cancel()
        with trio.move_on_after(timeout_s):
            await self._store.delete(NAMESPACE, PREFIX + self._host.peer)
            async with trio.open_nursery() as nursery:
                for peer in self._host.connected()[:TELL_MAX]:
                    nursery.start_soon(self._tell, peer)

    def members(self) -> list[Member]:
        """Return whom we know: ourselves first, then by name. The lately dead are not alive."""
        self._look_at_all()
        now_ms, connected = self._clock.wall_ms(), set(self._host.connected())
        found = [
            Member(
                peer=peer,
                name=seen.lease.name,
                addrs=list(seen.lease.addrs),
                version=seen.lease.version,
                offers=seen.lease.offers,
                started_ms=seen.lease.started_ms,
                alive=seen.expires_ms > now_ms or peer in connected,
                connected=peer in connected,
            )
            for peer, seen in self._seen.items()
        ]
        return sorted(found, key=lambda one: (one.peer != self._host.peer, one.name, one.peer))

    def name_of(self, peer: PeerId) -> str:
        """Return a member's name, at the cost of a look-up; "" of one that we do not know."""
        seen = self._seen.get(peer)
        return seen.lease.name if seen is not None else ""

    def resolve(self, name: str) -> PeerId:
        """Find whom a person means: a member's name, a peer ID, or the start or end of one.

        Raises UsageError if several fit, NotFound if nobody does.
        """
        members = self.members()
        named = [one for one in members if one.name == name]
        fits = [one for one in named if one.alive] or named
        if not fits and len(name) >= SHORT_ID_MIN:
            fits = [one for one in members if one.peer.startswith(name) or one.peer.endswith(name)]
        if len(fits) > 1:
            peers = ", ".join(one.peer for one in fits[:3])
            raise UsageError(f"{name!r} fits {len(fits)} members: {peers}", hint="give the peer ID")
        if fits:
            return fits[0].peer
        try:
            public_key_of(PeerId(name))
        except ShoalError:
            raise NotFound(f"no member is called {name!r}", hint="see `shoal peers`") from None
        return PeerId(name)

    # --- inside --------------------------------------------------------------------------------

    async def _tell(self, peer: PeerId) -> None:
        # The channel only queues, and the process ends before a queue is empty: so we sync.
        try:
            await self._store.sync_with(peer)
        except ShoalError:
            return  # it hears of us from another member, or when our lease dies

    async def _renew(self) -> None:
        with self._renewing:
            while True:
                with trio.move_on_after(RENEW_S):
                    await self._news.wait()
                    await trio.sleep(SETTLE_S)
                is_move, self._news = self._news.is_set(), trio.Event()
                try:
                    await self.refresh()
                except ShoalError:  # the disk is full, or the clock went back: the next may work
                    self.renewals_failed += 1
                if is_move:
                    await trio.sleep(TELL_S - SETTLE_S)

    async def _follow(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        async with self._store.watch(NAMESPACE, PREFIX) as changes:
            self._look_at_all()
            self._keep_connected()
            task_status.started()
            async for key in changes:
                item = self._store.get(NAMESPACE, key)
                if item is not None:
                    self._look_at(item)
                self._keep_connected()

    async def _find_lost(self) -> None:
        """Ask the DHT about members whose addresses we do not have, or that we cannot reach."""
        while True:
            await trio.sleep(LOOK_S)
            self._look_at_all()
            self._keep_connected()
            if self._finder is None:
                continue
            connected, now_ms = set(self._host.connected()), self._clock.wall_ms()
            lost = [
                peer
                for peer, seen in self._seen.items()
                if peer not in connected and peer != self._host.peer and seen.expires_ms > now_ms
            ]
            for peer in random.sample(lost, min(FIND_MAX, len(lost))):
                try:
                    addrs = await self._finder.find_peer(peer)
                except ShoalError:
                    continue
                if addrs:
                    self._host.learn(peer, addrs)
                    self._found[peer] = addrs
            self._keep_connected()

    def _look_at_all(self) -> None:
        """Bring what we have seen up to date with the store."""
        now_ms = self._clock.wall_ms()
        live = {item.author for item in self._store.scan(NAMESPACE, PREFIX) if self._look_at(item)}
        for peer, seen in list(self._seen.items()):
            is_withdrawn = peer not in live and seen.expires_ms > now_ms
            if is_withdrawn or seen.expires_ms + SEEN_MAX_MS < now_ms:
                del self._seen[peer]
        dead = [peer for peer in self._seen if peer not in live]
        for peer in dead[:-SEEN_MAX]:
            del self._seen[peer]

    def _look_at(self, item: Item) -> bool:
        """Note one lease; False if it is not one."""
        try:
            lease = msgspec.convert(item.value, Lease)
        except msgspec.ValidationError:
            self.malformed += 1
            return False
        if item.key != PREFIX + item.author:
            self.malformed += 1
            return False
        known = self._seen.get(item.author)
        self._seen[item.author] = _Seen(lease, item.expires_ms)
        if item.author != self._host.peer and (known is None or known.lease.addrs != lease.addrs):
            self._host.learn(item.author, list(lease.addrs))
            self.on_moved(item.author)
            if item.author in self._kept.peers:
                self._host.keep(item.author, list(lease.addrs))  # it moved: dial it there at once
        return True

    def _keep_connected(self) -> None:
        """Tell the host whom to stay connected to now."""
        now_ms, own = self._clock.wall_ms(), self._host.peer
        self._found = {peer: addrs for peer, addrs in self._found.items() if peer in self._seen}
        places = {
            peer: list(seen.lease.addrs) or self._found.get(peer, [])
            for peer, seen in self._seen.items()
            if peer != own and seen.expires_ms > now_ms
        }
        reachable = [peer for peer, addrs in places.items() if addrs]
        connected = set(self._host.connected())
        fresh, gone = self._kept.choose(reachable, connected, self._clock.now())
        for peer in gone:
            self._host.forget(peer)
        for peer in fresh:
            self._host.keep(peer, places[peer])


def _fitted(info: MemberInfo, own: PeerId) -> Lease:
    """Make the lease of what a node says about itself; addresses that do not fit are left out."""
    named = f"/p2p/{own}"  # half of an address, and the lease's own key says it
    addrs = [one.removesuffix(named) for one in dict.fromkeys(info.addrs)]
    addrs = [one for one in addrs if 0 < len(one) <= ADDRESS_MAX][:ADDRESSES_MAX]
    while True:
        lease = Lease(info.name[:64], addrs, info.version[:32], info.started_ms, info.offers)
        if not addrs or len(msgspec.msgpack.encode(lease)) <= LEASE_BYTES:
            return lease
        addrs = addrs[:-1]
