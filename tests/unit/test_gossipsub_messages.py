"""Messages: validated once, forwarded, pushed or announced; and what floods of them come to."""

import pytest

from protocols.channels.effects import Verdict
from protocols.channels.params import TopicLimits
from protocols.channels.wire import Message, Rpc, author_of, message
from tests.unit.gossipsub import (
    ME,
    PEERS,
    TOPIC,
    Node,
    announced,
    dropped,
    from_,
    sends,
    told,
    unwanted,
    validations,
)

AUTHOR = PEERS[50]  # nobody we are connected to
LARGE = bytes(20_000)


def meshed(peers: int = 20, **params: object) -> Node:
    """A node whose mesh is full."""
    node = Node(peers, **params)
    node.wait(0.2)
    return node


def forged(number: int, data: bytes) -> Message:
    """A message under another's id; nobody checks signatures here."""
    return from_(AUTHOR, number, data)


def test_a_new_message_is_validated_before_it_goes_on() -> None:
    node = meshed()
    item = from_(AUTHOR, 1)
    effects = node.hear(PEERS[0], Rpc(messages=(item,)))
    assert [(v.peer, v.message, v.id) for v in validations(effects)] == [(PEERS[0], item, item.id)]
    assert told(effects, item) == {}


def test_a_valid_message_goes_to_the_mesh_but_not_to_sender_and_author() -> None:
    node = meshed()
    sender, author, *rest = sorted(node.mesh)
    item = from_(author, 1)
    assert told(node.tell(sender, item), item) == dict.fromkeys(rest, 1)


def test_what_came_before_is_dropped_without_a_word() -> None:
    node = meshed()
    item = from_(AUTHOR, 1)
    node.tell(PEERS[0], item)
    assert [node.tell(peer, item) for peer in PEERS[:10]] == [[]] * 10
    assert node.machine.copies == 10


def test_a_copy_that_comes_during_validation_is_not_validated_again() -> None:
    node = meshed()
    item = from_(AUTHOR, 1)
    node.hear(PEERS[0], Rpc(messages=(item,)))
    assert node.hear(PEERS[1], Rpc(messages=(item, item))) == []


def test_an_ignored_message_ends_here_and_is_nobodys_fault() -> None:
    node = meshed()
    item = from_(AUTHOR, 1)
    node.hear(PEERS[0], Rpc(messages=(item,)))
    assert node.machine.validated(item.id, Verdict.IGNORE, node.now) == []
    assert node.machine.score(PEERS[0]) >= 0
    assert node.tell(PEERS[1], item) == []


def test_three_invalid_messages_in_a_minute_get_a_peer_dropped() -> None:
    node = meshed()
    found = []
    for number in range(4):
        for item in validations(node.hear(PEERS[0], Rpc(messages=(from_(AUTHOR, number),)))):
            found += dropped(node.machine.validated(item.id, Verdict.REJECT, node.now))
        node.wait(5)
    assert found == [PEERS[0]]
    assert PEERS[0] not in node.mesh


def test_one_invalid_message_is_forgotten_after_some_minutes() -> None:
    node = meshed()
    item = from_(AUTHOR, 1)
    node.hear(PEERS[19], Rpc(messages=(item,)))
    node.machine.validated(item.id, Verdict.REJECT, node.now)
    assert node.machine.score(PEERS[19]) == pytest.approx(-10, abs=0.1)
    node.wait(600)
    assert node.machine.score(PEERS[19]) >= 0


def test_all_that_sent_the_same_invalid_bytes_are_to_blame() -> None:
    node = meshed()
    item = from_(AUTHOR, 1)
    for peer in PEERS[:3]:
        node.hear(peer, Rpc(messages=(item,)))
    node.machine.validated(item.id, Verdict.REJECT, node.now)
    assert [node.machine.score(peer) < 0 for peer in PEERS[:4]] == [True, True, True, False]


def test_a_forgery_that_comes_first_does_not_keep_the_true_message_out() -> None:
    node = meshed()
    true = from_(AUTHOR, 1, b"true")
    node.hear(PEERS[0], Rpc(messages=(forged(1, b"forged"),)))
    assert node.hear(PEERS[1], Rpc(messages=(true,))) == []
    effects = node.machine.validated(true.id, Verdict.REJECT, node.now)
    assert [(v.peer, v.message) for v in validations(effects)] == [(PEERS[1], true)]
    effects = node.machine.validated(true.id, Verdict.ACCEPT, node.now)
    assert len(told(effects, true)) == len(node.mesh - {PEERS[1]})
    assert node.machine.score(PEERS[0]) < 0 <= node.machine.score(PEERS[1])


def test_a_rejected_id_can_still_be_delivered() -> None:
    node = meshed()
    node.hear(PEERS[0], Rpc(messages=(forged(1, b"forged"),)))
    node.machine.validated(from_(AUTHOR, 1).id, Verdict.REJECT, node.now)
    true = from_(AUTHOR, 1)
    assert told(node.tell(PEERS[1], true), true)


def test_forgeries_under_one_id_are_bounded() -> None:
    node = meshed()
    for number in range(100):
        node.hear(PEERS[0], Rpc(messages=(forged(1, b"%d" % number),)))
    rounds, effects = 0, node.machine.validated(forged(1, b"").id, Verdict.REJECT, node.now)
    while validations(effects):
        rounds += 1
        effects = node.machine.validated(forged(1, b"").id, Verdict.REJECT, node.now)
    assert rounds == 3


def test_an_outcome_that_nobody_waits_for_is_ignored() -> None:
    node = meshed()
    assert node.machine.validated(b"unknown", Verdict.ACCEPT, node.now) == []


def test_messages_of_other_topics_are_not_read() -> None:
    node = meshed()
    assert node.tell(PEERS[0], from_(AUTHOR, 1, topic="other")) == []


def test_our_own_message_from_before_a_restart_is_not_news() -> None:
    node = meshed()
    assert node.tell(PEERS[0], from_(ME, 1)) == []
    assert node.machine.score(PEERS[0]) >= 0


@pytest.mark.parametrize(("author", "seqno"), [(b"", b"12345678"), (author_of(AUTHOR), b"")])
def test_a_message_without_author_or_number_is_invalid(author: bytes, seqno: bytes) -> None:
    node = meshed()
    item = message(author=author, seqno=seqno, topic=TOPIC, data=b"x")
    assert node.tell(PEERS[0], item) == []
    assert node.machine.score(PEERS[0]) < 0


def test_a_message_over_its_topics_limit_is_invalid() -> None:
    node = meshed(topic_limits={TOPIC: TopicLimits(payload_max=100)})
    assert node.tell(PEERS[0], from_(AUTHOR, 1, bytes(101))) == []
    assert node.machine.score(PEERS[0]) < 0
    assert told(node.tell(PEERS[1], from_(AUTHOR, 1, bytes(100))), from_(AUTHOR, 1, bytes(100)))


def test_new_messages_through_one_peer_have_a_rate() -> None:
    node = meshed(topic_limits={TOPIC: TopicLimits(messages_per_s=10.0, burst=20.0)})
    flood = [from_(AUTHOR, number) for number in range(1000)]
    assert len(validations(node.hear(PEERS[0], Rpc(messages=tuple(flood))))) == 20
    node.wait(1)
    assert len(validations(node.hear(PEERS[0], Rpc(messages=tuple(flood[20:]))))) == 10
    # Not seen, so others can still deliver it.
    assert told(node.tell(PEERS[1], flood[999]), flood[999])


def test_what_is_being_validated_is_bounded_in_number_and_bytes() -> None:
    node = meshed(pending_max=5)
    items = tuple(from_(AUTHOR, number) for number in range(10))
    assert len(validations(node.hear(PEERS[0], Rpc(messages=items)))) == 5
    node = meshed(pending_bytes=50_000)
    items = tuple(from_(AUTHOR, number, LARGE) for number in range(10))
    assert len(validations(node.hear(PEERS[0], Rpc(messages=items)))) == 2
    for item in items[:2]:
        node.machine.validated(item.id, Verdict.IGNORE, node.now)
    assert len(validations(node.hear(PEERS[0], Rpc(messages=items)))) == 2


def test_an_id_is_forgotten_after_two_minutes_and_when_there_are_too_many() -> None:
    node = meshed(seen_max=3)
    first = from_(AUTHOR, 0)
    node.tell(PEERS[0], first)
    node.wait(100)
    assert node.tell(PEERS[0], first) == []
    node.wait(30)
    assert validations(node.tell(PEERS[0], first))
    for number in range(1, 4):
        node.tell(PEERS[0], from_(AUTHOR, number))
    assert validations(node.tell(PEERS[0], first))


def test_our_own_message_goes_to_all_subscribers() -> None:
    node = meshed()
    mine = from_(ME, 1)
    assert told(node.machine.publish(mine, node.now), mine) == dict.fromkeys(node.peers, 1)
    assert node.tell(PEERS[0], mine) == []


def test_our_own_message_goes_to_nobody_below_the_publish_threshold() -> None:
    node = meshed()
    node.machine.set_application_score(PEERS[0], -60.0)
    node.machine.set_application_score(PEERS[1], -40.0)
    node.wait(1)
    mine = from_(ME, 1)
    assert set(told(node.machine.publish(mine, node.now), mine)) == set(node.peers) - {PEERS[0]}


def test_we_may_publish_without_subscribing() -> None:
    node = Node(20, subscribes=False)
    mine = from_(ME, 1)
    assert len(told(node.machine.publish(mine, node.now), mine)) == 20
    large = from_(ME, 2, LARGE)
    effects = node.machine.publish(large, node.now)
    assert len(told(effects, large)) == 6
    assert len(announced(effects)) == 6
    assert len(announced(node.wait(0.2))) >= 6  # and gossip, as for a topic of ours


# IDONTWANT.


def test_a_copy_of_4_kib_is_refused_beforehand() -> None:
    node = meshed()
    sender = sorted(node.mesh)[0]
    effects = node.hear(sender, Rpc(messages=(from_(AUTHOR, 1, bytes(4096)),)))
    assert set(unwanted(effects)) == node.mesh - {sender}
    assert unwanted(node.tell(sender, from_(AUTHOR, 2, bytes(4095)))) == []


def test_idontwant_is_for_peers_that_speak_1_2() -> None:
    node = Node()
    node.up(PEERS[0], version="/meshsub/1.1.0")
    node.up(PEERS[1], version="/meshsub/1.2.0")
    node.wait(0.2)
    effects = node.hear(PEERS[2], Rpc())
    node.up(PEERS[2])
    effects = node.hear(PEERS[2], Rpc(messages=(from_(AUTHOR, 1, bytes(4096)),)))
    assert unwanted(effects) == [PEERS[1]]


def test_a_peer_that_does_not_want_a_message_does_not_get_it() -> None:
    node = meshed()
    refuser, sender, *rest = sorted(node.mesh)
    item = from_(AUTHOR, 1)
    node.hear(refuser, Rpc(idontwant=(item.id,)))
    assert set(told(node.tell(sender, item), item)) == set(rest)


def test_idontwant_of_one_message_is_about_that_message() -> None:
    node = meshed()
    refuser, sender, *rest = sorted(node.mesh)
    node.hear(refuser, Rpc(idontwant=(from_(AUTHOR, 1).id,)))
    item = from_(AUTHOR, 2)
    assert set(told(node.tell(sender, item), item)) == {refuser, *rest}


def test_idontwant_is_forgotten() -> None:
    node = meshed()
    refuser, sender, *rest = sorted(node.mesh)
    item = from_(AUTHOR, 1)
    node.hear(refuser, Rpc(idontwant=(item.id,)))
    node.wait(7)
    assert set(told(node.tell(sender, item), item)) == {refuser, *rest}


def test_a_flood_of_idontwant_is_bounded() -> None:
    node = meshed()
    state = node.machine._peers[PEERS[0]]
    for beat in range(5):
        for n in range(100):
            names = tuple(b"%d %d %d" % (beat, n, i) for i in range(1000))
            assert node.hear(PEERS[0], Rpc(idontwant=names)) == []
        assert len(state.known) <= node.params.dont_wants
        node.wait(1)
    # Beyond its budget a heartbeat, what it says is not read.
    item = from_(AUTHOR, 1)
    node.hear(PEERS[0], Rpc(idontwant=(b"x",) * node.params.dont_wants))
    node.hear(PEERS[0], Rpc(idontwant=(item.id,)))
    assert item.id not in state.known


# Large messages.


def test_a_large_message_that_is_early_is_pushed_to_the_mesh() -> None:
    node = meshed()
    sender, *rest = sorted(node.mesh)
    item = from_(AUTHOR, 1, LARGE)
    assert set(told(node.tell(sender, item), item)) == set(rest)


def test_one_that_a_member_announced_before_is_pushed_to_fewer() -> None:
    node = meshed()
    sender, ahead, *rest = sorted(node.mesh)
    item = from_(AUTHOR, 1, LARGE)
    node.announce(ahead, item.id)
    effects = node.tell(sender, item)
    assert len(told(effects, item)) == 3
    assert set(told(effects, item)) | set(announced(effects)) == set(rest)


def test_one_that_two_members_announced_is_only_announced() -> None:
    node = meshed()
    sender, first, second, *rest = sorted(node.mesh)
    item = from_(AUTHOR, 1, LARGE)
    node.announce(first, item.id)
    node.hear(second, Rpc(idontwant=(item.id,)))
    effects = node.tell(sender, item)
    assert told(effects, item) == {}
    assert announced(effects) == dict.fromkeys(rest, (item.id,))


def test_one_that_we_had_to_ask_for_counts_its_announcer() -> None:
    node = meshed()
    sender, *rest = sorted(node.mesh)
    item = from_(AUTHOR, 1, LARGE)
    node.announce(sender, item.id)
    node.wait(0.1)
    effects = node.tell(sender, item)
    assert len(told(effects, item)) == 3
    assert len(announced(effects)) == len(rest) - 3


def test_a_large_message_of_ours_goes_to_the_mesh_and_is_announced_to_as_many_more() -> None:
    node = meshed()
    mine = from_(ME, 1, LARGE)
    effects = node.machine.publish(mine, node.now)
    assert set(told(effects, mine)) == node.mesh
    assert len(announced(effects)) == 6
    assert node.mesh.isdisjoint(announced(effects))


def test_announcements_of_a_burst_go_together_eight_times_a_heartbeat_at_most() -> None:
    node = meshed()
    sender, first, second, peer, *_ = sorted(node.mesh)
    node.wait(1)
    effects, sent = [], []
    for number in range(50):
        item = from_(AUTHOR, number, LARGE)
        node.announce(first, item.id)
        node.announce(second, item.id)
        sent.append(item.id)
        effects += node.tell(sender, item)
        effects += node.wait(0.02)
    effects += node.wait(0.2)
    to_one = [rpc for other, rpc in sends(effects) if other == peer and rpc.ihave]
    assert len(to_one) <= 10
    assert set(sent) <= {name for rpc in to_one for ihave in rpc.ihave for name in ihave.ids}


def test_an_announcement_that_waited_is_not_sent_to_who_has_the_message_by_then() -> None:
    node = meshed()
    sender, first, second, third, *rest = sorted(node.mesh)
    for number in range(2):
        item = from_(AUTHOR, number, LARGE)
        for peer in (first, second):
            node.announce(peer, item.id)
        node.tell(sender, item)
    node.machine._peers[third].known.add(item.id)
    found = announced(node.wait(0.2))
    assert set(found).issuperset(rest)
    assert third not in found
