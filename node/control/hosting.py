"""The routes of what this node hosts, under /v1/served/{model}/host."""

from typing import Annotated, Protocol

import msgspec
from msgspec import Meta

from node.control.api import Api, Request
from protocols.sharding.manifest import Layer
from protocols.sharding.placement import Wish
from shoal import hosting as shapes
from shoal.models import Model


class Models(Protocol):
    """What hosts models: `node.models.Models`."""

    async def host(self, name: str, wish: Wish, /) -> Model:
        """Host a part of a model here."""
        ...

    async def unhost(self, name: str, /) -> Model:
        """Host nothing of it any more."""
        ...


class _HostBody(msgspec.Struct):
    """`shoal.hosting.HostRequest` with its bounds."""

    start: Layer = 0
    end: Layer = 0
    memory_bytes: Annotated[int, Meta(ge=0, le=1 << 53)] = 0


class HostingRoutes:
    """The handlers; each is one route."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def host(self, request: Request) -> Model:
        """Host a part of a model here."""
        body = request.read(_HostBody)
        wish = Wish(body.start, body.end, body.memory_bytes)
        return await self._models.host(request.params["model"], wish)

    async def unhost(self, request: Request) -> Model:
        """Host nothing of it any more."""
        return await self._models.unhost(request.params["model"])


def routes(api: Api, models: Models) -> None:
    """Declare the routes."""
    handlers = HostingRoutes(models)
    api.add(
        "PUT",
        "/v1/served/{model}/host",
        handlers.host,
        summary="Host blocks of a model on this node, whatever the swarm needs.",
        body=shapes.HostRequest,
        reply=Model,
    )
    api.add(
        "DELETE",
        "/v1/served/{model}/host",
        handlers.unhost,
        summary="Host nothing of a model on this node.",
        reply=Model,
    )
