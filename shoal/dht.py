"""The DHT's part of the two clients: `client.dht`, plain and for trio.

A key is a CID, or a name that begins with `/`. Whoever provides or puts does so until `withdraw` or
`forget`: the daemon says it again before it expires. docs/dht.md tells what it is good for.
"""

from typing import TYPE_CHECKING, TypeVar

from shoal.dht_api import (
    CALL_TIMEOUT_S,
    DhtAsk,
    DhtKept,
    DhtKey,
    DhtLookedUp,
    DhtLookUp,
    DhtProvide,
    DhtProviders,
    DhtPut,
    DhtTable,
    DhtValues,
)
from shoal.store_asks import Ask

if TYPE_CHECKING:
    from shoal.async_client import AsyncClient
    from shoal.client import Client

R = TypeVar("R")

_ROOT = "/v1/dht"


class Dht:
    """Finding peers, providers and small values."""

    def __init__(self, client: "Client") -> None:
        self._client = client

    def lookup(self, target: str, *, paths: int = 1, trace: bool = False) -> DhtLookedUp:
        """Return where a peer is (its name, ID or a part of it), or who is nearest to a key."""
        return self._ask(_lookup(target, paths, trace=trace))

    def provide(self, key: str, *, trace: bool = False) -> DhtKept:
        """Say that this node has what a key names, until `withdraw`."""
        return self._ask(_provide(key, trace=trace))

    def withdraw(self, key: str) -> None:
        """Stop saying so. What others hold of it dies within a day."""
        self._client.call("POST", f"{_ROOT}/withdraw", DhtKey(key))

    def providers(self, key: str, *, paths: int = 1, trace: bool = False) -> DhtProviders:
        """Return who says to have what a key names."""
        return self._ask(_providers(key, paths, trace=trace))

    def get(self, name: str, *, paths: int = 1, trace: bool = False) -> DhtValues:
        """Return the newest value of `/shoal/head/PEER/NAME`, each author's of `/shoal/multi/NAME`,
        or the public key of `/pk/ID`. No value is no error.
        """
        return self._ask(_get(name, paths, trace=trace))

    def put(self, name: str, data: bytes, *, trace: bool = False) -> DhtKept:
        """Sign and store this node's value of `/shoal/head/NAME` or `/shoal/multi/NAME`, until
        `forget`: 8 KiB at most.
        """
        return self._ask(_put(name, data, trace=trace))

    def forget(self, name: str) -> None:
        """Stop storing a value of ours again. What others hold of it dies within a day."""
        self._client.call("POST", f"{_ROOT}/forget", DhtKey(name))

    def table(self) -> DhtTable:
        """Return what this node knows of the DHT, and what it holds, provides and publishes."""
        return self._client.call("GET", f"{_ROOT}/table", reply=DhtTable)

    def _ask(self, ask: Ask[R]) -> R:
        return self._client.call(
            ask.method, ask.path, ask.body, reply=ask.reply, timeout_s=ask.timeout_s
        )


class AsyncDht:
    """The same for trio."""

    def __init__(self, client: "AsyncClient") -> None:
        self._client = client

    async def lookup(self, target: str, *, paths: int = 1, trace: bool = False) -> DhtLookedUp:
        """Return where a peer is (its name, ID or a part of it), or who is nearest to a key."""
        return await self._ask(_lookup(target, paths, trace=trace))

    async def provide(self, key: str, *, trace: bool = False) -> DhtKept:
        """Say that this node has what a key names, until `withdraw`."""
        return await self._ask(_provide(key, trace=trace))

    async def withdraw(self, key: str) -> None:
        """Stop saying so. What others hold of it dies within a day."""
        await self._client.call("POST", f"{_ROOT}/withdraw", DhtKey(key))

    async def providers(self, key: str, *, paths: int = 1, trace: bool = False) -> DhtProviders:
        """Return who says to have what a key names."""
        return await self._ask(_providers(key, paths, trace=trace))

    async def get(self, name: str, *, paths: int = 1, trace: bool = False) -> DhtValues:
        """Return the newest value of `/shoal/head/PEER/NAME`, each author's of `/shoal/multi/NAME`,
        or the public key of `/pk/ID`. No value is no error.
        """
        return await self._ask(_get(name, paths, trace=trace))

    async def put(self, name: str, data: bytes, *, trace: bool = False) -> DhtKept:
        """Sign and store this node's value of `/shoal/head/NAME` or `/shoal/multi/NAME`, until
        `forget`: 8 KiB at most.
        """
        return await self._ask(_put(name, data, trace=trace))

    async def forget(self, name: str) -> None:
        """Stop storing a value of ours again. What others hold of it dies within a day."""
        await self._client.call("POST", f"{_ROOT}/forget", DhtKey(name))

    async def table(self) -> DhtTable:
        """Return what this node knows of the DHT, and what it holds, provides and publishes."""
        return await self._client.call("GET", f"{_ROOT}/table", reply=DhtTable)

    async def _ask(self, ask: Ask[R]) -> R:
        return await self._client.call(
            ask.method, ask.path, ask.body, reply=ask.reply, timeout_s=ask.timeout_s
        )


def _lookup(target: str, paths: int, *, trace: bool) -> Ask[DhtLookedUp]:
    return _ask("lookup", DhtLookUp(target, paths, trace), DhtLookedUp)


def _provide(key: str, *, trace: bool) -> Ask[DhtKept]:
    return _ask("provide", DhtProvide(key, trace), DhtKept)


def _providers(key: str, paths: int, *, trace: bool) -> Ask[DhtProviders]:
    return _ask("providers", DhtAsk(key, paths, trace), DhtProviders)


def _get(name: str, paths: int, *, trace: bool) -> Ask[DhtValues]:
    return _ask("get", DhtAsk(name, paths, trace), DhtValues)


def _put(name: str, data: bytes, *, trace: bool) -> Ask[DhtKept]:
    return _ask("put", DhtPut(name, data, trace), DhtKept)


def _ask(verb: str, body: object, reply: type[R]) -> Ask[R]:
    return Ask("POST", f"{_ROOT}/{verb}", reply, body, CALL_TIMEOUT_S)
