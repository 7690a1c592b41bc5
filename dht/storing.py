"""Operations that store one record with its close set: a value, or that we provide something.

First a lookup over disjoint paths that goes on through the whole region, then the record goes to
all of them: who grinds identities next to the key does not push the others out.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from dht.finding import Looking, Start
from dht.key import key_of
from dht.lookup import PATHS
from dht.messages import (
    AddProviders,
    Answer,
    Contact,
    FindNode,
    Hop,
    Moment,
    Provision,
    PutValue,
    Request,
    Stored,
    Trace,
    Value,
)
from dht.operation import OPERATION_S, Wanted

STORES_AT_ONCE = 24  # in flight: a close set of 20 to 30 at once, and one of 200 in nine rounds
FIRST_STORE_TAG = 1 << 20  # beyond the tags of every lookup
REASONS_MAX = 32  # kinds of refusal that are counted apart: a peer's words are its own
OTHER_REASONS = "other reasons"


@dataclass(frozen=True, slots=True)
class Kept:
    """How many of the peers that were asked keep the record, and why the others do not."""

    asked: int
    kept: int
    refusals: Mapping[str, int] = field(default_factory=dict[str, int])  # reason -> peers

    def too_few(self, names: Sequence[bytes]) -> Sequence[bytes]:
        """Return the names, if they should be stored again soon: fewer than half keep it."""
        return () if self.kept and 2 * self.kept >= self.asked else names


class Storing(Looking):
    """Find the close set of a name, and send a request to each. `result` is `Kept`."""

    def __init__(self, name: bytes, request: Request, start: Start) -> None:
        super().__init__(key_of(name), FindNode(name), start, paths=PATHS)
        self._request = request
        self._began_s = self._store_began_s = start.moment.s
        self._left: Iterator[Contact] | None = None  # None while looking
        self._stores = list[_Store]()
        self._flying = set[int]()
        self._is_over = False

    def next_asks(self, moment: Moment) -> list[Wanted]:
        """Look; then store with as many at once as may be."""
        if self._left is None:
            wanted = self.lookup.next_asks(moment)
            if not self.lookup.is_done:
                return wanted
            self._left = iter(self.lookup.close_set())
            self._store_began_s = moment.s
        wanted = list[Wanted]()
        is_late = moment.s >= self._store_began_s + OPERATION_S
        while not is_late and len(self._flying) < STORES_AT_ONCE:
            contact = next(self._left, None)
            if contact is None:
                break
            self._flying.add(len(self._stores))
            wanted.append(Wanted(FIRST_STORE_TAG + len(self._stores), contact, self._request))
            self._stores.append(_Store(contact, moment.s))
        for number in self._flying if is_late else ():
            self._stores[number].outcome = "timeout"
        self._is_over = is_late or not self._flying
        return wanted

    def answered(self, tag: int, answer: Answer, moment: Moment) -> None:
        """A peer said whom it knows, or whether it keeps the record."""
        if tag < FIRST_STORE_TAG:
            super().answered(tag, answer, moment)
        elif isinstance(answer, Stored) and (answer.kept or not answer.refusal):
            self._landed(tag, "answered", moment, is_kept=answer.kept > 0)
        elif isinstance(answer, Stored):
            self._landed(tag, f"refused: {answer.refusal}", moment)
        else:
            self._landed(tag, "refused: another answer than was asked for", moment)

    def failed(self, tag: int, why: str, moment: Moment) -> None:
        """A request was not answered."""
        if tag < FIRST_STORE_TAG:
            super().failed(tag, why, moment)
        else:
            self._landed(tag, why, moment)

    @property
    def wake_at(self) -> float:
        """When a request has become slow, or the deadline."""
        if self._is_over:
            return math.inf
        return self.lookup.wake_at if self._left is None else self._store_began_s + OPERATION_S

    @property
    def is_done(self) -> bool:
        """True when everybody has answered or was given up."""
        return self._is_over

    @property
    def result(self) -> Kept:
        """What came of it so far."""
        kept = sum(store.is_kept for store in self._stores)
        outcomes = Counter(store.outcome for store in self._stores if not store.is_kept)
        refusals = Counter[str]()
        for outcome, count in outcomes.most_common():
            reason = outcome if len(refusals) < REASONS_MAX else OTHER_REASONS
            refusals[reason.removeprefix("refused: ")] += count
        return Kept(len(self._stores), kept, dict(refusals))

    @property
    def trace(self) -> Trace:
        """Return every request so far: the lookup's, then the stores."""
        trace = self.lookup.trace
        trace.hops.extend(self._hop(store) for store in self._stores)
        return trace

    def _landed(self, tag: int, outcome: str, moment: Moment, *, is_kept: bool = False) -> None:
        number = tag - FIRST_STORE_TAG
        if number in self._flying:
            self._flying.remove(number)
            store = self._stores[number]
            store.outcome, store.is_kept = outcome, is_kept
            store.took_s = moment.s - store.began_s

    def _hop(self, store: "_Store") -> Hop:
        return Hop(
            peer=store.contact.peer,
            bits=256 - (store.contact.key ^ self.lookup.target).bit_length(),
            depth=self.lookup.hops + 1,
            path=0,
            began_s=store.began_s - self._began_s,
            took_s=store.took_s,
            outcome=store.outcome,
            found=int(store.is_kept),
        )


class StoreValue(Storing):
    """Store a value with its close set."""

    def __init__(self, value: Value, start: Start) -> None:
        super().__init__(value.name, PutValue(value), start)


class Provide(Storing):
    """Store a provider record with its close set."""

    def __init__(self, provision: Provision, start: Start) -> None:
        super().__init__(provision.name, AddProviders((provision,)), start)


class _Store:
    """One request to keep the record."""

    __slots__ = ("began_s", "contact", "is_kept", "outcome", "took_s")

    def __init__(self, contact: Contact, began_s: float) -> None:
        self.contact, self.began_s = contact, began_s
        self.took_s: float | None = None
        self.outcome = "flying"
        self.is_kept = False
