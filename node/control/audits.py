"""The routes of audits of served models, under /v1/served/{model}/audits."""

from typing import Protocol

from node.control.api import Api, Request
from shoal import audits as shapes


class Audits(Protocol):
    """What audits: `node.model_audits.Audits`."""

    def view(self, name: str, /) -> shapes.Audits:
        """Return what is known of a model's nodes."""
        ...

    async def now(self, name: str, /) -> list[shapes.Audit]:
        """Audit every stage of a fresh answer. Raises ShoalError."""
        ...


class Models(Protocol):
    """What knows which models there are: `node.models.Models`."""

    def view(self, name: str, /) -> object:
        """Return one. Raises NotFound."""
        ...


class AuditRoutes:
    """The handlers; each is one route."""

    def __init__(self, models: Models, audits: Audits) -> None:
        self._models, self._audits = models, audits

    async def show(self, request: Request) -> shapes.Audits:
        """Show what auditors found."""
        self._models.view(request.params["model"])
        return self._audits.view(request.params["model"])

    async def now(self, request: Request) -> list[shapes.Audit]:
        """Audit now."""
        self._models.view(request.params["model"])
        return await self._audits.now(request.params["model"])


def routes(api: Api, models: Models, audits: Audits) -> None:
    """Declare the routes."""
    it, path = AuditRoutes(models, audits), "/v1/served/{model}/audits"
    summary = "What audits found of the nodes that compute a model, and whom we ban for it."
    api.add("GET", path, it.show, summary=summary, reply=shapes.Audits)
    summary = "Ask a model something short, and have every stage's work done again elsewhere."
    api.add("POST", path, it.now, summary=summary, reply=list[shapes.Audit])
