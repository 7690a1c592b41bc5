"""Worker processes of served models: started with a socket to the daemon, ended with it."""

import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import msgspec
import trio

from node.children import open_child
from protocols.sharding.link import Link, WorkerGone, socket_pair
from wire.errors import DeadlineExceeded

A = TypeVar("A")

START_S = 300.0  # seconds to import torch and load the weights from disk
GRACE_S = 0.5  # seconds between SIGTERM and SIGKILL: a worker has nothing to save

# Nothing of a served model comes from anywhere but our own blobs.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",  # more threads than one per process are slower on small machines
}


def python(module: str, *arguments: str) -> list[str]:
    """Return the command that runs one of our modules, whatever lies in the current folder."""
    return [sys.executable, "-P", "-m", module, *arguments]


@asynccontextmanager
async def open_worker(
    nursery: trio.Nursery,
    module: str,
    arguments: list[str],
    decoder: msgspec.msgpack.Decoder[tuple[int, A]],
    *,
    log_path: Path,
) -> AsyncGenerator[Link[A]]:
    """Run a worker for the length of the block, which begins once it is ready.

    Its link is read in `nursery`. Raises WorkerGone if it ends before, DeadlineExceeded if it does
    not get ready in `START_S`.
    """
    ours, theirs = socket_pair()
    link = Link(ours, decoder)
    await nursery.start(link.run)
    try:
        fd = theirs.fileno()
        argv = python(module, "--fd", str(fd), *arguments)
        async with open_child(
            argv, env=ENVIRONMENT, log_path=log_path, pass_fds=(fd,), grace_s=GRACE_S
        ):
            theirs.close()
            with trio.move_on_after(START_S) as starting:
                await link.ready.wait()
            if starting.cancelled_caught:
                raise DeadlineExceeded(f"the worker was not ready in {START_S:.0f} s")
            if link.gone.is_set():
                raise WorkerGone(f"the worker ended while it started: {last_line(log_path)}")
            yield link
    finally:
        theirs.close()
        await trio.aclose_forcefully(ours)


async def run_to_end(argv: list[str], *, log_path: Path) -> int:
    """Run a child that ends by itself; return its exit status."""
    async with open_child(argv, env=ENVIRONMENT, log_path=log_path, grace_s=GRACE_S) as child:
        return await child.wait()


def last_line(log_path: Path) -> str:
    """Return the last line of a child's log: of a traceback it is the error."""
    try:
        lines = log_path.read_bytes()[-4096:].decode("utf-8", "replace").split("\n")
    except OSError:
        return f"see {log_path}"
    said = [line.strip() for line in lines if line.strip()]
    return said[-1][:150] if said else f"see {log_path}"
