"""The routes of calls between users' programs, under /v1/rpc."""

import msgspec

from node.apps.service import AppRpc
from node.control.api import Api, Request, Upgrade
from node.control.links import Links, Resolve, hinted
from shoal import rpc_api as shapes
from shoal.errors import ClientError
from wire.errors import ShoalError, UsageError

LIST_TIMEOUT_S = 10.0  # for a peer to say what it serves


class RpcRoutes:
    """The handlers; each is one route."""

    def __init__(self, apps: AppRpc, resolve: Resolve) -> None:
        self._apps, self._resolve = apps, resolve
        self._links = Links(apps, resolve)

    async def call(self, request: Request) -> shapes.RpcAnswer:
        """Call a method with one value, both in JSON."""
        wanted = request.read(shapes.RpcRequest)
        peer = self._resolve(wanted.peer)
        try:
            value = msgspec.msgpack.encode(shapes.from_json(wanted.value))
        except (ClientError, OverflowError, RecursionError, UnicodeEncodeError) as error:
            raise UsageError(f"value: {error}") from error
        try:
            answer = await self._apps.call(peer, wanted.method, value, timeout_s=wanted.timeout_s)
        except ShoalError as error:
            raise hinted(error) from error
        return shapes.RpcAnswer(shapes.to_json(shapes.decode_value(answer)))

    async def methods(self, request: Request) -> list[shapes.RpcMethod]:
        """List what the programs of a peer serve; without ?peer= those of this node."""
        name = request.query.get("peer", "")
        peer = self._resolve(name) if name else self._apps.peer
        found = await self._apps.methods(peer, timeout_s=LIST_TIMEOUT_S)
        return [
            shapes.RpcMethod(peer, each.name, each.places, each.busy, each.waiting)
            for each in found
        ]

    async def link(self, _: Request) -> Upgrade:
        """Go over to frames of calls."""
        return Upgrade(shapes.PROTOCOL, self._links.run)


def routes(api: Api, apps: AppRpc, resolve: Resolve) -> None:
    """Declare the routes."""
    handlers = RpcRoutes(apps, resolve)
    api.add(
        "POST",
        "/v1/rpc/call",
        handlers.call,
        summary='Call a method of a peer\'s program; bytes are {"$base64": ...}',
        body=shapes.RpcRequest,
        reply=shapes.RpcAnswer,
    )
    api.add(
        "GET",
        "/v1/rpc/methods",
        handlers.methods,
        summary="Methods that programs of this node serve, or of ?peer=",
        reply=list[shapes.RpcMethod],
    )
    api.add(
        "GET",
        "/v1/rpc/link",
        handlers.link,
        summary="Upgrade to `shoal-link`: streams of values, and programs that serve",
    )
