"""Proofs that an author broke the rules of its chain: two entries of it that contradict each other.

A proof stands for itself: whoever knows the namespace's ID checks it with two signatures at most.
Which rules, and where each cuts the chain: docs/protocols/store.md, Faults.
"""

import hashlib
from bisect import insort

import msgspec

from crdt.entry import Record, Signed, is_signed, unseal
from wire import codec
from wire.codec import Message
from wire.errors import BadMessage

FAULT_MAX = 2 * 4200  # bytes of a proof: two of the largest entries
WHOLE = 1  # the cut of a chain of which nothing counts
HIGHEST = 2**63  # above every seq: the cut of a chain without fault
AUTHOR_FAULTS_MAX = 8  # proven chains of one author: then nothing of it counts, and no more proofs
# are kept; else whoever forks a thousand chains has a thousand proofs kept for ever
FAULTS_MAX = 1024  # proofs of a namespace, 8.6 MB at most: identities cost nothing to invent


class Fault(Message, frozen=True):
    """Two entries of one chain, in the order of (seq, id), that contradict each other."""

    first: Signed
    second: Signed


fault_decoder = msgspec.msgpack.Decoder(Fault)


class Proven(msgspec.Struct, frozen=True, eq=False):
    """A proof that was checked: of the chain, only what is below `cut` counts.

    digest: SHA-256 of the encoded proof; of two with one cut the smaller stays.
    """

    namespace: bytes
    author: bytes
    chain: bytes
    cut: int
    digest: bytes
    fault: Fault

    @property
    def rank(self) -> tuple[int, bytes]:
        """Of several proofs for one chain the one of the smallest rank stays."""
        return self.cut, self.digest


def is_suspect(a: Record, b: Record) -> bool:
    """True if two entries of one chain contradict each other, if both are signed (3 µs)."""
    a, b = _in_order(a, b)
    return a.stamp != b.stamp and _cut(a, b) > 0


def judge(a: Record, b: Record) -> Proven | None:
    """Prove that two entries contradict each other, or that the signature of one that the other
    follows is wrong; None if they do neither. Cost: two signatures at most, if not yet checked.
    """
    a, b = _in_order(a, b)
    is_one_chain = a.chain == b.chain and a.namespace == b.namespace
    if not is_one_chain or a.stamp == b.stamp or not is_signed(b):
        return None
    if is_signed(a):
        cut = _cut(a, b)
    else:
        cut = WHOLE if b.seq == a.seq + 1 and prev_of(b) == a.link else 0
    if not cut:
        return None
    fault = Fault(a.signed, b.signed)
    digest = hashlib.sha256(codec.encode(fault)).digest()
    return Proven(a.namespace, a.author, a.chain, cut, digest, fault)


def check(fault: Fault) -> Proven:
    """Check a proof that came from elsewhere. Raises BadMessage if it proves nothing."""
    first, second = unseal(fault.first), unseal(fault.second)
    proven = judge(first, second)
    if proven is None or proven.fault.first.body != fault.first.body:
        raise BadMessage(f"no proof of a fault of {first.peer}")
    return proven


class Proofs:
    """The proofs of a namespace: of a chain the one of the smallest rank, of an author, and in all,
    the chains of the smallest names. So what is kept depends on what was put, not on its order.
    """

    def __init__(self) -> None:
        self.by_chain: dict[bytes, Proven] = {}
        self._chains_of: dict[bytes, list[bytes]] = {}  # by author, sorted

    def put(self, proven: Proven) -> int:
        """Keep a proof; returns the cut of its chain so far, 0 if it is no news."""
        known = self.by_chain.get(proven.chain)
        if known is not None:
            if known.rank <= proven.rank:
                return 0
            self.by_chain[proven.chain] = proven
            return known.cut
        if len(self.by_chain) >= FAULTS_MAX and proven.chain > max(self.by_chain):
            return 0
        chains = self._chains_of.setdefault(proven.author, [])
        if len(chains) >= AUTHOR_FAULTS_MAX and proven.chain > chains[-1]:
            return 0
        insort(chains, proven.chain)
        self.by_chain[proven.chain] = proven
        if len(chains) > AUTHOR_FAULTS_MAX:
            del self.by_chain[chains.pop()]
        return HIGHEST

    def trim(self) -> Proven | None:
        """Let go of the proof that is one too many; call it after each `put`."""
        if len(self.by_chain) <= FAULTS_MAX:
            return None
        gone = self.by_chain.pop(max(self.by_chain))
        chains = self._chains_of[gone.author]
        chains.remove(gone.chain)
        if not chains:
            del self._chains_of[gone.author]
        return gone

    def cut_of(self, chain: bytes) -> int:
        """Return from where on a chain does not count."""
        proven = self.by_chain.get(chain)
        return proven.cut if proven is not None else HIGHEST

    def is_author_out(self, author: bytes) -> bool:
        """True if nothing of an author counts."""
        return len(self._chains_of.get(author, ())) >= AUTHOR_FAULTS_MAX

    def is_out(self, record: Record) -> bool:
        """True if nothing of a record's chain can ever count: none of it is retained."""
        if not self.by_chain:
            return False
        return self.cut_of(record.chain) == WHOLE or self.is_author_out(record.author)

    def is_cut(self, record: Record) -> bool:
        """True if a record does not count."""
        if not self.by_chain:
            return False
        return record.seq >= self.cut_of(record.chain) or self.is_author_out(record.author)


def prev_of(record: Record) -> bytes:
    """Return what an entry names as the one before it: at its place in the canonical bytes, as
    decoding all of them takes four times as long.
    """
    body = record.signed.body
    start = _SEQ_AT + _SEQ_BYTES.get(body[_SEQ_AT], 1) + 2
    return body[start : start + 32]


_SEQ_AT = 80  # after the array's head, version, namespace, author and instance
_SEQ_BYTES = {0xCC: 2, 0xCD: 3, 0xCE: 5, 0xCF: 9}  # by the head of an integer; small ones take 1


def _in_order(a: Record, b: Record) -> tuple[Record, Record]:
    if a.seq != b.seq:
        return (a, b) if a.seq < b.seq else (b, a)
    return (a, b) if a.id <= b.id else (b, a)


def _cut(a: Record, b: Record) -> int:
    """Return where the chain of two signed entries is cut, a not after b; 0 if they agree."""
    if a.seq == b.seq:
        return a.seq
    if b.seq == a.seq + 1 and prev_of(b) != a.link:
        return a.seq
    return a.seq if a.stamp[:8] >= b.stamp[:8] else 0
