"""The routes of served models, under /v1/served: /v1/models is OpenAI's (openai.py)."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol

from node.control.api import Api, Event, Events, Request
from shoal import models as shapes


class Models(Protocol):
    """What serves models: `node.models.Models`."""

    def views(self) -> list[shapes.Model]:
        """Return every known model."""
        ...

    def view(self, name: str, /) -> shapes.Model:
        """Return one. Raises NotFound."""
        ...

    def traces(self, name: str, /) -> list[shapes.Trace]:
        """Return how the last answers of one came about, the newest first."""
        ...

    def serve(self, request: shapes.ServeRequest, /) -> AsyncGenerator[shapes.ServeProgress]:
        """Bring a model into service."""
        ...

    async def unserve(self, name: str, /) -> None:
        """Take one out of service. Raises NotFound."""
        ...


class ModelRoutes:
    """The handlers; each is one route."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def index(self, _: Request) -> list[shapes.Model]:
        """List served models."""
        return self._models.views()

    async def show(self, request: Request) -> shapes.Model:
        """Show one."""
        return self._models.view(request.params["model"])

    async def map(self, request: Request) -> shapes.Map:
        """Show one, and how the last answers came about."""
        name = request.params["model"]
        return shapes.Map(self._models.view(name), self._models.traces(name))

    async def serve(self, request: Request) -> Events:
        """Bring a model into service."""
        wanted = request.read(shapes.ServeRequest)

        async def progress() -> AsyncGenerator[Event]:
            async with aclosing(self._models.serve(wanted)) as steps:
                async for step in steps:
                    yield Event(step)

        return Events(progress())

    async def unserve(self, request: Request) -> None:
        """Take one out of service."""
        await self._models.unserve(request.params["model"])


def routes(api: Api, models: Models) -> None:
    """Declare the routes."""
    handlers = ModelRoutes(models)
    api.add(
        "GET",
        "/v1/served",
        handlers.index,
        summary="Models that the swarm serves, with their stages.",
        reply=list[shapes.Model],
    )
    api.add(
        "POST",
        "/v1/served",
        handlers.serve,
        summary="Split a model over the nodes that offer room; ends when it is ready.",
        body=shapes.ServeRequest,
        reply=shapes.ServeProgress,
        events=True,
    )
    api.add(
        "GET",
        "/v1/served/{model}",
        handlers.show,
        summary="One served model.",
        reply=shapes.Model,
    )
    api.add(
        "GET",
        "/v1/served/{model}/map",
        handlers.map,
        summary="One served model, and the routes of this node's last answers.",
        reply=shapes.Map,
    )
    api.add(
        "DELETE",
        "/v1/served/{model}",
        handlers.unserve,
        summary="Take a model out of service on all nodes.",
    )
