"""The commands that bring models into service: serve, unserve, host, unhost."""

import re

import click

from node.cli.context import Context, echo_json, echo_table, json_option, on_terminal, short
from node.cli.library import source_of
from shoal import hosting
from shoal import models as served
from shoal.models import Model, ServeProgress, Stage

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]i?B|B)", re.IGNORECASE)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@click.command()
@click.argument("source")
@click.option("--name", default="", help="What the model is called; default: from its path.")
@click.option(
    "--nodes", type=click.IntRange(min=0), help="Split it over at most so many nodes; 0: over all."
)
@click.option(
    "--replicas", type=click.IntRange(1, 64), help="Have each block on so many nodes at least."
)
@json_option
@click.pass_obj
def serve(
    context: Context,
    source: str,
    name: str,
    nodes: int | None,
    replicas: int | None,
    as_json: bool,
) -> None:
    """Serve a model split over the swarm.

    SOURCE is a Hugging Face folder, a .gguf file, ORG/NAME on the Hugging Face hub, or the name of
    a model that the swarm knows. Returns when every block is ready; the model stays in service
    until `shoal unserve`.
    """
    place = source_of(source, may_be_name=True)
    last: ServeProgress | None = None
    shown = ""
    steps = served.serve(context.client(), place, name=name, nodes=nodes, replicas=replicas)
    for last in steps:
        line = _progress_line(last)
        if line != shown:
            click.echo(line, err=True)
            shown = line
    if last is None or last.model is None:
        raise click.ClickException("the daemon ended the conversation early; see `shoal logs`")
    _show(last.model, as_json=as_json)


@click.command()
@click.argument("name")
@click.pass_obj
def unserve(context: Context, name: str) -> None:
    """Take a served model out of service, on all nodes. It stays in the library.

    Nodes that were told to host it go on until `shoal unhost` there.
    """
    served.unserve(context.client(), name)
    if on_terminal():
        click.echo(f"{name} is out of service", err=True)


@click.command()
@click.argument("name", metavar="MODEL")
@click.option(
    "--blocks", default="auto", show_default=True, help="START:END, or those that are needed most."
)
@click.option(
    "--memory", default="", help="Within so much, such as 8GiB; default: what is offered."
)
@json_option
@click.pass_obj
def host(context: Context, name: str, blocks: str, memory: str, as_json: bool) -> None:
    """Host a part of a model on this node, from now on and also after a restart.

    A part of the memory is for the sessions of who asks (serve.cache_share).
    """
    start, end = blocks_of(blocks)
    model = hosting.host(
        context.client(), name, start=start, end=end, memory_bytes=bytes_of(memory) if memory else 0
    )
    _show(model, as_json=as_json)


@click.command()
@click.argument("name", metavar="MODEL")
@json_option
@click.pass_obj
def unhost(context: Context, name: str, as_json: bool) -> None:
    """Host nothing of a model on this node any more, also if the swarm asks for it.

    Sessions in progress end, or go on elsewhere; `shoal host` takes it back.
    """
    _show(hosting.unhost(context.client(), name), as_json=as_json)
    if not as_json:
        click.echo(f"nothing of {name} is hosted here, until `shoal host {name}`", err=True)


def _show(model: Model, *, as_json: bool) -> None:
    if as_json:
        echo_json(model)
        return
    rows = [
        (model.name, f"{stage.start}-{stage.end}", short(stage.peer), _state(stage))
        for stage in model.stages
    ]
    echo_table(("MODEL", "BLOCKS", "PEER", "STATE"), rows)


def _progress_line(progress: ServeProgress) -> str:
    if progress.model is None:
        return f"{progress.name}: {progress.state}"
    stages = progress.model.stages
    if not stages:
        return f"{progress.name}: no node has taken a part yet"
    return f"{progress.name}: " + ", ".join(
        f"{stage.start}-{stage.end} {short(stage.peer)} {_state(stage)}" for stage in stages
    )


def _state(stage: Stage) -> str:
    if stage.state == "fetching" and stage.total_bytes:
        return f"fetching {100 * stage.done_bytes // stage.total_bytes} %"
    return f"{stage.state} ({stage.note})" if stage.note else stage.state


def blocks_of(text: str) -> tuple[int, int]:
    """Parse START:END; auto is 0, 0."""
    if text == "auto":
        return 0, 0
    start, colon, end = text.partition(":")
    if not colon or not start.isdecimal() or not end.isdecimal() or int(start) >= int(end):
        raise click.BadParameter(f"{text!r} is not START:END, such as 0:8, nor auto")
    return int(start), int(end)


def bytes_of(text: str) -> int:
    """Parse a size such as 8GiB, in bytes; GB is taken as GiB."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise click.BadParameter(f"{text!r} is not a size such as 8GiB or 500MiB")
    return int(float(match[1]) * _UNITS[match[2].upper().rstrip("B").rstrip("I")])


COMMANDS: dict[str, click.Command] = {
    "serve": serve,
    "unserve": unserve,
    "host": host,
    "unhost": unhost,
}
