"""Handing records to certain peers: packed, few at a time."""

import pytest

from dht.messages import (
    PROVISIONS_BYTES,
    PROVISIONS_MAX,
    AddProviders,
    Contact,
    Moment,
    Provision,
    PutValue,
    Stored,
    Value,
)
from dht.sending import WIDTH, Sending, addressed, packed
from tests.unit.dht_swarm import DAY_MS, WALL_MS, Author, head
from wire.ids import PeerId

NAME = b"/shoal/multi/x"


def word(number: int) -> Contact:
    return Author(number).contact(WALL_MS)


def provision(number: int, size: int = 100) -> Provision:
    return Provision(b"%d" % number, PeerId("peer"), WALL_MS + DAY_MS, bytes(size))


@pytest.mark.parametrize("size", [100, 700])
def test_records_are_packed_into_few_messages_that_are_not_too_large(size: int) -> None:
    value = head(Author(1), NAME, 1)
    records: list[Provision | Value] = [provision(number, size) for number in range(1100)]
    records.append(value)
    requests = packed(records)
    batches = [request.provisions for request in requests if isinstance(request, AddProviders)]
    assert [one for batch in batches for one in batch] == records[:-1]
    assert [one for one in requests if isinstance(one, PutValue)] == [PutValue(value)]
    for batch in batches:
        assert 0 < len(batch) <= PROVISIONS_MAX
        assert sum(len(one.sealed) for one in batch) <= PROVISIONS_BYTES
    assert len(requests) <= 2 + max(1100 // PROVISIONS_MAX + 1, 1100 * size // PROVISIONS_BYTES + 1)
    assert packed([]) == []


def test_so_many_fly_at_once_and_the_rest_follows() -> None:
    now = Moment(0.0, WALL_MS)
    sending = Sending(addressed([(word(n), [provision(n)]) for n in range(WIDTH + 5)]), now)
    first = sending.next_asks(now)
    assert len(first) == WIDTH
    sending.answered(first[0].tag, Stored(1), now)
    sending.failed(first[1].tag, "timeout", now)
    second = sending.next_asks(now)
    assert len(second) == 2
    for wanted in [*first[2:], *second]:
        sending.answered(wanted.tag, Stored(1), now)
    third = sending.next_asks(now)
    assert len(third) == 3
    assert not sending.is_done
    for wanted in third:
        sending.answered(wanted.tag, Stored(0, "no room"), now)
    sending.next_asks(now)
    assert sending.is_done
    assert sending.result == WIDTH + 1


def test_nothing_to_send_is_done_at_once() -> None:
    now = Moment(0.0, WALL_MS)
    assert Sending([], now).is_done
