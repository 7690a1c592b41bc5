"""What every subcommand gets, and the few ways in which they print."""

import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from shoal.client import Client, connect
from shoal.errors import ClientError
from shoal.messages import home_dir

F = TypeVar("F", bound=Callable[..., Any])

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|)")
_NUMBER = re.compile(r"-|[\d.]+%?( [A-Za-z]+)?")  # as a cell: 12, 3.4 ms, 2.0 KiB
_UNIT_S = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


class Context:
    """The global options; `@click.pass_obj` hands it to a command."""

    def __init__(self, *, home: str | None = None, socket: str | None = None) -> None:
        self._given = {"home": home, "socket": socket}

    def override(self, name: str, value: str) -> None:
        """Take a global option that stands behind the command's name."""
        self._given[name] = value

    @property
    def home(self) -> Path:
        """The state directory that this call is about."""
        return home_dir(self._given["home"])

    def client(self) -> Client:
        """Return a client of the daemon; it connects at its first call."""
        return connect(**self._given)


def seconds(text: str) -> float:
    """Parse a time such as 30s, 500ms, 2m or 1.5h (`type=seconds`); a plain number is seconds."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise click.BadParameter(f"{text!r} is not a time such as 30s, 500ms, 2m or 1h")
    return float(match[1]) * _UNIT_S[match[2]]


def read_stdin(limit_bytes: int, hint: str) -> bytes:
    """Return what standard input holds. Raises ClientError if it is over a limit."""
    data = sys.stdin.buffer.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise ClientError(f"standard input is over the limit of {limit_bytes} B", hint=hint)
    return data


def json_option(command: F) -> F:
    """Add `--json` to a read command (parameter `as_json`)."""
    text = "Print one JSON document with stable fields."
    return click.option("--json", "as_json", is_flag=True, help=text)(command)


def echo_json(value: object) -> None:
    """Print a declared struct, or a list of them, as one line of JSON."""
    click.echo(msgspec.json.encode(value).decode())


def echo_table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, err: bool = False) -> None:
    """Print a table; numbers-only columns are aligned right. No rows, no output.

    A name that would break a line, or speak to the terminal, is shown with `?` in those places.
    """
    cells = [[plain(cell) for cell in row] for row in rows]
    if not cells:
        return
    columns = list(zip(*[list(heads), *cells], strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    right = [all(map(_NUMBER.fullmatch, column[1:])) for column in columns]
    for row in [list(heads), *cells]:
        parts = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ]
        click.echo("  ".join(parts).rstrip(), err=err)


def plain(text: str) -> str:
    """Return a text of others, such as a file's name, as one harmless line."""
    return "".join(each if each.isprintable() else "?" for each in text)


def short(peer: str) -> str:
    """Return a peer ID as people compare it: all Ed25519 IDs share their first eight characters."""
    return f"…{peer[-8:]}"


def on_terminal() -> bool:
    """Whether standard output is a terminal: only then progress and colour."""
    return os.isatty(1)
