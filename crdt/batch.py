"""What is handed to the writer, what it tells of each commit, and how it refuses."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from crdt.change import Change
from crdt.clock import ClockError
from crdt.entry import Record
from crdt.fault import Proven
from crdt.own import Build
from crdt.storage import StoreFailed
from wire.errors import ShoalError


class StoreFull(ShoalError):
    """A limit on what may be held is reached."""

    code = "store_full"
    hint = "delete keys, or let leases run out"


class NotAllowed(ShoalError):
    """The namespace does not let this node write that."""

    code = "not_allowed"
    hint = "`shoal store ns grants NS` shows who may; its owner can `shoal store grant NS PEER`"


def refusal(reason: str, key: str, write: str) -> ShoalError:
    """Return the error of a write of our own that the replica refuses, with its reason."""
    if reason == "future":
        return ClockError(f"{key!r} would be stamped too far ahead of this clock")
    if reason in ("full", "author_full"):
        return StoreFull(f"no room for {key!r}: {reason}")
    if reason != "policy":
        return NotAllowed(f"{key!r} may not be written here: {reason}", hint="")
    if write == "owner":
        hint = "each writes its own keys here: a segment of the key is @ and your peer ID"
        return NotAllowed(f"{key!r} is no key of this node", hint=hint)
    return NotAllowed(f"the key {key!r} is kept for the rules here", hint="choose another")


def closed() -> ShoalError | None:
    """What becomes of those whose turn does not come."""
    return StoreFailed("the store is closed")


@dataclass
class Batch:
    """What a peer or a file brings, checked; handed in together. `source` is for `on_news`."""

    records: Sequence[Record] = ()
    faults: Sequence[Proven] = ()
    source: str = ""
    news: list[Record] = field(default_factory=list[Record])  # those that were new, and are kept
    error: ShoalError | None = field(default_factory=closed)


@dataclass
class News:
    """What changed in memory with one batch, or with our own writes of one commit."""

    source: str
    added: list[Record] = field(default_factory=list[Record])
    dropped: list[Record] = field(default_factory=list[Record])
    keys: set[tuple[bytes, str]] = field(default_factory=set[tuple[bytes, str]])
    faults: list[Proven] = field(default_factory=list[Proven])

    def note(self, namespace: bytes, change: Change) -> None:
        """Add what a merge changed."""
        self.dropped.extend(change.dropped)
        for key in change.keys:
            self.keys.add((namespace, key))
        if change.fault is not None:
            self.faults.append(change.fault)


@dataclass
class Write:
    """One write of our own that waits."""

    namespace: bytes
    key: str
    build: Build
    record: Record | None = None
    error: ShoalError | None = field(default_factory=closed)


@dataclass
class Group:
    """What goes into one commit."""

    writes: list[Write] = field(default_factory=list[Write])
    batches: list[Batch] = field(default_factory=list[Batch])
    records: int = 0
    taken: trio.Event = field(default_factory=trio.Event)
    done: trio.Event = field(default_factory=trio.Event)
