"""What a node of the DHT does by itself, on a virtual clock."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from dht import limits, parts
from dht.key import common_bits, key_of, name_of_peer
from dht.messages import (
    AddProviders,
    Ask,
    Contact,
    FindNode,
    Moment,
    Nodes,
    Ping,
    Provision,
    Stored,
)
from dht.node import Node
from dht.refresh import FILL, LOOKS
from dht.serving import NO_SERVER
from dht.table import K
from dht.upkeep import DOUBT_S, GIVEN_UP_S, HALF_LIFE_S, LEAVE_S, RETRY_S, SETTLE_S, TIDY_S
from tests.unit.dht_swarm import DAY_MS, WALL_MS, Author, Swarm, head, nearest
from wire.ids import PeerId

NAME = b"/shoal/multi/x"
HOUR_S = 3600.0


def word(number: int) -> Contact:
    return Author(number).contact(WALL_MS)


def provision(number: int, size: int = 100) -> Provision:
    return Provision(b"%d" % number, PeerId("peer"), WALL_MS + DAY_MS, bytes(size))


def joined(count: int) -> Swarm:
    swarm = Swarm(count)
    swarm.join()
    swarm.run(60)
    return swarm


def is_store(ask: Ask) -> bool:
    return isinstance(ask.request, AddProviders)


def peer_of(node: Node) -> PeerId:
    return node.state.author.peer


def holders(swarm: Swarm, name: bytes) -> set[PeerId]:
    now_ms = swarm.moment.wall_ms
    return {
        peer
        for peer, node in swarm.nodes.items()
        if peer not in swarm.dead
        and (node.holding.values(name, now_ms) or node.holding.provisions(name, now_ms))
    }


# --- joining and refreshing ----------------------------------------------------------------------


def test_who_joins_knows_its_nearest_and_somebody_everywhere() -> None:
    swarm = joined(100)
    newcomer = swarm.add()
    swarm.do(newcomer, newcomer.bootstrap, [swarm.contact(next(iter(swarm.nodes.values())))])
    swarm.run(30)
    others = [node for node in swarm.nodes.values() if node is not newcomer]
    own = newcomer.state.key
    assert set(nearest(others, own, K)) <= {one.contact.peer for one in newcomer.table.entries()}
    buckets = Counter(common_bits(own, entry.contact.key) for entry in newcomer.table.entries())
    assert all(buckets[index] >= FILL for index in range(2))
    assert 50 < newcomer.size.size() < 200
    assert newcomer.stats.asked < 150
    # and those nearest to it know it, although nobody looked for it
    near = [swarm.nodes[peer] for peer in nearest(others, own, K)]
    assert sum(peer_of(newcomer) in node.table for node in near) >= K - 1


def test_a_swarm_that_has_nothing_to_do_says_little() -> None:
    swarm = joined(30)
    swarm.run(HOUR_S)
    swarm.asks.clear()
    swarm.run(5 * HOUR_S)
    per_node_hour = len(swarm.asks) / 30 / 5
    assert 10 < per_node_hour < 190


def test_one_that_is_alone_asks_nobody() -> None:
    swarm = Swarm(1)
    swarm.run(24 * HOUR_S)
    assert swarm.asks == []


def test_dead_entries_make_room_for_those_who_live() -> None:
    swarm = joined(60)
    dead = swarm.rng.sample(sorted(swarm.nodes), 30)
    swarm.dead.update(dead)
    swarm.run(2 * HOUR_S)
    live = [node for peer, node in swarm.nodes.items() if peer not in swarm.dead]
    peers = [entry.contact.peer for node in live for entry in node.table.entries()]
    assert sum(peer in swarm.dead for peer in peers) < len(peers) / 4
    assert all(len(node.table) > K for node in live)
    name, asking = b"anything", live[0]
    found: list[Contact] = swarm.do(asking, asking.find_closest, name)
    assert [one.peer for one in found] == nearest(live[1:], key_of(name), K)


def test_targets_of_looks_are_inside_their_buckets() -> None:
    swarm = joined(60)
    node = next(iter(swarm.nodes.values()))
    for entry in node.table.entries():
        index = common_bits(node.state.key, entry.contact.key)
        name = node.upkeep.refresh.name_in(index)
        assert common_bits(node.state.key, key_of(name)) == index
    assert node.upkeep.refresh.name_in(200)  # nobody is there: some name


# --- publishing again ----------------------------------------------------------------------------


def test_what_is_provided_is_provided_again_at_half_life_until_it_is_withdrawn() -> None:
    swarm = joined(4)
    node = next(iter(swarm.nodes.values()))
    swarm.do(node, node.provide, b"kept")
    swarm.do(node, node.provide, b"dropped")
    node.withdraw(b"dropped")
    swarm.asks.clear()
    swarm.run(HALF_LIFE_S - HOUR_S)
    assert not any(peer == peer_of(node) for peer, ask in swarm.asks if is_store(ask))
    swarm.run(14 * HOUR_S)
    asking = list(swarm.nodes.values())[-1]
    assert len(swarm.do(asking, asking.providers, b"kept")) == 1
    assert swarm.do(asking, asking.providers, b"dropped") == ()


def test_what_is_withdrawn_while_it_is_published_is_not_published_again() -> None:
    swarm = joined(3)
    node = next(iter(swarm.nodes.values()))
    node.provide(b"cid", swarm.moment)
    node.withdraw(b"cid")
    swarm.drive(node)
    swarm.run(60)
    swarm.asks.clear()
    swarm.run(HALF_LIFE_S + HOUR_S)
    assert not any(peer == peer_of(node) for peer, ask in swarm.asks if is_store(ask))


def test_what_everybody_refuses_is_offered_less_and_less_often() -> None:
    swarm = joined(3)
    node = next(iter(swarm.nodes.values()))
    author = swarm.authors[peer_of(node)]
    author.life_ms = 0
    assert swarm.do(node, node.provide, b"cid").kept == 0
    swarm.run(10 * HOUR_S)
    assert 10 < author.signed < 20


def test_in_a_small_swarm_everybody_holds_all_that_one_of_them_provides() -> None:
    swarm = joined(4)
    owner, *others = swarm.nodes.values()
    names = [b"cid %d" % number for number in range(3_000)]
    result = swarm.do(owner, owner.provide_many, names)
    assert (result.kept, result.weak) == (3 * len(names), ())
    assert [len(other.holding) for other in others] == [len(names)] * 3


def test_what_too_few_took_is_offered_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(limits.RATES, "record", limits.Rate(1.0, 100))
    swarm = joined(4)
    owner, *others = swarm.nodes.values()
    monkeypatch.setattr(parts, "PROVISIONS_MAX", 50)
    names = [b"cid %d" % number for number in range(150)]
    result = swarm.do(owner, owner.provide_many, names)
    assert (result.kept, len(result.weak)) == (3 * 100, 50)
    swarm.run(2 * RETRY_S)
    assert [len(other.holding) for other in others] == [len(names)] * 3


def test_what_nobody_took_is_offered_again_soon_and_then_less_often() -> None:
    swarm = Swarm(2)
    alone, other = swarm.nodes.values()
    assert swarm.do(alone, alone.provide, b"cid").kept == 0
    swarm.run(3 * RETRY_S)
    swarm.do(alone, alone.bootstrap, [swarm.contact(other)])
    swarm.run(8 * RETRY_S)
    assert holders(swarm, b"cid") == {peer_of(alone), peer_of(other)}


# --- handing over --------------------------------------------------------------------------------


def test_records_follow_the_close_set_while_all_who_took_them_leave_without_a_word() -> None:
    swarm = joined(36)
    owner = next(iter(swarm.nodes.values()))
    value = head(swarm.authors[peer_of(owner)], NAME, 1)
    swarm.do(owner, owner.put, replace(value, expires_ms=swarm.moment.wall_ms + DAY_MS - 1))
    swarm.do(owner, owner.provide, b"cid")
    first = list(swarm.nodes)  # whoever holds it now
    swarm.rng.shuffle(first)
    for peer in first:
        alive = swarm.rng.choice([n for p, n in swarm.nodes.items() if p not in swarm.dead])
        newcomer = swarm.add()
        swarm.do(newcomer, newcomer.bootstrap, [swarm.contact(alive)])
        swarm.dead.add(peer)
        swarm.run(60)
    asking = list(swarm.nodes.values())[-1]
    assert [one.seq for one in swarm.do(asking, asking.get, NAME)] == [1]
    assert len(swarm.do(asking, asking.providers, b"cid")) == 1
    assert len(holders(swarm, NAME)) >= K // 2


def test_a_newcomer_of_the_close_set_is_sent_what_it_should_hold_once() -> None:
    swarm = joined(40)
    owner = next(iter(swarm.nodes.values()))
    swarm.do(owner, owner.provide, b"cid")
    swarm.run(60)
    swarm.asks.clear()
    newcomer = swarm.add()
    swarm.do(newcomer, newcomer.bootstrap, [swarm.contact(owner)])
    swarm.run(SETTLE_S + 5)
    sent = [ask for _, ask in swarm.asks if isinstance(ask.request, AddProviders)]
    is_close = peer_of(newcomer) in nearest(swarm.nodes.values(), key_of(b"cid"), K)
    assert len(newcomer.holding) == (1 if sent else 0)
    assert len(sent) <= 2
    assert newcomer.holding or not is_close


def holder(nearer: int) -> tuple[Node, list[Contact]]:
    """One that holds a record to which so many (of 3 at least) are nearer, and those."""
    contacts = [word(number) for number in range(40)]
    for number in range(1000):
        name, node = b"%d" % number, Node(Author(10_000 + number), random.Random(1))
        key = key_of(name)
        those = [one for one in contacts if one.key ^ key < node.state.key ^ key]
        if len(those) == nearer or len(those) >= nearer > 2:
            for one in contacts:
                node.table.answered(one, one.addrs[0], 0.0)
            store = AddProviders((provision(number),))
            kept = node.received(PeerId("peer"), None, store, Moment(1.0, WALL_MS))
            assert kept == Stored(1)
            return node, those
    raise AssertionError("no such name")


def pinged(node: Node, now_s: float) -> list[Ask]:
    node.tick(Moment(now_s, WALL_MS))
    asks = [effect for effect in node.effects() if isinstance(effect, Ask)]
    return [ask for ask in asks if ask.request == Ping()]


@pytest.mark.parametrize("nearer", [1, 2])
def test_a_holder_looks_whether_those_live_whose_duty_would_be_its_next(nearer: int) -> None:
    node, those = holder(nearer)
    assert pinged(node, 1.0) == []
    asks = pinged(node, 1.0 + TIDY_S)
    assert {ask.contact.peer for ask in asks} == {one.peer for one in those}
    for ask in asks:
        node.failed(ask.number, "timeout", Moment(700.0, WALL_MS))
    assert node.wake_at <= 700.0 + DOUBT_S
    for ask in pinged(node, 700.0 + DOUBT_S):
        node.failed(ask.number, "timeout", Moment(800.0, WALL_MS))
    assert all(one.peer not in node.table for one in those)


def test_a_holder_far_from_a_record_asks_nobody() -> None:
    node, _ = holder(5)
    assert pinged(node, 1.0) == []
    assert pinged(node, 1.0 + TIDY_S) == []


def test_a_holder_looks_for_its_neighbours_once_an_hour() -> None:
    node, _ = holder(5)
    found = Counter[bytes]()
    for minute in range(150):
        now = Moment(1.0 + 60 * minute, WALL_MS)
        for number in range(40):  # no bucket is idle, so nothing else needs a look
            node.table.answered(word(number), None, now.s)
        node.tick(now)
        while effects := node.effects():
            for ask in effects:
                if isinstance(ask, Ask) and isinstance(ask.request, FindNode):
                    found[ask.request.name] += 1
                    node.answered(ask.number, Nodes(()), ask.contact, None, now)
    own = name_of_peer(peer_of(node))
    assert 2 * K <= found.pop(own) <= 3 * (K + 8)
    assert all(count >= K for count in found.values())  # whole lookups of random targets
    assert len(found) <= LOOKS + 2


def test_what_has_expired_is_thrown_away() -> None:
    node, _ = holder(5)
    node.tick(Moment(1.0, WALL_MS))
    assert len(node.holding) == 1
    node.tick(Moment(2.0 + TIDY_S, WALL_MS + DAY_MS + 1))
    assert len(node.holding) == 0


def with_newcomer() -> tuple[Swarm, Node, Node]:
    """A swarm, its member nearest to a record, and one who came just now and does not have it."""
    swarm = joined(15)
    owner = next(iter(swarm.nodes.values()))
    swarm.do(owner, owner.provide, b"cid")
    nearest_one = swarm.nodes[nearest(swarm.nodes.values(), key_of(b"cid"), 1)[0]]
    newcomer = swarm.add()
    swarm.do(newcomer, newcomer.bootstrap, [swarm.contact(owner)])
    assert peer_of(newcomer) not in holders(swarm, b"cid")
    return swarm, nearest_one, newcomer


def test_who_leaves_hands_over_within_a_second_and_answers_no_more() -> None:
    swarm, leaving, newcomer = with_newcomer()
    began_s = swarm.now_s
    assert swarm.do(leaving, leaving.leave) == 1
    assert swarm.now_s - began_s <= LEAVE_S
    assert peer_of(newcomer) in holders(swarm, b"cid")
    assert (leaving.is_server, len(leaving.holding)) == (False, 0)
    ping = leaving.received(peer_of(newcomer), None, Ping(), swarm.moment)
    assert ping == Stored(0, NO_SERVER)


def test_leaving_among_the_dead_takes_no_longer_than_a_second() -> None:
    swarm, leaving, _ = with_newcomer()
    swarm.dead.update(peer for peer in swarm.nodes if peer != peer_of(leaving))
    began_s = swarm.now_s
    assert swarm.do(leaving, leaving.leave) == 0
    assert swarm.now_s - began_s == pytest.approx(LEAVE_S)


def test_a_server_that_becomes_a_client_hands_over_and_holds_nothing() -> None:
    swarm, first, newcomer = with_newcomer()
    first.set_mode(is_server=False, moment=swarm.moment)
    swarm.drive(first)
    swarm.run(1)
    assert (first.is_server, len(first.holding)) == (False, 0)
    assert peer_of(newcomer) in holders(swarm, b"cid")
    first.set_mode(is_server=True, moment=swarm.moment)
    assert first.received(peer_of(newcomer), None, FindNode(b"x"), swarm.moment) == Nodes(
        tuple(first.table.closest(key_of(b"x"), K))
    )


def test_a_client_that_becomes_a_server_is_known_to_those_near_it() -> None:
    swarm = joined(15)
    client = swarm.add(is_server=False)
    swarm.do(client, client.bootstrap, [swarm.contact(next(iter(swarm.nodes.values())))])
    client.set_mode(is_server=True, moment=swarm.moment)
    swarm.drive(client)
    swarm.run(5)
    others = [node for node in swarm.nodes.values() if node is not client]
    assert all(peer_of(client) in node.table for node in others)


def test_what_was_given_up_is_published_within_the_hour() -> None:
    swarm = joined(4)
    node = next(iter(swarm.nodes.values()))
    number = node.provide_many([b"cid"], swarm.moment)
    assert node.end(number) is not None
    swarm.run(GIVEN_UP_S + 60)
    assert len(holders(swarm, b"cid")) == 4


def test_after_a_restart_the_contacts_of_the_table_are_enough() -> None:
    swarm = joined(30)
    old = list(swarm.nodes.values())[-1]
    contacts = old.snapshot()
    assert len(contacts) == len(old.table)
    new = swarm.add()
    swarm.do(new, new.bootstrap, contacts[:3])
    assert len(new.table) >= K
