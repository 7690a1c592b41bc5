"""The commands about users' own methods: rpc call, rpc methods, rpc serve."""

import json
import sys
from collections.abc import Iterator

import click

from node.cli.context import (
    Context,
    echo_json,
    echo_table,
    json_option,
    on_terminal,
    read_stdin,
    seconds,
    short,
)
from shoal.errors import ClientError
from shoal.rpc_api import DEADLINE_MAX_S, FRAME_MAX, from_json, to_json

JSON_MAX = 4 * FRAME_MAX  # bytes typed: a value of 4 MiB, however it is escaped


class BadJson(ClientError):
    """What was typed is no JSON."""

    code = "usage"
    exit_code = 2


@click.group()
def rpc() -> None:
    """Call methods that programs of peers serve, and let peers call yours.

    Values are JSON; bytes are {"$base64": "aGVsbG8="}.
    """


@rpc.command("call")
@click.argument("peer")
@click.argument("method")
@click.argument("value", metavar="[JSON|-]", default="null")
@click.option("--timeout", default="30s", show_default=True, type=seconds, metavar="TIME")
@click.option(
    "--stream", is_flag=True, help="Print every answer, a line each; `-` sends each line."
)
@json_option
@click.pass_obj
def call_(
    context: Context,
    peer: str,
    method: str,
    value: str,
    timeout: float,
    stream: bool,
    as_json: bool,
) -> None:
    """Call METHOD of PEER with a JSON value (`-` reads it from standard input)."""
    if timeout > DEADLINE_MAX_S:
        raise click.BadParameter("up to 24 h", param_hint="--timeout")
    if stream:
        _call_stream(context, peer, method, value, timeout)
        return
    if value == "-":
        value = read_stdin(JSON_MAX, "`--stream` sends a value a line").decode(errors="replace")
    sent = _parse(value)
    answer = to_json(context.client().rpc(peer, method, sent, timeout_s=timeout))
    if as_json or not on_terminal():
        echo_json(answer)
    else:
        click.echo(json.dumps(answer, indent=2, ensure_ascii=False))


def _call_stream(context: Context, peer: str, method: str, value: str, timeout: float) -> None:
    values = _lines() if value == "-" else iter([_parse(value)])
    with context.client().rpc_stream(peer, method, values, timeout_s=timeout) as answers:
        for answer in answers:
            echo_json(to_json(answer))


def _lines() -> Iterator[object]:
    for line in sys.stdin:
        if line.strip():
            yield _parse(line)


def _parse(text: str) -> object:
    try:
        return from_json(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise BadJson(
            f"{text[:60].strip()!r} is no JSON: {error}", hint="text wants quotes: '\"hello\"'"
        ) from error


@rpc.command()
@click.argument("peer", required=False, default="")
@json_option
@click.pass_obj
def methods(context: Context, peer: str, as_json: bool) -> None:
    """List the methods that programs of PEER serve; without PEER, those of this node."""
    found = context.client().rpc_methods(peer)
    if as_json:
        echo_json(found)
        return
    rows = [
        (each.method, short(each.peer), str(each.places), str(each.busy), str(each.waiting))
        for each in found
    ]
    echo_table(("METHOD", "PEER", "PLACES", "BUSY", "WAITING"), rows)
    if not found:
        click.echo("no methods yet; `shoal rpc serve NAME -- COMMAND` serves one", err=True)


@rpc.command(context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--places", default=4, show_default=True, type=click.IntRange(1, 64))
@click.pass_obj
def serve(context: Context, name: str, command: tuple[str, ...], places: int) -> None:
    """Let peers call COMMAND under NAME, until Ctrl-C: `shoal rpc serve date -- date -u`.

    It runs once a call, at most --places at a time, with the value as JSON on standard input and
    the caller in $SHOAL_RPC_PEER. Its output is the answer: JSON, or else text. If it fails, the
    last line of its standard error reaches the caller.
    """
    from node.cli.rpc_serve import serve_command  # it needs trio, the other commands do not

    serve_command(context.client().path, name, command, places)


COMMANDS: dict[str, click.Command] = {"rpc": rpc}
