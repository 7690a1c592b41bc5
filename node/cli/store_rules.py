"""The commands of the store about replicas, rules and copies of it."""

import re
import time
from datetime import datetime
from pathlib import Path

import click

from node.cli.blobs import size_text
from node.cli.context import (
    Context,
    echo_json,
    echo_table,
    json_option,
    plain,
    seconds,
    short,
)
from node.cli.store_text import full_name, ns_option, when
from shoal.errors import ClientError
from shoal.store_api import DEFAULT, Grant, Namespace, Synced

DAY_S = 86_400.0
GRANT_KINDS = ("register", "add", "remove", "counter", "multi", "lease")
_NAME = re.compile(r"[a-z][a-z0-9_.-]{0,63}")


# --- replicas ----------------------------------------------------------------------------------


@click.command()
@click.argument("peer", default="")
@json_option
@click.pass_obj
def sync(context: Context, peer: str, as_json: bool) -> None:
    """Compare with PEER, or with all that are connected, and fetch and give what differs.

    The daemon does so by itself every half minute. Fails (1) if one of the syncs did.

    Example: shoal store sync bob
    """
    found = context.client().store.sync(peer)
    if as_json:
        echo_json(found)
    else:
        heads = ("PEER", "NAME", "ROUND TRIPS", "IN", "OUT", "OVERHEAD", "ERROR")
        echo_table(heads, [_synced(one) for one in found])
    failed = [one for one in found if one.error]
    if failed:
        raise ClientError(f"{len(failed)} of {len(found)} syncs failed")
    if not found:
        click.echo("no peers are connected", err=True)


def _synced(one: Synced) -> tuple[str, ...]:
    counts = (one.round_trips, one.entries_in, one.entries_out)
    overhead = size_text(one.overhead_bytes)
    return short(one.peer), one.name or "-", *map(str, counts), overhead, one.error or "-"


@click.command()
@ns_option
@click.option("--all", "all_", is_flag=True, help="Of all namespaces.")
@json_option
@click.pass_obj
def root(context: Context, namespace: str, all_: bool, as_json: bool) -> None:
    """Print the state root: equal on two nodes if and only if they hold the same entries.

    Example: shoal store root --ns runs
    """
    client = context.client().store
    found = client.namespaces() if all_ else [client.namespace(namespace)]
    if as_json:
        rows = [{"id": one.id, "name": one.name, "root": one.root} for one in found]
        echo_json(rows if all_ else rows[0])
    elif all_:
        echo_table(("NAME", "ROOT"), [(full_name(one), one.root) for one in found])
    else:
        click.echo(found[0].root)


# --- rules -------------------------------------------------------------------------------------


@click.group()
def ns() -> None:
    """Make namespaces with rules of their own, and look at them.

    \b
    Example:
      shoal store ns create results --write list
      shoal store grant results bob --prefix bob/
    """


@ns.command("create")
@click.argument("name")
@click.option(
    "--write",
    type=click.Choice(("open", "owner", "list")),
    default="open",
    show_default=True,
    help="Who writes: everybody; every author keys with its own @PEER in them; whom you grant it.",
)
@click.option("--clock-bound", default="30s", show_default=True, type=seconds, metavar="TIME",
              help="How far ahead an author's clock may be: 1s to 10m.")  # fmt: skip
@click.option("--author-entries", default=10_000, show_default=True, metavar="N",
              type=click.IntRange(1, 1_000_000),
              help="Entries of one author; of more, the oldest fall off.")  # fmt: skip
@click.option("--keep", default=7.0, show_default=True, metavar="DAYS",
              type=click.FloatRange(1 / 24, 365),
              help="How long a deletion is remembered.")  # fmt: skip
@json_option
@click.pass_obj
def create(
    context: Context,
    name: str,
    write: str,
    clock_bound: float,
    author_entries: int,
    keep: float,
    as_json: bool,
) -> None:
    """Make a namespace of your own and print its ID, which commits to the rules: they stay.

    Example: shoal store ns create results --write list --keep 30
    """
    if not _NAME.fullmatch(name):
        raise click.BadParameter(
            f"{name!r} is no name: a to z, 0 to 9, _ . -, a letter first, up to 64",
            param_hint="NAME",
        )
    if not 1 <= clock_bound <= 600:
        raise click.BadParameter("from 1s to 10m", param_hint="--clock-bound")
    found = context.client().store.create_namespace(
        name,
        write=write,
        clock_bound_s=clock_bound,
        author_entries=author_entries,
        keep_s=keep * DAY_S,
    )
    echo_json(found) if as_json else click.echo(found.id)


@ns.command()
@json_option
@click.pass_obj
def ls(context: Context, as_json: bool) -> None:
    """List the namespaces that are replicated here.

    Example: shoal store ns ls
    """
    found = context.client().store.namespaces()
    if as_json:
        echo_json(found)
        return
    heads = ("NAMESPACE", "WRITE", "ENTRIES", "SIZE", "AUTHORS", "FAULTS", "ID")
    echo_table(heads, [_space(one) for one in found])


def _space(one: Namespace) -> tuple[str, ...]:
    counts = str(one.entries), size_text(one.size_bytes), str(one.authors), str(one.faults)
    return full_name(one), one.write, *counts, one.id[:16]


@ns.command()
@click.argument("name", default=DEFAULT)
@json_option
@click.pass_obj
def show(context: Context, name: str, as_json: bool) -> None:
    """Show a namespace: its ID, its rules, what it holds.

    Example: shoal store ns show results
    """
    one = context.client().store.namespace(name)
    if as_json:
        echo_json(one)
        return
    rows = [
        ("name", one.name),
        ("id", one.id),
        ("owner", f"{one.owner_name} {one.owner}".strip() or "nobody"),
        ("write", one.write),
        ("rules", f"clocks up to {one.clock_bound_s:g} s ahead, {one.author_entries} entries "
                  f"an author, deletions kept {one.keep_s / DAY_S:g} days"),
        ("holds", f"{one.entries} entries, {size_text(one.size_bytes)}, {one.authors} authors"),
        ("faults", str(one.faults)),
        ("root", one.root),
    ]  # fmt: skip
    for head, text in rows:
        click.echo(f"{head:<6} {plain(text)}")


@ns.command()
@click.argument("name")
@json_option
@click.pass_obj
def grants(context: Context, name: str, as_json: bool) -> None:
    """List who may write in a namespace whose writers are listed.

    Example: shoal store ns grants results
    """
    found = context.client().store.grants(name)
    if as_json:
        echo_json(found)
        return
    heads = ("GRANT", "TO", "BY", "PREFIX", "KINDS", "FROM", "UNTIL", "DEPTH", "STATE")
    now_ms = time.time() * 1000
    echo_table(heads, [_grant(one, now_ms) for one in found])
    if not found:
        click.echo("no grants; `shoal store grant NS PEER` makes one", err=True)


def _grant(one: Grant, now_ms: float) -> tuple[str, ...]:
    state = "revoked" if one.revoked else "valid"
    if not one.revoked and 0 < one.until_ms < now_ms:
        state = "over"
    elif not one.revoked and now_ms < one.from_ms:
        state = "later"
    return (
        one.id[:16],
        one.subject_name or short(one.subject),
        one.issuer_name or short(one.issuer),
        one.prefix or "-",
        ",".join(one.kinds) or "all",
        when(one.from_ms) if one.from_ms else "-",
        when(one.until_ms) if one.until_ms else "-",
        str(one.depth),
        state,
    )


def moment(text: str) -> int:
    """Parse 2h (from now) or 2026-12-24 18:00 (here); return milliseconds since the epoch."""
    try:
        return round(datetime.fromisoformat(text).timestamp() * 1000)
    except ValueError:
        return round((time.time() + seconds(text)) * 1000)


@click.command()
@click.argument("namespace", metavar="NS")
@click.argument("peer")
@click.option("--prefix", default="", metavar="P", help="Only keys that begin so.")
@click.option("--kinds", default="", metavar="KIND,...", help=f"Of {', '.join(GRANT_KINDS)}.")
@click.option("--from", "start", type=moment, default=None, metavar="TIME",
              help="2h (from now), or 2026-12-24T18:00.")  # fmt: skip
@click.option("--until", type=moment, default=None, metavar="TIME", help="In the same way.")
@click.option(
    "--depth", default=0, type=click.IntRange(0, 3), help="How often it may be handed on."
)
@json_option
@click.pass_obj
def grant(
    context: Context,
    namespace: str,
    peer: str,
    prefix: str,
    kinds: str,
    start: int | None,
    until: int | None,
    depth: int,
    as_json: bool,
) -> None:
    """Let PEER write in NS, a namespace of yours; print the grant. What was granted to you with a
    depth you may hand on in the same way: no more than you have, and for no longer.

    Example: shoal store grant results bob --prefix bob/ --kinds register,add --until 48h
    """
    wanted = [each.strip() for each in kinds.split(",") if each.strip()]
    for each in wanted:
        if each not in GRANT_KINDS:
            raise click.BadParameter(f"{each!r} is none of {', '.join(GRANT_KINDS)}",
                                     param_hint="--kinds")  # fmt: skip
    if until is not None and until <= max(start or 0, time.time() * 1000):
        raise click.BadParameter("it would be over before it begins", param_hint="--until")
    found = context.client().store.grant(
        namespace,
        peer,
        prefix=prefix,
        kinds=wanted,
        from_ms=start or 0,
        until_ms=until or 0,
        depth=depth,
    )
    echo_json({"id": found}) if as_json else click.echo(found)


@click.command()
@click.argument("namespace", metavar="NS")
@click.argument("grant_id", metavar="GRANT")
@click.option("--discard", is_flag=True, help="What was written under it counts no more, either.")
@click.pass_obj
def revoke(context: Context, namespace: str, grant_id: str, discard: bool) -> None:
    """Take a grant back. What was written under it and is here stays; nothing later counts.

    Example: shoal store revoke results 3f9a52c1
    """
    context.client().store.revoke(namespace, grant_id, discard=discard)


# --- copies ------------------------------------------------------------------------------------


@click.command()
@click.argument("file")
@json_option
@click.pass_obj
def snapshot(context: Context, file: str, as_json: bool) -> None:
    """Write a consistent copy of the whole store to FILE, while the daemon works.

    Example: shoal store snapshot backup.db
    """
    found = context.client().store.snapshot(file)
    echo_json(found) if as_json else click.echo(f"{found.path}, {size_text(found.size_bytes)}")


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
@click.pass_obj
def restore(context: Context, file: Path, as_json: bool) -> None:
    """Put a snapshot in the place of the store of this state directory; its daemon must not run.

    What was there is kept beside it. What the swarm has that FILE lacks comes back by itself.

    Example: shoal down && shoal store restore backup.db && shoal up --detach
    """
    from node.home import Home  # the other commands need neither
    from node.restore import restore as put_in_place

    kept = put_in_place(Home(context.home), file)
    if as_json:
        echo_json({"store": str(Home(context.home).store), "kept": str(kept or "")})
    elif kept is not None:
        click.echo(f"the store that was here is kept as {kept}")


COMMANDS: tuple[click.Command, ...] = (
    sync, root, ns, grant, revoke, snapshot, restore
)  # fmt: skip
