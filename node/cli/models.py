"""`shoal generate`: a served model continues a text."""

import sys
from typing import Any

import click

from node.cli.answer_text import answer_options, echo_route, route_line, shown, to_options
from node.cli.context import Context, echo_json, json_option
from shoal import models as served
from shoal.client import Client
from shoal.models import Answer


@click.command()
@click.argument("prompt")
@click.option("--model", default="", help="Which served model; needed if there are several.")
@click.option("--chat", is_flag=True, help="Ask as a user in a conversation.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=64, show_default=True)
@answer_options
@click.option("--stream/--no-stream", default=True, help="Print the text as it comes.")
@click.option("-v", "--verbose", is_flag=True, help="Say where the time went, hop by hop.")
@json_option
@click.pass_obj
def generate(
    context: Context,
    /,
    prompt: str,
    chat: bool,
    stream: bool,
    verbose: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Let a served model continue PROMPT.

    The text goes to standard output, the route and the speed to standard error.
    """
    client, text, end = context.client(), "", Answer("")
    for end in served.generate(client, prompt, chat=chat, **to_options(**options)):
        text += end.text
        if stream and not as_json:
            click.echo(shown(end.text), nl=False)
            sys.stdout.flush()
    if as_json:
        echo_json(Answer(text, end.finish_reason, end.usage, end.trace))
        return
    click.echo("" if stream else shown(text))
    if end.trace is None:
        return
    if verbose:
        echo_route(end.trace, end.usage, names_of(client))
    else:
        click.echo(route_line(end.trace, end.usage), err=True)


def names_of(client: Client) -> dict[str, str]:
    """Return the members' names by peer ID."""
    return {member.peer: member.name for member in client.members()}


COMMANDS: dict[str, click.Command] = {"generate": generate}
