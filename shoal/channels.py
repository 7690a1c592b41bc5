"""What the daemon's channel routes take and answer. Binary data is base64 in JSON, bytes here."""

import msgspec

PUBLISH_MAX = 6_000_000  # bytes of one message: base64 in JSON, it is a request of up to 8 MiB


class _Shape(msgspec.Struct, frozen=True):
    """Common options: immutable; unknown fields of newer daemons are ignored."""


class Publish(_Shape, frozen=True):
    """Say something on a topic."""

    topic: str
    data: bytes


class Published(_Shape, frozen=True):
    """It is on its way. `cid` names the blob if the data was too big for one message.

    `peers`: how many of our peers are subscribed, as far as we know; the rest of the swarm hears
    it from them.
    """

    seqno: int
    peers: int
    cid: str = ""


class Subscribe(_Shape, frozen=True):
    """Listen to a topic: first the last `last` messages that are at most `since_s` old, then live.

    Null is no bound; both null: nothing of the past. authors: hear these peers only (IDs, names or
    unique parts of IDs); none means everybody.
    """

    topic: str
    last: int | None = None
    since_s: float | None = None
    authors: list[str] = []


class Message(_Shape, frozen=True):
    """One message of a topic. `seqno` is its author's number of it.

    dropped: messages lost just before this one because the reader was slow. cid: of the blob that
    the data came in, if it was over 64 KiB. error: why it could not be fetched; no data then.
    """

    topic: str
    author: str
    name: str
    seqno: int
    data: bytes
    received_ms: int
    dropped: int = 0
    cid: str = ""
    error: str = ""


class MeshPeer(_Shape, frozen=True):
    """A peer that we exchange a topic's messages with, and what we think of it (bad: below 0)."""

    peer: str
    name: str
    score: float


class Channel(_Shape, frozen=True):
    """A topic that this daemon listens to. Rates are of the last 10 s, counts since the start.

    readers: programs and parts of the daemon that listen. peers: connected ones that listen too.
    invalid: broke a rule, and counted against who passed it on. ignored: stale, no news, over a
    limit, or by nobody's writer. dropped: lost by readers that were too slow. failed: blobs and
    histories that could not be had. history: messages kept for who comes later.
    """

    topic: str
    readers: int
    peers: int
    mesh: list[MeshPeer]
    delivered: int
    published: int
    invalid: int
    ignored: int
    dropped: int
    failed: int
    history: int
    rate_s: float
    bytes_s: float
