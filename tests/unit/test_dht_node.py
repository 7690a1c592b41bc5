"""A node of the DHT by script: what it answers, whom it takes in, how it runs operations."""

from dataclasses import replace

import pytest

from dht.key import Key, key_of, name_of_peer
from dht.limits import RATES, TOO_MANY
from dht.messages import (
    AddProviders,
    Answer,
    Contact,
    Done,
    FindNode,
    GetProviders,
    GetValue,
    Nodes,
    Ping,
    Pong,
    Providers,
    Provision,
    PutValue,
    Request,
    Stored,
    Trace,
    Values,
)
from dht.records import EXPIRED
from dht.running import LATE_MAX, OURS, OUTAGE
from dht.serving import FOREIGN, NO_SERVER
from dht.state import REASONS_MAX, NodeStats
from dht.table import K
from tests.unit.dht_one import NAME, NOW, US, answer, asked, author, knowing, later, node, word
from tests.unit.dht_swarm import DAY_MS, SEALED, WALL_MS, Swarm, head, nearest

# --- what it answers -----------------------------------------------------------------------------


def test_it_answers_with_whom_it_knows_nearest_and_what_it_holds() -> None:
    us, peer = knowing(60), author(1).peer
    value, provision = head(author(2), NAME, 1), author(3).provision(NAME, WALL_MS)
    closest = tuple(us.table.closest(key_of(NAME), K))
    assert us.received(peer, None, Ping(), NOW) == Pong()
    assert us.received(peer, None, FindNode(NAME), NOW) == Nodes(closest)
    assert us.received(peer, None, GetValue(NAME), NOW) == Values((), closest)
    us.table.changes()
    small = node()  # who knows few holds everything
    assert small.received(peer, None, PutValue(value), NOW) == Stored(1)
    assert small.received(peer, None, AddProviders((provision,)), NOW) == Stored(1)
    assert small.received(peer, None, GetValue(NAME), NOW) == Values((value,), ())
    assert small.received(peer, None, GetProviders(NAME), NOW) == Providers((provision,), ())
    assert small.stats.requests == {
        "PutValue": 1,
        "AddProviders": 1,
        "GetValue": 1,
        "GetProviders": 1,
    }


def test_the_peer_that_is_asked_for_comes_first_and_that_may_be_ourselves() -> None:
    us = knowing(60)
    wanted = us.table.closest(Key(0), 60)[30]
    answered = us.received(author(1).peer, None, FindNode(name_of_peer(wanted.peer)), NOW)
    assert isinstance(answered, Nodes)
    assert answered.closer[0] == wanted
    answered = us.received(author(1).peer, None, FindNode(name_of_peer(US.peer)), NOW)
    assert isinstance(answered, Nodes)
    assert answered.closer[0].peer == US.peer
    assert len(answered.closer) == K


def test_a_client_answers_nothing_and_sends_no_word_of_its_own() -> None:
    client = node(is_server=False)
    for request in (Ping(), FindNode(NAME), PutValue(head(author(1), NAME, 1))):
        assert client.received(author(2).peer, None, request, NOW) == Stored(0, NO_SERVER)
    assert client.sender(NOW) is None
    assert node().sender(NOW) == US.contact(WALL_MS)


def test_a_peer_that_asks_too_much_is_told_so_and_others_are_served() -> None:
    us, peer = node(), author(1).peer
    burst = RATES["request"].burst
    answers = [us.received(peer, None, Ping(), NOW) for _ in range(burst + 1)]
    assert answers == [Pong()] * burst + [Stored(0, TOO_MANY)]
    assert us.received(author(2).peer, None, Ping(), NOW) == Pong()
    assert us.received(peer, None, Ping(), later(1)) == Pong()
    assert us.stats.refusals == {TOO_MANY: 1}


def test_records_over_the_rate_are_refused_as_a_whole() -> None:
    us, burst = node(), RATES["record"].burst
    many = tuple(author(1).provision(b"%d" % number, WALL_MS) for number in range(burst))
    assert us.received(author(1).peer, None, AddProviders(many), NOW) == Stored(burst)
    one = AddProviders((author(1).provision(b"one", WALL_MS),))
    assert us.received(author(1).peer, None, one, NOW) == Stored(0, TOO_MANY)


def test_a_record_far_from_us_is_not_ours_to_hold() -> None:
    us = knowing(60)
    us.size.saw(us.state.key, us.table.closest(us.state.key, K))
    names = [b"%d" % number for number in range(500)]
    names.sort(key=lambda name: key_of(name) ^ us.state.key)
    near, far = names[0], names[-1]
    us.size.saw(Key(1), [replace(word(1), key=Key(1 << 240))] * K)  # 65,000 nodes
    us.size.saw(Key(2), [replace(word(1), key=Key(1 << 240))] * K)
    assert us.size.size() > 50_000
    assert key_of(near) ^ us.state.key > 4 * us.size.region()
    for name in (near, far):
        store = AddProviders((author(1).provision(name, WALL_MS),))
        assert us.received(author(1).peer, None, store, NOW) == Stored(0, FOREIGN)
    few = knowing(K - 1)
    few.state.size = us.state.size
    assert few.received(author(1).peer, None, store, NOW) == Stored(1)


def test_of_many_records_the_good_ones_are_kept_and_a_reason_is_told() -> None:
    us = node()
    good = author(1).provision(b"good", WALL_MS)
    old = replace(author(1).provision(b"old", WALL_MS), expires_ms=WALL_MS)
    stored = us.received(author(1).peer, None, AddProviders((old, good)), NOW)
    assert stored == Stored(1, EXPIRED)
    assert us.stats.refusals == {EXPIRED: 1}


def test_reasons_are_counted_apart_only_as_long_as_they_are_few() -> None:
    stats = NodeStats()
    for number in range(2 * REASONS_MAX):
        stats.refused(str(number))
    assert len(stats.refusals) == REASONS_MAX + 1
    assert stats.refusals["other"] == REASONS_MAX


# --- operations ----------------------------------------------------------------------------------


def test_an_operation_asks_under_numbers_and_ends_with_done() -> None:
    us, trace = knowing(3), Trace()
    number = us.find_closest(NAME, NOW, trace=trace)
    asks = asked(us.effects())
    assert {ask.contact.peer for ask in asks} == {author(n).peer for n in range(3)}
    assert len({ask.number for ask in asks}) == 3
    for ask in asks[:2]:
        answer(us, ask, Nodes(()), later(0.1))
    assert us.effects() == []
    us.failed(asks[2].number, "timeout", later(3))
    assert us.effects() == [Done(number)]
    operation = us.end(number)
    assert operation is not None
    assert [contact.peer for contact in operation.result] == [
        ask.contact.peer for ask in sorted(asks[:2], key=lambda ask: ask.contact.key ^ key_of(NAME))
    ]
    assert sorted(hop.outcome for hop in trace.hops) == ["answered", "answered", "timeout"]
    assert us.end(number) is None
    stats = us.stats
    assert (stats.asked, stats.answers, stats.timeouts, stats.lookups) == (3, 2, 1, 1)
    assert stats.seconds == pytest.approx(3.0)


def test_numbers_that_nobody_knows_are_ignored() -> None:
    us = knowing(1)
    us.find_closest(NAME, NOW)
    (ask,) = asked(us.effects())
    us.answered(ask.number + 1, Nodes(()), word(0), None, NOW)
    us.failed(0, "timeout", NOW)
    answer(us, ask, Nodes(()))
    answer(us, ask, Nodes((word(5),)))  # the same once more
    assert us.effects() == [Done(1)]


def test_what_comes_after_the_end_still_tells_who_is_alive() -> None:
    us = knowing(3)
    number = us.find_closest(NAME, NOW)
    first, second, third = asked(us.effects())
    operation = us.end(number)
    assert operation is not None
    answer(us, first, Nodes(()), later(1))
    assert us.table.entries()[-1].seen_s >= NOW.s
    assert [entry.seen_s for entry in us.table.entries() if entry.contact == first.contact] == [
        later(1).s
    ]
    for ask in (second, third):
        us.failed(ask.number, "timeout", later(3))
    assert sorted(entry.failures for entry in us.table.entries()) == [0, 1, 1]
    assert us.effects() == []


def test_requests_of_ended_operations_are_forgotten_if_they_are_too_many() -> None:
    us = knowing(8)
    first = us.find_closest(b"0", NOW)
    (early, *_) = asked(us.effects())
    us.end(first)
    for number in range(LATE_MAX):
        us.end(us.find_closest(b"%d" % number, NOW))
    assert len(asked(us.effects())) >= LATE_MAX
    us.failed(early.number, "timeout", NOW)
    assert all(entry.failures == 0 for entry in us.table.entries())


def test_a_refusal_is_no_answer_and_no_sign_of_death() -> None:
    us, trace = knowing(1), Trace()
    us.find_closest(NAME, NOW, trace=trace)
    (ask,) = asked(us.effects())
    answer(us, ask, Stored(0, TOO_MANY))
    assert us.effects() == [Done(1)]
    assert [hop.outcome for hop in trace.hops] == [f"refused: {TOO_MANY}"]
    assert [entry.failures for entry in us.table.entries()] == [0]


def test_who_is_no_server_any_more_leaves_the_table() -> None:
    us = knowing(1)
    us.find_closest(NAME, NOW)
    (ask,) = asked(us.effects())
    answer(us, ask, Stored(0, NO_SERVER))
    assert len(us.table) == 0


@pytest.mark.parametrize(
    ("request_", "false"),
    [(FindNode(NAME), Pong()), (FindNode(NAME), Values((), ())), (Ping(), Nodes(()))],
)
def test_an_answer_of_another_kind_counts_as_a_failure(request_: Request, false: Answer) -> None:
    us = knowing(1)
    if isinstance(request_, FindNode):
        us.find_closest(NAME, NOW)
    else:
        us.peer_up(replace(word(0), seq=WALL_MS + 1, addrs=("/ip4/10.1.1.1/tcp/1",)), NOW)
    (ask,) = asked(us.effects())
    answer(us, ask, false)
    assert [entry.failures for entry in us.table.entries()] == [1]


def test_an_outage_of_our_own_network_empties_no_table() -> None:
    us = knowing(60)
    for moment in (later(0), later(60), later(120)):
        number = us.find_closest(NAME, moment)
        while effects := us.effects():
            for ask in asked(effects):
                us.failed(ask.number, "unreachable", moment)
        us.end(number)
    assert len(us.table) >= 60 - OUTAGE
    number = us.find_closest(NAME, later(200))
    (one, *others) = asked(us.effects())
    answer(us, one, Nodes(()), later(200))  # the network is back
    failures = sum(entry.failures for entry in us.table.entries())
    us.failed(others[0].number, "timeout", later(203))
    assert sum(entry.failures for entry in us.table.entries()) == failures + 1 or (
        others[0].contact.peer not in us.table
    )


def test_a_request_that_was_never_sent_says_nothing_of_the_peer() -> None:
    us = knowing(1)
    us.find_closest(NAME, NOW)
    (ask,) = asked(us.effects())
    us.failed(ask.number, OURS, NOW)
    assert [entry.failures for entry in us.table.entries()] == [0]


def test_an_answer_that_brings_a_lookup_forward_makes_its_peer_useful() -> None:
    us = knowing(2)
    us.find_closest(NAME, NOW)
    first, second = asked(us.effects())
    nearer = replace(word(9), key=Key(key_of(NAME) ^ 1))
    answer(us, first, Nodes((nearer,)))
    answer(us, second, Nodes(()))
    useful = {entry.contact.peer for entry in us.table.entries() if entry.useful_s == NOW.s}
    assert useful == {first.contact.peer}


# --- several of them -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swarm() -> Swarm:
    """Forty nodes that know each other."""
    swarm = Swarm(40)
    swarm.join()
    return swarm


def test_everybody_finds_the_nearest_of_all(swarm: Swarm) -> None:
    for number, one in enumerate(swarm.nodes.values()):
        name = b"name %d" % number
        found: list[Contact] = swarm.do(one, one.find_closest, name)
        others = [other for other in swarm.nodes.values() if other is not one]
        assert [contact.peer for contact in found] == nearest(others, key_of(name), K)


def test_a_peer_is_found_by_its_id_and_a_stranger_is_not(swarm: Swarm) -> None:
    first, *_, last = swarm.nodes.values()
    found = swarm.do(first, first.find_peer, last.state.author.peer)
    assert found == swarm.contact(last)
    assert swarm.do(first, first.find_peer, author(999).peer) is None


def test_what_is_put_and_provided_is_found_by_all(swarm: Swarm) -> None:
    one, *others = swarm.nodes.values()
    value = replace(
        head(swarm.authors[one.state.author.peer], NAME, 1), expires_ms=WALL_MS + DAY_MS
    )
    assert swarm.do(one, one.put, value).kept >= K
    assert swarm.do(one, one.provide, b"cid").kept >= K
    for other in [one, *others[::5]]:
        assert swarm.do(other, other.get, NAME) == (value,)
        (provision,) = swarm.do(other, other.providers, b"cid")
        assert (provision.peer, provision.sealed) == (one.state.author.peer, SEALED)
    assert swarm.do(one, one.get, NAME, paths=4) == (value,)
    assert swarm.do(one, one.get, b"/shoal/multi/other") == ()


def test_who_is_alone_still_has_what_it_stored_itself() -> None:
    swarm = Swarm(1)
    (alone,) = swarm.nodes.values()
    value = head(swarm.authors[alone.state.author.peer], NAME, 1)
    assert swarm.do(alone, alone.put, value).kept == 0
    assert swarm.do(alone, alone.get, NAME) == (value,)
    provision = Provision(b"cid", alone.state.author.peer, WALL_MS + DAY_MS, SEALED)
    swarm.do(alone, alone.provide, b"cid")
    assert swarm.do(alone, alone.providers, b"cid") == (provision,)


def test_a_client_finds_and_stores_but_nobody_asks_it() -> None:
    swarm = Swarm(10)
    swarm.join()
    client, one = swarm.add(is_server=False), next(iter(swarm.nodes.values()))
    swarm.do(client, client.bootstrap, [swarm.contact(one)])
    assert len(client.table) == 10
    assert swarm.do(client, client.provide, b"cid").kept == 10
    assert len(client.holding) == 0
    assert all(client.state.author.peer not in other.table for other in swarm.nodes.values())
    (provision,) = swarm.do(one, one.providers, b"cid")
    assert provision.peer == client.state.author.peer
