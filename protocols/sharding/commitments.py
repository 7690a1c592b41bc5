"""Commitments to the rows of a session: made while it runs, compared when it is audited. No torch.

After TOPLOC (Ong et al., 2025), which commits to the largest magnitudes, because honest
recomputation on another machine or in another batch moves them by much less than any other
computation does. One commitment stands for up to `PROOF_ROWS` rows, those of the positions from
one multiple of it to the next:

    first 16 bytes of SHA-256 over the digests of its rows' bytes | a sketch of each row, 6 bytes

The digest says whether two nodes speak of the same bytes, and needs no decoding. A sketch holds the
two largest magnitudes of a row: for each the low byte of its index and its value in bfloat16.
TOPLOC takes 128 of 32 rows together and hides their indices in a polynomial (258 bytes). By row
they are as good (`make bench-answer`), smaller, survive a truncation at any row, and two sketches
can be compared by somebody who has not the rows: so who recomputes is not told what was claimed.
Token ids have digests only.
"""

import hashlib
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from protocols.sharding.wire import PROOF_ROWS
from wire.errors import BadMessage

DIGEST_BYTES = 16
SKETCH_VALUES = 2  # largest magnitudes of one row
SKETCH_BYTES = 3 * SKETCH_VALUES
FAR = 128  # bfloat16 values from one power of two to the next: as far as a distance counts

Ints = NDArray[np.int64]
Sketches = NDArray[np.uint8]  # [rows, values, 3 bytes]


@dataclass
class Ledger:
    """Digests and sketches of a session's rows from `base` on. Rows may be taken back."""

    base: int = 0
    _digests: bytearray = field(default_factory=bytearray)
    _sketches: bytearray = field(default_factory=bytearray)

    @property
    def position(self) -> int:
        """That of the next row."""
        return self.base + len(self._digests) // DIGEST_BYTES

    def truncate(self, position: int) -> None:
        """Take back the rows from `position` on. One before the base moves that, too."""
        kept = max(0, position - self.base)
        del self._digests[kept * DIGEST_BYTES :]
        del self._sketches[kept * SKETCH_BYTES :]
        self.base = min(self.base, position)

    def add(self, rows: bytes, size: int, sketches: bytes = b"") -> None:
        """Append encoded rows of `size` bytes each, with their sketches unless they are ids."""
        assert len(rows) % size == 0
        view = memoryview(rows)
        for start in range(0, len(rows), size):
            self._digests += hashlib.sha256(view[start : start + size]).digest()[:DIGEST_BYTES]
        self._sketches += sketches

    def proofs(self) -> list[bytes]:
        """Return the commitments, in order. Cost: a hash of 512 bytes for each."""
        found: list[bytes] = []
        for start, end in windows(self.base, self.position):
            first, last = start - self.base, end - self.base
            digests = self._digests[first * DIGEST_BYTES : last * DIGEST_BYTES]
            sketches = self._sketches[first * SKETCH_BYTES : last * SKETCH_BYTES]
            found.append(hashlib.sha256(digests).digest()[:DIGEST_BYTES] + bytes(sketches))
        return found


@dataclass(frozen=True)
class Commitment:
    """Commitments to the rows [base, position), read. `sketches` is empty if they are ids."""

    base: int
    position: int
    digests: tuple[bytes, ...]
    sketches: Sketches

    def digest_of(self, window: tuple[int, int]) -> bytes | None:
        """Return the digest of the rows [start, end), if there is one of just these."""
        mine = windows(self.base, self.position)
        return self.digests[mine.index(window)] if window in mine else None


@dataclass(frozen=True)
class Distance:
    """How far two computations of the same rows are apart, in steps of bfloat16 (0.4 to 0.8 %).

    values: how many were compared. far: the share of those that differ by a factor of two, or in
    their place. total: all distances together, each at most `FAR`; mean and median: of one.
    """

    values: int
    far: float
    total: int
    mean: float
    median: float


def windows(base: int, position: int) -> list[tuple[int, int]]:
    """Return the rows [start, end) of each commitment to the rows [base, position), if any."""
    first = base - base % PROOF_ROWS
    starts = range(first, position, PROOF_ROWS) if base < position else ()
    return [(max(base, start), min(position, start + PROOF_ROWS)) for start in starts]


def read(base: int, position: int, proofs: list[bytes], *, ids: bool) -> Commitment:
    """Read the commitments to the rows [base, position). Raises BadMessage."""
    expected = windows(base, position)
    if len(proofs) != len(expected):
        raise BadMessage(f"{len(proofs)} commitments, the rows have {len(expected)}")
    parts: list[bytes] = []
    for (start, end), proof in zip(expected, proofs, strict=True):
        sketches = 0 if ids else (end - start) * SKETCH_BYTES
        if len(proof) != DIGEST_BYTES + sketches:
            raise BadMessage(f"a commitment to {end - start} rows has {len(proof)} B")
        parts.append(proof[DIGEST_BYTES:])
    table = np.frombuffer(b"".join(parts), np.uint8).reshape(-1, SKETCH_VALUES, 3)
    return Commitment(base, position, tuple(proof[:DIGEST_BYTES] for proof in proofs), table)


def commit(rows: bytes, size: int, base: int = 0) -> list[bytes]:
    """Return the digests of rows that we hold, one per commitment."""
    ledger = Ledger(base)
    ledger.add(rows, size)
    return ledger.proofs()


def same(one: Commitment, other: Commitment, until: int) -> bool:
    """Whether both speak of the same bytes in the rows before `until` that both speak of.

    A window that only one of them has in full is compared by its sketches.
    """
    mine, theirs = _common(one, other, until)
    return same_digests(one, other, until) and bool((mine == theirs).all())


def same_digests(one: Commitment, other: Commitment, until: int) -> bool:
    """Whether the digests agree of all windows before `until` that both have."""
    mine = zip(windows(one.base, one.position), one.digests, strict=True)
    return all(
        other.digest_of(window) in (None, digest) for window, digest in mine if window[1] <= until
    )


def _common(one: Commitment, other: Commitment, until: int) -> tuple[Sketches, Sketches]:
    """Return the sketches of the rows before `until` that both have."""
    base, end = max(one.base, other.base), min(one.position, other.position, until)
    mine = one.sketches[base - one.base : max(0, end - one.base)]
    theirs = other.sketches[base - other.base : max(0, end - other.base)]
    count = min(len(mine), len(theirs))
    return mine[:count], theirs[:count]


def distance(one: Commitment, other: Commitment, until: int) -> Distance:
    """Compare the sketches of the rows before `until` that both have; of ids there are none.

    A row's two values may come in either order, as where a third is as large as the second.
    """
    mine, theirs = _common(one, other, until)
    straight = _apart(mine, theirs)
    crossed = _apart(mine, theirs[:, ::-1])
    best = np.where((straight.sum(1) <= crossed.sum(1))[:, None], straight, crossed).reshape(-1)
    if not len(best):
        return Distance(0, 0.0, 0, 0.0, 0.0)
    total = int(best.sum())
    far = float((best >= FAR).mean())
    return Distance(len(best), far, total, total / len(best), float(np.median(best)))


def _apart(one: Sketches, other: Sketches) -> Ints:
    """Return the distances [rows, values], each at most `FAR`.

    Values of different indices are compared by magnitude: honest ones take each other's place only
    where they are as large.
    """
    mine, theirs = _bits(one), _bits(other)
    by_size = np.abs((mine & 0x7FFF) - (theirs & 0x7FFF))
    is_same = one[:, :, 0] == other[:, :, 0]
    apart = np.where(is_same, np.abs(_ordered(mine) - _ordered(theirs)), by_size)
    return np.minimum(apart, FAR)


def _bits(sketches: Sketches) -> Ints:
    return sketches[:, :, 1].astype(np.int64) | sketches[:, :, 2].astype(np.int64) << 8


def _ordered(bits: Ints) -> Ints:
    """Map bfloat16 to integers in the same order, neighbours to neighbours."""
    return np.where(bits & 0x8000, -(bits & 0x7FFF), bits)
