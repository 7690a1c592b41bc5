"""A run as it goes on: a line for each round, and on a terminal a bar that says what is left.

In a pipe there are lines only; with --json one document for each event.
"""

import sys
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import AbstractContextManager, contextmanager

import click

from node.cli.context import echo_json, on_terminal, plain, short
from node.cli.run_text import duration, loss, metric_line
from shoal.client import Client
from shoal.errors import ClientError
from shoal.runs import Metric, Run, follow_run

INTERRUPTED = 130  # exit status after Ctrl-C, as shells expect: the run is not at its end
Show = Callable[[Run | Metric], None]
Names = Mapping[str, str]


class RunFailed(ClientError):
    """The run ended badly."""

    code = "run_failed"


def follow(client: Client, name: str, *, as_json: bool) -> None:
    """Show a run until it ends. Raises RunFailed; Ctrl-C ends the display, not the run."""
    try:
        names = {member.peer: member.name for member in client.members()}
        last = show_all(follow_run(client, name), name, names, as_json=as_json)
    except KeyboardInterrupt:
        text = f"\nrun {name} goes on; `shoal run follow {name}` shows it again"
        click.echo(f"{text}, `shoal run stop {name}` stops it", err=True)
        sys.exit(INTERRUPTED)
    if last is None:
        raise RunFailed(f"run {name}: the daemon stopped", hint=f"shoal run resume {name}")
    if last.state == "failed":
        raise RunFailed(
            f"run {name} failed: {plain(last.error) or 'it did not say why'}",
            hint=f"`shoal run log {name}` has more, `shoal run resume {name}` goes on",
        )
    if not as_json:
        root = f": root {last.root[:16]}…" if last.root else ""
        click.echo(f"run {name} {last.state}{root}")
    if last.state == "stopped" and not as_json:
        click.echo(f"`shoal run resume {name}` goes on", err=True)


def show_all(
    items: Iterable[Run | Metric], name: str, names: Names, *, as_json: bool
) -> Run | None:
    """Show what comes; return the run as it was at last. `names`: of members, by peer ID."""
    last: Run | None = None
    with _display(name, names, as_json=as_json) as show:
        for item in items:
            if isinstance(item, Run):
                last = item
            show(item)
    return last


def _display(name: str, names: Names, *, as_json: bool) -> AbstractContextManager[Show]:
    if as_json:
        return _documents()
    return _bar(name, names) if on_terminal() else _lines(names)


@contextmanager
def _documents() -> Generator[Show]:
    yield echo_json


@contextmanager
def _lines(names: Names) -> Generator[Show]:
    said, lanes = "", 1

    def show(item: Run | Metric) -> None:
        nonlocal said, lanes
        if isinstance(item, Metric):
            click.echo(metric_line(item, lanes))
            return
        lanes = item.lanes
        if item.waiting_for and told_of(item, names) != said:
            said = told_of(item, names)
            click.echo(said, err=True)

    yield show


@contextmanager
def _bar(name: str, names: Names) -> Generator[Show]:
    """Keep a bar below the lines; it goes away with the block."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn(plain(name), style="bold", markup=False),
        BarColumn(),
        TextColumn("{task.fields[told]}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(), transient=True) as progress:
        task, lanes = progress.add_task("", total=None, told="starting"), 1

        def show(item: Run | Metric) -> None:
            nonlocal lanes
            if isinstance(item, Metric):
                line = metric_line(item, lanes)
                progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
            else:
                lanes = item.lanes
            total = item.rounds or None
            progress.update(task, total=total, completed=item.round, told=told_of(item, names))

        yield show


def told_of(item: Run | Metric, names: Names) -> str:
    """Return what stands beside the bar."""
    if isinstance(item, Run):
        if item.loading is not None:
            return f"{item.state}, {item.loading:.0%} of the state loaded"
        if item.waiting_for:
            waited = [names.get(peer) or short(peer) for peer in item.waiting_for]
            return f"round {item.round} waits for {plain(', '.join(waited))}"
        count = len(item.members)
        return f"{item.state}, {count} member{'s' if count != 1 else ''}"
    left = "" if item.eta_s is None else f", {duration(item.eta_s)} left"
    return f"round {item.round}/{item.rounds}, loss {loss(item.loss)}{left}"
