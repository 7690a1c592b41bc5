"""The routes of served models, under /v1/served: /v1/models is OpenAI's (openai.py)."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from node.control.api import Api, Event, Events, Request
from node.models import Models
from shoal import models as shapes


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
        "DELETE",
        "/v1/served/{model}",
        handlers.unserve,
        summary="Take a model out of service on all nodes.",
    )
