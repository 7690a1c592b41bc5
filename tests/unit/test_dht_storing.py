"""Operations that store one record with its close set."""

import math

import base58

from dht.finding import Start
from dht.key import SPACE, Key, key_of
from dht.lookup import PATHS
from dht.messages import (
    AddProviders,
    Contact,
    FindNode,
    Moment,
    Nodes,
    Provision,
    PutValue,
    Stored,
    Value,
)
from dht.operation import OPERATION_S, Wanted
from dht.storing import OTHER_REASONS, REASONS_MAX, STORES_AT_ONCE, Kept, Provide, StoreValue
from dht.table import K
from tests.unit.dht_still_net import EPOCH_MS, StillNet
from wire.ids import PeerId

OWN = PeerId("own")
NAME = b"/shoal/multi/name"
VALUE = Value(NAME, PeerId("author"), 1, EPOCH_MS + 1000, b"data", b"sealed")
NOW = Moment(0.0, EPOCH_MS)


def seeds(count: int) -> list[Contact]:
    return [
        Contact(
            PeerId(base58.b58encode(b"peer %d" % n).decode()),
            Key(key_of(NAME) ^ n),
            ("/ip4/10.0.0.1/tcp/1",),
        )
        for n in range(1, count + 1)
    ]


def look(operation: StoreValue) -> list[Wanted]:
    """Answer the lookup; return the first stores."""
    while True:
        wanted = operation.next_asks(NOW)
        if any(isinstance(one.request, PutValue) for one in wanted):
            return wanted
        for one in wanted:
            operation.answered(one.tag, Nodes(()), NOW)


def test_a_value_goes_to_all_of_its_close_set() -> None:
    net = StillNet(500)
    own = net.nearest(Key(0), 1)[0]
    region = SPACE // 500 * 25
    operation = StoreValue(VALUE, Start(own.peer, net.seeds(own, key_of(NAME)), NOW, region=region))
    net.run(operation)
    holders = {peer for peer, member in net.members.items() if NAME in member.values}
    nearest = net.nearest(key_of(NAME), K)
    inside = [one for one in net.nearest(key_of(NAME), 60) if one.key ^ key_of(NAME) <= region]
    assert {one.peer for one in nearest} <= holders
    assert len(holders & {one.peer for one in inside}) >= len(inside) - 2
    assert operation.result == Kept(len(holders), len(holders), {})
    assert {hop.path for hop in operation.trace.hops} == set(range(PATHS))
    assert len(operation.trace.hops) == operation.lookup.requests + len(holders)
    assert operation.wake_at == math.inf


def test_a_provider_record_goes_there_too() -> None:
    net = StillNet(200)
    own = net.nearest(Key(0), 1)[0]
    record = Provision(b"cid", own.peer, EPOCH_MS + 1000, b"sealed")
    operation = Provide(record, Start(own.peer, net.seeds(own, key_of(b"cid")), NOW))
    net.run(operation)
    for contact in net.nearest(key_of(b"cid"), K):
        if contact.peer != own.peer:
            assert net.members[contact.peer].provisions == {b"cid": {own.peer: record}}
    assert operation.result.kept == K


def test_refusals_are_counted_by_their_reason() -> None:
    operation = StoreValue(VALUE, Start(OWN, seeds(6), NOW))
    stores = look(operation)
    assert len(stores) == 6
    operation.answered(stores[0].tag, Stored(1), NOW)
    operation.answered(stores[1].tag, Stored(0, "stale"), NOW)
    operation.answered(stores[2].tag, Stored(0, "stale"), NOW)
    operation.failed(stores[3].tag, "timeout", NOW)
    operation.answered(stores[4].tag, Nodes(()), NOW)
    assert operation.next_asks(NOW) == []
    assert not operation.is_done
    operation.answered(stores[5].tag, Stored(1), NOW)
    operation.next_asks(NOW)
    assert operation.is_done
    assert operation.result == Kept(
        6, 2, {"stale": 2, "timeout": 1, "another answer than was asked for": 1}
    )
    outcomes = [hop.outcome for hop in operation.trace.hops[6:]]
    assert outcomes[:2] == ["answered", "refused: stale"]


def test_peers_do_not_fill_the_memory_with_reasons() -> None:
    operation = StoreValue(VALUE, Start(OWN, seeds(60), NOW, region=100))
    stores, number = look(operation), 0
    while not operation.is_done:
        for one in stores:
            number += 1
            operation.answered(one.tag, Stored(0, f"reason {number}"), NOW)
        stores = operation.next_asks(NOW)
    assert number == 60
    assert len(operation.result.refusals) == REASONS_MAX + 1
    assert operation.result.refusals[OTHER_REASONS] == 60 - REASONS_MAX


def test_a_bounded_number_flies_at_once() -> None:
    operation = StoreValue(VALUE, Start(OWN, seeds(60), NOW, region=100))
    stores = look(operation)
    assert len(stores) == STORES_AT_ONCE
    assert operation.next_asks(NOW) == []
    operation.answered(stores[0].tag, Stored(1), NOW)
    operation.answered(stores[0].tag, Stored(1), NOW)  # said twice, counted once
    assert len(operation.next_asks(NOW)) == 1
    assert operation.result.kept == 1


def test_who_never_answers_is_given_up_at_the_deadline() -> None:
    operation = StoreValue(VALUE, Start(OWN, seeds(30), NOW))
    look(operation)
    assert operation.wake_at == OPERATION_S
    late = Moment(OPERATION_S, EPOCH_MS)
    assert operation.next_asks(late) == []
    assert operation.is_done
    assert operation.result == Kept(K, 0, {"timeout": K})


def test_who_does_not_answer_the_lookup_is_stored_nothing() -> None:
    operation = StoreValue(VALUE, Start(OWN, seeds(3), NOW))
    dead, *living = operation.next_asks(NOW)
    operation.failed(dead.tag, "unreachable", NOW)
    for one in living:
        operation.answered(one.tag, Nodes(()), NOW)
    peers = [one.contact.peer for one in operation.next_asks(NOW)]
    assert sorted(peers) == sorted(one.contact.peer for one in living)


def test_without_anybody_it_is_over_at_once() -> None:
    operation = StoreValue(VALUE, Start(OWN, [], NOW))
    assert operation.next_asks(NOW) == []
    assert operation.is_done
    assert operation.result == Kept(0, 0, {})


def test_requests_are_what_they_should_be() -> None:
    operation = StoreValue(VALUE, Start(OWN, seeds(1), NOW))
    (first,) = operation.next_asks(NOW)
    assert first.request == FindNode(NAME)
    operation.answered(first.tag, Nodes(()), NOW)
    (store,) = operation.next_asks(NOW)
    assert store.request == PutValue(VALUE)
    record = Provision(NAME, OWN, EPOCH_MS + 1000, b"sealed")
    provide = Provide(record, Start(OWN, seeds(1), NOW))
    (first,) = provide.next_asks(NOW)
    provide.answered(first.tag, Nodes(()), NOW)
    (store,) = provide.next_asks(NOW)
    assert store.request == AddProviders((record,))
