"""The routes of the DHT, under /v1/dht: what `shoal dht` and `client.dht` ask."""

from collections.abc import Callable, Iterable, Mapping
from itertools import groupby
from typing import Annotated

import msgspec
import trio
from msgspec import Meta

from dht.key import common_bits, key_of, key_of_peer
from dht.messages import Contact, Hop, Trace, Value
from dht.records import STAMP_MAX
from dht.service import DhtService
from dht.storing import Kept
from dht.view import TableRow
from node.control.api import Api, Request
from node.control.dht_names import (
    Resolve,
    key_named,
    own_named,
    shown,
    target_named,
    value_named,
)
from node.finding import PUBLIC, Finding
from node.parts import Node
from shoal import dht_api as shapes
from wire.errors import NotFound, ShoalError
from wire.ids import PeerId

KEY_MAX = 512  # characters typed: a name has 256 bytes, a head's the peer's name or ID before it
PROVIDED_SHOWN = 100  # keys that we provide: there may be 20,000

NameOf = Callable[[PeerId], str]

_SHOWS = "`shoal dht table` shows what it does"

_Key = Annotated[str, Meta(min_length=1, max_length=KEY_MAX)]
_Paths = Annotated[int, Meta(ge=1, le=shapes.PATHS_MAX)]


class NoServers(ShoalError):
    """There is nobody to ask."""

    code = "unavailable"
    hint = "it takes a moment after the first connection; `shoal peers` shows those there are"


class _LookUpBody(msgspec.Struct):
    """`shoal.dht_api.DhtLookUp` with its bounds."""

    target: _Key
    paths: _Paths = 1
    trace: bool = False


class _AskBody(msgspec.Struct):
    """`shoal.dht_api.DhtAsk` with its bounds."""

    key: _Key
    paths: _Paths = 1
    trace: bool = False


class _ProvideBody(msgspec.Struct):
    """`shoal.dht_api.DhtProvide` with its bounds."""

    key: _Key
    trace: bool = False


class _PutBody(msgspec.Struct):
    """`shoal.dht_api.DhtPut` with its bounds; what is too large the DHT itself refuses."""

    key: _Key
    data: bytes
    trace: bool = False


class _KeyBody(msgspec.Struct):
    """`shoal.dht_api.DhtKey` with its bounds."""

    key: _Key


class DhtRoutes:
    """The handlers; each is one route."""

    def __init__(self, finding: Finding, node: Node, resolve: Resolve, name_of: NameOf) -> None:
        self._finding, self._node = finding, node
        self._resolve, self._name_of = resolve, name_of

    @property
    def _dht(self) -> DhtService:
        return self._finding.dht

    async def lookup(self, request: Request) -> shapes.DhtLookedUp:
        """Find a peer, or who is nearest to a key."""
        body = request.read(_LookUpBody)
        target = target_named(body.target, self._resolve)
        if not isinstance(target, bytes):
            return await self._find_peer(PeerId(target), is_traced=body.trace)
        work = _Work(self._name_of, is_traced=body.trace)
        found = await self._dht.closest(target, paths=body.paths, trace=work.trace)
        work.check_asked()
        return shapes.DhtLookedUp(
            target=shown(target),
            hash=f"{key_of(target):064x}",
            peer="",
            name="",
            addresses=[],
            nearest=[work.server(one, target) for one in found],
            effort=work.effort(),
        )

    async def _find_peer(self, peer: PeerId, *, is_traced: bool) -> shapes.DhtLookedUp:
        work = _Work(self._name_of, is_traced=is_traced)
        if peer == self._node.host.peer:
            addresses = self._node.addresses()
        else:
            addresses = await self._dht.find_peer(peer, trace=work.trace)
            if not addresses:
                work.check_asked()
        return shapes.DhtLookedUp(
            target=peer,
            hash=f"{key_of_peer(peer):064x}",
            peer=peer,
            name=self._name_of(peer),
            addresses=addresses,
            nearest=[],
            effort=work.effort(),
        )

    async def provide(self, request: Request) -> shapes.DhtKept:
        """Say that we have it."""
        body = request.read(_ProvideBody)
        key, work = key_named(body.key), _Work(self._name_of, is_traced=body.trace)
        return work.kept(key, await self._dht.provide(key, trace=work.trace))

    async def withdraw(self, request: Request) -> None:
        """Say it no more."""
        key = key_named(request.read(_KeyBody).key)
        if not self._dht.provides(key):
            raise NotFound(f"this node does not provide {shown(key)}", hint=_SHOWS)
        self._dht.withdraw(key)
        await self._dht.save()

    async def providers(self, request: Request) -> shapes.DhtProviders:
        """Find who has it."""
        body = request.read(_AskBody)
        key, work = key_named(body.key), _Work(self._name_of, is_traced=body.trace)
        found = await self._dht.providers(key, paths=body.paths, trace=work.trace)
        if not found:
            work.check_asked()
        me, connected = self._node.host.peer, set(self._node.host.connected())
        return shapes.DhtProviders(
            key=shown(key),
            providers=[
                shapes.DhtProvider(one, self._name_of(one), one == me, one in connected)
                for one in found
            ],
            effort=work.effort(),
        )

    async def get(self, request: Request) -> shapes.DhtValues:
        """Find a value."""
        body = request.read(_AskBody)
        name = value_named(body.key, self._node.host.peer, self._resolve)
        work = _Work(self._name_of, is_traced=body.trace)
        found = await self._dht.get(name, paths=body.paths, trace=work.trace)
        if not found:
            work.check_asked()
        return shapes.DhtValues(shown(name), [work.value(one) for one in found], work.effort())

    async def put(self, request: Request) -> shapes.DhtKept:
        """Store a value of ours, and again until it is forgotten."""
        body = request.read(_PutBody)
        is_head, name, full = own_named(body.key, self._node.host.peer)
        work = _Work(self._name_of, is_traced=body.trace)
        put = self._dht.put_head if is_head else self._dht.put_multi
        return work.kept(full, await put(name, body.data, trace=work.trace))

    async def forget(self, request: Request) -> None:
        """Store it no more."""
        _, _, full = own_named(request.read(_KeyBody).key, self._node.host.peer)
        if full not in {one.name for one in self._dht.published()}:
            raise NotFound(f"this node does not publish {shown(full)}", hint=_SHOWS)
        await self._dht.forget(full)

    async def table(self, _: Request) -> shapes.DhtTable:
        """Say what we know, hold and publish."""
        view = self._dht.view()
        rows = groupby(sorted(view.rows, key=_place), key=lambda row: row.bucket)
        return shapes.DhtTable(
            peer=view.peer,
            mode="server" if view.is_server else "client",
            why=self._node.reach().verdict,
            public=self._finding.protocol == PUBLIC,
            protocol=self._finding.protocol,
            network_size=round(view.size),
            contacts=len(view.rows),
            buckets=[self._bucket(*one, view.spares) for one in rows],
            held=view.held,
            provided=view.provided,
            provided_first=[shown(name) for name in self._dht.provided()[:PROVIDED_SHOWN]],
            published=[
                shapes.DhtOwn(shown(one.name), one.seq, len(one.data))
                for one in self._dht.published()
            ],
        )

    def _bucket(
        self, bits: int, rows: Iterable[TableRow], spares: Mapping[int, int]
    ) -> shapes.DhtBucket:
        contacts = [_contact(row, self._name_of(row.peer)) for row in rows]
        return shapes.DhtBucket(bits, contacts, spares.get(bits, 0))


class _Work:
    """One operation: what it took, in the shapes of the API."""

    def __init__(self, name_of: NameOf, *, is_traced: bool) -> None:
        self._name_of, self._is_traced = name_of, is_traced
        self.trace, self._began = Trace(), trio.current_time()

    def effort(self) -> shapes.DhtEffort:
        """What it took until now."""
        hops = self.trace.hops
        return shapes.DhtEffort(
            took_ms=_ms(trio.current_time() - self._began),
            asked=len(hops),
            unanswered=sum(hop.outcome in ("timeout", "unreachable") for hop in hops),
            hops=[self._hop(hop) for hop in hops] if self._is_traced else None,
        )

    def check_asked(self) -> None:
        """Raise NoServers if there was nobody to ask."""
        if not self.trace.hops:
            raise NoServers("this node knows no server of the DHT yet")

    def kept(self, name: bytes, kept: Kept) -> shapes.DhtKept:
        """What came of a store."""
        return shapes.DhtKept(
            shown(name), kept.asked, kept.kept, dict(kept.refusals), self.effort()
        )

    def server(self, contact: Contact, name: bytes) -> shapes.DhtServer:
        """One of the nearest."""
        bits = common_bits(contact.key, key_of(name))
        name_ = self._name_of(contact.peer)
        return shapes.DhtServer(contact.peer, name_, bits, list(contact.addrs))

    def value(self, value: Value) -> shapes.DhtValue:
        """One value."""
        return shapes.DhtValue(
            key=shown(value.name),
            author=value.author or "",
            author_name=self._name_of(value.author) if value.author else "",
            seq=value.seq,
            expires_ms=0 if value.expires_ms >= STAMP_MAX else value.expires_ms,
            data=value.data,
        )

    def _hop(self, hop: Hop) -> shapes.DhtHop:
        return shapes.DhtHop(
            peer=hop.peer,
            name=self._name_of(hop.peer),
            bits=hop.bits,
            depth=hop.depth,
            path=hop.path,
            began_ms=_ms(hop.began_s),
            took_ms=None if hop.took_s is None else _ms(hop.took_s),
            outcome=hop.outcome,
            closer=hop.closer,
            found=hop.found,
        )


def routes(api: Api, finding: Finding, node: Node, resolve: Resolve, name_of: NameOf) -> None:
    """Declare the routes. name_of: a member's name, or ""; not worth a look into the store."""
    it, root = DhtRoutes(finding, node, resolve, name_of), "/v1/dht"
    for verb, handler, summary, body, reply in (
        ("lookup", it.lookup, "Find a peer, or who is near a key", _LookUpBody, shapes.DhtLookedUp),
        ("provide", it.provide, "Say that we have it", _ProvideBody, shapes.DhtKept),
        ("withdraw", it.withdraw, "Say so no more", _KeyBody, None),
        ("providers", it.providers, "Who has it", _AskBody, shapes.DhtProviders),
        ("get", it.get, "The value of a name", _AskBody, shapes.DhtValues),
        ("put", it.put, "Sign and store a value of ours", _PutBody, shapes.DhtKept),
        ("forget", it.forget, "Store it again no more", _KeyBody, None),
    ):
        api.add("POST", f"{root}/{verb}", handler, summary=summary, body=body, reply=reply)
    api.add("GET", f"{root}/table", it.table, summary="Whom we know", reply=shapes.DhtTable)


def _contact(row: TableRow, name: str) -> shapes.DhtContact:
    return shapes.DhtContact(
        peer=row.peer,
        name=name,
        address=row.address,
        addresses=list(row.addrs),
        group=row.group,
        seen_s=round(row.seen_s, 1),
        useful_s=None if row.useful_s is None else round(row.useful_s, 1),
        failures=row.failures,
    )


def _place(row: TableRow) -> tuple[int, float]:
    return row.bucket, -row.seen_s


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 2)
