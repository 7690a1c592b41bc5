"""What `shoal dht` prints for people."""

import sys
import time
from collections.abc import Sequence

import click

from node.cli.blobs import size_text
from node.cli.context import echo_table, on_terminal, plain, short
from shoal.dht_api import (
    DhtBucket,
    DhtContact,
    DhtEffort,
    DhtHop,
    DhtKept,
    DhtLookedUp,
    DhtProviders,
    DhtTable,
    DhtValue,
)

LIFE_MS = 24 * 3600 * 1000  # of a signed value from its signing: its age follows from its expiry
OWN_SHOWN = 10  # keys and values of ours; `--json` has them all
_WHY = {
    "unknown": "nobody has looked from outside: a LAN, or just started",
    "public": "others reach it",
    "mapped": "others reach it through a forwarded port",
    "punchable": "others cannot dial it",
    "relayed": "others reach it through a relay only",
}


def echo_hops(effort: DhtEffort) -> None:
    """Print the requests of an operation, if they were asked for: beside the result, on stderr."""
    if effort.hops is None:
        return
    heads = ("AT", "TOOK", "DEPTH", "PATH", "BITS", "PEER", "CLOSER", "FOUND", "OUTCOME")
    echo_table(heads, [_hop_row(hop) for hop in effort.hops], err=True)
    click.echo(
        f"{effort.asked} requests, {effort.unanswered} unanswered, {effort.took_ms:.1f} ms",
        err=True,
    )


def _hop_row(hop: DhtHop) -> tuple[str, ...]:
    took = "-" if hop.took_ms is None else f"{hop.took_ms:.1f} ms"
    counts = (str(hop.depth), str(hop.path), str(hop.bits))
    found = (str(hop.closer), str(hop.found), hop.outcome)
    return (f"{hop.began_ms:.1f} ms", took, *counts, hop.name or short(hop.peer), *found)


def echo_looked_up(found: DhtLookedUp) -> None:
    """Print a peer's addresses, or the servers nearest to a key."""
    for address in found.addresses:
        click.echo(plain(address))
    rows = [
        (str(one.bits), one.name, one.peer, one.addresses[0] if one.addresses else "-")
        for one in found.nearest
    ]
    echo_table(("BITS", "NAME", "PEER", "ADDRESS"), rows)


def echo_kept(kept: DhtKept) -> None:
    """Say how many servers keep a record, and why others do not."""
    if kept.stores:
        took = f"{kept.effort.took_ms:.0f} ms"
        click.echo(f"{plain(kept.key)}: {kept.kept} of {kept.stores} servers keep it ({took})")
    for reason, count in kept.refusals.items():
        click.echo(f"  {count} do not: {plain(reason)}", err=True)


def echo_providers(found: DhtProviders) -> None:
    """List who has it."""
    rows = [
        (one.name, one.peer, "me" if one.me else "connected" if one.connected else "-")
        for one in found.providers
    ]
    echo_table(("NAME", "PEER", "STATE"), rows)


def echo_values(values: Sequence[DhtValue], *, with_all: bool) -> None:
    """Print one value as it is; of several authors, a line each with the author before it."""
    if with_all:
        heads = ("AUTHOR", "NUMBER", "AGE", "SIZE", "VALUE")
        echo_table(heads, [_value_row(value) for value in values])
    elif len(values) == 1:
        data = values[0].data
        if not on_terminal():
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        else:
            click.echo(_text(data, lines=True))
    else:
        for value in values:
            click.echo(f"{_author(value)}: {_text(value.data)}")


def _value_row(value: DhtValue) -> tuple[str, ...]:
    signed_ms = value.expires_ms - LIFE_MS
    age = _ago(time.time() - signed_ms / 1000) if value.expires_ms else "-"
    size = size_text(len(value.data))
    return (_author(value), str(value.seq), age, size, _text(value.data))


def _author(value: DhtValue) -> str:
    return plain(value.author_name) or (short(value.author) if value.author else "-")


def _text(data: bytes, *, lines: bool = False) -> str:
    """Return data as harmless text, on one line unless `lines`."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return f"<{len(data)} bytes, binary; --json shows them>"
    return "\n".join(map(plain, text.splitlines())) if lines else plain(text)


def echo_table_of(found: DhtTable, *, with_all: bool) -> None:
    """Print what a node knows of the DHT."""
    size = f"about {found.network_size + 1}" if found.network_size else "not yet known"
    public = ", public: other programs take part" if found.public else ""
    for name, value in (
        ("peer", found.peer),
        ("mode", f"{found.mode} ({found.why}: {_WHY.get(found.why, '')})"),
        ("speaks", f"{found.protocol}{public}"),
        ("network", f"{size} servers"),
        ("table", f"{found.contacts} servers in {len(found.buckets)} buckets"),
        ("holds", f"{found.held} records for the network"),
        ("provides", f"{found.provided} keys{_some(found.provided_first, found.provided)}"),
        ("publishes", f"{len(found.published)} values"),
    ):
        click.echo(f"{name:<10} {plain(value)}")
    for own in found.published[:OWN_SHOWN]:
        click.echo(f"{'':<10} {plain(own.key)} ({size_text(own.bytes)})")
    if not found.buckets:
        click.echo("no servers yet; `shoal peers` shows who is connected", err=True)
        return
    click.echo()
    if with_all:
        heads = ("BITS", "NAME", "PEER", "GROUP", "SEEN", "USEFUL", "FAILED", "ADDRESS")
        rows = [_contact_row(bucket, one) for bucket in found.buckets for one in bucket.contacts]
        echo_table(heads, rows)
    else:
        columns = ("BITS", "SERVERS", "SPARES", "GROUPS", "LAST SEEN", "WHO")
        echo_table(columns, [_bucket_row(bucket) for bucket in found.buckets])


def _some(keys: Sequence[str], count: int) -> str:
    if not keys:
        return ""
    more = ", …" if count > OWN_SHOWN else ""
    return f": {', '.join(keys[:OWN_SHOWN])}{more}"


def _bucket_row(bucket: DhtBucket) -> tuple[str, ...]:
    groups = len({one.group for one in bucket.contacts if one.group})
    seen = min(one.seen_s for one in bucket.contacts)
    names = [one.name or short(one.peer) for one in bucket.contacts]
    who = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
    counts = (str(len(bucket.contacts)), str(bucket.spares), str(groups or "-"))
    return (str(bucket.bits), *counts, _ago(seen), who)


def _contact_row(bucket: DhtBucket, one: DhtContact) -> tuple[str, ...]:
    useful = "-" if one.useful_s is None else _ago(one.useful_s)
    times = (_ago(one.seen_s), useful, str(one.failures))
    return (str(bucket.bits), one.name, one.peer, one.group or "-", *times, one.address)


def _ago(age_s: float) -> str:
    if age_s < 90:
        return f"{max(0.0, age_s):.0f} s"
    return f"{age_s / 60:.0f} min" if age_s < 5400 else f"{age_s / 3600:.1f} h"
