"""Requests go to certain peers, without looking for them: handing over, and whether they live."""

import math
from collections.abc import Iterable, Sequence
from itertools import islice

from dht.messages import (
    PROVISIONS_BYTES,
    PROVISIONS_MAX,
    AddProviders,
    Answer,
    Contact,
    Moment,
    Provision,
    PutValue,
    Request,
    Stored,
    Trace,
    Value,
)
from dht.operation import OPERATION_S, Wanted

WIDTH = 16  # in flight: half of them may go to dead peers
SENDS_MAX = 4096  # messages of one handing over, 10,000 keys to a few peers; more are left out


class Sending:
    """An operation whose result is how many records were kept."""

    def __init__(
        self,
        requests: Iterable[tuple[Contact, Request]],
        moment: Moment,
        *,
        deadline_s: float = OPERATION_S,
    ) -> None:
        """Nothing is sent before `next_asks`; what is not answered after `deadline_s` is let go."""
        self._left = list(islice(requests, SENDS_MAX))[::-1]
        self._flying: set[int] = set()
        self._tags = 0
        self._ends = moment.s + deadline_s
        self.trace = Trace()
        self.result = 0
        self.is_done = not self._left

    @property
    def wake_at(self) -> float:
        """Its deadline."""
        return math.inf if self.is_done else self._ends

    def next_asks(self, moment: Moment) -> list[Wanted]:
        """Return what fits beside what flies."""
        if moment.s >= self._ends:
            self.is_done = True
        wanted = list[Wanted]()
        while self._left and len(self._flying) < WIDTH and not self.is_done:
            contact, request = self._left.pop()
            self._tags += 1
            self._flying.add(self._tags)
            wanted.append(Wanted(self._tags, contact, request))
        return wanted

    def answered(self, tag: int, answer: Answer, moment: Moment) -> None:
        """Count what was kept."""
        if isinstance(answer, Stored):
            self.result += answer.kept
        self._over(tag)

    def failed(self, tag: int, why: str, moment: Moment) -> None:
        """That peer does not get it; others do."""
        self._over(tag)

    def _over(self, tag: int) -> None:
        self._flying.discard(tag)
        self.is_done = self.is_done or not (self._left or self._flying)


def addressed(
    parcels: Iterable[tuple[Contact, Sequence[Provision | Value]]],
) -> list[tuple[Contact, Request]]:
    """Return the messages that carry these records to these peers."""
    return [(contact, request) for contact, records in parcels for request in packed(records)]


def packed(records: Sequence[Provision | Value]) -> list[Request]:
    """Return the fewest messages that carry these: provider records together, values alone."""
    requests: list[Request] = [PutValue(one) for one in records if isinstance(one, Value)]
    batch, size = list[Provision](), 0
    for one in records:
        if isinstance(one, Value):
            continue
        if len(batch) == PROVISIONS_MAX or size + len(one.sealed) > PROVISIONS_BYTES:
            requests.append(AddProviders(tuple(batch)))
            batch, size = [], 0
        batch.append(one)
        size += len(one.sealed)
    return [*requests, AddProviders(tuple(batch))] if batch else requests
