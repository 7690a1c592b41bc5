"""One side of one call, without I/O: what it has to send, what it was sent, and both windows.

A sender pays for each piece from its credit; a receiver holds what arrived until it is taken, and
gives credit back then. While a message is still incomplete, and nothing else waits to be taken,
credit is given at once, so that a message may be larger than the window; the method's `frame_max`
bounds it. So a call never holds more than its window and one message.
"""

from collections import deque

from protocols.rpc import wire
from protocols.rpc.wire import PIECE_BYTES, PIECE_COST, WINDOW_BYTES, Data, Part, Piece, Reply
from wire.errors import BadMessage, Busy, ShoalError

WINDOW_MAX_BYTES = 4 * 1024 * 1024  # a reader that keeps up: 200 MB/s over 20 ms of round trip
WIDE_BYTES = 1024 * 1024 + 64 * 1024  # more from the start, where a message may be a chunk of 1 MiB
COPY_BELOW_BYTES = 32 * 1024  # smaller pieces are copied: a view of one would hold all its record

Body = bytes | memoryview


class MessageTooBig(ShoalError):
    """We were about to send more than the method allows."""

    code = "too_big"
    hint = "send less at a time, or in several messages"


def check_size(body: bytes, frame_max: int) -> None:
    """Raise MessageTooBig if a message of ours is over the method's limit."""
    if len(body) > frame_max:
        raise MessageTooBig(f"message of {len(body)} B is over the limit of {frame_max} B")


class Budget:
    """What all calls of a line, or of a peer, may hold together, in bytes."""

    def __init__(self, left_bytes: int) -> None:
        self.left_bytes = left_bytes

    def take(self, size_bytes: int) -> bool:
        """Take so much if it is there."""
        if size_bytes > self.left_bytes:
            return False
        self.left_bytes -= size_bytes
        return True


class Incoming:
    """The messages of one direction of a call, as their receiver sees them."""

    __slots__ = (
        "_budget",
        "_credit",
        "_extra",
        "_held",
        "_messages",
        "_parts",
        "_parts_bytes",
        "_window",
        "ended",
        "frame_max",
    )

    def __init__(self, frame_max: int, budget: Budget) -> None:
        self.frame_max = frame_max
        self.ended = False  # no more messages come
        self._budget = budget
        self._messages: deque[tuple[Body, int]] = deque()  # each with what it costs
        self._parts: list[Body] = []
        self._parts_bytes = 0
        self._held = 0  # bytes, with PIECE_COST for each piece
        self._credit = self._window = WINDOW_BYTES
        self._extra = 0  # taken from the budget

    def put(self, piece: Part | Data | Reply) -> None:
        """Take a piece. Raises BadMessage if it is more than was allowed, Busy if it is a large
        message and others hold all the room.
        """
        body = piece.body
        size = len(body)
        self._credit -= size + PIECE_COST
        if self.ended or self._credit < 0:
            raise BadMessage("more than the call's window" if not self.ended else "after the end")
        if self._parts_bytes + size > self.frame_max:
            total, limit = self._parts_bytes + size, self.frame_max
            raise BadMessage(f"message of {total} B is over the limit of {limit} B")
        self._held += size + PIECE_COST
        kept: Body = bytes(body) if size < COPY_BELOW_BYTES else body
        if type(piece) is Part:
            self._parts.append(kept)
            self._parts_bytes += size
            self._make_room()
            return
        if not self._parts:
            self._messages.append((kept, size + PIECE_COST))
            return
        self._parts.append(kept)
        cost = self._parts_bytes + size + PIECE_COST * len(self._parts)
        self._messages.append((b"".join(self._parts), cost))
        self._parts, self._parts_bytes = [], 0

    def end(self) -> None:
        """The other side sends no more. Raises BadMessage in the middle of a message."""
        if self.ended or self._parts:
            raise BadMessage("the call ended in the middle of a message")
        self.ended = True

    @property
    def has_message(self) -> bool:
        """Tell whether a whole message waits."""
        return bool(self._messages)

    @property
    def held_bytes(self) -> int:
        """Bytes that arrived and were not taken, with what each piece costs beyond its body."""
        return self._held

    def take(self) -> Body:
        """Remove and return the oldest message."""
        body, cost = self._messages.popleft()
        self._held -= cost
        return body

    def widen(self) -> int:
        """Return what credit to give at once, for a method whose messages exceed a first window:
        so such a message arrives without waiting for a round trip. 0 for none.
        """
        more = min(self.frame_max, WIDE_BYTES)
        if self.frame_max <= WINDOW_BYTES // 2 or not self._budget.take(more):
            return 0
        self._extra += more
        self._window += more
        self._credit += more
        return more

    def grant(self) -> int:
        """Return how much credit to give now; 0 for none. It counts as given."""
        if self.ended or self._credit > self._window // 2:
            return 0
        if not self._messages and self._window < WINDOW_MAX_BYTES:
            self._grow()  # the reader keeps up, so it is the window that the sender waits for
        room = self._window - self._credit
        if self._messages:
            room -= self._held
        if room < self._window // 2:
            return 0
        self._credit += room
        return room

    def release(self) -> None:
        """The call is over: what was taken from the line's budget goes back."""
        self._budget.left_bytes += self._extra
        self._extra = 0
        self._parts.clear()
        self._messages.clear()

    def _grow(self) -> None:
        if self._budget.take(self._window):
            self._extra += self._window
            self._window *= 2

    def _make_room(self) -> None:
        """Borrow what an incomplete message takes beyond the first window."""
        if self._messages or self._held <= WINDOW_BYTES + self._extra:
            return
        more = self._held - WINDOW_BYTES - self._extra + WINDOW_BYTES // 2
        if not self._budget.take(more):
            raise Busy("too many large messages at once")
        self._extra += more


class Outgoing:
    """The pieces of one direction of a call that wait for credit or for the line."""

    __slots__ = ("_budget", "_call", "_credit", "_frames", "ended", "frame_max")

    def __init__(self, call: int, frame_max: int, budget: Budget) -> None:
        """`budget` goes below 0 while more waits than should; then senders wait."""
        self.frame_max = frame_max
        self._budget = budget
        self.ended = False  # End or Fail is queued or sent
        self._call = call
        self._credit = WINDOW_BYTES
        # What waits, in order: pieces not yet packed, or whole frames that cost nothing.
        self._frames: deque[tuple[Piece | None, Body]] = deque()

    def put(self, body: bytes, *, is_reply: bool = False) -> None:
        """Queue a message; `is_reply` ends this direction too."""
        assert not self.ended, "sent after the end"
        last: Piece = Reply if is_reply else Data
        self.ended = is_reply
        self._budget.left_bytes -= len(body)
        if len(body) <= PIECE_BYTES:
            self._frames.append((last, body))
            return
        view = memoryview(body)
        for start in range(0, len(body), PIECE_BYTES):
            kind = last if start + PIECE_BYTES >= len(body) else Part
            self._frames.append((kind, view[start : start + PIECE_BYTES]))

    def put_frame(self, frame: bytes, *, is_end: bool) -> None:
        """Queue a frame that costs no credit, after all that waits."""
        self.ended = self.ended or is_end
        self._frames.append((None, frame))

    def credit(self, size_bytes: int) -> None:
        """The receiver takes more. Raises BadMessage beyond reason."""
        self._credit += size_bytes
        if self._credit > 2 * WINDOW_MAX_BYTES:
            raise BadMessage(f"credit of {self._credit} B on one call")

    @property
    def is_empty(self) -> bool:
        """Tell whether nothing waits."""
        return not self._frames

    @property
    def is_ready(self) -> bool:
        """Tell whether something waits and may go."""
        if not self._frames:
            return False
        kind, body = self._frames[0]
        return kind is None or len(body) + PIECE_COST <= self._credit

    def next_frame(self) -> bytes:
        """Remove and return the next frame; only if one is ready."""
        kind, body = self._frames.popleft()
        if kind is None:
            assert isinstance(body, bytes)
            return body
        self._credit -= len(body) + PIECE_COST
        self._budget.left_bytes += len(body)
        return wire.pack_piece(kind, self._call, body)

    def drop(self) -> None:
        """Nothing of what waits is wanted any more."""
        self._budget.left_bytes += sum(len(body) for kind, body in self._frames if kind)
        self._frames.clear()
        self.ended = True
