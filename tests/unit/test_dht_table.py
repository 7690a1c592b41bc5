"""The routing table by script: order, eviction only of the dead, replacements, nearest."""

import random

from dht.key import common_bits, distance, from_bytes, key_at, key_of_peer, to_bytes
from dht.records import Contact, open_peer, sign_peer
from dht.table import Check, Table
from tests.sim.replicas import signer
from wire.ids import PeerId

NOW_MS = 1_800_000_000_000
OWN = signer(1).peer


def contact(number: int, seq: int = 1) -> Contact:
    return open_peer(
        sign_peer(signer(number), ["/ip4/10.0.0.1/tcp/1"], seq=seq, now_ms=NOW_MS), NOW_MS
    )


def far_contacts(count: int) -> list[Contact]:
    """Contacts of the farthest bucket, which shares no bit with us."""
    found: list[Contact] = []
    number = 2
    while len(found) < count:
        one = contact(number)
        if common_bits(key_of_peer(OWN), key_of_peer(one.peer)) == 0:
            found.append(one)
        number += 1
    return found


def test_keys_measure_distance_by_xor() -> None:
    a, b = key_of_peer(OWN), key_of_peer(signer(2).peer)
    assert distance(a, a) == 0
    assert distance(a, b) == distance(b, a) > 0
    assert from_bytes(to_bytes(a)) == a
    assert common_bits(a, a) == 256


def test_a_random_key_falls_into_the_bucket_it_was_made_for() -> None:
    rng, own = random.Random(1), key_of_peer(OWN)
    for bits in (0, 1, 7, 100, 254, 255):
        for _ in range(20):
            assert common_bits(own, key_at(own, bits, rng.getrandbits(300))) == bits


def test_a_full_bucket_asks_for_a_check_of_its_oldest_and_evicts_nobody() -> None:
    table, contacts = Table(OWN, k=3), far_contacts(5)
    for one in contacts[:3]:
        assert table.answered(one, now=0.0) == []
    assert table.answered(contacts[3], now=1.0) == [Check(contacts[0])]
    assert table.answered(contacts[4], now=1.0) == []  # one check at a time
    assert len(table) == 3
    assert table.get(contacts[3].peer) is None


def test_the_oldest_that_answers_stays_and_the_next_oldest_is_checked_then() -> None:
    table, contacts = Table(OWN, k=3), far_contacts(5)
    for one in contacts[:4]:
        table.answered(one, now=0.0)
    assert table.answered(contacts[0], now=1.0) == []
    assert table.answered(contacts[4], now=2.0) == [Check(contacts[1])]
    assert table.get(contacts[0].peer) == contacts[0]


def test_a_dead_contact_is_replaced_by_the_newest_spare() -> None:
    table, contacts = Table(OWN, k=3), far_contacts(5)
    for one in contacts:
        table.answered(one, now=0.0)
    table.failed(contacts[0].peer)
    assert table.get(contacts[0].peer) is None
    assert table.get(contacts[4].peer) == contacts[4]
    assert len(table) == 3


def test_without_a_spare_a_contact_has_a_second_chance() -> None:
    table, (one, *_) = Table(OWN), far_contacts(1)
    table.answered(one, now=0.0)
    table.failed(one.peer)
    assert len(table) == 1
    table.answered(one, now=1.0)
    table.failed(one.peer)
    assert len(table) == 1
    table.failed(one.peer)
    assert len(table) == 0


def test_a_check_that_cannot_be_made_is_asked_for_again() -> None:
    table, contacts = Table(OWN, k=3), far_contacts(5)
    for one in contacts[:4]:
        table.answered(one, now=0.0)
    table.unchecked(contacts[0].peer)
    assert table.answered(contacts[4], now=1.0) == [Check(contacts[0])]


def test_we_are_never_in_our_own_table_and_strangers_are_no_matter() -> None:
    table = Table(OWN)
    assert table.answered(contact(1), now=0.0) == []
    table.failed(signer(9).peer)
    assert len(table) == 0
    assert not table.has_room_for(OWN)
    assert table.has_room_for(signer(9).peer)


def test_the_newer_record_is_kept() -> None:
    table = Table(OWN)
    table.answered(contact(2, seq=5), now=0.0)
    table.answered(contact(2, seq=4), now=1.0)
    found = table.get(signer(2).peer)
    assert found is not None
    assert found.seq == 5


def test_closest_is_exactly_the_nearest_of_all() -> None:
    table, everyone = Table(OWN, k=50), [contact(number) for number in range(2, 100)]
    for one in everyone:
        table.answered(one, now=0.0)
    known = [one for one in everyone if table.get(one.peer)]
    target = key_of_peer(PeerId("anything"))
    expected = sorted(known, key=lambda one: distance(target, key_of_peer(one.peer)))[:10]
    assert table.closest(target, 10) == expected


def test_buckets_that_heard_of_nobody_lately_are_idle() -> None:
    table = Table(OWN)
    for number in range(2, 50):
        table.answered(contact(number), now=100.0)
    assert table.idle_buckets(before=99.0) == []
    idle = table.idle_buckets(before=100.0)
    assert idle[:3] == [0, 1, 2]
    table.refreshed(1, now=200.0)
    assert 1 not in table.idle_buckets(before=100.0)
