"""Writes docs/cli.md, configuration.md, api.md and training.md from the program: `make docs`.

`--check` writes nothing and fails if they are not what this would write. Run it in a process of
its own: click keeps the help option of a command as whoever asked first has made it.
"""

import inspect
import sys
import tempfile
from pathlib import Path
from typing import Any, get_args, get_origin

import click
import trio

from node.cli.main import TABLE, cli
from node.config import load
from node.control.api import STATUS, Api, Raw, Request, Route
from node.daemon import Daemon
from node.home import Home
from node.logs import LogBook
from node.parts import Start
from node.tickets import Ticket
from protocols.modelsync.codecs import CODECS
from shoal.learn.names import STRATEGIES, options_of
from wire.ids import Signer

ROOT = Path(__file__).parents[1]
MADE = "<!-- made by `make docs`: do not edit -->\n\n"


def cli_page() -> str:
    """Return the help of every command."""
    parts = [f"# Commands\n\n{MADE}"]
    settings = cli.context_settings  # click reads them in `cli.main` only
    root = click.Context(
        cli, info_name="shoal", max_content_width=96, terminal_width=96, **settings
    )
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


TRAINING = """
A script makes a `shoal.Trainer` of its model and calls `step` after each optimizer step;
everything else is the daemon's. What the run file and the command line say reaches it by
`run_options`:

```python
options = shoal.run_options(run="mine", rounds=10)  # the defaults of what nobody says
with shoal.Trainer(model, optimizer, **options) as trainer:
    while not trainer.done:
        loss = model(**batch()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        trainer.step(loss)
```

```toml
[run]
rounds = 20
strategy = "streaming"     # --strategy; below
wire = "int4"              # --wire; below
aggregator = "mean"        # or median, trimmed:trim=0.25, clip:tau=auto, flag
min_members = 2            # nodes that the first round waits for
patience_s = 20.0          # seconds that a round with a quorum waits for slow members

[strategy]                 # options of that strategy; --set strategy.every=50
every = 50
```

Members whose strategy, options, wire or aggregator differ are refused, with the two of them
named. `min_members` and `patience_s` are each node's own.

**Which strategy.** `diloco` unless there is a reason: few rounds, each waited for. `streaming`
where the link is slow and rounds should hide behind training; `dilocox` where it is very slow.
`modest` with many nodes of which most are away. `dsgd` and `dadam` average every step, over a
fast network. `fedavg` where data stay where they are and members weigh by samples.

**Who comes and goes.** A member that dies is left out of the next attempt; one that comes late
loads the state from those who have it, and takes part from the next round on. A checkpoint is
written once a minute and at the end, so `shoal run resume` goes on also when all nodes were off.
Everything of a run is in `runs/NAME` of the state directory: `train.log`, `metrics.jsonl`,
`certificates.jsonl` (signed by those who made each round), `checkpoint/`.

**Liars.** A `mean` is moved anywhere by one member. `median`, `trimmed`, `clip` (centered
clipping) and `flag` hold against a minority, and count each member once, whatever
weight it claims. What a member can still do: [protocols](protocols.md), in the section on trust.
"""


def training_page() -> str:
    """Return how to train together: strategies with their options, and wires."""
    parts = [f"# Training together\n\n{MADE}{TRAINING.strip()}\n\n## Strategies\n"]
    for name, kind in STRATEGIES.items():
        title, _, rest = (inspect.getdoc(kind) or "").partition("\n\n")
        options = ", ".join(f"{key} = {_toml(value)}" for key, value in options_of(name).items())
        more = f"```\n{rest}\n```\n\n" if rest else ""
        parts.append(f"### `{name}`\n\n{title}\n\n{more}Options: `{options}`\n")
    rows = [f"| `{codec.name}` | {codec.bytes_per_element:g} |" for codec in CODECS]
    parts += [
        "## Wires\n",
        "What a coarse wire loses comes back by error feedback (`feedback` in [strategy]; where it",
        "is not set, it is on if the wire needs it). `auto` measures link and computer, and takes",
        "for each round the finest codec and the least `every` whose traffic hides behind",
        "computing.\n",
        "| wire | bytes a parameter, about |\n|---|---|",
        *rows,
        "",
    ]
    return "\n".join(parts)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


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
    return {
        "cli.md": cli_page(),
        "configuration.md": configuration_page(),
        "api.md": api,
        "training.md": training_page(),
    }


def stale() -> list[str]:
    """Return what is to be done about each page that is not what the program says."""
    return [
        f"docs/{name} is stale; try: make docs"
        for name, text in pages().items()
        if (ROOT / "docs" / name).read_text() != text
    ]


def main() -> None:
    """Write the pages, or say which are stale."""
    if sys.argv[1:] == ["--check"]:
        sys.exit("\n".join(stale()) or 0)
    for name, text in pages().items():
        (ROOT / "docs" / name).write_text(text)
        sys.stdout.write(f"docs/{name}\n")


if __name__ == "__main__":
    main()
