"""Messages that are being validated.

An id names author and number, not content: before its signature is checked, anybody can claim it.
So a message counts as seen only once it was found valid, and different bytes under one id wait
for their turn: a forged copy that comes first does not keep the true one out.
"""

from dataclasses import dataclass, field

from protocols.channels.wire import Message
from wire.ids import PeerId

COPIES_MAX = 4  # different messages under one id; a flood of forgeries costs no more memory
SAME_MAX = 16  # peers that sent the same bytes, to share the blame


@dataclass(frozen=True, slots=True)
class Outcome:
    """One validated message: who sent it first, who else, and what is to be validated next."""

    peer: PeerId
    message: Message
    same: tuple[PeerId, ...]
    other: tuple[PeerId, Message] | None


@dataclass(slots=True)
class _Entry:
    copies: list[tuple[PeerId, Message]]  # the first is being validated
    same: list[PeerId] = field(default_factory=list[PeerId])


class Pending:
    """Messages being validated, by id. Bounded in number and bytes."""

    def __init__(self, limit: int, limit_bytes: int) -> None:
        self._limit, self._limit_bytes = limit, limit_bytes
        self._entries: dict[bytes, _Entry] = {}
        self._size_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: bytes) -> bool:
        return name in self._entries

    def begin(self, name: bytes, peer: PeerId, message: Message) -> bool:
        """Take a message in; false if there is no room."""
        if len(self._entries) >= self._limit or not self._fits(message):
            return False
        self._entries[name] = _Entry([(peer, message)])
        return True

    def join(self, name: bytes, peer: PeerId, message: Message) -> bool:
        """Add what another peer sent, if the id is being validated; false if it is not."""
        entry = self._entries.get(name)
        if entry is None:
            return False
        if message.raw == entry.copies[0][1].raw:
            if len(entry.same) < SAME_MAX:
                entry.same.append(peer)
        elif len(entry.copies) < COPIES_MAX and self._fits(message):
            entry.copies.append((peer, message))
        return True

    def finish(self, name: bytes, *, is_final: bool) -> Outcome | None:
        """Take out the validated copy. is_final: the other copies are of no use any more."""
        entry = self._entries.pop(name, None)
        if entry is None:
            return None
        peer, message = entry.copies.pop(0)
        same, other = tuple(entry.same), None
        self._size_bytes -= len(message.raw)
        if entry.copies and not is_final:
            other = entry.copies[0]
            entry.same = []
            self._entries[name] = entry
        else:
            self._size_bytes -= sum(len(copy.raw) for _, copy in entry.copies)
        return Outcome(peer, message, same, other)

    def _fits(self, message: Message) -> bool:
        if self._size_bytes + len(message.raw) > self._limit_bytes:
            return False
        self._size_bytes += len(message.raw)
        return True
