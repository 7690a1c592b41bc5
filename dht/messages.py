"""What nodes of the DHT say to each other: typed values, checked before, and without their bytes.

`dht.wire` reads and writes them as `/ipfs/kad/1.0.0` does; signatures, sizes and canonical form
have been checked there, so a machine never sees a false record. What depends on the time (expired,
from the future, stale) the machine checks itself. Pure.
"""

from dataclasses import dataclass, field

from dht.key import Key, key_of_peer
from wire.ids import PeerId

PROVISIONS_MAX = 500  # provider records to be stored in one message
PROVISIONS_BYTES = 96 * 1024  # and what they take together: a message has 128 KiB


@dataclass(frozen=True, slots=True)
class Moment:
    """When something happens: `s` for waits (monotonic), `wall_ms` for records (Unix time)."""

    s: float
    wall_ms: int


@dataclass(frozen=True, slots=True, eq=False)
class Contact:
    """A peer and where it can be dialled: by its own signed word, or by hearsay.

    `seq`: the larger is the newer word; 0 for hearsay. `sealed`: the signed envelope's bytes, as it
    travels; b"" for hearsay (other implementations send no more). `key` is a field, since it is
    asked for all the time.
    """

    peer: PeerId
    key: Key
    addrs: tuple[str, ...] = ()
    seq: int = 0
    issued_ms: int = 0
    sealed: bytes = b""

    def is_newer_than(self, other: "Contact") -> bool:
        """Whether its addresses take the place of the other's: a signed word beats hearsay."""
        return self.seq > other.seq


def hearsay(peer: PeerId, addrs: tuple[str, ...]) -> Contact:
    """Return a contact that somebody else told us of."""
    return Contact(peer, key_of_peer(peer), addrs)


@dataclass(frozen=True, slots=True)
class Provision:
    """A provider record: `peer` has what `name` (a CID's multihash, any bytes) names.

    `sealed`: the signed envelope's bytes; b"" if only the connection proves who said it, as other
    implementations: then it is taken from the provider itself and never handed on to be stored.
    `addrs`: hearsay about where the provider is, to save a lookup.
    """

    name: bytes
    peer: PeerId
    expires_ms: int
    sealed: bytes = b""
    addrs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Value:
    """A value record under a validated namespace (`dht.values`).

    author: whose signature it carries; None under `/pk`, whose name is the hash of its data.
    seq: of one author's values under one name the largest is the newest. sealed: as it travels.
    """

    name: bytes
    author: PeerId | None
    seq: int
    expires_ms: int
    data: bytes
    sealed: bytes


# --- requests ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ping:
    """Are you there?"""


@dataclass(frozen=True, slots=True)
class FindNode:
    """Whom do you know near the key of this name (or peer ID's bytes)?"""

    name: bytes


@dataclass(frozen=True, slots=True)
class GetProviders:
    """Who has what this names?"""

    name: bytes


@dataclass(frozen=True, slots=True)
class AddProviders:
    """Keep these provider records: the sender's own, or signed ones that are handed over."""

    provisions: tuple[Provision, ...]


@dataclass(frozen=True, slots=True)
class GetValue:
    """What is the value of this name?"""

    name: bytes


@dataclass(frozen=True, slots=True)
class PutValue:
    """Keep this value."""

    value: Value


# --- answers -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pong:
    """I am."""


@dataclass(frozen=True, slots=True)
class Nodes:
    """Those I know nearest to it, who answered me; the peer that was asked for among them."""

    closer: tuple[Contact, ...]


@dataclass(frozen=True, slots=True)
class Providers:
    """These say that they have it; and those I know nearest to it."""

    provisions: tuple[Provision, ...]
    closer: tuple[Contact, ...]


@dataclass(frozen=True, slots=True)
class Values:
    """What I hold under this name (one, or one of each author); and those I know nearest to it."""

    values: tuple[Value, ...]
    closer: tuple[Contact, ...]


@dataclass(frozen=True, slots=True)
class Stored:
    """How many records were kept; and why one was not: "" if all were."""

    kept: int
    refusal: str = ""


Request = Ping | FindNode | GetProviders | AddProviders | GetValue | PutValue
Answer = Pong | Nodes | Providers | Values | Stored


# --- what the machine asks of its driver ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ask:
    """Effect: send a request to a peer; report `answered` or `failed` with the same number.

    is_check: the answer counts only if the peer answers at an address that it claims: dial it there
    if the connection that is there was made by the peer.
    """

    number: int
    contact: Contact
    request: Request
    timeout_s: float
    is_check: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """Effect: an operation has ended; its `result` is there."""

    operation: int


Effect = Ask | Done


@dataclass(frozen=True, slots=True)
class Hop:
    """One request of an operation, for `--trace`: who was asked, how far it is, what came of it.

    bits: leading bits that its key has in common with the target. began_s: since the operation
    began. took_s: None while it is in flight. outcome: "answered", "refused: …", "timeout",
    "unreachable" or "flying". closer: contacts in its answer; found: records in it.
    """

    peer: PeerId
    bits: int
    depth: int  # answers that led to it: 0 for those in our table
    path: int  # which of the disjoint paths
    began_s: float
    took_s: float | None = None
    outcome: str = "flying"
    closer: int = 0
    found: int = 0


@dataclass(slots=True)
class Trace:
    """The hops of one operation in the order of their beginning."""

    hops: list[Hop] = field(default_factory=list[Hop])
