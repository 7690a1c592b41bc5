"""The namespaces that this node replicates: the built-in ones, and those of the directory.

The directory is itself a namespace: under `NAME/@OWNER` a member says how a namespace of its own
begins. Every member replicates what is listed, so the number of them is bounded per owner.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import msgspec

from crdt.entry import BODY_MAX, Record, peer_of
from crdt.namespace import GENESIS_MAX, Genesis, genesis_decoder, open_genesis
from crdt.replica import Replica
from wire import codec
from wire.errors import BadMessage, NotFound, UsageError
from wire.ids import PeerId

DIRECTORY = "namespaces"
BUILT_IN = ("swarm", "runs", "models", "kv", DIRECTORY)
OWNER_SPACES_MAX = 16  # namespaces of one owner: each costs every member memory and a topic
SPACES_MAX = 256  # namespaces in all; their roots fit one message of a sync
ENTRIES_MAX = 250_000  # of all namespaces together; at 900 B about 225 MB of memory
BYTES_MAX = 256 * 1024 * 1024  # of the same, on the disk and in memory, if they are large
RESERVE_MAX = 40_000  # on top of these, only for short leases of authors who hold little: whoever
# fills the rest cannot keep newcomers from saying that they are here. It holds against some tens
# of identities, and by itself it empties; thousands of invented ones that renew can fill it too.
RESERVE_BYTES_MAX = 32 * 1024 * 1024
RESERVE_AUTHOR_ENTRIES = 16  # leases are few: a member, and what it serves and trains
RESERVE_LEASE_MS = 300_000  # from now to the end of a lease that may use the reserve
ID_DIGITS_MIN = 8  # hex digits of an ID that may stand for it
ENTRY_MAX = BODY_MAX + 64  # bytes of an entry with its signature, at most


@dataclass
class Spaces:
    """All replicas of this node, by ID and by name."""

    salt: bytes = b""
    own: bytes = b""  # who we are: of namespaces with one name, ours comes first
    replicas: dict[bytes, Replica] = field(default_factory=dict[bytes, Replica])
    on_new: Callable[[Replica], None] = lambda replica: None
    _entries_at_most: int = ENTRIES_MAX  # held, and all for which there was room since the count
    _size_at_most: int = BYTES_MAX
    _built_in: dict[str, Replica] = field(default_factory=dict[str, Replica])

    def __post_init__(self) -> None:
        for name in BUILT_IN:
            self._built_in[name] = self._open(open_genesis(name, self.salt))

    @property
    def directory(self) -> Replica:
        """Where namespaces are announced."""
        return self._built_in[DIRECTORY]

    @property
    def entries(self) -> int:
        """How many entries are held in all."""
        return sum(len(replica.records) for replica in self.replicas.values())

    def is_built_in(self, replica: Replica) -> bool:
        """True for those that every swarm has."""
        return self._built_in.get(replica.genesis.name) is replica

    def is_reserved(self, name: str) -> bool:
        """True for the name of a built-in namespace."""
        return name in self._built_in

    def max_skew_ms(self, namespace: bytes) -> int:
        """How far ahead of now an entry of a namespace may be."""
        return self.replicas[namespace].genesis.rules.max_skew_ms

    def restore(self, genesis: Genesis) -> Replica | None:
        """Open a namespace that is on the disk; None if it is not one of this swarm's."""
        known = self.replicas.get(genesis.id)
        if known is not None or genesis.owner is None:
            return known
        return self._open(genesis)

    def find(self, name: str) -> Replica:
        """Return what a person means: a name, NAME@PEER, or hex digits of an ID. Of several with
        one name, ours: so nobody gets in our way with a namespace of the same name.

        Raises NotFound, UsageError if several fit.
        """
        built_in = self._built_in.get(name)
        if built_in is not None:
            return built_in
        short, _, owner = name.partition("@")
        fits = [
            replica
            for replica in self.replicas.values()
            if replica.genesis.name == short and owner in ("", owner_of(replica.genesis))
        ]
        is_id = len(name) >= ID_DIGITS_MIN and not set(name) - set("0123456789abcdef")
        if not fits and is_id:
            fits = [one for one in self.replicas.values() if one.id.hex().startswith(name)]
        fits = [one for one in fits if one.genesis.owner == self.own] or fits
        if not fits:
            raise NotFound(f"no namespace is called {name!r}", hint="see `shoal store ns ls`")
        if len(fits) > 1:
            names = ", ".join(
                f"{one.genesis.name}@{owner_of(one.genesis)} ({one.id.hex()[:16]})"
                for one in fits[:3]
            )
            raise UsageError(
                f"{name!r} fits {len(fits)} namespaces: {names}",
                hint="say NAME@OWNER, or digits of the ID",
            )
        return fits[0]

    def adopt(self, key: str, now_ms: int) -> str:
        """Follow a change in the directory; returns why a namespace is not replicated, or ""."""
        view = self.directory.view(key, now_ms)
        if view is None or not view.values:
            return ""
        record = view.values[0]
        genesis = read_genesis(record)
        if genesis is None or key != directory_key(genesis):
            return "genesis"
        if genesis.id in self.replicas:
            return ""
        owned = sum(one.genesis.owner == genesis.owner for one in self.replicas.values())
        if owned >= OWNER_SPACES_MAX or len(self.replicas) >= SPACES_MAX:
            return "namespaces_full"
        self.on_new(self._open(genesis))
        return ""

    @property
    def size(self) -> int:
        """Bytes of all entries."""
        return sum(replica.size for replica in self.replicas.values())

    @property
    def faults(self) -> int:
        """How many proofs of faults are held in all."""
        return sum(len(replica.faults) for replica in self.replicas.values())

    def room(self, record: Record, old: Record | None, now_ms: int) -> bool:
        """True if an entry may be held as well, or in the place of a smaller one of its author (a
        limit of this node, not a rule).

        Nobody may hold more than is still free: one author alone takes half, also where a
        namespace's rules would let him have all.
        """
        self._entries_at_most += 1
        self._size_at_most += record.size
        if _free(self._entries_at_most, self._size_at_most) >= self._entries_at_most:
            return True  # without a count over all namespaces, for each entry that comes
        size, held = self.size, self.entries
        self._entries_at_most, self._size_at_most = held, size
        if old is not None:
            return size + record.size - old.size <= BYTES_MAX
        free = _free(held, size)
        if free >= held:
            return True
        if free > 0 and free >= self._held_by(record.author):
            return True
        is_short = 0 < record.expires_ms <= now_ms + RESERVE_LEASE_MS
        is_small = self.replicas[record.namespace].held_by(record.author) < RESERVE_AUTHOR_ENTRIES
        has_reserve = held < ENTRIES_MAX + RESERVE_MAX and size < BYTES_MAX + RESERVE_BYTES_MAX
        return is_short and is_small and has_reserve

    def _held_by(self, author: bytes) -> int:
        return sum(replica.held_by(author) for replica in self.replicas.values())

    def __iter__(self) -> Iterator[Replica]:
        return iter(self.replicas.values())

    def _open(self, genesis: Genesis) -> Replica:
        replica = self.replicas[genesis.id] = Replica(genesis, room=self.room)
        return replica


def owner_of(genesis: Genesis) -> PeerId | str:
    """Return the owner's peer ID; "" of a built-in namespace."""
    return peer_of(genesis.owner) if genesis.owner is not None else ""


def directory_key(genesis: Genesis) -> str:
    """Where the directory lists a namespace."""
    return f"{genesis.name}/@{owner_of(genesis)}"


def read_genesis(record: Record) -> Genesis | None:
    """Return what a directory entry holds; None if it is no genesis by its author."""
    try:
        raw = msgspec.msgpack.decode(record.entry.value or b"", type=bytes)
        genesis = codec.decode(raw, genesis_decoder, GENESIS_MAX)
    except (BadMessage, msgspec.DecodeError):
        return None
    is_canonical = codec.encode(genesis) == raw
    return genesis if is_canonical and genesis.owner == record.author else None


def _free(entries: int, size: int) -> int:
    """How many entries more there is room for, if they are as large as they may be."""
    return min(ENTRIES_MAX - entries, (BYTES_MAX - size) // ENTRY_MAX)
