"""Whom we stay connected to when there are more members than places."""

from random import Random

from node.kept import KEPT_MAX, MET_MAX, REST_S, TRIES_MAX, TURN_S, Kept
from wire.ids import PeerId


def peers(prefix: str, count: int) -> list[PeerId]:
    return [PeerId(f"{prefix}{number}") for number in range(count)]


def test_in_a_small_swarm_everybody_is_kept_however_long_it_does_not_answer() -> None:
    kept, members = Kept(Random(1)), peers("m", KEPT_MAX)
    assert kept.choose(members, set(), 0.0) == (set(members), set())
    for now in range(0, 5000, 10):
        assert kept.choose(members, set(), float(now)) == (set(), set())


def test_invented_members_do_not_take_the_places_of_those_we_have_met() -> None:
    kept, friends, invented = Kept(Random(1)), peers("friend", 10), peers("x", 500)
    kept.choose(invented, set(), 0.0)
    kept.choose(invented + friends, set(friends), 10.0)
    assert kept.peers >= set(friends)
    for now in range(20, 2000, 10):
        kept.choose(invented + friends, set(), float(now))  # a cut: still they are preferred
        assert kept.peers >= set(friends)
        assert len(kept.peers) == KEPT_MAX


def test_a_newcomer_gets_its_turn_among_many_invented_members() -> None:
    for seed in range(5):
        kept, invented = Kept(Random(seed)), peers("x", 200)
        late, seen = PeerId("late"), False
        for step in range(int(200 / KEPT_MAX * TURN_S / 10) + 40):
            kept.choose([*invented, late], set(), step * 10.0)
            seen = seen or late in kept.peers
        assert seen, f"seed {seed}"


def test_places_are_left_for_newcomers_when_we_know_many() -> None:
    kept, friends, late = Kept(Random(1)), peers("friend", 100), peers("late", 8)
    kept.choose(friends, set(friends), 0.0)
    assert len(kept.peers) == KEPT_MAX
    kept.choose(friends + late, set(friends), 10.0)
    assert len(kept.peers) == KEPT_MAX
    assert kept.peers >= set(late)
    assert len(kept.peers & set(friends)) == MET_MAX


def test_who_was_not_there_for_some_turns_is_left_alone_for_a_while() -> None:
    kept, invented = Kept(Random(1)), peers("x", KEPT_MAX + 1)
    now, end = 0.0, TRIES_MAX * 3 * TURN_S
    while now < end:
        kept.choose(invented, set(), now)
        now += 10.0
    kept.choose(invented, set(), now)
    assert kept.peers == set()
    kept.choose(invented, set(), now + REST_S)
    assert kept.peers


def test_who_was_here_stays_after_its_lease_until_the_place_is_needed() -> None:
    kept, friend, stranger = Kept(Random(1)), PeerId("friend"), PeerId("stranger")
    kept.choose([friend, stranger], {friend}, 0.0)
    assert kept.choose([], set(), 100.0) == (set(), {stranger})
    others = peers("m", KEPT_MAX)
    assert kept.choose(others, set(), 200.0) == (set(others), {friend})
