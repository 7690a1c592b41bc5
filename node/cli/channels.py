"""The commands of channels: say something to the swarm, listen to it, see who listens."""

import click

from node.cli.context import Context, echo_json, echo_table, json_option, read_stdin, seconds, short
from shoal.channels import PUBLISH_MAX, Channel, Message
from shoal.errors import ClientError


@click.command()
@click.argument("topic")
@click.argument("data", required=False)
@json_option
@click.pass_obj
def pub(context: Context, topic: str, data: str | None, as_json: bool) -> None:
    """Publish DATA on TOPIC; without DATA, or with `-`, what standard input holds (also binary).

    Up to 64 KiB travel as they are; more goes as a blob that the subscribers fetch. Who listens
    later can have it (`sub --last`) if somebody listened when it was published.
    """
    if data is None or data == "-":
        raw = read_stdin(PUBLISH_MAX, "`shoal add -`, and publish the CID that it prints")
    else:
        raw = data.encode()
    found = context.client().publish(topic, raw)
    if as_json:
        echo_json(found)
        return
    if not found.peers:
        click.echo("no peer of ours is subscribed; who comes later does not hear it", err=True)


@click.command()
@click.argument("topic")
@click.option("--last", type=click.IntRange(0, 4096), metavar="N", help="Begin with the last N.")
@click.option("--since", type=seconds, metavar="TIME", help="Begin with what is so old: 10m.")
@click.option("--from", "authors", multiple=True, metavar="PEER", help="Hear PEER only (repeat).")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after N messages.")
@json_option
@click.pass_obj
def sub(
    context: Context,
    topic: str,
    last: int | None,
    since: float | None,
    authors: tuple[str, ...],
    count: int | None,
    as_json: bool,
) -> None:
    """Print what is said on TOPIC, until Ctrl-C (with --json one document a line, data base64)."""
    messages = context.client().subscribe(topic, last=last, since_s=since, authors=list(authors))
    for number, message in enumerate(messages, start=1):
        if as_json:
            echo_json(message)
        else:
            _echo(message)
        if number == count:
            return
    raise ClientError("the daemon stopped")


def _echo(message: Message) -> None:
    if message.dropped:
        click.echo(f"{message.dropped} messages lost: this reader is too slow", err=True)
    if message.error:
        click.echo(f"a message without its data: {message.error}", err=True)
        return
    try:
        text = message.data.decode()
    except UnicodeDecodeError:
        text = f"<{len(message.data)} bytes, binary; --json shows them>"
    click.echo(f"{message.name or short(message.author)}: {text}")


@click.command()
@json_option
@click.pass_obj
def channels(context: Context, as_json: bool) -> None:
    """List the topics that this daemon listens to, with their peers, rates and losses."""
    found = context.client().channels()
    if as_json:
        echo_json(found)
        return
    heads = (
        "TOPIC",
        "READERS",
        "PEERS",
        "MESH",
        "WORST SCORE",
        "RATE",
        "DELIVERED",
        "INVALID",
        "DROPPED",
    )
    echo_table(heads, [_row(channel) for channel in found])


def _row(channel: Channel) -> tuple[str, ...]:
    worst = min((peer.score for peer in channel.mesh), default=0.0)
    return (
        channel.topic,
        str(channel.readers),
        str(channel.peers),
        str(len(channel.mesh)),
        f"{worst:.1f}",
        f"{channel.rate_s:.1f} /s",
        str(channel.delivered),
        str(channel.invalid),
        str(channel.dropped),
    )


COMMANDS: dict[str, click.Command] = {"pub": pub, "sub": sub, "channels": channels}
