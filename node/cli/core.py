"""The commands about the running daemon: what it is, whom it sees, what it says."""

import time

import click

from node.cli.context import Context, echo_json, echo_table, json_option, seconds, short
from node.cli.daemon import config, down, init, up
from shoal.api import LogLine, Peer, Status
from shoal.errors import ClientError

PEER_ID_BEGIN = "12D3KooW"  # of all Ed25519 IDs
COUNT_MAX = 10  # pings until one goes directly: a hole is punched within 4 s, or not soon
SKEW_SHOWN_MS = 1000  # of this clock against the peers': less says nothing, as links differ
_LEVELS = click.Choice(["debug", "info", "warning", "error"])


@click.command()
@json_option
@click.pass_obj
def status(context: Context, as_json: bool) -> None:
    """Show the daemon at a glance."""
    found = context.client().status()
    if as_json:
        echo_json(found)
        return
    for name, value in _status_lines(found):
        click.echo(f"{name:<8} {value}")


def _status_lines(found: Status) -> list[tuple[str, str]]:
    lines = [
        ("state", f"{found.state}, up {_age(found.uptime_s)}"),
        ("peer", found.peer),
        ("name", found.name),
        ("swarm", found.swarm),
        ("peers", f"{found.peers} connected, {found.members} members"),
        ("home", f"{found.home} (pid {found.pid}, version {found.version})"),
    ]
    if abs(found.clock_skew_ms) >= SKEW_SHOWN_MS:
        side = "ahead of" if found.clock_skew_ms > 0 else "behind"
        lines.append(("clock", f"{abs(found.clock_skew_ms) / 1000:.1f} s {side} the peers'"))
    lines += [("listen", address) for address in found.addresses]
    lines += [("run", name) for name in found.runs]
    lines += [("model", name) for name in found.models]
    return lines


@click.command("id")
@json_option
@click.pass_obj
def show_id(context: Context, as_json: bool) -> None:
    """Print this node's peer ID (with --json its name and addresses too)."""
    found = context.client().id()
    if as_json:
        echo_json(found)
    else:
        click.echo(found.peer)


@click.command()
@json_option
@click.pass_obj
def peers(context: Context, as_json: bool) -> None:
    """List connected peers, nearest first."""
    found = context.client().peers()
    if as_json:
        echo_json(found)
        return
    heads = ("PEER", "NAME", "PATH", "ADDRESS", "RTT", "IN", "OUT", "IN/S", "OUT/S", "SINCE")
    echo_table(heads, [_peer_row(peer) for peer in found])
    if not found:
        click.echo("no peers yet; `shoal members` lists who should be there", err=True)


def _peer_row(peer: Peer) -> tuple[str, ...]:
    rtt = "-" if peer.rtt_ms is None else f"{peer.rtt_ms:.1f} ms"
    way = "from" if peer.direction == "in" else "to"
    traffic = [_size(size) for size in (peer.bytes_in, peer.bytes_out)]
    traffic += [_size(round(rate)) for rate in (peer.in_s, peer.out_s)]
    place = f"{way} {_place(peer.address)}"
    path = _path(peer.path, peer.relay)
    return (short(peer.peer), peer.name, path, place, rtt, *traffic, _age(peer.since_s))


def _path(path: str, relay: str) -> str:
    """How a peer is reached, in words."""
    if not relay:
        return path
    return f"relay via {short(relay) if relay.startswith(PEER_ID_BEGIN) else relay}"


def _place(address: str) -> str:
    """Of an address through a relay, where the relay is: which one it is, the path tells."""
    return address.partition("/p2p/")[0]


@click.command()
@json_option
@click.pass_obj
def members(context: Context, as_json: bool) -> None:
    """List the members of the swarm, connected or not."""
    found = context.client().members()
    if as_json:
        echo_json(found)
        return
    rows: list[tuple[str, ...]] = []
    for member in found:
        state = "me" if member.me else "connected" if member.connected else "-"
        alive = "alive" if member.alive else "gone"
        rows.append((member.name, member.peer, state, alive, member.version))
    echo_table(("NAME", "PEER", "STATE", "LEASE", "VERSION"), rows)


@click.command()
@click.argument("peer")
@click.option(
    "-c",
    "--count",
    type=click.IntRange(1, 100_000),
    help=f"So many, also when one went directly.  [default: until then, {COUNT_MAX} at most]",
)
@click.option("--interval", default="1s", show_default=True, type=seconds, metavar="TIME")
@click.option("--timeout", default="5s", show_default=True, type=seconds, metavar="TIME")
@json_option
@click.pass_obj
def ping(
    context: Context, peer: str, count: int | None, interval: float, timeout: float, as_json: bool
) -> None:
    """Ping PEER (its name, peer ID, or a unique part of the ID) until an answer came directly.

    Each line says which way it went. Fails if no answer came at all.
    """
    rtts: list[float] = []
    sent, path = 0, ""
    for pong in context.client().ping(
        peer,
        count=count or COUNT_MAX,
        interval_s=interval,
        timeout_s=timeout,
        until_direct=count is None,
    ):
        sent, path = sent + 1, pong.path or path
        if pong.rtt_ms is not None:
            rtts.append(pong.rtt_ms)
        if as_json:
            echo_json(pong)
        elif pong.rtt_ms is None:
            click.echo(f"{short(pong.peer)}  seq {pong.sequence}  lost: {pong.error}")
        else:
            click.echo(
                f"{short(pong.peer)}  seq {pong.sequence}  {pong.rtt_ms:.2f} ms  "
                f"{_path(pong.path, pong.relay)}  {_place(pong.address)}"
            )
    if not rtts:
        raise ClientError(f"no answer from {peer} to {sent} pings")
    if not as_json:
        least, mean, most = min(rtts), sum(rtts) / len(rtts), max(rtts)
        click.echo(
            f"{len(rtts)}/{sent} answered, {100 - 100 * len(rtts) / sent:.0f} % lost, "
            f"min/avg/max {least:.2f}/{mean:.2f}/{most:.2f} ms",
            err=True,
        )
        if path == "relayed" and count is None:
            click.echo("still through a relay; `shoal netcheck` says why", err=True)


@click.command()
@click.option("--peers", "count", default=1, show_default=True, type=click.IntRange(0, 10_000))
@click.option("--timeout", default="30s", show_default=True, type=seconds, metavar="TIME")
@json_option
@click.pass_obj
def wait(context: Context, count: int, timeout: float, as_json: bool) -> None:
    """Wait until so many peers are connected; exit status 4 if they are not in time."""
    found = context.client().wait(peers=count, timeout_s=timeout)
    if as_json:
        echo_json(found)
    else:
        click.echo(f"{found.peers} peers after {found.waited_s:.1f} s")


@click.command()
@json_option
@click.pass_obj
def ticket(context: Context, as_json: bool) -> None:
    """Print the ticket that lets another machine join. It is a secret: who has it is a member."""
    text = context.client().ticket()
    if as_json:
        echo_json({"ticket": text})
    else:
        click.echo(text)


@click.command()
@json_option
@click.pass_obj
def health(context: Context, as_json: bool) -> None:
    """Check that the daemon is ready; exit status 1 if it is not, 3 if there is none."""
    found = context.client().health()
    if as_json:
        echo_json(found)
    else:
        click.echo(f"{found.state}, event loop at most {found.loop_lag_ms:.1f} ms late")


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines.")
@click.option("--level", default="debug", type=_LEVELS, help="Only lines of this level or above.")
@json_option
@click.pass_obj
def logs(context: Context, follow: bool, level: str, as_json: bool) -> None:
    """Show the daemon's last log lines (with --json one document a line)."""
    for line in context.client().logs(follow=follow, level=level):
        _echo_log(line, as_json)


def _echo_log(line: LogLine, as_json: bool) -> None:
    if as_json:
        echo_json(line)
    else:
        click.echo(line.line)


def _age(age_s: float) -> str:
    if age_s < 90:
        return f"{age_s:.0f} s"
    if age_s < 5400:
        return f"{age_s / 60:.0f} min"
    if age_s < 172_800:
        return f"{age_s / 3600:.1f} h"
    return time.strftime("%Y-%m-%d", time.localtime(time.time() - age_s))


def _size(size_bytes: int) -> str:
    size, units = float(size_bytes), ["B", "KiB", "MiB", "GiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{size:.0f} {units[0]}" if units[0] == "B" else f"{size:.1f} {units[0]}"


COMMANDS: dict[str, click.Command] = {
    "up": up,
    "down": down,
    "init": init,
    "config": config,
    "status": status,
    "id": show_id,
    "peers": peers,
    "members": members,
    "ping": ping,
    "wait": wait,
    "ticket": ticket,
    "health": health,
    "logs": logs,
}
