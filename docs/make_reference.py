"""Writes docs/cli.md, configuration.md and api.md from the program itself: `make docs`.

tests/unit/test_docs.py fails while they are not what this would write.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any, get_args, get_origin

import click
import trio

from node.cli.main import TABLE, cli
from node.config import load
from node.control.api import STATUS, Api, Raw, Request, Route
from node.daemon import Daemon, Start
from node.home import Home
from node.logs import LogBook
from node.tickets import Ticket
from wire.ids import Signer

ROOT = Path(__file__).parents[1]
MADE = "<!-- made by `make docs`: do not edit -->\n\n"


def cli_page() -> str:
    """Return the help of every command."""
    parts = [f"# Commands\n\n{MADE}"]
    root = click.Context(cli, info_name="shoal", max_content_width=96, terminal_width=96)
    parts.append(f"```\n{cli.get_help(root)}\n```\n")
    for name in TABLE:
        command = cli.get_command(root, name)
        assert command is not None, name
        parts += _command(command, name, root)
    return "\n".join(parts)


def _command(command: click.Command, name: str, parent: click.Context) -> list[str]:
    here = click.Context(command, info_name=name, parent=parent, terminal_width=96)
    parts = [f"## {here.command_path}\n\n```\n{command.get_help(here)}\n```\n"]
    if isinstance(command, click.Group):
        for sub in command.list_commands(here):
            inner = command.get_command(here, sub)
            assert inner is not None
            parts += _command(inner, sub, here)
    return parts


def configuration_page() -> str:
    """Return node.toml with what is to be said around it."""
    text = (ROOT / "configs" / "node.toml").read_text()
    return (
        f"# Configuration\n\n{MADE}"
        "Defaults, then `node.toml` in the state directory (or `--config FILE`), then the\n"
        "environment (`SHOAL_NET__MDNS=false`), then flags: the later wins. `shoal config show\n"
        "--origin` says which did.\n\n"
        "`shoal config init` writes this file, `shoal config check FILE` checks one.\n\n"
        f"```toml\n{text}```\n\n"
        "| environment | what |\n|---|---|\n"
        "| `SHOAL_HOME` | the state directory |\n"
        "| `SHOAL_SOCKET` | the control socket of the daemon to talk to |\n"
    )


async def api_page(api: Api) -> str:
    """Return the routes, error codes and metrics of a daemon."""
    rows = [_route(route) for route in sorted(api.routes, key=lambda r: (r.path, r.method))]
    codes = [f"| `{code}` | {status} |" for code, status in STATUS.items()]
    scraped = await api.find("GET", "/metrics")[0].handler(Request("GET", "/metrics"))
    assert isinstance(scraped, Raw)
    helps = [
        line.split(" ", 3)[2:] for line in scraped.body.decode().splitlines() if "HELP" in line
    ]
    figures = [f"| `{name}` | {text} |" for name, text in helps]
    return "\n".join(
        [
            f"# Control API\n\n{MADE}HTTP/1.1 and JSON on `control.sock` in the state directory,",
            "and on a loopback port with `--http` (header `Authorization: Bearer …`, the content",
            "of `http.token`).",
            "The whole document, with all fields, is at `/v1/openapi.json`.\n",
            "| method | path | what | body | reply |\n|---|---|---|---|---|",
            *rows,
            '\n## Errors\n\nOne shape: `{"error": {"code", "message", "hint"}}`. Codes that are',
            "not here come with status 500.\n\n| code | HTTP status |\n|---|---|",
            *codes,
            "\n## Metrics\n\n| name | what |\n|---|---|",
            *figures,
            "",
        ]
    )


def _route(route: Route) -> str:
    reply = _type(route.reply) + (" (events)" if route.events else "")
    return f"| {route.method} | `{route.path}` | {route.summary} | {_type(route.body)} | {reply} |"


def _type(kind: Any) -> str:
    if kind is None:
        return ""
    if get_origin(kind) is list:
        return f"list of {get_args(kind)[0].__name__.strip('_')}"
    return str(kind.__name__.strip("_"))


async def _api() -> str:
    """Build a daemon that is never started, and read its tables."""
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder))
        seed = bytes(32)
        start = Start(
            home=home,
            loaded=load(file=None, environment={}, flags={}),
            swarm=Ticket("docs", None, []),
            signer=Signer(seed),
            seed=seed,
            name="docs",
            logs=LogBook(None, stream=None),
        )
        return await api_page(Daemon(start).api)


def pages() -> dict[str, str]:
    """Return every page by its file name."""
    api = trio.run(_api)
    return {"cli.md": cli_page(), "configuration.md": configuration_page(), "api.md": api}


def main() -> None:
    """Write the pages."""
    for name, text in pages().items():
        (ROOT / "docs" / name).write_text(text)
        sys.stdout.write(f"docs/{name}\n")


if __name__ == "__main__":
    main()
