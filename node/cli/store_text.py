"""How the commands of the store write values, times and names."""

import shutil
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

import click
import msgspec

from node.cli.blobs import size_text
from node.cli.context import echo_table, on_terminal, plain
from shoal.errors import ClientError
from shoal.rpc_api import to_json
from shoal.store_api import DEFAULT, Namespace, StoreItem

F = TypeVar("F", bound=Callable[..., Any])

PIPE_WIDTH = 200  # characters of a line of `ls` where no terminal says how wide it is


def terminal_text(data: bytes) -> str:
    """Return text of others without what would speak to the terminal. Raises ClientError."""
    try:
        return "\n".join(map(plain, data.decode().removesuffix("\n").split("\n")))
    except UnicodeDecodeError:
        raise ClientError(
            f"it is {len(data)} bytes of no text", hint="`--out FILE`, or a pipe, takes them"
        ) from None


def printed(item: StoreItem) -> bytes:
    """Return what `get` prints: bytes as they are, everything else as lines."""
    if isinstance(item.value, bytes):
        return item.value
    return "".join(f"{line}\n" for line in lines(item)).encode()


def lines(item: StoreItem) -> list[str]:
    """Return what a key shows, a line for each value or element."""
    match item.kind:
        case "multi" | "set":
            return [word(each) for each in item.value]
        case "map":
            return [f"{word(element)}\t{word(value)}" for element, value in item.value]
        case _:
            return [word(item.value)]


def word(value: Any) -> str:
    """Return a value as one word: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else msgspec.json.encode(to_json(value)).decode()


def brief(item: StoreItem) -> str:
    """Return a value on one line."""
    if item.cid:
        return f"<blob of {size_text(item.blob_bytes)}, {item.cid}>"
    if isinstance(item.value, bytes):
        return f"<{len(item.value)} bytes>"
    return plain(" | ".join(lines(item)).replace("\t", "="))


def echo_cut(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose last column is cut to the terminal."""
    width = shutil.get_terminal_size().columns if on_terminal() else PIPE_WIDTH
    taken = sum(max(map(len, column)) + 2 for column in list(zip(heads, *rows, strict=True))[:-1])
    room = max(20, width - taken)
    cut = [(*row[:-1], row[-1] if len(row[-1]) <= room else row[-1][: room - 1] + "…")
           for row in rows]  # fmt: skip
    echo_table(heads, cut)


def when(ms: int) -> str:
    """Return a time of an entry as people read it; its author has set it, to whatever."""
    try:
        return datetime.fromtimestamp(ms / 1000).isoformat(sep=" ", timespec="seconds")
    except (OverflowError, ValueError, OSError):
        return "far ahead"


def full_name(one: Namespace) -> str:
    """Return a name that fits this namespace only."""
    return f"{one.name}@{one.owner_name or one.owner}" if one.owner else one.name


def ns_option(command: F) -> F:
    """Add `--ns` (parameter `namespace`)."""
    text = "Namespace: a name, NAME@OWNER, or digits of its ID."
    option = click.option(
        "--ns", "namespace", default=DEFAULT, show_default=True, metavar="NAME", help=text
    )
    return option(command)
