"""What a worker proves of its work, and how another's picks are checked. Needs torch."""

import torch
from torch import Tensor

from protocols.sharding.commitments import SKETCH_VALUES, Ledger


class Prover:
    """Commits to the rows of one session, into a stage or out of it, from position `base` on."""

    def __init__(self, base: int = 0) -> None:
        self._ledger = Ledger(base)

    @property
    def base(self) -> int:
        """The first position that it commits to."""
        return self._ledger.base

    @property
    def position(self) -> int:
        """That of the next row."""
        return self._ledger.position

    def add(self, position: int, rows: bytes, hidden: Tensor | None) -> None:
        """Take the rows from `position` on; what was there before is taken back.

        rows: as they are on the wire. hidden: [n, hidden_size], what they decode to (also at the
        sender: then both ends of a link commit to the same); None for token ids, which have 4 bytes
        each. The last stage adds, as its output, what its head is given, in float32.
        Cost: 20 microseconds, and 3 for each row of 2 KiB.
        """
        assert position <= self.position, "rows are missing"
        if position < self.position:
            self._ledger.truncate(position)
        if hidden is None:
            self._ledger.add(rows, 4)
        else:
            self._ledger.add(rows, len(rows) // len(hidden), sketch(hidden))

    def proofs(self) -> list[bytes]:
        """Return the commitments, one per 32 rows, the last one of the rest."""
        return self._ledger.proofs()


def sketch(hidden: Tensor) -> bytes:
    """Return 6 bytes for each row of [n, hidden_size]: its two largest magnitudes.

    Of equal ones the first: any device gives the same. A row of one element has a zero beside it.
    """
    if hidden.shape[1] < SKETCH_VALUES:
        hidden = torch.nn.functional.pad(hidden, (0, SKETCH_VALUES - hidden.shape[1]))
    bits = hidden.detach().cpu().to(torch.bfloat16).view(torch.int16).to(torch.int32) & 0xFFFF
    reverse = 0xFFFF - torch.arange(hidden.shape[1], dtype=torch.int32)
    order = (bits & 0x7FFF) << 16 | reverse  # distinct, so the choice is
    indices = order.topk(SKETCH_VALUES, dim=1).indices.sort(dim=1).values
    values = bits.gather(1, indices)
    parts = (indices & 0xFF, values & 0xFF, values >> 8)
    return torch.stack(parts, dim=2).to(torch.uint8).numpy().tobytes()
