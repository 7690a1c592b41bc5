"""Rules of the mesh: one test for each sentence of the specification that we follow."""

import pytest

from protocols.channels.params import ScoreParams, TopicScore
from protocols.channels.wire import Rpc, Subscription
from tests.unit.gossipsub import (
    ME,
    PEERS,
    TOPIC,
    Node,
    dropped,
    from_,
    grafted,
    pruned,
    sends,
)
from wire.errors import UsageError


def test_a_new_peer_learns_our_subscriptions_first() -> None:
    node = Node()
    effects = node.machine.peer_up(PEERS[0], "/meshsub/1.1.0", 0.0)
    assert sends(effects) == [(PEERS[0], Rpc(subscriptions=(Subscription(TOPIC, True),)))]


def test_a_new_subscription_is_told_to_everybody_and_its_mesh_begins_at_once() -> None:
    node = Node(20, subscribes=False)
    effects = node.machine.subscribe(TOPIC, 0.0)
    hello = Rpc(subscriptions=(Subscription(TOPIC, True),))
    assert [peer for peer, rpc in sends(effects) if rpc == hello] == node.peers
    assert set(grafted(effects)) == node.mesh
    assert len(node.mesh) == 6


def test_leaving_prunes_the_mesh_with_the_short_back_off() -> None:
    node = Node(20)
    node.wait(1)
    mesh = node.mesh
    effects = node.machine.unsubscribe(TOPIC, node.now)
    assert pruned(effects) == dict.fromkeys(mesh, 2)
    bye = Rpc(subscriptions=(Subscription(TOPIC, False),))
    assert [peer for peer, rpc in sends(effects) if rpc == bye] == node.peers
    assert node.machine.unsubscribe(TOPIC, node.now) == []


def test_our_own_subscriptions_have_a_limit() -> None:
    node = Node(topics_max=1)
    with pytest.raises(UsageError):
        node.machine.subscribe("more", 0.0)


def test_a_heartbeat_fills_a_mesh_below_d_low_up_to_d() -> None:
    node = Node(20)
    assert set(grafted(node.wait(0.2))) == node.mesh
    assert len(node.mesh) == 6


def test_a_mesh_of_d_low_is_left_alone() -> None:
    node = Node(20)
    node.wait(0.2)
    node.machine.peer_down(sorted(node.mesh)[0], node.now)
    assert grafted(node.wait(5)) == []
    assert len(node.mesh) == 5


def test_a_mesh_above_d_high_is_cut_to_d() -> None:
    node = Node(20)
    node.wait(0.2)
    for peer in node.others[:8]:
        node.graft(peer)  # they are outbound: a full mesh still takes them
    assert len(node.mesh) == 14
    effects = node.wait(1)
    assert len(node.mesh) == 6
    assert pruned(effects).keys().isdisjoint(node.mesh)
    assert set(pruned(effects).values()) == {60}


def test_a_peer_is_not_taken_in_by_the_heartbeat_that_puts_it_out() -> None:
    node = Node(12)
    for peer in node.peers:
        node.graft(peer)
    effects = node.wait(0.2)
    assert len(pruned(effects)) == 6
    assert grafted(effects) == []


def test_the_best_stay_when_a_mesh_is_cut() -> None:
    node = Node(12)
    for peer in node.peers:
        node.graft(peer)
    best = node.peers[7:11]
    for peer in best:
        node.machine.set_application_score(peer, 10.0)
    node.wait(0.2)
    assert len(node.mesh) == 6
    assert node.mesh.issuperset(best)


def test_peers_that_we_dialled_stay_when_a_mesh_is_cut() -> None:
    node = Node(14, inbound=12, d_chosen=0, d_high=14)
    for peer in node.peers:
        node.graft(peer)
    for peer in node.peers[:12]:
        node.machine.set_application_score(peer, 10.0)  # though the others are better
    for peer in PEERS[20:24]:
        node.up(peer)
        node.graft(peer)
    node.wait(0.2)
    assert len(node.mesh) == 6
    assert len(node.mesh - set(node.peers[:12])) == 2


def test_a_mesh_without_peers_that_we_dialled_takes_some() -> None:
    node = Node(20, inbound=6, d_chosen=0)
    for peer in node.peers[:6]:
        node.graft(peer)
    assert len(grafted(node.wait(0.2))) == 2
    assert len(node.mesh.intersection(node.peers[6:])) == 2


def test_a_mesh_of_peers_that_chose_us_takes_some_that_we_choose() -> None:
    node = Node(20)
    for peer in node.peers[:6]:
        node.graft(peer)
    assert len(grafted(node.wait(0.2))) == 3


def test_a_full_mesh_refuses_who_dialled_us() -> None:
    node = Node(20, inbound=20)
    for peer in node.peers[:8]:
        assert pruned(node.graft(peer)) == {}
    assert pruned(node.graft(node.peers[8])) == {node.peers[8]: 60}
    assert node.graft(node.peers[0]) == []  # who is a member stays one


def test_a_graft_makes_a_member_and_is_not_answered() -> None:
    node = Node(1)
    assert node.graft(PEERS[0]) == []
    assert node.mesh == {PEERS[0]}
    assert node.graft(PEERS[0]) == []


def test_a_graft_of_an_unknown_topic_is_not_answered() -> None:
    node = Node(1)
    topics = tuple(f"topic {n}" for n in range(200))
    assert node.hear(PEERS[0], Rpc(graft=topics)) == []
    assert node.machine.score(PEERS[0]) == 0


def test_a_graft_from_a_peer_below_zero_is_refused() -> None:
    node = Node(1)
    node.machine.set_application_score(PEERS[0], -1.0)
    node.wait(0.2)
    assert pruned(node.graft(PEERS[0])) == {PEERS[0]: 60}
    assert node.mesh == frozenset()


def test_members_below_zero_leave_with_the_heartbeat() -> None:
    node = Node(20)
    node.wait(0.2)
    bad = sorted(node.mesh)[0]
    node.machine.set_application_score(bad, -5.0)
    assert pruned(node.wait(1)) == {bad: 60}
    assert bad not in node.mesh


def test_a_peer_that_pruned_us_is_not_asked_again_before_its_back_off() -> None:
    node = Node(1)
    node.wait(0.2)
    node.prune(PEERS[0], backoff_s=30)
    assert node.mesh == frozenset()
    assert grafted(node.wait(30)) == []
    assert grafted(node.wait(2)) == [PEERS[0]]


def test_a_shorter_back_off_does_not_end_a_longer_one() -> None:
    node = Node(1)
    node.wait(0.2)
    node.prune(PEERS[0], backoff_s=100)
    assert pruned(node.graft(PEERS[0])) == {PEERS[0]: 60}
    assert grafted(node.wait(99)) == []
    assert grafted(node.wait(3)) == [PEERS[0]]


def test_a_back_off_that_is_not_told_is_a_minute() -> None:
    node = Node(1)
    node.wait(0.2)
    node.prune(PEERS[0])
    assert grafted(node.wait(60)) == []
    assert grafted(node.wait(2)) == [PEERS[0]]


def test_a_back_off_of_a_peers_lasts_an_hour_at_most() -> None:
    node = Node(1)
    node.wait(0.2)
    node.prune(PEERS[0], backoff_s=1 << 31)
    assert grafted(node.wait(3590)) == []
    assert grafted(node.wait(20)) == [PEERS[0]]


def test_a_graft_in_back_off_is_refused_and_counts_against_the_peer() -> None:
    node = Node(20)
    node.wait(0.2)
    node.prune(node.peers[0])
    node.wait(15)
    before = node.machine._scores._records[PEERS[0]].behaviour
    assert pruned(node.graft(PEERS[0])) == {PEERS[0]: 60}
    assert node.machine._scores._records[PEERS[0]].behaviour == before + 1
    node.graft(PEERS[0])  # within ten seconds of that PRUNE: twice
    assert node.machine._scores._records[PEERS[0]].behaviour == before + 3


def test_a_flood_of_grafts_gets_a_peer_dropped() -> None:
    node = Node(20)
    node.wait(0.2)
    spammer = node.others[0]
    node.prune(spammer)
    effects = [e for _ in range(10) for e in node.graft(spammer)]
    assert dropped(effects) == [spammer]
    assert node.graft(spammer) == []  # nothing it says is read any more


def test_a_peer_that_comes_back_finds_its_back_off() -> None:
    node = Node(1)
    node.wait(0.2)
    node.prune(PEERS[0])
    node.machine.peer_down(PEERS[0], node.now)
    node.up(PEERS[0])
    assert grafted(node.wait(5)) == []


def test_a_peer_that_was_restarted_breaks_no_back_off_that_it_cannot_know() -> None:
    node = Node(20)
    node.wait(0.2)
    other = node.others[0]
    node.prune(other)
    node.machine.peer_down(other, node.now)
    node.wait(1)
    node.up(other)
    assert pruned(node.graft(other)) == {}
    assert other in node.mesh
    assert node.machine._scores._records[other].behaviour == 0


def test_who_leaves_a_topic_and_comes_back_leaves_those_alone_whom_it_sent_away() -> None:
    node = Node(20)
    node.wait(1)
    before = node.mesh
    node.machine.unsubscribe(TOPIC, node.now)
    effects = node.machine.subscribe(TOPIC, node.now + 0.1)
    assert set(grafted(effects)).isdisjoint(before)
    node.machine.unsubscribe(TOPIC, node.now + 0.2)
    node.wait(60)
    assert not node.machine._left._meshes  # nothing is kept longer than it matters


def test_peers_learn_of_as_many_topics_as_a_node_may_have() -> None:
    node = Node(1)
    topics = [f"topic {number}" for number in range(node.params.topics_max)]
    node.machine.unsubscribe(TOPIC, node.now)
    node.hear(PEERS[0], Rpc(subscriptions=(Subscription(TOPIC, False),)))
    node.hear(PEERS[0], Rpc(subscriptions=tuple(Subscription(topic, True) for topic in topics)))
    assert {node.machine.subscribers(topic) for topic in topics} == {1}


def test_who_is_dropped_stays_out_of_the_mesh_until_it_is_gone() -> None:
    node = Node(1)
    node.machine.broke_framing(PEERS[0], node.now)
    node.machine.broke_framing(PEERS[0], node.now)
    node.machine.set_application_score(PEERS[0], 1e6)
    assert grafted(node.wait(5)) == []


def test_back_offs_of_one_topic_are_bounded() -> None:
    node = Node(50, backoffs_max=10)
    for peer in node.peers:
        node.prune(peer)
    assert len(node.machine._meshes[TOPIC]._backoffs) == 10


def test_who_unsubscribes_leaves_the_mesh() -> None:
    node = Node(1)
    node.wait(0.2)
    node.hear(PEERS[0], Rpc(subscriptions=(Subscription(TOPIC, False),)))
    assert node.mesh == frozenset()
    assert node.machine.subscribers(TOPIC) == 0
    assert grafted(node.wait(5)) == []


def test_who_is_gone_leaves_the_mesh() -> None:
    node = Node(6)
    node.wait(0.2)
    node.machine.peer_down(PEERS[0], node.now)
    assert PEERS[0] not in node.mesh
    assert node.machine.subscribers(TOPIC) == 5


def test_a_peers_subscriptions_are_bounded() -> None:
    node = Node(1)
    flood = tuple(Subscription(f"t{n}", True) for n in range(1000))
    node.hear(PEERS[0], Rpc(subscriptions=flood))
    node.hear(PEERS[0], Rpc(subscriptions=tuple(Subscription(s.topic, False) for s in flood)))
    node.hear(PEERS[0], Rpc(subscriptions=flood))
    known = sum(node.machine.subscribers(f"t{n}") for n in range(1000))
    assert known == node.params.peer_topics_max - 1  # and `TOPIC`


def test_peers_are_bounded() -> None:
    node = Node(3, peers_max=3)
    assert dropped(node.machine.peer_up(PEERS[3], "/meshsub/1.1.0", 0.0)) == [PEERS[3]]


def test_a_poor_mesh_looks_for_better_peers_now_and_then() -> None:
    poor = ScoreParams(topic=TopicScore(in_mesh_weight=0.0))
    node = Node(20, opportunistic_beats=10, scores=poor)
    node.wait(0.2)
    better = node.others[:3]
    for n in range(5):
        for peer in better:
            node.tell(peer, from_(peer, n))
    node.wait(8)
    assert len(node.mesh) == 6
    assert len(grafted(node.wait(1.5))) == 2
    assert len(node.mesh.intersection(better)) == 2


def test_a_good_mesh_does_not() -> None:
    node = Node(20, opportunistic_beats=10)
    node.wait(0.2)
    for peer in node.mesh:
        node.machine.set_application_score(peer, 5.0)
    node.machine.set_application_score(node.others[0], 50.0)
    assert grafted(node.wait(12)) == []


def test_the_first_heartbeat_comes_soon_and_the_others_each_second() -> None:
    node = Node()
    assert node.machine.deadline == float("inf")
    node.up(PEERS[0])
    assert node.machine.deadline == pytest.approx(0.1)
    node.wait(0.1)
    assert node.machine.deadline == pytest.approx(1.1)


def test_a_machine_that_slept_does_not_catch_up_beat_by_beat() -> None:
    node = Node(5)
    node.wait(0.2)
    node.machine.tick(1000.0)
    assert node.machine.deadline == 1001.0


def test_who_is_unknown_is_not_heard() -> None:
    node = Node(1)
    assert node.graft(PEERS[5]) == []
    assert node.tell(PEERS[5], from_(PEERS[5], 1)) == []
    assert node.machine.peer_down(PEERS[5], 0.0) == []
    assert node.machine.score(ME) == 0
