"""IHAVE and IWANT: who is told of what, whom we ask, and what spam of either comes to."""

import pytest

from protocols.channels.effects import Verdict
from protocols.channels.params import TopicLimits
from protocols.channels.wanted import PER_PEER_MAX
from protocols.channels.wire import IHave, Rpc
from tests.unit.gossipsub import (
    ME,
    PEERS,
    TOPIC,
    Node,
    announced,
    asked,
    from_,
    sends,
    told,
    validations,
)

AUTHOR = PEERS[50]


def meshed(peers: int = 20, **params: object) -> Node:
    """A node whose mesh is full."""
    node = Node(peers, **params)
    node.wait(0.2)
    return node


def behaviour(node: Node, index: int = 0) -> float:
    """P7's counter."""
    return node.machine._scores._records[PEERS[index]].behaviour


def test_a_heartbeat_tells_peers_outside_the_mesh_what_came() -> None:
    node = meshed()
    item = from_(AUTHOR, 1)
    node.tell(PEERS[0], item)
    found = announced(node.wait(1))
    assert len(found) == 6
    assert node.mesh.isdisjoint(found)
    assert set(found.values()) == {(item.id,)}


def test_a_quarter_of_many_peers_is_told() -> None:
    node = meshed(46)
    node.tell(PEERS[0], from_(AUTHOR, 1))
    assert len(announced(node.wait(1))) == 10


def test_a_message_is_announced_for_three_heartbeats_and_kept_for_five() -> None:
    node = meshed()
    item = from_(AUTHOR, 1)
    node.tell(PEERS[0], item)
    assert [bool(announced(node.wait(1))) for _ in range(5)] == [True, True, True, False, False]
    node = meshed()
    node.tell(PEERS[0], item)
    node.wait(4)
    assert told(node.hear(PEERS[1], Rpc(iwant=(item.id,))), item)
    node.wait(1)
    assert node.hear(PEERS[2], Rpc(iwant=(item.id,))) == []


def test_peers_below_the_gossip_threshold_are_told_nothing() -> None:
    node = meshed()
    for peer in node.others:
        node.machine.set_application_score(peer, -20.0)
    node.tell(sorted(node.mesh)[0], from_(AUTHOR, 1))
    assert announced(node.wait(1)) == {}


def test_one_announcement_is_bounded() -> None:
    node = meshed(announced_max=10)
    for number in range(50):
        node.tell(PEERS[0], from_(AUTHOR, number))
    found = announced(node.wait(1))
    assert {len(names) for names in found.values()} == {10}
    assert len(set(found.values())) > 1  # not the same ten for everybody


def test_an_announced_message_is_asked_for_after_a_moment() -> None:
    node = meshed()
    assert node.announce(PEERS[0], b"new") == []
    assert asked(node.wait(0.02)) == {}
    assert asked(node.wait(0.02)) == {PEERS[0]: (b"new",)}


def test_what_comes_in_that_moment_is_not_asked_for() -> None:
    node = meshed()
    item = from_(AUTHOR, 1)
    node.announce(PEERS[0], item.id)
    node.tell(PEERS[1], item)
    assert asked(node.wait(10)) == {}


def test_what_is_here_is_not_asked_for() -> None:
    node = meshed()
    item = from_(AUTHOR, 1)
    node.tell(PEERS[1], item)
    node.announce(PEERS[0], item.id)
    assert asked(node.wait(10)) == {}


def test_what_is_being_validated_is_not_asked_for_and_breaks_no_promise() -> None:
    node = meshed()
    item = from_(AUTHOR, 1)
    node.announce(PEERS[0], item.id)
    node.wait(0.1)
    node.hear(PEERS[0], Rpc(messages=(item,)))
    node.announce(PEERS[1], item.id)
    assert asked(node.wait(5)) == {}
    node.machine.validated(item.id, Verdict.ACCEPT, node.now)
    node.wait(2)
    assert behaviour(node) == behaviour(node, 1) == 0


def test_one_announcer_is_asked_at_a_time() -> None:
    node = meshed()
    for peer in PEERS[:3]:
        node.announce(peer, b"new")
    found = [asked(node.wait(0.45)) for _ in range(5)]
    assert [list(who) for who in found] == [[PEERS[0]], [PEERS[1]], [PEERS[2]], [], []]


def test_an_announcer_that_is_gone_is_not_asked() -> None:
    node = meshed()
    node.announce(PEERS[0], b"new")
    node.announce(PEERS[1], b"new")
    node.machine.peer_down(PEERS[0], node.now)
    assert asked(node.wait(0.1)) == {PEERS[1]: (b"new",)}


def test_announcements_of_an_unknown_topic_are_not_read() -> None:
    node = meshed()
    node.announce(PEERS[0], b"new", topic="other")
    assert asked(node.wait(5)) == {}


def test_announcements_from_below_the_gossip_threshold_are_not_read() -> None:
    node = meshed()
    node.machine.set_application_score(PEERS[0], -20.0)
    node.wait(1)
    node.announce(PEERS[0], b"new")
    assert asked(node.wait(5)) == {}


def test_announcements_have_a_budget_per_heartbeat() -> None:
    node = meshed(ihave_messages=10)
    for number in range(30):
        node.announce(PEERS[0], b"%d" % number)
    assert len(asked(node.wait(0.1))[PEERS[0]]) == 10
    node.wait(1)
    node.announce(PEERS[0], b"next")
    assert asked(node.wait(0.1)) == {PEERS[0]: (b"next",)}


def test_announced_ids_have_a_budget_per_heartbeat() -> None:
    node = meshed(ihave_ids=100)
    node.announce(PEERS[0], *(b"%d" % n for n in range(500)))
    assert len(asked(node.wait(0.1))[PEERS[0]]) == 100


def test_what_one_peer_may_have_us_wait_for_is_bounded() -> None:
    node = meshed()
    for beat in range(3):
        node.announce(PEERS[0], *(b"%d %d" % (beat, n) for n in range(3000)))
        assert len(node.machine._wanted) <= PER_PEER_MAX
    node.announce(PEERS[1], b"true")
    assert asked(node.wait(0.1))[PEERS[1]] == (b"true",)


def test_a_promise_that_is_broken_counts_once_a_heartbeat() -> None:
    node = meshed()
    node.announce(PEERS[0], *(b"%d" % n for n in range(100)))
    node.wait(4)
    assert 0.9 < behaviour(node) <= 1


def test_who_keeps_as_many_promises_as_it_breaks_is_not_to_blame() -> None:
    node = meshed()
    item = from_(AUTHOR, 1)
    node.announce(PEERS[0], b"lost", item.id)
    node.wait(0.1)
    node.tell(PEERS[0], item)
    node.wait(5)
    assert behaviour(node) == 0


def test_a_slow_peer_breaks_no_promise() -> None:
    node = meshed()
    for number in range(60):  # a minute of large messages over a link that takes two seconds
        item = from_(AUTHOR, number)
        node.announce(PEERS[0], item.id)
        node.wait(2)
        node.tell(PEERS[0], item)
    assert behaviour(node) == 0


def test_who_sends_what_we_cannot_take_breaks_no_promise() -> None:
    node = meshed(limits=TopicLimits(messages_per_s=0.0, burst=0.0))
    items = [from_(AUTHOR, number) for number in range(10)]
    node.announce(PEERS[0], *(item.id for item in items))
    node.wait(0.1)
    assert node.tell(PEERS[0], *items) == []
    node.wait(5)
    assert behaviour(node) == 0
    assert node.machine.limited == 10


def test_a_promise_is_void_once_another_peer_delivers() -> None:
    node = meshed()
    item = from_(AUTHOR, 1)
    node.announce(PEERS[0], item.id)
    node.wait(0.1)
    node.tell(PEERS[1], item)
    node.wait(5)
    assert behaviour(node) == 0


def test_a_forgery_keeps_no_promise_and_ends_no_search() -> None:
    node = meshed()
    item = from_(AUTHOR, 1)
    node.announce(PEERS[0], item.id)
    node.announce(PEERS[1], item.id)
    node.wait(0.1)
    for news in validations(node.hear(PEERS[0], Rpc(messages=(from_(AUTHOR, 1, b"forged"),)))):
        node.machine.validated(news.id, Verdict.REJECT, node.now)
    assert asked(node.wait(1)) == {PEERS[1]: (item.id,)}


def test_who_breaks_all_its_promises_is_soon_hardly_listened_to() -> None:
    node = meshed()
    spammer, rounds = node.others[0], []
    for number in range(80):
        node.announce(spammer, *(b"%d %d" % (number, n) for n in range(100)))
        rounds.append(bool(asked(node.wait(0.5))))
    assert all(rounds[:10])
    assert sum(rounds[20:]) <= 15
    assert spammer not in node.mesh


def test_who_asks_gets_the_message() -> None:
    node = meshed()
    item = from_(AUTHOR, 1)
    node.tell(PEERS[0], item)
    assert sends(node.hear(PEERS[1], Rpc(iwant=(item.id, b"unknown")))) == [
        (PEERS[1], Rpc(messages=(item,)))
    ]


def test_a_message_is_given_to_one_peer_three_times_at_most() -> None:
    node = meshed()
    item = from_(AUTHOR, 1)
    node.tell(PEERS[0], item)
    effects = node.hear(PEERS[1], Rpc(iwant=(item.id,) * 5000))
    assert told(effects, item) == {PEERS[1]: 3}
    assert told(node.hear(PEERS[2], Rpc(iwant=(item.id,))), item) == {PEERS[2]: 1}


def test_spam_of_iwant_gets_a_bounded_number_of_bytes() -> None:
    node = meshed(iwant_bytes=100_000)
    items = [from_(AUTHOR, number, bytes(20_000)) for number in range(20)]
    for item in items:
        node.tell(PEERS[0], item)
    want = Rpc(iwant=tuple(item.id for item in items))
    assert len(sends(node.hear(PEERS[1], want))) == 5
    assert node.hear(PEERS[1], want) == []
    node.wait(1)
    assert len(sends(node.hear(PEERS[1], want))) == 5


def test_spam_of_iwant_gets_a_bounded_number_of_answers() -> None:
    node = meshed(iwant_ids=10)
    items = [from_(AUTHOR, number) for number in range(20)]
    for item in items:
        node.tell(PEERS[0], item)
    node.hear(PEERS[1], Rpc(iwant=(b"unknown",) * 9))
    assert len(sends(node.hear(PEERS[1], Rpc(iwant=tuple(item.id for item in items))))) == 1


def test_who_is_below_the_gossip_threshold_is_given_nothing() -> None:
    node = meshed()
    item = from_(AUTHOR, 1)
    node.tell(PEERS[0], item)
    node.machine.set_application_score(PEERS[1], -20.0)
    node.wait(1)
    assert node.hear(PEERS[1], Rpc(iwant=(item.id,))) == []


def test_what_is_kept_is_bounded_in_bytes() -> None:
    node = meshed(cache_bytes=100_000)
    items = [from_(AUTHOR, number, bytes(20_000)) for number in range(20)]
    for item in items:
        node.tell(PEERS[0], item)
    assert node.machine._cache.size_bytes <= 100_000
    want = Rpc(iwant=tuple(item.id for item in items))
    assert [rpc.messages[0] for _, rpc in sends(node.hear(PEERS[1], want))] == items[-4:]


def test_our_own_message_can_be_asked_for() -> None:
    node = meshed()
    mine = from_(ME, 1)
    node.machine.publish(mine, node.now)
    assert told(node.hear(PEERS[1], Rpc(iwant=(mine.id,))), mine) == {PEERS[1]: 1}


@pytest.mark.parametrize("count", [1, 10, 1000])
def test_spam_of_announcements_is_answered_by_one_request_at_most(count: int) -> None:
    node = meshed()
    lists = tuple(IHave(TOPIC, (b"%d" % n,)) for n in range(min(count, 60)))
    node.hear(PEERS[0], Rpc(ihave=lists))
    assert len([peer for peer, rpc in sends(node.wait(0.1)) if rpc.iwant]) == 1
