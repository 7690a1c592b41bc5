"""With whom holes are punched, and when: scripts for the machine."""

import pytest

from node.reach.punch import (
    ASKS,
    ASKS_PER_PEER,
    AT_ONCE_MAX,
    RECORDS_MAX,
    REST_MAX_S,
    REST_S,
    Punches,
)
from wire.ids import PeerId

ALICE, BOB, CAROL = PeerId("alice"), PeerId("bob"), PeerId("carol")
MANY = [PeerId(f"peer{number:03}") for number in range(200)]


def fails(machine: Punches, peer: PeerId, now: float) -> float:
    """One try that fails; returns when the next one may begin."""
    assert machine.start(now) == [peer]
    machine.ended(peer, is_direct=False, now=now)
    return machine.deadline


def test_three_tries_then_a_rest_that_doubles_to_half_an_hour() -> None:
    machine = Punches(BOB)
    machine.set_wanted([ALICE], 0.0)
    now, gaps = 0.0, list[float]()
    for _ in range(24):
        due = fails(machine, ALICE, now)
        gaps.append(due - now)
        now = due
    assert gaps[:9] == [1.0, 3.0, REST_S, 1.0, 3.0, 2 * REST_S, 1.0, 3.0, 4 * REST_S]
    assert gaps[-1] == REST_MAX_S
    assert machine.start(now - 1.0) == []


def test_new_addresses_of_either_side_begin_anew_at_once() -> None:
    machine = Punches(BOB)
    machine.set_wanted([ALICE, CAROL], 0.0)
    for now in (0.0, 1.0, 4.0):
        assert sorted(machine.start(now)) == [ALICE, CAROL]
        for peer in (ALICE, CAROL):
            machine.ended(peer, is_direct=False, now=now)
    machine.moved(ALICE, 10.0)
    assert fails(machine, ALICE, 10.0) == 11.0
    machine.moved(None, 10.5)
    assert sorted(machine.start(10.5)) == [ALICE, CAROL]


def test_an_address_that_changes_during_a_try_counts_after_it() -> None:
    machine = Punches(BOB)
    machine.set_wanted([ALICE], 0.0)
    assert machine.start(0.0) == [ALICE]
    machine.moved(None, 1.0)
    assert machine.start(1.0) == []
    machine.ended(ALICE, is_direct=False, now=2.0)
    assert machine.start(2.0) == [ALICE]


def test_who_is_direct_or_gone_is_not_tried_again() -> None:
    machine = Punches(BOB)
    machine.set_wanted([ALICE], 0.0)
    assert machine.start(0.0) == [ALICE]
    machine.set_wanted([], 0.5)
    machine.ended(ALICE, is_direct=True, now=0.5)
    assert machine.start(1e6) == []
    assert (machine.records[ALICE].outcome, machine.records[ALICE].took_s) == ("direct", 0.5)
    assert machine.outcomes == {"direct": 1}


def test_few_at_a_time_the_others_follow() -> None:
    machine = Punches(BOB)
    machine.set_wanted(MANY[:20], 0.0)
    first = machine.start(0.0)
    assert len(first) == AT_ONCE_MAX
    assert machine.start(0.0) == []
    assert not machine.asked(MANY[50], 0.0)
    machine.ended(first[0], is_direct=False, now=0.5)
    assert len(machine.start(0.5)) == 1


@pytest.mark.parametrize(("own", "other", "yields"), [(BOB, ALICE, True), (BOB, CAROL, False)])
def test_of_two_that_begin_at_once_one_yields(own: PeerId, other: PeerId, *, yields: bool) -> None:
    machine = Punches(own)
    machine.set_wanted([other], 0.0)
    assert machine.start(0.0) == [other]
    assert machine.asked(other, 0.0) == yields


def test_a_peer_that_asks_again_and_again_is_refused() -> None:
    machine = Punches(BOB)
    granted = 0
    for second in range(600):
        if machine.asked(ALICE, float(second)):
            granted += 1
            machine.answered(ALICE, is_direct=False, now=float(second))
    assert granted <= ASKS_PER_PEER + 600 / 20


def test_many_names_of_one_do_not_make_us_a_scanner() -> None:
    machine = Punches(BOB)
    granted = 0
    for step in range(6000):
        peer, now = PeerId(f"sybil{step}"), step / 100
        if machine.asked(peer, now):
            granted += 1
            machine.answered(peer, is_direct=False, now=now)
    assert granted <= ASKS + 60
    assert len(machine.records) <= RECORDS_MAX


def test_asks_that_lead_to_the_peer_cost_nothing() -> None:
    machine = Punches(BOB)
    for peer in MANY:
        assert machine.asked(peer, 0.0)
        machine.answered(peer, is_direct=True, now=0.0)


def test_one_ask_at_a_time() -> None:
    machine = Punches(BOB)
    assert machine.asked(ALICE, 0.0)
    assert not machine.asked(ALICE, 0.0)
    machine.set_wanted([ALICE], 0.0)
    assert machine.start(0.0) == []
    machine.answered(ALICE, is_direct=False, now=1.0)
    assert machine.start(1.0) == [ALICE]


def test_a_peer_that_connects_anew_all_the_time_gets_no_more_tries() -> None:
    machine = Punches(BOB)
    tries = 0
    for second in range(600):
        now = float(second)
        machine.set_wanted([ALICE], now)
        for peer in machine.start(now):
            tries += 1
            machine.ended(peer, is_direct=False, now=now)
        machine.set_wanted([], now)
    assert 6 <= tries <= ASKS_PER_PEER + 600 / 20


def test_many_that_fail_do_not_keep_us_busy_for_ever() -> None:
    machine = Punches(BOB)
    machine.set_wanted(MANY, 0.0)
    now, tries = 0.0, 0
    while now < 60.0:
        while begun := machine.start(now):
            tries += len(begun)
            for peer in begun:
                machine.ended(peer, is_direct=False, now=now)
        assert machine.deadline > now
        now = machine.deadline
    assert tries <= ASKS + 60 + 1
    assert tries > ASKS


def test_a_success_gives_back_its_own_try_and_no_other() -> None:
    machine = Punches(BOB)
    for number in range(int(ASKS_PER_PEER)):
        assert machine.asked(ALICE, 0.0)
        machine.answered(ALICE, is_direct=number == ASKS_PER_PEER - 1, now=0.0)
    assert machine.asked(ALICE, 0.0)
    machine.answered(ALICE, is_direct=False, now=0.0)
    assert not machine.asked(ALICE, 0.0)


def test_while_a_try_goes_on_there_is_no_next_one() -> None:
    machine = Punches(BOB)
    assert machine.next_at(ALICE) is None
    machine.set_wanted([ALICE], 0.0)
    assert machine.next_at(ALICE) == 0.0
    assert machine.start(0.0) == [ALICE]
    assert machine.next_at(ALICE) is None
    machine.ended(ALICE, is_direct=False, now=0.5)
    assert machine.next_at(ALICE) == 1.5
