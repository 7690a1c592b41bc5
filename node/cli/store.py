"""The commands of the store: `shoal store`. Values and their history are here, rules beside it."""

import json
import os
import time
from pathlib import Path

import click

from node.cli import store_proofs, store_rules
from node.cli.blobs import output_file, pieces, size_text
from node.cli.context import (
    Context,
    echo_json,
    json_option,
    on_terminal,
    plain,
    read_stdin,
    seconds,
    short,
)
from node.cli.store_text import brief, echo_cut, ns_option, printed, terminal_text, when, word
from shoal.errors import ClientError
from shoal.rpc_api import from_json
from shoal.store_api import BYTES_MAX, StoreChange, StoreItem, StoreLine, with_base64

INLINE_MAX = 64 * 1024  # bytes of a file that go with the request; the daemon reads a larger one
_FILE_HINT = "put it into a file, and `put KEY --file FILE`"


@click.group()
def store() -> None:
    """Keep values that the whole swarm agrees on.

    Every node writes at any time, also alone; all come to show the same. Every entry is signed
    and names its author. A value over 2 KiB rests as a blob.

    \b
    Example:
      shoal store put lr 0.003          the last writer wins
      shoal store incr visits           all counts add up
      shoal store add todo "buy milk"   a set; with a third word, a map
      shoal store watch                 see what the others write
    """


@store.command()
@click.argument("key")
@ns_option
@click.option("--all", "with_all", is_flag=True, help="Show its kind, author and time, too.")
@click.option("-o", "--out", metavar="FILE", help="Write it there.")
@json_option
@click.pass_obj
def get(
    context: Context, key: str, namespace: str, with_all: bool, out: str | None, as_json: bool
) -> None:
    """Print what KEY shows: text and bytes as they are, other values as JSON.

    Of several values, a set or a map: one a line. Fails (1) if nothing is there.

    Example: shoal store get lr
    """
    client = context.client()
    item = client.store.get(key, namespace=namespace)
    if as_json:
        echo_json(with_base64(item))
    elif with_all:
        _echo_all(item)
    elif item.cid:
        _no_terminal(out, f"a blob of {size_text(item.blob_bytes)}")
        try:
            with output_file(out) as file:
                for piece in pieces(client, item.cid, 0, None, ()):
                    file.write(piece)
        except ClientError as error:
            author = plain(item.name) or short(item.author)
            error.hint = error.hint or f"it rests with {author}, and with who fetched it before"
            raise
    else:
        data = printed(item)
        if out is None and on_terminal():
            click.echo(terminal_text(data))
        else:
            with output_file(out) as file:
                file.write(data)


def _no_terminal(out: str | None, what: str) -> None:
    if out is None and on_terminal():
        raise ClientError(f"it is {what}", hint="`--out FILE`, or a pipe, takes it")


def _echo_all(item: StoreItem) -> None:
    rows = [
        ("key", f"{item.key} in {item.namespace}"),
        ("kind", item.kind),
        ("value", brief(item)),
        ("author", f"{item.name} {item.author}".strip()),
        ("written", when(item.written_ms)),
        ("entries", str(item.entries)),
    ]
    if item.expires_ms:
        rows.append(("expires", when(item.expires_ms)))
    for head, text in rows:
        click.echo(f"{head:<8} {plain(text)}")


@store.command(context_settings={"ignore_unknown_options": True})
@click.argument("key")
@click.argument("value", metavar="[VALUE|-]", required=False)
@click.option("--file", "path", metavar="FILE", help="Put the bytes of a file.")
@click.option("--string", is_flag=True, help="Take VALUE as text, also if it is JSON.")
@click.option("--ttl", type=seconds, metavar="TIME", help="A lease: it ends after 30s, 10m, 2h.")
@click.option("--multi", is_flag=True, help="Keep what others write at the same time beside it.")
@ns_option
@json_option
@click.pass_obj
def put(
    context: Context,
    key: str,
    value: str | None,
    path: str | None,
    string: bool,
    ttl: float | None,
    multi: bool,
    namespace: str,
    as_json: bool,
) -> None:
    """Write VALUE at KEY: JSON if it is JSON, else text. Without it, or with -, the bytes of
    standard input.

    The last writer wins, also over a counter or a set. What is over 2 KiB goes as a blob; bytes
    are {"$base64": "aGk="} in JSON.

    \b
    Example:
      shoal store put train/config '{"lr": 0.003, "steps": 1000}'
      shoal store put lock/data mine --ttl 30s
    """
    store, sent = context.client().store, _given(value, path, string=string)
    if isinstance(sent, Path):
        if multi:
            raise click.UsageError("a large file cannot be one of several values")
        item = store.put_file(key, sent, ttl_s=ttl, namespace=namespace)
    else:
        item = store.put(key, sent, ttl_s=ttl, multi=multi, namespace=namespace)
    if as_json:
        echo_json(with_base64(item))
    elif item.cid:
        click.echo(f"over 2 KiB: kept as the blob {item.cid}", err=True)


def _given(value: str | None, path: str | None, *, string: bool) -> object:
    """Return what was typed, bytes of a file or of standard input, or the path of a large file."""
    if path is not None:
        if value is not None:
            raise click.UsageError("VALUE or --file, not both")
        return _read_file(path)
    if value is None or value == "-":
        if value is None and os.isatty(0):
            raise click.UsageError("no VALUE; - reads standard input")
        return read_stdin(BYTES_MAX, _FILE_HINT)
    return typed(value, string=string)


def typed(text: str, *, string: bool) -> object:
    """Return what was typed as a value or element. Raises UsageError."""
    if string:
        return text
    parsed = parse(text)
    if text.startswith("-") and parsed == text:
        raise click.NoSuchOption(text)  # `put KEY -5` is a value, `put KEY --jsn` a slip
    return parsed


def parse(text: str) -> object:
    """Return what a text is as JSON, or the text itself if it is none. Raises UsageError."""
    try:
        return from_json(json.loads(text, parse_constant=_no_constant))
    except (ValueError, RecursionError):
        return text
    except ClientError as error:
        raise click.UsageError(str(error)) from error


def _no_constant(text: str) -> None:
    raise ValueError(text)  # NaN and Infinity are Python's, not JSON's


def _read_file(path: str) -> bytes | Path:
    """Return what a file holds, or its path where that is for the daemon to read."""
    try:
        with open(path, "rb") as file:
            data = file.read(INLINE_MAX + 1)
            if len(data) <= INLINE_MAX:
                return data
            if os.path.isfile(path):
                return Path(path)
            data += file.read(BYTES_MAX + 1 - len(data))  # a pipe
    except OSError as error:
        raise click.UsageError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > BYTES_MAX:
        raise ClientError(f"{path} is over the limit of {BYTES_MAX} B of a pipe", hint=_FILE_HINT)
    return data


@store.command("del")
@click.argument("key")
@ns_option
@click.pass_obj
def del_(context: Context, key: str, namespace: str) -> None:
    """Delete KEY, whatever its kind. Fails (1) if nothing is there.

    Example: shoal store del train/config
    """
    context.client().store.delete(key, namespace=namespace)


@store.command(context_settings={"ignore_unknown_options": True})
@click.argument("key")
@click.argument("by", type=int, default=1)
@ns_option
@json_option
@click.pass_obj
def incr(context: Context, key: str, by: int, namespace: str, as_json: bool) -> None:
    """Add BY (default 1, also negative) to the counter at KEY; print where it stands.

    What all nodes add counts, also what they added apart from each other.

    Example: shoal store incr visits 3
    """
    total = context.client().store.incr(key, by, namespace=namespace)
    echo_json({"value": total}) if as_json else click.echo(total)


@store.command(context_settings={"ignore_unknown_options": True})
@click.argument("key")
@click.argument("element")
@click.argument("value", required=False)
@click.option("--string", is_flag=True, help="Take both as text, also if they are JSON.")
@ns_option
@json_option
@click.pass_obj
def add(
    context: Context,
    key: str,
    element: str,
    value: str | None,
    string: bool,
    namespace: str,
    as_json: bool,
) -> None:
    """Put ELEMENT into the set at KEY; with VALUE, it is an entry of a map.

    Who adds wins over who removes at the same time.

    Example: shoal store add workers/gpus ada '{"memory_gib": 24}'
    """
    given = None if value is None else typed(value, string=string)
    item = context.client().store.add(
        key, typed(element, string=string), given, namespace=namespace
    )
    if as_json:
        echo_json(with_base64(item))


@store.command(context_settings={"ignore_unknown_options": True})
@click.argument("key")
@click.argument("element")
@click.option("--string", is_flag=True, help="Take ELEMENT as text, also if it is JSON.")
@ns_option
@click.pass_obj
def remove(context: Context, key: str, element: str, string: bool, namespace: str) -> None:
    """Take ELEMENT out of the set or map at KEY. Fails (1) if it is not in it.

    Example: shoal store remove todo "buy milk"
    """
    context.client().store.remove(key, typed(element, string=string), namespace=namespace)


@store.command()
@click.argument("prefix", default="")
@ns_option
@json_option
@click.pass_obj
def ls(context: Context, prefix: str, namespace: str, as_json: bool) -> None:
    """List what is there, in order of the keys (with --json one document a line).

    Example: shoal store ls train/
    """
    items = context.client().store.ls(prefix, namespace=namespace)
    if as_json:
        for item in items:
            echo_json(with_base64(item))
        return
    rows = [(item.key, item.kind, item.name or short(item.author), brief(item)) for item in items]
    echo_cut(("KEY", "KIND", "AUTHOR", "VALUE"), rows)
    if not rows:
        click.echo("nothing is there; `shoal store put KEY VALUE` writes", err=True)


@store.command()
@click.argument("prefix", default="")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 1000))
@ns_option
@json_option
@click.pass_obj
def log(context: Context, prefix: str, limit: int, namespace: str, as_json: bool) -> None:
    """List the signed entries behind what is shown, the latest first.

    Entries that something newer has replaced are gone. NOTE: "does not count" is what a revocation
    or a proof against its author has ruled out.

    Example: shoal store log train/ --limit 20
    """
    lines = context.client().store.log(prefix, limit=limit, namespace=namespace)
    if as_json:
        for line in lines:
            echo_json(with_base64(line))
        return
    now_ms = time.time() * 1000
    rows = [log_row(line, now_ms) for line in lines]
    echo_cut(("WRITTEN", "AUTHOR", "SEQ", "KIND", "KEY", "NOTE", "VALUE"), rows)
    if not rows:
        click.echo("no entries", err=True)


def log_row(line: StoreLine, now_ms: float) -> tuple[str, ...]:
    """Return the cells of one entry."""
    if not line.counts:
        note = "does not count"
    elif line.deleted:
        note = "deleted"
    else:
        note = "expired" if 0 < line.expires_ms <= now_ms else "-"
    author = line.name or short(line.author)
    head = when(line.written_ms), author, str(line.seq), line.kind, line.key, note
    return *head, plain(_log_value(line)) or "-"


def _log_value(line: StoreLine) -> str:
    """Return what an entry says; of a counter, what its chain has added and taken."""
    if line.cid:
        value = f"<blob of {size_text(line.blob_bytes)}, {line.cid}>"
    elif line.deleted or line.kind == "remove" or (line.kind == "add" and line.value is None):
        value = ""
    elif line.kind == "counter":
        plus, minus, plus_base, minus_base = [*line.value, 0, 0][:4]
        value = f"+{plus - plus_base} -{minus - minus_base}"
    else:
        value = word(line.value)
    if line.kind not in ("add", "remove"):
        return value
    return f"{word(line.element)}={value}" if value else word(line.element)


@store.command()
@click.argument("prefix", default="")
@click.option("--now", is_flag=True, help="Begin with what is there.")
@ns_option
@json_option
@click.pass_obj
def watch(context: Context, prefix: str, now: bool, namespace: str, as_json: bool) -> None:
    """Print each key that changes and what it shows then, until Ctrl-C.

    With --json one document a line; `item` is null if the key is gone.

    Example: shoal store watch train/ --now
    """
    for change in context.client().store.watch(prefix, now=now, namespace=namespace):
        if as_json:
            item = None if change.item is None else with_base64(change.item)
            echo_json(StoreChange(change.key, item))
        elif change.item is None:
            click.echo(f"{plain(change.key)} is gone")
        else:
            author = change.item.name or short(change.item.author)
            click.echo(f"{plain(change.key)} = {brief(change.item)}  ({plain(author)})")
    raise ClientError("the daemon stopped")


for _command in (*store_proofs.COMMANDS, *store_rules.COMMANDS):
    store.add_command(_command)

COMMANDS: dict[str, click.Command] = {"store": store}
