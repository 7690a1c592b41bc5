"""Peer scores: each parameter of the 1.1 specification alone, then what thresholds lead to."""

import pytest

from protocols.channels.params import ScoreParams, TopicScore
from protocols.channels.scoring import Scores
from tests.unit.gossipsub import PEERS, TOPIC, Node, dropped, from_

BOB, CAROL = PEERS[:2]
NOTHING = TopicScore(in_mesh_weight=0.0, first_weight=0.0, invalid_weight=0.0)


def scores(**params: object) -> Scores:
    """Scores of Bob."""
    found = Scores(ScoreParams(**params))  # type: ignore[arg-type]
    found.up(BOB, "")
    return found


def topic(**rules: float) -> TopicScore:
    """Rules of a topic in which only what is named counts."""
    return TopicScore(
        **({"in_mesh_weight": 0.0, "first_weight": 0.0, "invalid_weight": 0.0} | rules)
    )


def test_p1_time_in_the_mesh_counts_up_to_a_cap() -> None:
    found = scores(topic=topic(in_mesh_weight=0.5, in_mesh_cap_s=10.0))
    found.graft(BOB, TOPIC, 0.0)
    assert [found.value(BOB, at) for at in (0.0, 4.0, 10.0, 99.0)] == [0, 2, 5, 5]
    found.prune(BOB, TOPIC, 99.0)
    assert found.value(BOB, 99.0) == 0


def test_p2_first_deliveries_count_up_to_a_cap_and_fade() -> None:
    found = scores(topic=topic(first_weight=2.0, first_cap=3.0, first_decay=0.5))
    values = list[float]()
    for _ in range(4):
        found.first(BOB, TOPIC)
        values.append(found.value(BOB, 0.0))
    assert values == [2, 4, 6, 6]
    found.decay(0.0)
    assert found.value(BOB, 0.0) == 3


DEFICIT = topic(mesh_weight=-1.0, mesh_threshold=4.0, mesh_activation_s=10.0, mesh_window_s=0.1)


def test_p3_is_off_by_default() -> None:
    found = scores()
    assert not found.counts_copies
    found.graft(BOB, TOPIC, 0.0)
    assert found.value(BOB, 1000.0) >= 0


def test_p3_a_deficit_of_deliveries_counts_squared_after_the_activation() -> None:
    found = scores(topic=DEFICIT)
    assert found.counts_copies
    found.graft(BOB, TOPIC, 0.0)
    assert [found.value(BOB, at) for at in (0.0, 9.9, 10.0)] == [0, 0, -16]
    found.first(BOB, TOPIC)
    assert found.value(BOB, 10.0) == -9


def test_p3_copies_count_within_the_window_only() -> None:
    found = scores(topic=DEFICIT)
    found.graft(BOB, TOPIC, 0.0)
    found.copy(BOB, TOPIC, 0.05)
    found.copy(BOB, TOPIC, 0.15)
    assert found.value(BOB, 10.0) == -9


def test_p3_counts_members_of_the_mesh_only() -> None:
    found = scores(topic=DEFICIT)
    assert found.value(BOB, 1000.0) == 0


def test_p3b_a_deficit_stays_when_the_peer_is_pruned() -> None:
    rules = topic(
        mesh_threshold=4.0, mesh_activation_s=10.0, failure_weight=-1.0, failure_decay=0.5
    )
    found = scores(topic=rules)
    found.graft(BOB, TOPIC, 0.0)
    found.prune(BOB, TOPIC, 20.0)
    assert found.value(BOB, 20.0) == -16
    found.decay(20.0)
    assert found.value(BOB, 20.0) == -8


def test_p3_through_the_machine() -> None:
    node = Node(6, scores=ScoreParams(topic=DEFICIT))
    node.wait(0.2)
    item = from_(PEERS[50], 1)
    node.tell(PEERS[0], item)
    node.now += 0.05
    node.tell(PEERS[1], item)
    node.now += 0.1
    node.tell(PEERS[2], item)
    node.wait(10)
    by_peer = [round(node.machine.score(peer), 1) for peer in PEERS[:4]]
    assert by_peer[0] == by_peer[1] > by_peer[2] == by_peer[3]


def test_p4_invalid_messages_count_squared_and_fade() -> None:
    found = scores(topic=topic(invalid_weight=-1.0, invalid_decay=0.5))
    for _ in range(3):
        found.invalid(BOB, TOPIC)
    assert found.value(BOB, 0.0) == -9
    found.decay(0.0)
    assert found.value(BOB, 0.0) == -2.25


def test_p5_the_application_says_what_it_thinks() -> None:
    found = scores(application_weight=2.0)
    found.set_application(BOB, -3.0)
    assert found.value(BOB, 0.0) == -6


def test_p6_many_peers_at_one_address_count_squared() -> None:
    found = Scores(ScoreParams(address_weight=-1.0, address_threshold=2))
    for peer in PEERS[:5]:
        found.up(peer, "203.0.113.7")
    found.up(PEERS[5], "203.0.113.8")
    assert found.value(PEERS[0], 0.0) == -9
    assert found.value(PEERS[5], 0.0) == 0
    found.down(PEERS[4], 0.0)
    assert found.value(PEERS[0], 0.0) == -4


def test_merits_do_not_wash_faults_away_at_the_door() -> None:
    found = scores()
    for _ in range(40):
        found.first(BOB, TOPIC)
    found.invalid(BOB, TOPIC)
    assert found.value(BOB, 0.0) > 0
    found.down(BOB, 0.0)
    found.up(BOB, "")
    assert found.value(BOB, 0.0) == -10


def test_p6_peers_without_a_public_address_are_not_counted() -> None:
    found = Scores(ScoreParams(address_threshold=2))
    for peer in PEERS[:30]:
        found.up(peer, "")
    assert found.value(PEERS[0], 0.0) == 0


def test_p7_broken_rules_count_squared_above_a_threshold_and_fade() -> None:
    found = scores(behaviour_weight=-1.0, behaviour_threshold=2.0, behaviour_decay=0.5)
    found.misbehaved(BOB, 2)
    assert found.value(BOB, 0.0) == 0
    found.misbehaved(BOB, 4)
    assert found.value(BOB, 0.0) == -16
    found.decay(0.0)
    assert found.value(BOB, 0.0) == -1


def test_topics_have_weights_and_a_common_cap() -> None:
    rules = {"a": topic(first_weight=1.0), "b": TopicScore(weight=3.0, in_mesh_weight=0.0)}
    found = scores(topics=rules, topics_cap=5.0)
    found.first(BOB, "a")
    found.first(BOB, "b")
    assert found.value(BOB, 0.0) == 4
    found.first(BOB, "b")
    assert found.value(BOB, 0.0) == 5


def test_small_counters_become_zero() -> None:
    found = scores(zero=0.3, topic=topic(first_weight=1.0, first_decay=0.5))
    found.first(BOB, TOPIC)
    found.decay(0.0)
    assert found.value(BOB, 0.0) == 0.5
    found.decay(0.0)
    assert found.value(BOB, 0.0) == 0


def test_a_bad_score_outlives_the_connection_and_a_good_one_does_not() -> None:
    found = scores(retain_s=100.0)
    found.up(CAROL, "")
    found.invalid(BOB, TOPIC)
    found.first(CAROL, TOPIC)
    bad = found.value(BOB, 0.0)
    for peer in (BOB, CAROL):
        found.down(peer, 0.0)
        found.up(peer, "")
    assert found.value(BOB, 0.0) == bad < 0
    assert found.value(CAROL, 0.0) == 0


def test_a_bad_score_is_forgotten_in_the_end_and_their_number_is_bounded() -> None:
    found = Scores(ScoreParams(retain_s=100.0, retained_max=2))
    for peer in PEERS[:3]:
        found.up(peer, "")
        found.invalid(peer, TOPIC)
        found.down(peer, 0.0)
    found.up(PEERS[0], "")
    assert found.value(PEERS[0], 0.0) == 0  # the oldest made room
    found.up(PEERS[1], "")
    assert found.value(PEERS[1], 0.0) < 0
    found.decay(101.0)
    found.up(PEERS[2], "")
    assert found.value(PEERS[2], 101.0) == 0


def test_who_was_dropped_is_dropped_again_when_it_comes_back() -> None:
    node = Node(5)
    found = dropped(node.machine.broke_framing(BOB, node.now))
    found += dropped(node.machine.broke_framing(BOB, node.now))
    assert found == [BOB]
    node.machine.peer_down(BOB, node.now)
    assert dropped(node.machine.peer_up(BOB, "/meshsub/1.1.0", node.now)) == [BOB]
    node.machine.peer_down(BOB, node.now)
    node.wait(120)
    assert dropped(node.machine.peer_up(CAROL, "/meshsub/1.1.0", node.now)) == []


def test_one_broken_frame_is_a_warning() -> None:
    node = Node(5)
    node.machine.broke_framing(BOB, node.now)
    assert -80 < node.machine.score(BOB) < 0


def test_the_opinion_of_the_application_is_weighed_with_the_next_heartbeat() -> None:
    node = Node(5)
    node.machine.set_application_score(BOB, -100.0)
    assert dropped(node.wait(0.2)) == [BOB]
    node.machine.set_application_score(PEERS[40], 1.0)  # who is not here
    assert node.machine.score(PEERS[40]) == 0


@pytest.mark.parametrize("peers", [1, 40])
def test_an_honest_peer_is_not_scored_down_by_time(peers: int) -> None:
    node = Node(peers)
    node.wait(600)
    assert all(node.machine.score(peer) >= 0 for peer in node.peers)
