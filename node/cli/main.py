"""The command `shoal`: one lazy group. A command's module is imported when the command is called.

Global options, the table of commands and what an error looks like are here; commands are in
core.py (the daemon), netcheck.py, channels.py, blobs.py, store.py, dht.py, runs.py and run.py
(training), models.py (serving) and dashboard.py.
"""

import importlib
import os
import sys
from importlib.metadata import version

import click

from node.cli.context import Context
from shoal.errors import ClientError

INTERRUPTED = 130  # exit status after Ctrl-C, as shells expect (128 + SIGINT)

_EPILOG = """\b
Environment:
  SHOAL_HOME          the state directory (default: ~/.local/state/shoal)
  SHOAL_SOCKET        the control socket (default: control.sock in the home)
  SHOAL_<SECTION>__<KEY>  any option of node.toml, e.g. SHOAL_NET__MDNS=false
\b
Exit status:
  0 done   1 failed   2 usage   3 no daemon is running   4 timed out
"""

_HOME_HELP = "State directory of the daemon.  [env: SHOAL_HOME]"
_SOCKET_HELP = "Control socket.  [env: SHOAL_SOCKET]"

_CORE = "node.cli.core:COMMANDS"
_NETCHECK = "node.cli.netcheck:COMMANDS"
_RPC = "node.cli.rpc:COMMANDS"
_RUNS = "node.cli.runs:COMMANDS"
_MODELS = "node.cli.models:COMMANDS"
_HOSTING = "node.cli.hosting:COMMANDS"
_CHAT = "node.cli.chat:COMMANDS"
_MAP = "node.cli.map:COMMANDS"
_LIBRARY = "node.cli.library:COMMANDS"
_CHANNELS = "node.cli.channels:COMMANDS"
_BLOBS = "node.cli.blobs:COMMANDS"
_DHT = "node.cli.dht:COMMANDS"
_STORE = "node.cli.store:COMMANDS"
_DASHBOARD = "node.cli.dashboard:COMMANDS"
_DEMO = "node.cli.demo:COMMANDS"

# Name -> (where it is, the line in `shoal --help`: known without importing it).
TABLE = {
    "up": (_CORE, "Start the daemon."),
    "down": (_CORE, "Stop the daemon."),
    "init": (_CORE, "Make a new swarm."),
    "ticket": (_CORE, "Print the ticket that lets another machine join."),
    "status": (_CORE, "Show the daemon at a glance."),
    "id": (_CORE, "Show this node's peer ID and addresses."),
    "peers": (_CORE, "List connected peers."),
    "members": (_CORE, "List the members of the swarm."),
    "ping": (_CORE, "Ping a peer."),
    "wait": (_CORE, "Wait until peers are connected."),
    "health": (_CORE, "Check that the daemon does its work."),
    "netcheck": (_NETCHECK, "Say how others reach this node, and what to do if they do not."),
    "doctor": (_NETCHECK, "Check everything: daemon, network, disk, configuration, torch."),
    "logs": (_CORE, "Show the daemon's log."),
    "config": (_CORE, "Show, write or check the configuration."),
    "rpc": (_RPC, "Call programs of peers, and let them call yours."),
    "pub": (_CHANNELS, "Publish a message on a topic."),
    "sub": (_CHANNELS, "Listen to a topic."),
    "channels": (_CHANNELS, "List the topics listened to."),
    "add": (_BLOBS, "Add a file, a folder or standard input as a blob."),
    "get": (_BLOBS, "Fetch a blob from everybody who has it."),
    "blobs": (_BLOBS, "List, keep and throw away blobs."),
    "store": (_STORE, "Keep values that the whole swarm agrees on."),
    "dht": (_DHT, "Find peers, providers and small values in the DHT."),
    "train": (_RUNS, "Train a model together with the swarm."),
    "runs": (_RUNS, "List training runs."),
    "run": (_RUNS, "Look at one run, stop, resume or export it, draw its curves."),
    "model": (_LIBRARY, "Models as content: add, look at, keep, check, forget them."),
    "serve": (_HOSTING, "Serve a model split over the swarm."),
    "generate": (_MODELS, "Let a served model continue a text."),
    "chat": (_CHAT, "Talk with a served model."),
    "map": (_MAP, "Draw which node computes which blocks of a model."),
    "unserve": (_HOSTING, "Take a model out of service."),
    "host": (_HOSTING, "Host a part of a model on this node."),
    "unhost": (_HOSTING, "Host nothing of a model on this node."),
    "dashboard": (_DASHBOARD, "Print the address of this node's dashboard."),
    "demo": (_DEMO, "Show all of it on this machine: meet, train, fail, serve."),
}


class _LazyGroup(click.Group):
    """A group that knows its commands' names and first lines without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the table's order."""
        return list(TABLE)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of a command and return the command."""
        if cmd_name not in TABLE:
            return None
        module, _, attribute = TABLE[cmd_name][0].partition(":")
        commands: dict[str, click.Command] = getattr(importlib.import_module(module), attribute)
        return _with_global_options(commands[cmd_name])

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from the table: `--help` imports none of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in TABLE.items()])


def _with_global_options(command: click.Command) -> click.Command:
    """Let `--home` and `--socket` stand behind the command's name too, as people type them."""
    if isinstance(command, click.Group):
        for each in command.commands.values():
            _with_global_options(each)
    if not any(param.name == "home" for param in command.params):
        for name, text in (("home", _HOME_HELP), ("socket", _SOCKET_HELP)):
            option = click.Option(
                [f"--{name}"],
                metavar=name.upper(),
                help=text,
                expose_value=False,
                callback=_override,
            )
            command.params.append(option)
    return command


def _override(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.find_root().obj.override(str(param.name), value)


@click.group(
    cls=_LazyGroup, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]}
)
@click.option("--home", metavar="DIR", help=_HOME_HELP)
@click.option("--socket", metavar="PATH", help=_SOCKET_HELP)
@click.version_option(version("shoal"), prog_name="shoal")
@click.pass_context
def cli(ctx: click.Context, home: str | None, socket: str | None) -> None:
    """Shoal: a peer-to-peer daemon for decentralised training and inference."""
    ctx.obj = Context(home=home, socket=socket)


def main() -> None:
    """Run the command; our own errors become one readable line and an exit status."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # `shoal logs | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        hint = _known(error)
        if hint is None:
            raise
        click.echo(f"error: {error}", err=True)
        if hint:
            click.echo(f"  try: {hint}", err=True)
        sys.exit(getattr(error, "exit_code", 1))


def _known(error: Exception) -> str | None:
    """Return the hint of an error of ours (it may be empty); None for a bug."""
    from wire.errors import ShoalError  # only on the way out: it is not needed before

    return error.hint if isinstance(error, ClientError | ShoalError) else None


if __name__ == "__main__":
    main()
