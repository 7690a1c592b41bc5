"""The commands about blobs: add, get, and the group `blobs`."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import click

from node.cli.context import Context, echo_json, echo_table, json_option, on_terminal, short
from shoal.blob_api import (
    AddBlob,
    Blob,
    BlobProgress,
    GetBlob,
    add_body,
    get_body,
    get_path,
)
from shoal.client import Client
from shoal.errors import ClientError

SPOOL_BYTES = 1024 * 1024  # read from standard input at a time
STEP_PERCENT = 10  # between two lines of progress where there is no terminal
INTERRUPTED = 130  # exit status after Ctrl-C
_JSON_LINES = "Print progress as JSON lines; the last one has the result."


class _Interrupted(ClientError):
    """Ctrl-C, after which there is something to say."""

    code = "interrupted"
    exit_code = INTERRUPTED


@click.command()
@click.argument("path", type=click.Path(allow_dash=True, path_type=Path))
@click.option("--no-copy", is_flag=True, help="Keep no second copy: the file must stay as it is.")
@click.option("--pin/--no-pin", default=True, show_default=True, help="Never throw it away.")
@click.option("--name", default="", help="What `shoal blobs ls` calls it; default: the file's.")
@click.option("--json", "as_json", is_flag=True, help=_JSON_LINES)
@click.pass_obj
def add(context: Context, path: Path, no_copy: bool, pin: bool, name: str, as_json: bool) -> None:
    """Add a file, a folder or standard input (-), and print its CID.

    Whoever has the CID gets it with `shoal get`, from everybody who has it.
    """
    client = context.client()
    if str(path) == "-":
        if no_copy:
            raise click.UsageError("--no-copy needs a file")
        with _spooled(client) as spool:
            found = _run(client, "/v1/blobs", AddBlob(str(spool), "take", name, pin), as_json)
    else:
        body = add_body(path, "reference" if no_copy else "copy", name, pin=pin)
        found = _run(client, "/v1/blobs", body, as_json)
    if not as_json:
        click.echo(_done(found).cid)


@click.command()
@click.argument("cid")
@click.option("-o", "--output", metavar="PATH", help="Write it there; - prints it.")
@click.option("--from", "peers", multiple=True, metavar="PEER", help="Ask this one first.")
@click.option("--range", "span", metavar="A-B", help="Bytes A to B (without B) of a file only.")
@click.option("--pin", is_flag=True, help="Never throw it away.")
@click.option("--json", "as_json", is_flag=True, help=_JSON_LINES)
@click.pass_obj
def get(
    context: Context,
    cid: str,
    output: str | None,
    peers: tuple[str, ...],
    span: str | None,
    pin: bool,
    as_json: bool,
) -> None:
    """Fetch a blob from all peers that have it; with -o also write it there.

    What has arrived stays after Ctrl-C or a failure: the same command goes on.
    """
    client, is_bytes = context.client(), span is not None or output == "-"
    if as_json and is_bytes:
        raise click.UsageError("--json cannot be had together with --range or `-o -`")
    if pin and span is not None:
        raise click.UsageError("a part of a file cannot be pinned: leave --pin or --range out")
    if span is None and output == "-":
        _run(client, get_path(cid), get_body(None, peers, pin=pin), as_json)
    if is_bytes:
        start, stop = _parse_span(span) if span is not None else (0, None)
        with output_file(output) as file:
            for piece in pieces(client, cid, start, stop, peers):
                file.write(piece)
        return
    body: GetBlob = get_body(output, peers, pin=pin)
    found = _run(client, get_path(cid), body, as_json)
    if not as_json:
        click.echo(output or _done(found).cid)


def pieces(
    client: Client, cid: str, start: int, stop: int | None, peers: tuple[str, ...]
) -> Iterator[bytes]:
    """Yield a range piece by piece, so that neither side holds all of it."""
    while stop is None or start < stop:
        end = start + SPOOL_BYTES if stop is None else min(start + SPOOL_BYTES, stop)
        piece = client.read(cid, start, end, peers=peers)
        yield piece
        if len(piece) < end - start:
            return
        start = end


@contextmanager
def output_file(path: str | None) -> Generator[BinaryIO]:
    """Open a file that takes the place of another once all is written; None or - is stdout."""
    if path in (None, "-"):
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    # Beside it first: what is there now goes only once the bytes have come.
    place = Path(os.path.abspath(str(path)))
    if os.path.lexists(place) and (place.is_symlink() or not place.is_file()):
        raise click.UsageError(f"{place} is in the way: it is no plain file")
    try:
        fd, name = tempfile.mkstemp(dir=place.parent, prefix=".shoal-", suffix=".part")
        try:
            with open(fd, "wb") as file:
                yield file
            os.replace(name, place)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
    except OSError as error:
        raise ClientError(f"cannot write {place}: {error.strerror}") from error


def _parse_span(text: str) -> tuple[int, int | None]:
    start, dash, stop = text.partition("-")
    if not (dash and start.isdecimal() and (stop.isdecimal() or not stop)):
        raise click.BadParameter(f"{text!r} is not like 0-1000 or 5000-", param_hint="--range")
    if stop and int(stop) < int(start):
        raise click.BadParameter(f"{text!r} ends before it begins", param_hint="--range")
    return int(start), int(stop) if stop else None


@contextmanager
def _spooled(client: Client) -> Generator[Path]:
    """Put standard input into a file, mode 0600, beside the blobs, which then may take it."""
    folder = Path(client.status().home) / "blobs" / "tmp"
    fd, name = tempfile.mkstemp(dir=folder, prefix="spool-")
    try:
        with open(fd, "wb") as file:
            while data := sys.stdin.buffer.read(SPOOL_BYTES):
                file.write(data)
        yield Path(name)
    except OSError as error:
        raise ClientError(f"cannot keep standard input: {error.strerror}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


# --- progress ----------------------------------------------------------------------------------


def _run(client: Client, path: str, body: object, as_json: bool) -> BlobProgress:
    """Follow one piece of work to its end; return its last word."""
    last: BlobProgress | None = None
    events = client.blob_events(path, body)
    try:
        with _display(as_json) as show:
            for last in events:
                show(last)
    except KeyboardInterrupt:
        raise _Interrupted(
            "interrupted; what has arrived stays", hint="the same command goes on"
        ) from None
    if last is None or last.state != "done":
        raise ClientError("the daemon ended the conversation early", hint="see `shoal logs`")
    return last


def _done(progress: BlobProgress) -> Blob:
    if progress.blob is None:
        raise ClientError("the daemon named no blob", hint="see `shoal logs`")
    return progress.blob


@contextmanager
def _display(as_json: bool) -> Generator[Callable[[BlobProgress], None]]:
    if as_json:
        yield echo_json
    elif os.isatty(2):
        with _bar() as show:
            yield show
    else:
        yield _Lines().show


class _Lines:
    """One line for every 10 %, on standard error."""

    def __init__(self) -> None:
        self._said = ("", 0)  # what takes a moment only needs no line

    def show(self, progress: BlobProgress) -> None:
        """Print a line, if it is time for one."""
        size = progress.size_bytes
        percent = 100 * progress.done_bytes // size if size else 0
        step = percent // STEP_PERCENT
        if step and progress.state != "done" and (progress.state, step) != self._said:
            self._said = (progress.state, step)
            parts = [f"{progress.state} {percent} %", _rate(progress.rate)]
            if progress.state == "fetching":
                parts.append(f"{sum(p.active for p in progress.providers)} peers")
            click.echo("  ".join(parts), err=True)
        for each in progress.providers if progress.state == "done" else ():
            if each.note:
                click.echo(f"gave up {short(each.peer)}: {each.note}", err=True)


@contextmanager
def _bar() -> Generator[Callable[[BlobProgress], None]]:
    """Draw a bar with rate, time left and peers (rich costs 40 ms: only here)."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None, rate="", note="")

        def show(progress: BlobProgress) -> None:
            active = sum(provider.active for provider in progress.providers)
            note = f"{active} peers" if progress.providers else ""
            if progress.eta_s is not None and progress.state != "done":
                note = f"{_time(progress.eta_s)} left  {note}"
            bar.update(
                task,
                description=progress.state,
                completed=progress.done_bytes,
                total=progress.size_bytes or None,
                rate=_rate(progress.rate),
                note=note,
            )

        yield show


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e6:.1f} MB/s"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size_text(size_bytes: float) -> str:
    """Return a size as people read it."""
    for unit in ("B", "KiB", "MiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.1f} GiB"


# --- the group ---------------------------------------------------------------------------------


@click.group()
def blobs() -> None:
    """List, keep and throw away blobs."""


@blobs.command()
@json_option
@click.pass_obj
def ls(context: Context, as_json: bool) -> None:
    """List what was added or fetched, newest first."""
    found = context.client().blobs()
    if as_json:
        echo_json(found)
        return
    echo_table(("CID", "NAME", "KIND", "SIZE", "STATE"), [_row(blob) for blob in found.blobs])
    if not found.blobs:
        click.echo("no blobs yet; `shoal add PATH` adds one", err=True)
    elif on_terminal():
        quota = size_text(found.quota_bytes) if found.quota_bytes else "no quota"
        click.echo(f"{size_text(found.held_bytes)} of {quota}", err=True)


def _row(blob: Blob) -> tuple[str, ...]:
    states = ["whole" if blob.whole else f"partial, {size_text(blob.held_bytes)}"]
    states += ["pinned"] * blob.pinned
    states += [f"in {blob.path}"] * bool(blob.path)
    return blob.cid, blob.name or "-", blob.kind, size_text(blob.size_bytes), ", ".join(states)


@blobs.command()
@click.argument("cid")
@json_option
@click.pass_obj
def show(context: Context, cid: str, as_json: bool) -> None:
    """Show a blob, and of a folder the files."""
    found = context.client().blob(cid)
    if as_json:
        echo_json(found)
        return
    for head, value in zip(("cid", "name", "kind", "size", "state"), _row(found.blob), strict=True):
        click.echo(f"{head:<6} {value}")
    echo_table(
        ("PATH", "SIZE", "CID"), [(f.path, size_text(f.size_bytes), f.cid) for f in found.files]
    )


@blobs.command()
@click.argument("cids", metavar="CID...", nargs=-1, required=True)
@json_option
@click.pass_obj
def rm(context: Context, cids: tuple[str, ...], as_json: bool) -> None:
    """Throw blobs away, pinned or not. Others that have them keep them."""
    for cid in cids:
        gone = context.client().rm(cid)
        if as_json:
            echo_json(gone)
        else:
            click.echo(f"freed {size_text(gone.freed_bytes)}", err=True)


@blobs.command()
@click.argument("cids", metavar="CID...", nargs=-1, required=True)
@json_option
@click.pass_obj
def pin(context: Context, cids: tuple[str, ...], as_json: bool) -> None:
    """Pin blobs: they are never thrown away to make room."""
    _pin(context, cids, pinned=True, as_json=as_json)


@blobs.command()
@click.argument("cids", metavar="CID...", nargs=-1, required=True)
@json_option
@click.pass_obj
def unpin(context: Context, cids: tuple[str, ...], as_json: bool) -> None:
    """Let blobs go when there is no room."""
    _pin(context, cids, pinned=False, as_json=as_json)


def _pin(context: Context, cids: tuple[str, ...], *, pinned: bool, as_json: bool) -> None:
    for cid in cids:
        found = context.client().pin(cid, pinned=pinned)
        if as_json:
            echo_json(found)


@blobs.command()
@json_option
@click.pass_obj
def gc(context: Context, as_json: bool) -> None:
    """Throw away all that is not pinned nor in use."""
    gone = context.client().gc()
    if as_json:
        echo_json(gone)
    else:
        click.echo(f"{gone.blobs} blobs gone, {size_text(gone.freed_bytes)} freed")


@blobs.command()
@click.option("--json", "as_json", is_flag=True, help=_JSON_LINES)
@click.pass_obj
def verify(context: Context, as_json: bool) -> None:
    """Hash all blobs; fails if one is not what it was. A `get` of it mends it."""
    last = _run(context.client(), "/v1/blobs/verify", None, as_json)
    for blob in last.decayed if not as_json else ():
        click.echo(f"{blob.cid} {blob.name or '-'} is damaged or gone", err=True)
    if last.decayed:
        raise ClientError(
            f"{len(last.decayed)} blobs are damaged", hint="`shoal get CID` mends one"
        )
    if not as_json:
        click.echo("all blobs are what they should be")


COMMANDS: dict[str, click.Command] = {"add": add, "get": get, "blobs": blobs}
