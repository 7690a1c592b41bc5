"""Which span takes a new session, in what room, and with what of an earlier one's cache. No I/O but
words to workers.
"""

from collections.abc import Callable
from dataclasses import dataclass

from protocols.sharding.history import History, step_rows_max
from protocols.sharding.room import PARKED_S, Parked, part_of
from protocols.sharding.shelf import Shelf
from protocols.sharding.spans import LoadedSpan, StageInfo
from protocols.sharding.wire import CODECS, PREFIX_TOKENS, Open
from protocols.sharding.worker_wire import WorkerOpen
from wire.errors import BadMessage, Busy, NotFound
from wire.ids import PeerId


@dataclass(frozen=True)
class Admitted:
    """Room for a session: `first` is what its worker is told, `prefix` the rows that it has."""

    span: LoadedSpan
    size_bytes: int
    first: WorkerOpen
    prefix: History | None


class Admission:
    """The spans loaded here."""

    def __init__(self, shelf: Shelf, now: Callable[[], float]) -> None:
        self.spans = list[LoadedSpan]()
        self._shelf, self._now = shelf, now
        self._next_ticket = 1

    def span(self, model: str, start: int) -> LoadedSpan:
        """Return the span that begins there. Raises NotFound."""
        for span in self.spans:
            if (span.info.model, span.info.start) == (model, start):
                return span
        raise NotFound(f"no span of {model[:12]} begins here at layer {start}")

    def reserve(
        self, model: str, start: int, end: int, *, tokens: int, peer: PeerId
    ) -> tuple[LoadedSpan, int, list[Parked]]:
        """Reserve room where it is most easily had: (span, bytes, who was parked and must go).

        Raises NotFound, or Busy if all spans with these blocks are full.
        """
        found = [span for span in self.spans if span.has(model, start, end)]
        if not found:
            raise NotFound(f"layers {start}-{end} of {model[:12]} are not ready here")
        open_ones = [span for span in found if not span.is_draining]
        if not open_ones:
            raise NotFound(f"layers {start}-{end} of {model[:12]} are on their way elsewhere")
        refusal: Busy | None = None
        for span in sorted(open_ones, key=lambda span: -span.room.free_bytes):
            size_bytes = span.bytes_of(start, end, tokens)
            try:
                return span, size_bytes, span.room.reserve(peer, size_bytes)
            except Busy as error:
                refusal = refusal or error
        assert refusal is not None
        raise refusal

    def admit(self, peer: PeerId, opening: Open) -> Admitted:
        """Find room for a session. Raises BadMessage, NotFound, Busy."""
        for span in self.spans:
            if span.has(opening.model, opening.start, opening.end):
                check(opening, span.info)
        # Looked for first, so that it is the last one to go for the session that wants it.
        # (What cannot be truncated is of no use: the entry goes on where all stages can.)
        matches = {
            span: span.room.match(peer, opening) if span.info.ready.truncates else None
            for span in self.spans
        }
        span, size_bytes, gone = self.reserve(
            opening.model,
            opening.start,
            opening.end,
            tokens=opening.max_tokens,
            peer=peer,
        )
        fork, position, take, prefix = 0, 0, False, None
        if (match := matches[span]) is not None:
            parked, position = match
            fork, take = parked.ticket, parked in gone
            prefix = (
                parked.history.fork(position)
                if parked.history is not None
                else History(1, step_rows_max(span.info.hidden_size), base=position)
            )
            if take:
                gone.remove(parked)
                self._unshelve([parked])
        self.forget(span, gone)
        first = WorkerOpen(
            self.ticket(),
            opening.start,
            opening.end,
            opening.max_tokens,
            opening.sampling,
            opening.takes,
            opening.gives,
            fork,
            position,
            take,
        )
        return Admitted(span, size_bytes, first, prefix)

    def settle(
        self,
        admitted: Admitted,
        peer: PeerId,
        opening: Open,
        keys: list[bytes],
        position: int,
        history: History | None,
    ) -> None:
        """Park the cache of a session whose room was given back, if it has keys; or drop it."""
        span, ticket = admitted.span, admitted.first.session
        keys = keys[: position // PREFIX_TOKENS]
        if not keys or span.is_draining:
            span.close(ticket)
            return
        parked = Parked(
            ticket,
            peer,
            part_of(opening),
            keys,
            position,
            span.bytes_of(opening.start, opening.end, position),
            self._now() + PARKED_S,
            history,
        )
        if history is not None:
            self._shelf.add(history, lambda: history.position)
        self.forget(span, span.room.park(parked))

    def forget(self, span: LoadedSpan, gone: list[Parked]) -> None:
        """Some that were parked are not any more."""
        self._unshelve(gone)
        for parked in gone:
            span.close(parked.ticket)

    def expire(self) -> None:
        """Forget what was parked too long ago."""
        for span in self.spans:
            self.forget(span, span.room.expire(self._now()))

    def ticket(self) -> int:
        """Return a name for a session in a worker, never used before."""
        self._next_ticket += 1
        return self._next_ticket

    def _unshelve(self, gone: list[Parked]) -> None:
        for parked in gone:
            if parked.history is not None:
                self._shelf.remove(parked.history)


def check(opening: Open, info: StageInfo) -> None:
    """Refuse a session whose codecs do not go with its layers. Raises BadMessage."""
    takes_ids, gives_picks = opening.takes == "ids", opening.gives == "picks"
    if takes_ids != (opening.start == 0) or not (takes_ids or opening.takes in CODECS):
        raise BadMessage(f"layer {opening.start} does not take {opening.takes}")
    if gives_picks != (opening.end == info.n_layers) or not (
        gives_picks or opening.gives in CODECS
    ):
        raise BadMessage(f"layer {opening.end} of {info.n_layers} does not give {opening.gives}")
    if opening.next.start != opening.end:
        raise BadMessage(f"layer {opening.next.start} does not follow layer {opening.end}")
