"""The commands that start, stop and configure the daemon.

What only a starting daemon needs (configuration, keys, libp2p) is imported inside the commands:
the others have to stay quick.
"""

import os
import select
from pathlib import Path

import click
import msgspec

from node.cli.context import Context, echo_json, echo_table, json_option
from shoal.errors import ClientError, DaemonUnreachable, TimedOut

DOWN_WAIT_S = 10.0  # the daemon drains within 5 s, by itself or by force


@click.command()
@click.option("--join", metavar="TICKET", help="Join the swarm of a ticket.")
@click.option("--listen", multiple=True, metavar="MULTIADDR", help="Listen here; may be repeated.")
@click.option("--name", help="What people call this node.")
@click.option("--config", "config_file", metavar="FILE", help="Read this instead of node.toml.")
@click.option("--http", metavar="HOST:PORT", help="Serve the API on a loopback port too.")
@click.option("--mdns/--no-mdns", default=None, help="Find members on the local network.")
@click.option("--offer/--no-offer", default=None, help="Host layers of served models.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]))
@click.option("--detach", is_flag=True, help="Start in the background; return once it is ready.")
@click.option("--in-background", is_flag=True, hidden=True)
@click.pass_obj
def up(
    context: Context,
    join: str | None,
    listen: tuple[str, ...],
    name: str | None,
    config_file: str | None,
    http: str | None,
    mdns: bool | None,
    offer: bool | None,
    log_level: str | None,
    detach: bool,
    in_background: bool,
) -> None:
    """Start the daemon: in the foreground, until Ctrl-C or `shoal down`.

    A first start makes an identity and, without --join, a swarm of its own.
    """
    flags: dict[str, object] = {
        "net.listen": list(listen) or None,
        "node.name": name,
        "http.listen": http,
        "net.mdns": mdns,
        "serve.offer": offer,
        "log.level": log_level,
    }
    from node.startup import Wish, check, start

    wish = Wish(
        home=context.home,
        config_file=Path(config_file) if config_file is not None else None,
        flags={key: value for key, value in flags.items() if value is not None},
        join=join,
        in_background=in_background,
    )
    if detach and not in_background:
        check(wish)  # what is wrong with the flags is said here, at once
        from node.cli.detach import start_in_background

        start_in_background(wish.home)
        found = context.client().status()
        _say_ready(found.peer, found.addresses, found.swarm)
    else:
        start(wish, _quietly if in_background else _say_ready)


def _say_ready(peer: str, addresses: list[str], swarm: str) -> None:
    click.echo(f"peer     {peer}")
    click.echo(f"swarm    {swarm}")
    for address in addresses:
        click.echo(f"listen   {address}")
    click.echo("ready; `shoal ticket` prints what another machine needs to join", err=True)


def _quietly(_peer: str, _addresses: list[str], _swarm: str) -> None:
    return


@click.command()
@click.pass_obj
def down(context: Context) -> None:
    """Stop the daemon and wait until it has ended."""
    client = context.client()
    pid = client.status().pid
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError as error:  # gone since, or in another container
        raise ClientError(f"the daemon's process {pid} cannot be seen from here") from error
    try:
        client.down()
        if not select.select([process], [], [], DOWN_WAIT_S)[0]:
            raise TimedOut(
                f"the daemon with pid {pid} still runs after {DOWN_WAIT_S:g} s",
                hint=f"kill -9 {pid}",
            )
    finally:
        os.close(process)
    click.echo(f"stopped (pid {pid})", err=True)


@click.command()
@click.option("--name", help="Name of the new swarm.")
@click.option("--join", metavar="TICKET", help="Take the swarm of a ticket instead.")
@click.option("--force", is_flag=True, help="Leave the swarm that this home belongs to.")
@click.pass_obj
def init(context: Context, name: str | None, join: str | None, force: bool) -> None:
    """Make a new swarm in the state directory (a plain `shoal up` does it by itself)."""
    from node.home import Home
    from node.startup import make_swarm

    swarm = make_swarm(Home(context.home.absolute()), name=name, join=join, force=force)
    click.echo(f"{context.home} belongs to swarm {swarm.swarm_name!r} now")


@click.group()
def config() -> None:
    """Show, write or check the configuration."""


@config.command("show")
@click.option("--origin", is_flag=True, help="Say where each value came from.")
@json_option
@click.pass_obj
def config_show(context: Context, origin: bool, as_json: bool) -> None:
    """Show the effective options: the running daemon's, else what a start would use."""
    try:
        settings = context.client().config()
    except DaemonUnreachable:
        from node.home import Home
        from node.startup import load_config

        settings = list(load_config(Home(context.home), file=None).settings)
    if as_json:
        echo_json(settings)
        return
    rows = [(s.key, _plain(s.value), *([s.origin] if origin else [])) for s in settings]
    echo_table(("KEY", "VALUE", *(["ORIGIN"] if origin else [])), rows)


@config.command("init")
@click.option("--force", is_flag=True, help="Overwrite the file that is there.")
@click.pass_obj
def config_init(context: Context, force: bool) -> None:
    """Write node.toml with every option, commented out."""
    from node.config import render_file
    from node.home import Home
    from wire.errors import UsageError

    home = Home(context.home)
    home.make()
    if home.config.exists() and not force:
        raise UsageError(f"{home.config} exists", hint="`shoal config init --force` overwrites it")
    home.config.write_text(render_file(), encoding="utf-8")
    click.echo(f"wrote {home.config}")


@config.command("check")
@click.argument("file")
@click.pass_obj
def config_check(context: Context, file: str) -> None:
    """Check a configuration file; exit status 2 if it is wrong."""
    from node.home import Home
    from node.startup import load_config

    load_config(Home(context.home), file=Path(file))
    click.echo(f"{file} is good")


def _plain(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
