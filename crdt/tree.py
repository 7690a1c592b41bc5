"""A Merkle tree over the keys of a namespace: what it retains in 32 bytes, and proofs of parts.

A key's place is SHA-256(key), read bit by bit from the root: a sub-tree of one key is that key's
leaf, one of none is `EMPTY`, any other is a fork of its two halves. So the shape depends on the set
of keys and on nothing else, and a root shows at most one content of a key: the walk to its place
is given by its bits. Leaves and forks are hashed apart, a fork with its depth. The form is that of
Diem's "Jellyfish Merkle Tree" (Gao, Hu, Wu, 2021), binary and with sorted ids as content.

Who grinds w hashes gets keys that share log2(w) bits with a given one, and pairs of his own that
share 2 log2(w): paths near them get that long, and no path is longer than `DEPTH_MAX`.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated

from msgspec import Meta

from crdt.entry import Hash
from wire.codec import Message
from wire.errors import BadMessage

DEPTH_MAX = 256  # bits of a place; honest keys share about log2(n) + 2 of them, at most 2 log2(n)
BUCKET_MAX = 16  # keys that are hashed again when one of them changes (about 2 µs each); smaller
# buckets take more memory for nodes, larger ones more time per change
MERGE_MAX = BUCKET_MAX // 2  # two buckets this small in sum become one; half, so they don't flap
BATCH_MAX = 32_768  # keys placed at once: sorted, they share ways; their places take 4 MB meanwhile
EMPTY = hashlib.sha256(b"crdt/tree/1\0").digest()
_LEAF = b"\x00"
_FORKS = tuple(b"\x01" + depth.to_bytes() for depth in range(DEPTH_MAX))
_STATE_TAG, _FAULTS_TAG = b"crdt/state/1\0", b"crdt/faults/1\0"

Sibling = Annotated[bytes, Meta(max_length=32)]


class Leaf(Message, frozen=True):
    """What stands in the tree for a key: its place, and the digest of the ids retained there."""

    place: Hash
    content: Hash


class Path(Message, frozen=True):
    """The way from the root to a place: of each fork the half not taken, b"" if that is empty.

    other: the leaf of another key that stands where this key would; None if the key is there, or
    if nothing is.
    """

    siblings: Annotated[tuple[Sibling, ...], Meta(max_length=DEPTH_MAX)]
    other: Leaf | None = None


class _Node:
    """A bucket of keys or a fork; `hash` is None while it must be computed again."""

    __slots__ = ("hash", "keys", "one", "zero")

    def __init__(self, keys: list[str]) -> None:
        self.keys: list[str] | None = keys
        self.zero: _Node | None = None
        self.one: _Node | None = None
        self.hash: bytes | None = None

    def halves(self) -> tuple["_Node", "_Node"]:
        """Both sides of a fork."""
        assert self.zero is not None
        assert self.one is not None
        return self.zero, self.one


class StateTree:
    """The tree of what `ids_at` tells, hashed when asked for.

    ids_at: the ids (32 bytes, in any order) retained at a key, none if nothing is. It is asked
    again whenever a key was touched or its neighbours were, so nothing of it is copied here.
    """

    def __init__(self, ids_at: Callable[[str], Iterable[bytes]]) -> None:
        self._ids_at = ids_at
        self._touched: set[str] = set()
        self._top = _Node([])
        self._budget = 0.0
        self._size = 0

    def __len__(self) -> int:
        """Count the keys, as of the last `settle`."""
        return self._size

    def touch(self, key: str) -> None:
        """Note that what is retained at `key` has changed (0.1 µs)."""
        self._touched.add(key)

    def settle(self, budget: float) -> bool:
        """Do some of the work that `root` would do; True if nothing is left.

        budget: how many keys to place or hash, about 5 µs each; it ends within a bucket of it.
        """
        while self._touched and budget > 0:
            count = int(min(len(self._touched), BATCH_MAX, budget + 1))
            keys = {place_of(key): key for key in (self._touched.pop() for _ in range(count))}
            budget -= count
            self._place(self._top, sorted(keys), keys, 0)
        if not self._touched:
            self._touched = set()  # a set keeps the room of its largest size
            self._budget = budget
            if self._top.hash is None and budget > 0:
                self._freshen(self._top, 0)
        return not self._touched and self._top.hash is not None

    def root(self) -> bytes:
        """Return the root, 32 bytes. Cost: the keys touched since the last call, 40 µs each."""
        self.settle(float("inf"))
        assert self._top.hash is not None
        return self._top.hash

    def path(self, key: str) -> Path:
        """Return the proof that `key` is there with its ids, or that it is not there."""
        self.root()
        place = place_of(key)
        siblings: list[bytes] = []
        node = self._top
        while node.keys is None:
            halves, side = node.halves(), _bit(place, len(siblings))
            siblings.append(halves[1 - side].hash or EMPTY)
            node = halves[side]
        keys = {place_of(key): key for key in node.keys}
        places, hashes = sorted(keys), self._leaves(keys)
        while len(places) > 1:
            sides, side = _halves(places, len(siblings)), _bit(place, len(siblings))
            siblings.append(_subtree(sides[1 - side], hashes, len(siblings) + 1))
            places = sides[side]
        other = None
        if places and places[0] != place:
            other = Leaf(places[0], content_of(self._ids_at(keys[places[0]])))
        return Path(tuple(b"" if one == EMPTY else one for one in siblings), other)

    def _place(self, node: _Node, places: list[bytes], keys: dict[bytes, str], depth: int) -> None:
        """Put touched keys where they belong at and below a node, or take them out.

        places: those of some of `keys`, sorted. What is on the way must be hashed again.
        """
        node.hash = None
        if node.keys is not None and len(places) > BUCKET_MAX:
            _fork_bucket(node, depth)
        held = node.keys
        if held is None:
            for half, part in zip(node.halves(), _halves(places, depth), strict=True):
                if part:
                    self._place(half, part, keys, depth + 1)
            _join(node)
            return
        for place in places:
            key = keys[place]
            is_there, is_held = key in held, any(self._ids_at(key))
            if is_held and not is_there:
                held.append(key)
            elif is_there and not is_held:
                held.remove(key)
            self._size += is_held - is_there
        _split(node, depth)

    def _freshen(self, node: _Node, depth: int) -> None:
        """Hash what is stale at and below a node, as far as the budget goes."""
        if node.keys is not None:
            keys = {place_of(key): key for key in node.keys}
            node.hash = _subtree(sorted(keys), self._leaves(keys), depth)
            self._budget -= len(keys)
            return
        zero, one = node.halves()
        for half in (zero, one):
            if half.hash is None and self._budget > 0:
                self._freshen(half, depth + 1)
        if zero.hash is not None and one.hash is not None:
            node.hash = _fork(depth, zero.hash, one.hash)

    def _leaves(self, keys: dict[bytes, str]) -> dict[bytes, bytes]:
        """Hash the leaves of some keys, by place."""
        ids_at = self._ids_at
        return {place: _leaf_hash(place, content_of(ids_at(key))) for place, key in keys.items()}


def place_of(key: str) -> bytes:
    """Return where a key stands: 256 bits."""
    return hashlib.sha256(key.encode()).digest()


def content_of(ids: Iterable[bytes]) -> bytes:
    """Digest the ids retained at a key."""
    return hashlib.sha256(b"".join(sorted(ids))).digest()


def root_by(key: str, ids: Sequence[bytes], path: Path) -> bytes:
    """Return the root of every tree in which `key` holds these ids (none: is not there).

    Raises BadMessage if there is no such tree.
    """
    place = place_of(key)
    siblings, other = path.siblings, path.other
    if any(len(one) not in (0, 32) or one == EMPTY for one in siblings):
        raise BadMessage("a path has a half that is not a hash")
    if siblings and not siblings[-1]:
        raise BadMessage("a path ends in a fork of one side")
    if other is None:
        node = _leaf_hash(place, content_of(ids)) if ids else EMPTY
    else:
        _check_other(place, ids, other, len(siblings))
        node = _leaf_hash(other.place, other.content)
    for depth in reversed(range(len(siblings))):
        sibling = siblings[depth] or EMPTY
        pair = (sibling, node) if _bit(place, depth) else (node, sibling)
        node = _fork(depth, *pair)
    return node


def faults_digest(faults: Iterable[tuple[bytes, int, bytes]]) -> bytes:
    """Digest the proofs of faults that a namespace keeps: chain (16 bytes), cut, hash (32)."""
    rows = sorted(chain + cut.to_bytes(8) + proof for chain, cut, proof in faults)
    return hashlib.sha256(_FAULTS_TAG + b"".join(rows)).digest()


def state_root(namespace: bytes, tree_root: bytes, faults: bytes) -> bytes:
    """Return the state root: what a namespace retains and whom it has proven at fault."""
    return hashlib.sha256(_STATE_TAG + namespace + tree_root + faults).digest()


def _check_other(place: bytes, ids: Sequence[bytes], other: Leaf, depth: int) -> None:
    """Hold an absence to its grounds: another key's leaf, met on this key's own way."""
    if ids:
        raise BadMessage("a path both to a key and to another in its stead")
    shared = DEPTH_MAX - (int.from_bytes(place) ^ int.from_bytes(other.place)).bit_length()
    if not depth <= shared < DEPTH_MAX:
        raise BadMessage("a path ends at a leaf that is not on the key's way")


def _bit(place: bytes, depth: int) -> int:
    return place[depth >> 3] >> (7 - (depth & 7)) & 1


def _leaf_hash(place: bytes, content: bytes) -> bytes:
    return hashlib.sha256(_LEAF + place + content).digest()


def _fork(depth: int, zero: bytes, one: bytes) -> bytes:
    return hashlib.sha256(_FORKS[depth] + zero + one).digest()


def _halves(places: list[bytes], depth: int) -> tuple[list[bytes], list[bytes]]:
    """Cut sorted places that share their first `depth` bits by the next one."""
    byte, mask = depth >> 3, 128 >> (depth & 7)
    low, high = 0, len(places)
    while low < high:
        middle = (low + high) >> 1
        if places[middle][byte] & mask:
            high = middle
        else:
            low = middle + 1
    return places[:low], places[low:]


def _subtree(places: list[bytes], leaves: dict[bytes, bytes], depth: int) -> bytes:
    """Hash the sub-tree of sorted places that share their first `depth` bits."""
    if len(places) < 2:
        return leaves[places[0]] if places else EMPTY
    zero, one = _halves(places, depth)
    return _fork(depth, _subtree(zero, leaves, depth + 1), _subtree(one, leaves, depth + 1))


def _split(node: _Node, depth: int) -> None:
    """Make forks of a bucket until none is too full."""
    if node.keys is not None and len(node.keys) > BUCKET_MAX:
        _fork_bucket(node, depth)
        for half in node.halves():
            _split(half, depth + 1)


def _fork_bucket(node: _Node, depth: int) -> None:
    sides: tuple[list[str], list[str]] = ([], [])
    for key in node.keys or ():
        sides[_bit(place_of(key), depth)].append(key)
    node.keys, node.zero, node.one = None, _Node(sides[0]), _Node(sides[1])


def _join(node: _Node) -> None:
    """Make one bucket of a fork of two that are nearly empty."""
    zero, one = (half.keys for half in node.halves())
    if zero is not None and one is not None and len(zero) + len(one) <= MERGE_MAX:
        node.keys, node.zero, node.one = zero + one, None, None
