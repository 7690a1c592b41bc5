"""The commands of the DHT: `shoal dht`. What they print for people is in dht_text.py."""

import os
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import click

from node.cli.context import Context, echo_json, json_option, read_stdin
from node.cli.dht_text import (
    echo_hops,
    echo_kept,
    echo_looked_up,
    echo_providers,
    echo_table_of,
    echo_values,
)
from shoal.dht_api import DATA_MAX, PATHS_MAX, DhtEffort, DhtKept
from shoal.errors import ClientError

SHOWN_S = 1.0  # of silence, until a person is told that it goes on
DATA_HINT = "`shoal add -`, and put the CID that it prints"


def trace_option(command: Any) -> Any:
    """Add `--trace`."""
    text = "Show every request: when, to whom, and what came of it."
    return click.option("--trace", is_flag=True, help=text)(command)


def paths_option(command: Any) -> Any:
    """Add `--paths`."""
    text = "Look over so many disjoint paths: 4 hold against liars, at four times the requests."
    kind = click.IntRange(1, PATHS_MAX)
    return click.option("--paths", default=1, show_default=True, type=kind, help=text)(command)


@click.group()
def dht() -> None:
    """Find peers, providers and small values, also of whom this node has never met.

    A KEY is a CID, or a name of your own that begins with / (such as /fleet/gpu).

    \b
    Example:
      shoal dht lookup node-3               where a peer is
      shoal dht provide /fleet/gpu          say that this node has it
      shoal dht providers /fleet/gpu        who says so
      shoal dht put /shoal/head/best 0.93   a signed word of this node
      shoal dht get /shoal/head/node-3/best
    """


@dht.command()
@click.argument("target", metavar="PEER|KEY")
@paths_option
@trace_option
@json_option
@click.pass_obj
def lookup(context: Context, target: str, paths: int, trace: bool, as_json: bool) -> None:
    """Find where a peer is, or which servers are nearest to a key: those hold what it names.

    PEER is a member's name, a peer ID or a unique part of it.

    Example: shoal dht lookup node-3
    """
    with _waiting(as_json):
        found = context.client().dht.lookup(target, paths=paths, trace=trace)
    if as_json:
        echo_json(found)
    else:
        echo_hops(found.effort)
        echo_looked_up(found)
    if found.peer and not found.addresses:
        raise ClientError(
            f"nobody knows where {found.name or found.peer} is{_of_effort(found.effort)}",
            hint="a client is in no table: only who is connected to it knows it (`shoal peers`)",
        )


@dht.command()
@click.argument("key")
@click.option("--stop", is_flag=True, help="Say so no more; what others hold dies within a day.")
@trace_option
@json_option
@click.pass_obj
def provide(context: Context, key: str, stop: bool, trace: bool, as_json: bool) -> None:
    """Say that this node has what KEY names, and again until --stop, also after a restart.

    Blobs need none of it: the daemon provides those that are here.

    Example: shoal dht provide /fleet/gpu
    """
    client = context.client()
    if stop:
        client.dht.withdraw(key)
        return
    with _waiting(as_json):
        kept = client.dht.provide(key, trace=trace)
    _tell_kept(kept, as_json=as_json)


@dht.command()
@click.argument("key")
@paths_option
@trace_option
@json_option
@click.pass_obj
def providers(context: Context, key: str, paths: int, trace: bool, as_json: bool) -> None:
    """List who says to have what KEY names; fails (1) if nobody does.

    Example: shoal dht providers /fleet/gpu
    """
    with _waiting(as_json):
        found = context.client().dht.providers(key, paths=paths, trace=trace)
    if as_json:
        echo_json(found)
    else:
        echo_hops(found.effort)
        echo_providers(found)
    if not found.providers:
        raise ClientError(
            f"nobody says to have {key}{_of_effort(found.effort)}",
            hint="who has it says so with `shoal dht provide`; blobs are told by themselves",
        )


@dht.command()
@click.argument("name")
@click.option("-v", "--verbose", is_flag=True, help="Show author, number and age, too.")
@paths_option
@trace_option
@json_option
@click.pass_obj
def get(context: Context, name: str, verbose: bool, paths: int, trace: bool, as_json: bool) -> None:
    """Print the value of NAME, as it is; of several authors, a line each. Fails (1) without one.

    \b
    NAME is one of
      /shoal/head/PEER/NAME   a peer's newest word (without PEER/, this node's own)
      /shoal/multi/NAME       each author's newest word
      /pk/ID                  the public key of a peer ID that only has its hash

    Example: shoal dht get /shoal/head/node-3/best
    """
    with _waiting(as_json):
        found = context.client().dht.get(name, paths=paths, trace=trace)
    if as_json:
        echo_json(found)
    else:
        echo_hops(found.effort)
        echo_values(found.values, with_all=verbose)
    if not found.values:
        raise ClientError(
            f"no value of {found.key}{_of_effort(found.effort)}",
            hint="values die within a day, unless their author's daemon lives",
        )


@dht.command()
@click.argument("name")
@click.argument("data", required=False)
@click.option("--file", type=click.File("rb"), metavar="FILE", help="Take the data from FILE.")
@click.option("--stop", is_flag=True, help="Store it again no more; it dies within a day.")
@trace_option
@json_option
@click.pass_obj
def put(
    context: Context,
    name: str,
    data: str | None,
    file: Any,
    stop: bool,
    trace: bool,
    as_json: bool,
) -> None:
    """Sign and store DATA under NAME: /shoal/head/NAME (only ours) or /shoal/multi/NAME (beside
    those of others). Without DATA, or with `-`, what standard input holds; 8 KiB at most.

    The daemon stores it again before it expires, also after a restart, until --stop.

    Example: shoal dht put /shoal/head/best 0.93
    """
    client = context.client()
    if stop:
        if data is not None or file is not None:
            raise click.UsageError("--stop takes no data")
        client.dht.forget(name)
        return
    raw = data_of(data, file)
    with _waiting(as_json):
        kept = client.dht.put(name, raw, trace=trace)
    _tell_kept(kept, as_json=as_json)


@dht.command()
@click.option("-v", "--verbose", is_flag=True, help="Show every contact.")
@json_option
@click.pass_obj
def table(context: Context, verbose: bool, as_json: bool) -> None:
    """Show whom this node knows, by distance, and what it holds, provides and publishes."""
    found = context.client().dht.table()
    if as_json:
        echo_json(found)
    else:
        echo_table_of(found, with_all=verbose)


def _tell_kept(kept: DhtKept, *, as_json: bool) -> None:
    """Say who keeps a record; exit status 1 if nobody does."""
    if as_json:
        echo_json(kept)
    else:
        echo_hops(kept.effort)
        echo_kept(kept)
    check_kept(kept.stores, kept.kept)


def data_of(data: str | None, file: Any) -> bytes:
    """Return what is to be put: of an argument, a file, or standard input. Raises ClientError."""
    if file is not None:
        if data is not None:
            raise click.UsageError("DATA or --file, not both")
        raw: bytes = file.read(DATA_MAX + 1)
    elif data is None or data == "-":
        return read_stdin(DATA_MAX, DATA_HINT)
    else:
        raw = data.encode(errors="surrogateescape")
    if len(raw) > DATA_MAX:
        raise ClientError(f"over the limit of {DATA_MAX} B for a value", hint=DATA_HINT)
    return raw


def check_kept(stores: int, kept: int) -> None:
    """Fail if servers were there and none took it. Without any, the daemon offers it again."""
    if not stores:
        click.echo(
            "no other server is known yet: the daemon stores it as soon as there is one", err=True
        )
    elif not kept:
        raise ClientError(
            f"none of {stores} servers keeps it",
            hint="the daemon tries again within a minute; --trace shows what each said",
        )


def _of_effort(effort: DhtEffort) -> str:
    asked = f" ({effort.asked} asked" if effort.asked else " (nobody was there to ask"
    return f"{asked}, {effort.unanswered} did not answer)" if effort.unanswered else f"{asked})"


@contextmanager
def _waiting(as_json: bool) -> Generator[None]:
    """Tell a person, on a terminal, for how long it has been looking."""
    if as_json or not os.isatty(2):
        yield
        return
    over = threading.Event()
    teller = threading.Thread(target=_tell, args=(over,), daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()


def _tell(over: threading.Event) -> None:
    began, is_told = time.monotonic(), False
    while not over.wait(SHOWN_S):
        is_told = True
        age_s = time.monotonic() - began
        click.echo(
            f"\rlooking: {age_s:.0f} s (servers that are gone take 3 s each)", err=True, nl=False
        )
    if is_told:
        click.echo("\r\033[K", err=True, nl=False)


COMMANDS: dict[str, click.Command] = {"dht": dht}
