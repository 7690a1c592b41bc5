"""`shoal dashboard`: the address of the page that the daemon serves on this machine."""

import webbrowser

import click

from node.cli.context import Context, echo_json, json_option
from shoal.api import DashboardAt
from shoal.errors import ClientError


@click.command()
@click.option("--open", "opens", is_flag=True, help="Open it in this machine's browser.")
@json_option
@click.pass_obj
def dashboard(context: Context, opens: bool, as_json: bool) -> None:
    """Print the address of this node's dashboard: members, runs with live curves, figures.

    The address holds a key that lets a browser on this machine look, and do nothing else: keep it
    to yourself. From another machine: `ssh -L PORT:127.0.0.1:PORT HOST`, and the same address.
    """
    found = context.client().call("POST", "/v1/dashboard", reply=DashboardAt)
    if as_json:
        echo_json(found)
    else:
        click.echo(found.url)
    if opens and not webbrowser.open(found.url):
        raise ClientError("no browser could be started here", hint="open the address by hand")


COMMANDS: dict[str, click.Command] = {"dashboard": dashboard}
