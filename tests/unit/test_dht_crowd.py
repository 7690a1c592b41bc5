"""A crowd beside a key: when it is one, and who is asked first then."""

import random

import pytest

from dht.candidates import Candidate
from dht.crowd import AROUND_MAX, CROWD, evenly, is_crowded
from dht.key import Key
from dht.lookup import REQUESTS_MAX, Lookup
from dht.messages import Contact, FindNode, Moment, Nodes
from dht.size import REGION_SLACK
from dht.table import K
from wire.ids import PeerId, peer_id_of

REGION = 1 << 240  # in which 25 are expected


def uniform(count: int, rng: random.Random, within: int = REGION) -> list[int]:
    return sorted(rng.randrange(1, within) for _ in range(count))


def test_chance_alone_makes_no_crowd() -> None:
    rng = random.Random(1)
    expected = K * REGION_SLACK
    for _ in range(2000):
        count = sum(rng.random() < expected / 1000 for _ in range(1000))
        assert not is_crowded(uniform(count, rng), REGION)


@pytest.mark.parametrize(("count", "within"), [(K, REGION // (CROWD + 1)), (51, REGION)])
def test_many_and_near_ones_are_a_crowd(count: int, within: int) -> None:
    assert is_crowded(uniform(count, random.Random(1), within), REGION)


def test_who_is_alone_comes_before_the_crowd() -> None:
    rng = random.Random(1)
    crowd = uniform(200, rng, REGION >> 9)
    alone = uniform(20, rng)
    candidates = [
        Candidate(Contact(PeerId(str(distance)), Key(distance)), distance, 1)
        for distance in sorted([*crowd, *alone])
    ]
    order = evenly(candidates, REGION, rng)
    assert sorted(one.distance for one in order) == [one.distance for one in candidates]
    first = {one.distance for one in order[:40]}
    assert len(first & set(alone)) >= 18


def contact(key: int, number: int) -> Contact:
    peer = peer_id_of(number.to_bytes(32, "big"))
    return Contact(peer, Key(key), (f"/ip4/{20 + number // 250}.{number % 250}.1.1/tcp/1",))


def test_a_crowd_that_shows_only_itself_does_not_hide_who_is_in_the_region() -> None:
    """All seeds near the key are Sybils; one from far away knows one honest neighbour."""
    rng = random.Random(1)
    sybils = [contact(rng.randrange(REGION >> 9), number) for number in range(100)]
    honest = [contact(d, 500 + number) for number, d in enumerate(uniform(20, rng))]
    far = contact(1 << 255, 900)
    target = Key(0)
    look = Lookup(
        target, PeerId("us"), FindNode(b"x"), [*sybils[:K], far], Moment(0.0, 0), region=REGION
    )
    asked, now_s = 0, 0.0
    while not look.is_done:
        for wanted in look.next_asks(Moment(now_s, 0)):
            asked += 1
            who = wanted.contact
            is_about_key = wanted.request == FindNode(b"x")
            if who in sybils:
                closer = tuple(rng.sample(sybils, K))
            elif who is far:
                closer = (*sybils[: K - 1], honest[-1])
            else:  # it has room for the crowd only, unless it is asked for its own neighbours
                place = honest.index(who)
                near = honest[max(0, place - 6) : place + 7]
                closer = tuple(sybils[:K]) if is_about_key else tuple(near)
            now_s += 0.01
            look.answered(wanted.tag, Nodes(closer), Moment(now_s, 0))
    found = {one.peer for one in look.in_region()}
    assert {one.peer for one in honest} <= found
    assert asked <= min(REQUESTS_MAX, 121 + AROUND_MAX)


def test_without_a_region_a_crowd_is_no_business_of_a_lookup() -> None:
    sybils = [contact(number, number) for number in range(1, 60)]
    look = Lookup(Key(0), PeerId("us"), FindNode(b"x"), sybils[:K], Moment(0.0, 0))
    asked = 0
    while not look.is_done:
        for wanted in look.next_asks(Moment(0.0, 0)):
            asked += 1
            look.answered(wanted.tag, Nodes(tuple(sybils[:K])), Moment(0.0, 0))
    assert asked == K
