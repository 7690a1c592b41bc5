"""The routing table by script: who comes in, who goes, who is nearest."""

import pytest

from dht.key import Key, common_bits, distance
from dht.messages import Contact
from dht.table import (
    CHANGES_MAX,
    CHECK_S,
    FRESH_S,
    GROUP_MAX,
    REFRESH_BITS,
    USEFUL_S,
    Came,
    Change,
    Entry,
    Gone,
    Table,
)
from tests.unit.dht_one import key_at
from wire.ids import PeerId

OWN = Key(0)
LATER = 2 * FRESH_S  # when an entry that was seen at 0 may be checked


def contact(number: int, *, bits: int = 0, host: str = "", seq: int = 1) -> Contact:
    """A contact with so many bits in common with us, in a network of its own."""
    address = f"/ip4/{host or f'5.{number // 256}.{number % 256}.1'}/tcp/1"
    return Contact(PeerId(f"peer-{bits}-{number}"), key_at(OWN, bits, number), (address,), seq)


def come(table: Table, one: Contact, now_s: float = 0.0) -> list[Contact]:
    return table.answered(one, one.addrs[0], now_s)


def full(k: int = 3) -> tuple[Table, list[Contact]]:
    """A table whose farthest bucket is full of contacts seen at 0, and two more contacts."""
    table, contacts = Table(OWN, k=k), [contact(number) for number in range(k + 2)]
    for one in contacts[:k]:
        assert come(table, one) == []
    return table, contacts


def entry_of(table: Table, contact: Contact) -> Entry:
    (found,) = (one for one in table.entries() if one.contact.peer == contact.peer)
    return found


def peers(changes: list[Change]) -> list[tuple[type[Change], PeerId]]:
    return [(type(one), one.contact.peer) for one in changes]


# --- coming in -----------------------------------------------------------------------------------


def test_who_answered_where_nobody_knows_does_not_come_in_but_stays_if_it_is_there() -> None:
    table, one = Table(OWN), contact(1)
    assert table.answered(one, None, 0.0) == []
    assert one.peer not in table
    come(table, one)
    table.answered(one, None, 9.0)
    entry = entry_of(table, one)
    assert (entry.address, entry.seen_s) == (one.addrs[0], 9.0)


def test_we_are_never_in_our_own_table() -> None:
    table, ours = Table(OWN), Contact(PeerId("us"), OWN, ("/ip4/5.9.1.1/tcp/1",))
    assert not table.wants(ours)
    assert come(table, ours) == []
    assert len(table) == 0


def test_the_newer_record_is_kept() -> None:
    table, old, new = Table(OWN), contact(1, seq=4), contact(1, seq=5)
    for one in (old, new, old):
        come(table, one)
    assert table.get(new.peer) is new


def test_the_table_tells_once_who_came_and_who_left() -> None:
    table, one = Table(OWN), contact(1)
    come(table, one)
    come(table, one)
    assert table.changes() == [Came(one)]
    for _ in range(2):
        table.failed(one.peer, 1.0)
    assert table.changes() == [Gone(one)]
    assert table.changes() == []


def test_changes_that_nobody_fetches_are_bounded_and_the_newest_stay() -> None:
    table = Table(OWN)
    for number in range(CHANGES_MAX):
        one = contact(number % 5000, bits=number % 200)
        come(table, one)
        for _ in range(2):
            table.failed(one.peer, 0.0)
    come(table, last := contact(7))
    changes = table.changes()
    assert len(changes) <= CHANGES_MAX
    assert changes[-1] == Came(last)


# --- a full bucket -------------------------------------------------------------------------------


def test_a_full_bucket_has_its_least_recently_seen_checked_and_evicts_nobody() -> None:
    table, contacts = full()
    assert come(table, contacts[3], LATER) == [contacts[0]]
    assert come(table, contacts[4], LATER) == []  # one check at a time
    assert [entry.contact for entry in table.entries()] == contacts[:3]
    assert table.get(contacts[3].peer) is None


def test_a_check_that_nothing_is_heard_of_is_asked_for_again() -> None:
    table, contacts = full()
    come(table, contacts[3], LATER)
    assert come(table, contacts[4], LATER + CHECK_S - 1) == []
    assert come(table, contacts[4], LATER + CHECK_S) == [contacts[0]]


def test_who_was_seen_just_now_is_not_checked() -> None:
    table, contacts = full()
    assert come(table, contacts[3], FRESH_S - 1) == []
    assert come(table, contacts[3], FRESH_S) == [contacts[0]]


def test_who_passes_its_check_stays_and_the_next_is_checked_then() -> None:
    table, contacts = full()
    come(table, contacts[3], LATER)
    come(table, contacts[0], LATER)
    assert come(table, contacts[4], LATER + CHECK_S) == [contacts[1]]
    assert contacts[0].peer in table


def test_who_fails_goes_at_once_for_the_newest_spare() -> None:
    table, contacts = full()
    for one in contacts[3:]:
        come(table, one, LATER)
    table.changes()
    table.failed(contacts[0].peer, LATER)
    assert peers(table.changes()) == [(Gone, contacts[0].peer), (Came, contacts[4].peer)]
    assert len(table) == 3
    assert come(table, contacts[0], LATER) == [contacts[1]]  # the dead are rarely alone


def test_a_spare_takes_its_place_in_the_order_of_when_it_was_seen() -> None:
    table, contacts = full()
    come(table, contacts[3], 10.0)
    come(table, contacts[1], 20.0)
    table.failed(contacts[0].peer, 30.0)
    order = [entry.contact for entry in table.entries()]
    assert order == [contacts[2], contacts[3], contacts[1]]


def test_without_a_spare_the_second_failure_in_a_row_is_the_last() -> None:
    table, one = Table(OWN), contact(1)
    come(table, one)
    table.failed(one.peer, 1.0)
    come(table, one, 2.0)
    table.failed(one.peer, 3.0)
    assert one.peer in table
    table.failed(one.peer, 4.0)
    assert one.peer not in table


def test_a_spare_that_fails_does_not_come_in() -> None:
    table, contacts = full()
    come(table, contacts[3], 1.0)
    table.failed(contacts[3].peer, 2.0)
    table.failed(contacts[0].peer, 3.0)
    assert contacts[0].peer in table  # nobody waits: it has a second chance
    assert contacts[3].peer not in table


def test_who_was_useful_lately_is_checked_last_and_fails_twice_before_it_goes() -> None:
    table, contacts = full()
    table.useful(contacts[0].peer, 1.0)
    table.useful(contacts[4].peer, 1.0)  # a stranger
    assert come(table, contacts[3], LATER) == [contacts[1]]
    table.failed(contacts[0].peer, LATER)
    assert contacts[0].peer in table
    table.failed(contacts[0].peer, LATER)
    assert contacts[0].peer not in table


def test_usefulness_is_forgotten() -> None:
    table, contacts = full()
    table.useful(contacts[0].peer, 0.0)
    assert come(table, contacts[3], USEFUL_S + 1) == [contacts[0]]
    table.failed(contacts[0].peer, USEFUL_S + 1)
    assert contacts[0].peer not in table


def test_if_all_were_useful_the_least_recently_seen_is_checked() -> None:
    table, contacts = full()
    for one in contacts[:3]:
        table.useful(one.peer, LATER)
    assert come(table, contacts[3], LATER) == [contacts[0]]


def test_spares_are_bounded_the_oldest_goes_and_none_is_there_twice() -> None:
    table, contacts = full(k=3)
    newcomers = [contact(number) for number in range(10, 14)]
    for one in newcomers:
        come(table, one, 1.0)
    come(table, newcomers[2], 2.0)  # it answered again: the newest now
    for one in [*contacts[:3], *newcomers[1:]]:
        for _ in range(2):
            table.failed(one.peer, 3.0)
    came = [one.contact.peer for one in table.changes() if isinstance(one, Came)]
    assert came[3:] == [newcomers[number].peer for number in (2, 3, 1)]
    assert len(table) == 0


# --- address groups ------------------------------------------------------------------------------


def test_two_of_a_network_are_in_a_bucket_and_ten_in_the_table() -> None:
    table = Table(OWN)
    for bits in range(8):
        for number in range(3):
            come(table, contact(number, bits=bits, host=f"5.9.1.{number}"))
        there = [one for one in table.entries() if common_bits(OWN, one.contact.key) == bits]
        assert len(there) == (2 if bits < GROUP_MAX // 2 else 0)
    assert len(table) == GROUP_MAX
    first = table.entries()[0].contact.peer
    table.failed(first, 1.0)
    table.failed(first, 1.0)
    assert len(table) == GROUP_MAX - 1
    assert come(table, contact(9, bits=20, host="5.9.1.9")) == []
    assert len(table) == GROUP_MAX


def test_private_addresses_are_not_limited() -> None:
    table = Table(OWN)
    for number in range(20):
        come(table, contact(number, host="127.0.0.1"))
    assert len(table) == 20


def test_names_and_circuits_are_one_network() -> None:
    table = Table(OWN)
    for number in range(5):
        one = contact(number)
        table.answered(one, f"/dns4/host-{number}.example/tcp/1", 0.0)
    assert len(table) == 2


def test_where_it_answered_counts_and_not_what_it_claims() -> None:
    table = Table(OWN)
    for number in range(5):
        one = contact(number)
        table.answered(one, f"/ip4/5.9.1.{number}/tcp/1", 0.0)
    assert len(table) == 2
    assert {one.group for one in table.entries()} == {"5.9.1.0/24"}


def test_an_entry_that_moves_to_a_full_network_goes_and_a_spare_comes() -> None:
    table, contacts = full()
    come(table, contacts[3], 1.0)
    crowd = "/ip4/5.9.1.1/tcp/1"
    for one in contacts[:2]:
        table.answered(one, crowd, 2.0)
    table.changes()
    table.answered(contacts[2], crowd, 3.0)
    assert peers(table.changes()) == [(Gone, contacts[2].peer), (Came, contacts[3].peer)]


def test_an_entry_that_moves_within_its_network_or_to_a_free_one_stays() -> None:
    table = Table(OWN)
    a, b, c = contact(1, host="5.9.1.1"), contact(2, host="5.9.1.2"), contact(3, host="5.9.1.3")
    come(table, a)
    come(table, b)
    table.answered(a, "/ip4/5.9.1.9/tcp/1", 1.0)
    assert len(table) == 2
    table.answered(a, "/ip4/6.6.6.6/tcp/1", 2.0)  # its place in the group is free now
    come(table, c, 3.0)
    assert len(table) == 3
    assert entry_of(table, a).group == "6.6.6.0/24"


def test_who_moves_to_a_network_does_not_count_against_itself() -> None:
    table, mover = Table(OWN), contact(1)
    come(table, contact(2, host="5.9.1.1"))
    come(table, contact(2, host="5.9.1.2", bits=1))
    come(table, mover)
    table.answered(mover, "/ip4/5.9.1.3/tcp/1", 1.0)
    assert entry_of(table, mover).group == "5.9.1.0/24"
    assert mover.peer in table


def test_who_moves_often_leaves_no_count_behind() -> None:
    table, mover = Table(OWN), contact(1)
    for step in range(3 * GROUP_MAX):
        table.answered(mover, f"/ip4/5.9.{step % 2}.1/tcp/1", float(step))
    for number in range(GROUP_MAX):
        come(table, contact(number, bits=1 + number, host="5.9.0.2"))
    assert len(table) == GROUP_MAX + 1


def test_a_spare_whose_network_is_full_by_now_is_passed_over() -> None:
    table, contacts = full()
    crowd = [contact(20, host="5.9.1.1"), contact(21, host="5.9.1.2")]
    come(table, contacts[3], 1.0)
    come(table, crowd[0], 2.0)
    for one in contacts[:2]:
        table.answered(one, "/ip4/5.9.1.7/tcp/1", 3.0)
    table.failed(contacts[2].peer, 4.0)
    assert contacts[3].peer in table
    assert crowd[0].peer not in table


def test_newcomers_of_one_network_do_not_drive_the_others_out_of_the_spares() -> None:
    table, contacts = full()
    come(table, contacts[3], 1.0)
    for number in range(30, 90):
        come(table, contact(number, host="5.9.1.1"), 2.0)
    for one in contacts[:3]:
        table.failed(one.peer, 3.0)
    assert contacts[3].peer in table
    assert len(table) == 3


# --- wanting -------------------------------------------------------------------------------------


def test_strangers_are_wanted_while_there_is_room_for_them_or_among_the_spares() -> None:
    table, contacts = full(k=2)
    assert not table.wants(contacts[0])
    for one in contacts[2:]:
        assert table.wants(one)
        come(table, one)
        assert not table.wants(one)
    assert not table.wants(contact(50))
    assert table.wants(contact(50, bits=1))


def test_who_claims_only_full_networks_or_no_address_is_not_wanted() -> None:
    table = Table(OWN)
    for number in range(2):
        come(table, contact(number, host=f"5.9.1.{number}"))
    third = contact(3, host="5.9.1.3")
    assert not table.wants(third)
    assert table.wants(Contact(third.peer, third.key, (*third.addrs, "/ip4/6.6.6.6/tcp/1")))
    assert not table.wants(Contact(third.peer, third.key))


# --- nearest, idle -------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [OWN, key_at(OWN, 0, 5), key_at(OWN, 3, 9), key_at(OWN, 99, 1)])
def test_closest_is_exactly_the_nearest_of_all(target: Key) -> None:
    table = Table(OWN)
    assert table.closest(target, 5) == []
    everyone = [contact(number, bits=bits) for bits in (0, 1, 3, 4, 9, 40) for number in range(6)]
    for one in everyone:
        come(table, one)
    order = sorted(everyone, key=lambda one: distance(target, one.key))
    for count in (0, 1, 6, 20, 99):
        assert table.closest(target, count) == order[:count]


def test_buckets_that_heard_of_nobody_lately_are_idle_down_to_the_k_nearest() -> None:
    table = Table(OWN, k=2)
    assert table.idle_buckets(9.0) == []
    for bits in (0, 2, 3, 5):
        come(table, contact(1, bits=bits), 10.0)
    assert table.idle_buckets(9.0) == [1]  # 4 and 5 are as near as our two nearest
    assert table.idle_buckets(10.0) == [0, 1, 2, 3]
    table.refreshed(1, 20.0)
    come(table, contact(2, bits=2), 20.0)  # a newcomer
    come(table, contact(1, bits=0), 20.0)  # an entry
    assert table.idle_buckets(10.0) == [3]


def test_with_fewer_than_k_one_bucket_stands_for_all() -> None:
    table = Table(OWN, k=20)
    come(table, contact(1, bits=5), 10.0)
    assert table.idle_buckets(10.0) == [0]


def test_neighbours_that_were_ground_next_to_us_do_not_deepen_the_refreshes() -> None:
    table = Table(OWN, k=2)
    for number in range(2):
        come(table, contact(number, bits=60), 10.0)
    assert table.idle_buckets(10.0) == list(range(REFRESH_BITS))
