"""`shoal rpc serve`: a command that answers calls of peers, one process a call."""

import json
import os
import shutil
import signal
from functools import partial
from pathlib import Path
from subprocess import PIPE
from typing import Any

import click
import trio

from shoal.async_client import AsyncClient
from shoal.async_rpc import AsyncRpcCall
from shoal.errors import ClientError
from shoal.rpc_api import RpcError, from_json, to_json
from wire.faults import root_cause

OUTPUT_MAX = 4 * 1024 * 1024  # bytes of a command's answer: the bound of a value
SAID_MAX = 4096  # bytes read of a failed command's last words
WORDS_MAX = 200  # characters of them that the caller gets
READ_BYTES = 64 * 1024


class NoCommand(ClientError):
    """There is no such program."""

    code = "usage"
    exit_code = 2


def serve_command(socket: Path, name: str, command: tuple[str, ...], places: int) -> None:
    """Serve until Ctrl-C."""
    if shutil.which(command[0]) is None:
        raise NoCommand(
            f"there is no command {command[0]!r}", hint="shoal rpc serve NAME -- COMMAND ARGS"
        )
    try:
        trio.run(_serve, socket, name, command, places)
    except BaseExceptionGroup as group:
        raise root_cause(group) from None
    raise click.Abort


async def _serve(socket: Path, name: str, command: tuple[str, ...], places: int) -> None:
    async def answer(call: AsyncRpcCall) -> None:
        await call.send(await _run(command, name, call))

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            serve = partial(AsyncClient(socket).serve, streams={name: answer}, places=places)
            await nursery.start(serve)
            click.echo(f"serving {name}; Ctrl-C ends it", err=True)
            await anext(signals)
            nursery.cancel_scope.cancel()


async def _run(command: tuple[str, ...], name: str, call: AsyncRpcCall) -> object:
    """Run the command for one call; return its answer. Cancelling kills it."""
    value: Any = await anext(call, None)
    environment = {**os.environ, "SHOAL_RPC_PEER": call.peer, "SHOAL_RPC_METHOD": name}
    begin = partial(
        trio.run_process,
        command,
        stdin=json.dumps(to_json(value)).encode(),
        stdout=PIPE,
        stderr=PIPE,
        check=False,
        env=environment,
    )
    output, said = bytearray(), bytearray()
    async with trio.open_nursery() as nursery:
        process: trio.Process = await nursery.start(begin)
        assert process.stdout is not None
        assert process.stderr is not None
        nursery.start_soon(_keep_last, process.stderr, said)
        while len(output) <= OUTPUT_MAX and (data := await process.stdout.receive_some(READ_BYTES)):
            output += data
        if len(output) > OUTPUT_MAX:
            nursery.cancel_scope.cancel()  # which kills the command
    if len(output) > OUTPUT_MAX:
        raise RpcError("too_big", f"the command printed over {OUTPUT_MAX} B")
    if process.returncode:
        lines = said.decode(errors="replace").strip().splitlines() or ["it said nothing"]
        words = f"exit status {process.returncode}: {lines[-1]}"
        raise RpcError("command_failed", words[:WORDS_MAX])
    return _parsed(bytes(output))


async def _keep_last(pipe: trio.abc.ReceiveStream, into: bytearray) -> None:
    """Read to the end, keeping the last `SAID_MAX` bytes of it."""
    while data := await pipe.receive_some(READ_BYTES):
        into += data
        del into[:-SAID_MAX]


def _parsed(output: bytes) -> object:
    """Take the output as JSON if it is, else as text, else as bytes."""
    try:
        text = output.decode()
    except UnicodeDecodeError:
        return output
    try:
        return from_json(json.loads(text))
    except (ValueError, RecursionError):
        return text.removesuffix("\n")
