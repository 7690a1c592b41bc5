"""The command `shoal model audit`: what was found of the nodes that compute a model."""

import time

import click

from node.cli.context import Context, echo_json, echo_table, json_option, plain, short
from shoal import audits as shapes
from shoal.audits import Audit, Audited


@click.command("audit")
@click.argument("name")
@click.option("--now", is_flag=True, help="Ask the model something short, and audit every stage.")
@json_option
@click.pass_obj
def audit(context: Context, name: str, now: bool, as_json: bool) -> None:
    """Show what audits found of the nodes that compute NAME.

    Of a share of the answers that are asked for here (`serve.audit`) the work of a random stage is
    done again by another node, and compared. Who fails is banned from this node's routes for an
    hour, then for twice as long; what other nodes found makes a node less attractive.
    """
    if now:
        _show_now(shapes.audit_now(context.client(), name), as_json=as_json)
        return
    found = shapes.audits(context.client(), name)
    if as_json:
        echo_json(found)
        return
    heads = ("PEER", "BLOCKS", "PASSED", "FAILED", "LAST FAILURE", "BY", "OUR BAN")
    echo_table(heads, [_row(one) for one in found.audited])
    if not found.audited:
        share = f"{100 * found.share:g} % of the answers asked for here are audited"
        click.echo(f"nothing yet: {share}; --now audits one", err=True)
    if found.unaudited:
        click.echo(f"{found.unaudited} times nobody could do the work again", err=True)


def _show_now(found: list[Audit], *, as_json: bool) -> None:
    if as_json:
        echo_json(found)
        return
    heads = ("PEER", "BLOCKS", "RESULT", "RECOMPUTED BY", "AT FAULT", "")
    rows = [
        (
            short(one.peer),
            f"{one.start}-{one.end}",
            one.state,
            ", ".join(map(short, one.auditors)),
            ", ".join(map(short, one.blamed)),
            plain(one.note),
        )
        for one in found
    ]
    echo_table(heads, rows)


def _row(one: Audited) -> tuple[str, ...]:
    by = (["us"] if one.failed else []) + [short(peer) for peer in one.failed_by]
    left_s = one.banned_until_ms / 1000 - time.time()
    why = f"{_ago(time.time() - one.failed_ms / 1000)}: {plain(one.why)}" if one.failed_ms else ""
    return (
        short(one.peer),
        ", ".join(f"{start}-{end}" for start, end in one.layers),
        str(one.passed),
        str(one.failed),
        why,
        ", ".join(by),
        f"{_ago(left_s)} more" if left_s > 0 else "",
    )


def _ago(seconds: float) -> str:
    """Write a length of time in its largest unit."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
