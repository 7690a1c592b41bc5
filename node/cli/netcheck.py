"""`shoal netcheck` and `shoal doctor`: each line OK, WARN or FAIL and, where not OK, what to do."""

import sys
from collections.abc import Sequence
from importlib.metadata import version

import click

from node.cli.context import Context, echo_json, json_option, plain
from shoal.client import Client
from shoal.errors import ApiError, DaemonUnreachable
from shoal.reach import Check, Doctor, Level, NetCheck

FAILED = 1  # exit status if any check failed
_NAME_WIDTH = 15  # characters; the longest is "configuration"
_COLOURS: dict[Level, str] = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command()
@json_option
@click.pass_obj
def netcheck(context: Context, as_json: bool) -> None:
    """Say how others reach this node; exit status 1 if something failed.

    Each line is OK, WARN or FAIL, and says what to do where it is not OK. docs/networking.md
    explains them.
    """
    found = context.client().netcheck()
    if as_json:
        echo_json(found)
    else:
        _echo_net(found)
    _end(found.checks)


@click.command()
@json_option
@click.pass_obj
def doctor(context: Context, as_json: bool) -> None:
    """Check daemon, network, state directory, disk, configuration and torch.

    Without a daemon it checks the rest. Exit status 1 if something failed.
    """
    from node import doctor as looks
    from node.home import Home

    client = context.client()
    try:
        state, daemon = _ask_daemon(client)
        net = client.netcheck()
    except DaemonUnreachable as error:
        state, daemon, net = "", looks.no_daemon(str(error)), None
    local = [daemon, *looks.machine(Home(context.home.absolute()))]
    found = Doctor(state, [*local, *(net.checks if net else [])], net)
    if as_json:
        echo_json(found)
    else:
        _echo(local)
        if net is not None:
            _echo_net(net)
    _end(found.checks)


def _ask_daemon(client: Client) -> tuple[str, Check]:
    from node.doctor import check_daemon

    status = client.status()
    try:
        health = client.health()
    except ApiError as error:
        if error.code != "unhealthy":
            raise
        return status.state, check_daemon(status.state, 0.0, status.version, version("shoal"))
    return status.state, check_daemon(
        health.state, health.loop_lag_ms, status.version, version("shoal")
    )


def _echo_net(found: NetCheck) -> None:
    for check in found.checks:
        _echo([check])
        if check.name == "reachability":
            for line in found.evidence:
                click.echo(f"{'':6}{'':{_NAME_WIDTH}}- {plain(line)}")


def _echo(checks: Sequence[Check]) -> None:
    for check in checks:
        level = click.style(f"{check.level.upper():4}", fg=_COLOURS[check.level])
        click.echo(f"{level}  {check.name:{_NAME_WIDTH}}{plain(check.text)}")
        if check.fix:
            click.echo(f"{'':6}{'':{_NAME_WIDTH}}try: {plain(check.fix)}")


def _end(checks: Sequence[Check]) -> None:
    if any(check.level == "fail" for check in checks):
        sys.exit(FAILED)


COMMANDS: dict[str, click.Command] = {"netcheck": netcheck, "doctor": doctor}
