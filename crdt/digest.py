"""What a replica holds, as sums over a tree of hashes that two replicas can compare.

A node of the tree is a prefix of a slot (hex digits). Its sum adds up the names of all entries
below it, modulo 2**256, so that adding and removing costs a few additions. A node with more than
`LEAF_MAX` entries keeps its 16 children with their sums, whatever its depth, so every question
costs one way down the tree and at most `LEAF_MAX` entries: somebody who grinds slots into one
prefix makes the tree deeper there (by one digit for 16 times the work), and no answer dearer.
"""

import hashlib
from dataclasses import dataclass, field
from typing import NamedTuple

LEAF_MAX = 32  # entries below a prefix that are held, and listed, together; more are split into 16
MERGE_MAX = LEAF_MAX // 2  # a node with so few takes its children's back; half, not to flap
FINGERPRINT_BYTES = 16
_MODULUS = 2**256
HEX = "0123456789abcdef"


class Held(NamedTuple):
    """One entry as the digest knows it."""

    slot: str
    hlc: int
    id: bytes


@dataclass
class Sum:
    """A multiset of names, order does not matter."""

    total: int = 0
    count: int = 0

    def change(self, id: bytes, *, by: int) -> None:
        """Add (`by=1`) or remove (`by=-1`) a name."""
        self.total = (self.total + by * int.from_bytes(id)) % _MODULUS
        self.count += by

    def root(self) -> bytes:
        """32 bytes: equal sums, equal roots."""
        return hashlib.sha256(self.total.to_bytes(32) + self.count.to_bytes(8)).digest()


@dataclass
class _Node:
    """One prefix: its few entries by slot, or else its children by the next digit."""

    sum: Sum = field(default_factory=Sum)
    entries: dict[str, Held] = field(default_factory=dict[str, Held])
    children: "dict[str, _Node] | None" = None

    def put(self, held: Held, depth: int) -> None:
        """Add an entry whose slot is empty."""
        self.sum.change(held.id, by=1)
        if self.children is None:
            self.entries[held.slot] = held
            if len(self.entries) > LEAF_MAX and depth < len(held.slot):
                self._split(depth)
        else:
            self.children.setdefault(held.slot[depth], _Node()).put(held, depth + 1)

    def remove(self, held: Held, depth: int) -> None:
        """Take out an entry that is there."""
        self.sum.change(held.id, by=-1)
        if self.children is None:
            del self.entries[held.slot]
            return
        child = self.children[held.slot[depth]]
        child.remove(held, depth + 1)
        if not child.sum.count:
            del self.children[held.slot[depth]]
        if self.sum.count <= MERGE_MAX:
            self.entries = {held.slot: held for held in self.all()}
            self.children = None

    def all(self) -> list[Held]:
        """Everything below, in slot order."""
        if self.children is None:
            return sorted(self.entries.values())
        return [held for _, child in sorted(self.children.items()) for held in child.all()]

    def _split(self, depth: int) -> None:
        entries, self.entries, self.children = self.entries, {}, {}
        for held in entries.values():
            self.children.setdefault(held.slot[depth], _Node()).put(held, depth + 1)


@dataclass
class Digest:
    """The tree of sums over everything a replica holds."""

    _root: _Node = field(default_factory=_Node)

    def put(self, held: Held) -> None:
        """Set what a slot holds."""
        self.remove(held.slot)
        self._root.put(held, 0)

    def remove(self, slot: str) -> None:
        """Empty a slot; nothing happens if it is empty."""
        for held in self.items(slot):
            self._root.remove(held, 0)

    def fingerprint(self, prefix: str) -> bytes:
        """16 bytes; equal on two replicas if they hold the same entries below `prefix`."""
        return self._sum(prefix).root()[:FINGERPRINT_BYTES]

    def children(self, prefix: str) -> list[bytes]:
        """Return the fingerprints of the 16 prefixes one digit longer."""
        return [self.fingerprint(prefix + digit) for digit in HEX]

    def count(self, prefix: str = "") -> int:
        """How many entries are below a prefix."""
        return self._sum(prefix).count

    def items(self, prefix: str) -> list[Held]:
        """Return what is below a prefix, in slot order. Cost: what it returns, or one leaf."""
        node, depth = self._node(prefix)
        if depth == len(prefix):
            return node.all()
        return sorted(held for slot, held in node.entries.items() if slot.startswith(prefix))

    def _sum(self, prefix: str) -> Sum:
        node, depth = self._node(prefix)
        if depth == len(prefix):
            return node.sum
        found = Sum()
        for slot, held in node.entries.items():
            if slot.startswith(prefix):
                found.change(held.id, by=1)
        return found

    def _node(self, prefix: str) -> tuple[_Node, int]:
        """Go down as far as there are nodes: the node of a prefix, or the leaf that covers it."""
        node = self._root
        for depth, digit in enumerate(prefix):
            if node.children is None:
                return node, depth
            node = node.children.get(digit) or _Node()
        return node, len(prefix)
