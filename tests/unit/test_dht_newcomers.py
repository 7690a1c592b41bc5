"""Whom a node of the DHT takes in: strangers are asked first, few at a time."""

from dataclasses import replace

from dht.checks import (
    AGAIN_S,
    IN_FLIGHT_MAX,
    KNOCK_S,
    KNOCKS_MAX,
    SILENT_MAX,
    WAITING_MAX,
    Checks,
)
from dht.limits import TOO_MANY
from dht.messages import (
    FindNode,
    Ping,
    Pong,
    Stored,
)
from dht.records import FUTURE_MAX_MS
from tests.unit.dht_one import NAME, NOW, US, answer, asked, author, knowing, later, node, word
from tests.unit.dht_swarm import DAY_MS, WALL_MS


def test_a_stranger_that_asks_us_is_asked_at_its_address_before_it_comes_in() -> None:
    us, stranger = node(), word(1)
    us.received(stranger.peer, stranger, FindNode(NAME), NOW)
    (check,) = asked(us.effects())
    assert (check.contact, check.request, check.is_check) == (stranger, Ping(), True)
    assert stranger.peer not in us.table
    answer(us, check, Pong())
    assert stranger.peer in us.table
    us.received(stranger.peer, stranger, FindNode(NAME), NOW)
    assert us.effects() == []  # it is there: nothing to ask


def test_a_stranger_that_answers_where_nobody_knows_stays_outside() -> None:
    us, stranger = node(), word(1)
    us.peer_up(stranger, NOW)
    (check,) = asked(us.effects())
    us.answered(check.number, Pong(), stranger, None, NOW)
    assert stranger.peer not in us.table


def test_clients_strangers_words_and_false_times_are_not_asked_in() -> None:
    us = node()
    us.received(author(1).peer, None, FindNode(NAME), NOW)  # sends no word: a client
    us.received(author(1).peer, word(2), FindNode(NAME), NOW)  # another's word
    us.peer_up(US.contact(WALL_MS), NOW)  # ourselves
    future = replace(word(3), issued_ms=WALL_MS + FUTURE_MAX_MS + 1)
    us.peer_up(future, NOW)
    us.peer_up(replace(word(3), issued_ms=WALL_MS - DAY_MS), NOW)
    assert us.effects() == []


def test_who_answers_without_a_word_is_no_server_but_in_a_public_dht() -> None:
    for is_public in (False, True):
        us = node(is_public=is_public)
        us.peer_up(word(1), NOW)
        (check,) = asked(us.effects())
        us.answered(check.number, Pong(), None, word(1).addrs[0], NOW)
        assert (author(1).peer in us.table) == is_public


def test_an_answer_in_the_name_of_another_brings_nobody_in() -> None:
    us = node()
    us.peer_up(word(1), NOW)
    (check,) = asked(us.effects())
    us.answered(check.number, Pong(), word(2), word(2).addrs[0], NOW)
    assert len(us.table) == 0


def test_a_peer_that_moved_is_asked_at_its_new_address() -> None:
    us = knowing(1)
    again = replace(word(0), seq=word(0).seq + 1)
    us.peer_up(again, NOW)
    us.peer_up(replace(word(0), seq=1, addrs=("/ip4/10.8.8.8/tcp/1",)), NOW)
    assert us.effects() == []  # signed anew, at the same address; and an older word
    moved = replace(again, addrs=("/ip4/10.9.9.9/tcp/1",))
    us.received(moved.peer, moved, FindNode(NAME), NOW)
    assert us.table.get(moved.peer) == word(0)  # until it answered there
    (check,) = asked(us.effects())
    answer(us, check, Pong())
    assert us.table.get(moved.peer) == moved


def test_an_entry_that_asks_us_is_renewed_unless_it_did_not_answer() -> None:
    us = knowing(2)
    us.find_closest(NAME, NOW)
    first, second = asked(us.effects())
    us.failed(first.number, "timeout", NOW)
    for ask in (first, second):
        us.received(ask.contact.peer, ask.contact, Ping(), later(60))
    seen = {entry.contact.peer: entry.seen_s for entry in us.table.entries()}
    assert seen == {first.contact.peer: NOW.s, second.contact.peer: later(60).s}


def test_checks_that_are_refused_or_fail_make_room_for_others() -> None:
    us = node()
    for number in range(3 * IN_FLIGHT_MAX):
        us.peer_up(word(number), NOW)
    for _ in range(2):
        for ask in asked(us.effects()):
            answer(us, ask, Stored(0, TOO_MANY))
        for ask in asked(us.effects()):
            us.failed(ask.number, "timeout", NOW)
    assert us.stats.checks == 3 * IN_FLIGHT_MAX
    us.peer_up(word(99), NOW)
    (check,) = asked(us.effects())
    assert check.contact == word(99)


def test_few_silent_strangers_are_remembered() -> None:
    checks = Checks()
    for number in range(SILENT_MAX + 1):
        checks.failed(word(number).peer, 0.0)
    checks.offer(word(1), 0.0, is_stranger=True)
    assert checks.next() is None
    checks.offer(word(0), 0.0, is_stranger=True)
    assert checks.next() == (word(0), True)


def test_few_are_checked_at_a_time_few_wait_and_a_silent_one_has_to_wait_longer() -> None:
    checks = Checks()
    for number in range(200):
        checks.offer(word(number), 0.0, is_stranger=True)
        checks.offer(word(number), 0.0, is_stranger=True)
    first = [checks.next() for _ in range(IN_FLIGHT_MAX + 1)]
    assert first[-1] is None
    waiting = WAITING_MAX
    for one in first[:-1]:
        assert one is not None
        checks.failed(one[0].peer, 0.0)
    served = 0
    while (one := checks.next()) is not None:
        checks.answered(one[0].peer)
        served += 1
    assert served == waiting - IN_FLIGHT_MAX
    checks.offer(word(0), AGAIN_S - 1, is_stranger=True)
    assert checks.next() is None
    checks.offer(word(0), AGAIN_S - 1, is_stranger=False)  # an entry that is doubted is
    assert checks.next() == (word(0), False)
    checks.failed(word(0).peer, AGAIN_S)
    checks.offer(word(0), 2 * AGAIN_S, is_stranger=True)
    assert checks.next() == (word(0), True)


def test_strangers_far_from_us_are_asked_in_at_a_bounded_rate_and_near_ones_always() -> None:
    checks, count = Checks(), 0
    for second in range(3601):
        checks.knock(word(second), float(second), is_near=False)
        while (one := checks.next()) is not None:
            checks.answered(one[0].peer)
            count += 1
    assert count == KNOCKS_MAX + 3600 // KNOCK_S
    checks.knock(word(1), 3600.0, is_near=True)
    assert checks.next() == (word(1), True)
