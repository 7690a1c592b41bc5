"""The routes of models as content, under /v1/library, and /v1/runs/{run}/serve."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

from node.control.api import Api, Event, Events, Request
from node.model_library import Library
from node.model_source import name_of
from node.runs import Runs
from shoal import library as shapes


class LibraryRoutes:
    """The handlers; each is one route."""

    def __init__(self, library: Library, runs: Runs) -> None:
        self._library, self._runs = library, runs

    async def index(self, _: Request) -> list[shapes.KnownModel]:
        """List models."""
        return await self._library.views()

    async def show(self, request: Request) -> shapes.ModelDetail:
        """Show one."""
        return await self._library.view(request.params["model"])

    async def add(self, request: Request) -> Events:
        """Add one."""
        return _events(self._library.add(request.read(shapes.AddModel)))

    async def remove(self, request: Request) -> shapes.Removed:
        """Forget one."""
        force = request.query.get("force", "") not in ("", "0")
        return await self._library.remove(request.params["model"], force=force)

    async def pin(self, request: Request) -> Events:
        """Keep one here."""
        body = request.read(shapes.PinModel)
        return _events(self._library.pin(request.params["model"], body))

    async def unpin(self, request: Request) -> shapes.KnownModel:
        """Let one go."""
        return await self._library.unpin(request.params["model"])

    async def verify(self, request: Request) -> Events:
        """Hash one."""
        return _events(self._library.verify(request.params["model"]))

    async def serve_run(self, request: Request) -> Events:
        """Add what a run has trained."""
        run, body = request.params["run"], request.read(shapes.ServeRun)
        wanted = shapes.AddModel(
            source="",
            name=body.name or name_of(run),
            dtype=body.dtype,
            hosted=True,
            nodes=body.nodes,
            replicas=body.replicas,
        )

        async def make(folder: Path) -> object:
            return await self._runs.export_model(run, folder)

        return _events(self._library.add(wanted, make=make))


def _events(source: AsyncGenerator[shapes.LibraryProgress]) -> Events:
    async def progress() -> AsyncGenerator[Event]:
        async with aclosing(source) as steps:
            async for step in steps:
                yield Event(step)

    return Events(progress())


def routes(api: Api, library: Library, runs: Runs) -> None:
    """Declare the routes."""
    it, one = LibraryRoutes(library, runs), "/v1/library/{model}"
    progress = shapes.LibraryProgress
    api.add(
        "GET",
        "/v1/library",
        it.index,
        summary="Models that the swarm knows, or that are pinned here.",
        reply=list[shapes.KnownModel],
    )
    api.add("GET", one, it.show, summary="One with its parts.", reply=shapes.ModelDetail)
    api.add(
        "DELETE",
        one,
        it.remove,
        summary="Make the swarm forget a model; ?force=1 also if it is hosted.",
        reply=shapes.Removed,
    )
    api.add(
        "POST", f"{one}/unpin", it.unpin, summary="Let a model's parts go.", reply=shapes.KnownModel
    )
    for path, handler, summary, body in (
        ("/v1/library", it.add, "Make a model known to the swarm.", shapes.AddModel),
        (f"{one}/pin", it.pin, "Fetch parts of a model and keep them.", shapes.PinModel),
        (f"{one}/verify", it.verify, "Hash the parts of a model, and repair them.", None),
        (
            "/v1/runs/{run}/serve",
            it.serve_run,
            "Add the model that a run has trained; the swarm hosts it.",
            shapes.ServeRun,
        ),
    ):
        api.add("POST", path, handler, summary=summary, body=body, reply=progress, events=True)
