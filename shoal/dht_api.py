"""What the daemon says of the DHT: the JSON of `shoal dht … --json`, and the bodies of requests.

Fields may be added; none is renamed or changes its meaning within /v1. Values are bytes: base64 in
JSON, bytes in the Python clients. Keys are texts: a CID, or a name that begins with `/`.
"""

import msgspec

DATA_MAX = 8192  # bytes of a value: more goes into a blob, and its CID into the value
PATHS_MAX = 8  # disjoint paths of one lookup; 4 is what stores take
CALL_TIMEOUT_S = 90.0  # a lookup takes 30 s at most, the storing after it 30 s more


class _Shape(msgspec.Struct, frozen=True):
    """Common options: immutable; unknown fields of newer daemons are ignored."""


class DhtLookUp(_Shape, frozen=True):
    """Look for a peer (its name, ID, or a unique part of it), or for who is nearest to a key."""

    target: str
    paths: int = 1
    trace: bool = False


class DhtAsk(_Shape, frozen=True):
    """Ask for the providers of a key, or for the value of a name."""

    key: str
    paths: int = 1
    trace: bool = False


class DhtProvide(_Shape, frozen=True):
    """Say that this node has what a key names."""

    key: str
    trace: bool = False


class DhtPut(_Shape, frozen=True):
    """Sign and store a value of this node's, and store it again until `forget`."""

    key: str
    data: bytes
    trace: bool = False


class DhtKey(_Shape, frozen=True):
    """Which name is meant."""

    key: str


class DhtHop(_Shape, frozen=True):
    """One request of an operation.

    bits: leading bits that the peer's key has in common with the target. depth: answers that led
    to it, 0 for whom we knew. path: which of the disjoint paths. began_ms: since the operation
    began; took_ms: null if nothing had come when it ended. outcome: answered, timeout,
    unreachable, flying, or refused and why. closer, found: contacts and records in the answer (of a
    store: records kept).
    """

    peer: str
    name: str
    bits: int
    depth: int
    path: int
    began_ms: float
    took_ms: float | None
    outcome: str
    closer: int
    found: int


class DhtEffort(_Shape, frozen=True):
    """What an operation took. asked: requests; unanswered: of these. hops: with `trace` only."""

    took_ms: float
    asked: int
    unanswered: int
    hops: list[DhtHop] | None = None


class DhtServer(_Shape, frozen=True):
    """A server near a key. bits: leading bits in common with it."""

    peer: str
    name: str
    bits: int
    addresses: list[str]


class DhtLookedUp(_Shape, frozen=True):
    """What a lookup found.

    hash: of the key, as hex digits. peer: "" if the target was a key; else it has `addresses`, none
    if nobody knows it. nearest: to a key, nearest first; empty for a peer.
    """

    target: str
    hash: str
    peer: str
    name: str
    addresses: list[str]
    nearest: list[DhtServer]
    effort: DhtEffort


class DhtProvider(_Shape, frozen=True):
    """Somebody who says to have it."""

    peer: str
    name: str
    me: bool
    connected: bool


class DhtProviders(_Shape, frozen=True):
    """Who says to have what a key names."""

    key: str
    providers: list[DhtProvider]
    effort: DhtEffort


class DhtValue(_Shape, frozen=True):
    """One value. author and author_name: "" under `/pk`. expires_ms: 0 if it does not."""

    key: str
    author: str
    author_name: str
    seq: int
    expires_ms: int
    data: bytes


class DhtValues(_Shape, frozen=True):
    """The newest value of a name, or that of each author under `/shoal/multi`; maybe none."""

    key: str
    values: list[DhtValue]
    effort: DhtEffort


class DhtKept(_Shape, frozen=True):
    """How many servers were asked to keep a record (`stores`), and do; why others do not, and how
    many of them.
    """

    key: str
    stores: int
    kept: int
    refusals: dict[str, int]
    effort: DhtEffort


class DhtContact(_Shape, frozen=True):
    """A server in the table. address: where it answered; group: its network, "" for private ones.

    useful_s: since its answer brought a lookup forward; null: not yet. failures: in a row.
    """

    peer: str
    name: str
    address: str
    addresses: list[str]
    group: str
    seen_s: float
    useful_s: float | None
    failures: int


class DhtBucket(_Shape, frozen=True):
    """Contacts with as many leading bits in common with us, the least recently seen first.

    spares: how many wait for a place in it.
    """

    bits: int
    contacts: list[DhtContact]
    spares: int


class DhtOwn(_Shape, frozen=True):
    """A value of ours that is stored again and again."""

    key: str
    seq: int
    bytes: int


class DhtTable(_Shape, frozen=True):
    """What this node knows of the DHT.

    mode: server or client; why: how it is reached, as in `shoal netcheck`. network_size: servers
    besides us, estimated; 0: not yet known. held: records that we hold for others. provided: keys
    that we provide, `provided_first` some of them. published: values of ours.
    """

    peer: str
    mode: str
    why: str
    public: bool
    protocol: str
    network_size: int
    contacts: int
    buckets: list[DhtBucket]
    held: int
    provided: int
    provided_first: list[str]
    published: list[DhtOwn]
