"""What a node knows of the network, for people."""

import math
from collections import Counter
from dataclasses import dataclass

from dht.key import common_bits
from dht.node import Node
from wire.ids import PeerId


@dataclass(frozen=True)
class TableRow:
    """One contact of the table. bucket: leading bits in common with us."""

    peer: PeerId
    bucket: int
    addrs: tuple[str, ...]
    address: str  # at which it answered
    group: str  # its address group; "" for private ones
    seen_s: float  # ago
    useful_s: float | None  # ago; None: not yet
    failures: int


@dataclass(frozen=True)
class TableView:
    """What `shoal dht table` shows: nearest first."""

    peer: PeerId
    is_server: bool
    size: float  # of the network, estimated
    rows: tuple[TableRow, ...]
    spares: dict[int, int]  # how many wait for a place, by bucket
    held: int  # records that we hold for others
    provided: int  # names that we provide
    published: int  # values of our own that we store again


def view_of(node: Node, now_s: float, *, published: int) -> TableView:
    """Return what a node knows now."""
    own = node.state.key
    entries = sorted(node.table.entries(), key=lambda one: one.contact.key ^ own)
    rows = [
        TableRow(
            peer=one.contact.peer,
            bucket=common_bits(one.contact.key, own),
            addrs=one.contact.addrs,
            address=one.address or "",
            group=one.group or "",
            seen_s=now_s - one.seen_s,
            useful_s=None if math.isinf(one.useful_s) else now_s - one.useful_s,
            failures=one.failures,
        )
        for one in entries
    ]
    return TableView(
        peer=node.state.author.peer,
        is_server=node.is_server,
        size=node.size.size(),
        rows=tuple(rows),
        spares=Counter(common_bits(one.contact.key, own) for one in node.table.spares()),
        held=len(node.holding),
        provided=len(node.provided),
        published=published,
    )
