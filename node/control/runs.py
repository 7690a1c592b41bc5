"""The routes of training runs: for the CLI, and for the trainer in the user's process."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

from node.control.api import Api, Event, Events, Request
from node.runs import Runs
from shoal import runs as shapes
from shoal.runs import Run

LAST_MAX = 1000  # certificates asked for as the last ones; who wants more takes them all


class RunRoutes:
    """The handlers; each is one route."""

    def __init__(self, runs: Runs) -> None:
        self._runs, self._trainers = runs, runs.trainers

    async def start(self, request: Request) -> Run:
        """Start a script as a child of the daemon."""
        return self._runs.start(request.read(shapes.StartRun))

    async def index(self, _: Request) -> list[Run]:
        """List runs."""
        return self._runs.views()

    async def show(self, request: Request) -> Run:
        """Show one run."""
        return self._runs.view(request.params["run"])

    async def stop(self, request: Request) -> Run:
        """Stop a run here."""
        return await self._runs.stop(request.params["run"])

    async def resume(self, request: Request) -> Run:
        """Start a run's script again."""
        return self._runs.resume(request.params["run"])

    async def export(self, request: Request) -> shapes.Exported:
        """Write a run's parameters to a file."""
        path = Path(request.read(shapes.Export).path)
        return await self._runs.export(request.params["run"], path)

    async def attach(self, request: Request) -> shapes.Attached:
        """Let a trainer take part."""
        return await self._trainers.attach(request.params["run"], request.read(shapes.Attach))

    async def round(self, request: Request) -> shapes.RoundResult:
        """Average a contribution."""
        return await self._trainers.round(request.params["run"], request.read(shapes.SubmitRound))

    async def turn(self, request: Request) -> shapes.TurnAnswer:
        """Tell whether we make a round of a sampled run."""
        return await self._trainers.turn(request.params["run"], request.read(shapes.AskTurn))

    async def verdict(self, request: Request) -> shapes.Checked:
        """Take what a trainer has made anew."""
        return await self._trainers.verdict(request.params["run"], request.read(shapes.Duty))

    async def fetch(self, request: Request) -> shapes.StateAt:
        """Load the run's state."""
        return await self._trainers.fetch(request.params["run"], request.read(shapes.FetchState))

    async def announce(self, request: Request) -> None:
        """Offer a state to joiners."""
        self._trainers.announce(request.params["run"], request.read(shapes.StateAt))

    async def report(self, request: Request) -> shapes.Metric:
        """Record progress."""
        return await self._trainers.report(request.params["run"], request.read(shapes.Report))

    async def leave(self, request: Request) -> Run:
        """Let the trainer go."""
        return await self._trainers.leave(request.params["run"], request.read(shapes.Leave))

    async def metrics(self, request: Request) -> list[shapes.Metric]:
        """Return metrics.jsonl."""
        return await self._runs.metrics(request.params["run"])

    async def certificates(self, request: Request) -> list[shapes.CertificateView]:
        """Return what was committed; of it the `last` ones only, if that is asked for."""
        last = int(request.number("last", 0, most=LAST_MAX))
        return await self._runs.certificates(request.params["run"], last=last)

    async def contributions(self, request: Request) -> list[shapes.Contribution]:
        """Return what each peer has done."""
        return self._runs.contributions(request.params["run"])

    async def events(self, request: Request) -> Events:
        """Stream metrics as they come, and changes of state."""
        run = request.params["run"]
        self._runs.view(run)  # NotFound before the stream begins
        return Events(self._happenings(run))

    async def _happenings(self, run: str) -> AsyncGenerator[Event]:
        async with aclosing(self._runs.follow(run)) as items:
            async for item in items:
                yield Event(item, name="run" if isinstance(item, Run) else "metric")


def routes(api: Api, runs: Runs) -> None:
    """Declare the routes."""
    it, one = RunRoutes(runs), "/v1/runs/{run}"
    api.add("POST", "/v1/runs", it.start, summary="Start a run", body=shapes.StartRun, reply=Run)
    api.add("GET", "/v1/runs", it.index, summary="List runs", reply=list[Run])
    api.add("GET", one, it.show, summary="Show a run", reply=Run)
    api.add("DELETE", one, it.stop, summary="Stop this node's part in a run", reply=Run)
    api.add(
        "GET", f"{one}/events", it.events, summary="Follow a run", reply=shapes.Metric, events=True
    )
    api.add(
        "GET", f"{one}/metrics", it.metrics, summary="A run's metrics", reply=list[shapes.Metric]
    )
    api.add(
        "GET",
        f"{one}/certificates",
        it.certificates,
        summary="A run's committed rounds",
        reply=list[shapes.CertificateView],
    )
    api.add(
        "GET",
        f"{one}/contributions",
        it.contributions,
        summary="What each peer has done for a run",
        reply=list[shapes.Contribution],
    )
    for verb, handler, summary, body, reply in (
        ("resume", it.resume, "Go on with a stopped or failed run", None, Run),
        ("export", it.export, "Write a run's parameters to a file", shapes.Export, shapes.Exported),
        ("attach", it.attach, "Trainer: take part", shapes.Attach, shapes.Attached),
        ("round", it.round, "Trainer: average", shapes.SubmitRound, shapes.RoundResult),
        ("turn", it.turn, "Trainer: are we sampled", shapes.AskTurn, shapes.TurnAnswer),
        ("verdict", it.verdict, "Trainer: check a member", shapes.Duty, shapes.Checked),
        ("fetch", it.fetch, "Trainer: load the state", shapes.FetchState, shapes.StateAt),
        ("state", it.announce, "Trainer: offer a state", shapes.StateAt, None),
        ("report", it.report, "Trainer: record progress", shapes.Report, shapes.Metric),
        ("leave", it.leave, "Trainer: leave", shapes.Leave, Run),
    ):
        api.add("POST", f"{one}/{verb}", handler, summary=summary, body=body, reply=reply)
