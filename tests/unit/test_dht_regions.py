"""Providing many names: what it costs, that close sets get their records, and what goes wrong."""

import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dht.atlas import Atlas
from dht.key import KEY_BITS, SPACE, Key, key_of
from dht.limits import TOO_MANY
from dht.lookup import Lookup
from dht.messages import (
    PROVISIONS_BYTES,
    PROVISIONS_MAX,
    AddProviders,
    Contact,
    FindNode,
    Moment,
    Nodes,
    Provision,
    Stored,
)
from dht.operation import Wanted
from dht.parts import NAMES_MAX, PART_S, PAUSE_S, TRIES_MAX, Part
from dht.regions import ProvideMany
from dht.table import K
from tests.unit.dht_still_net import EPOCH_MS, StillNet
from wire.ids import PeerId

OWN = PeerId("own")
NOW = Moment(0.0, EPOCH_MS)
SEALED = 180  # bytes of a real record


def sign(name: bytes, wall_ms: int, size: int = SEALED) -> Provision:
    return Provision(name, OWN, wall_ms + 1000, bytes(size))


def names(count: int) -> list[bytes]:
    return [b"cid %d" % number for number in range(count)]


def region_of(servers: int) -> int:
    return min(SPACE - 1, SPACE // servers * 25)


def provide(net: StillNet, count: int) -> tuple[ProvideMany, float]:
    own = net.nearest(Key(0), 1)[0]

    def nearest(key: Key, many: int) -> Sequence[Contact]:
        return net.seeds(own, key)[:many]

    region = region_of(len(net.members))
    operation = ProvideMany(names(count), sign, own.peer, nearest, NOW, region=region)
    return operation, net.run(operation)


def shares(net: StillNet, count: int, step: int = 37) -> list[float]:
    """Return which share of its k nearest holds each name."""
    own = net.nearest(Key(0), 1)[0].peer
    found = list[float]()
    for name in names(count)[::step]:
        nearest = [one.peer for one in net.nearest(key_of(name), K + 1) if one.peer != own][:K]
        found.append(sum(name in net.members[peer].provisions for peer in nearest) / len(nearest))
    return found


def test_ten_thousand_names_cost_hundreds_of_messages() -> None:
    net = StillNet(300)
    operation, took_s = provide(net, 10_000)
    result = operation.result
    assert operation.is_done
    assert (result.total, result.done, result.refusals) == (10_000, 10_000, {})
    assert result.looks + result.stores == sum(net.asked.values()) < 1_000
    assert min(shares(net, 10_000)) == 1.0
    assert took_s < 10
    assert operation.wake_at == math.inf


def test_at_a_thousand_servers_they_cost_little_more_than_a_message_each() -> None:
    net = StillNet(1_000)
    operation, _ = provide(net, 3_000)
    assert operation.result.stores <= 1_000
    assert operation.result.looks <= 450
    assert min(shares(net, 3_000)) == 1.0


def test_few_names_among_many_servers_find_their_close_sets_too() -> None:
    net = StillNet(1_000)
    operation, _ = provide(net, 40)
    assert min(shares(net, 40, 1)) >= 0.95
    assert operation.result.looks <= 40 * 9


def test_of_the_dead_the_names_go_to_the_next_nearest() -> None:
    net = StillNet(300)
    net.kill(0.3)
    operation, _ = provide(net, 1_000)
    found = shares(net, 1_000, 7)
    assert sum(found) / len(found) >= 0.98
    assert set(operation.result.refusals) <= {"timeout", "unreachable"}


def test_liars_do_not_hide_the_honest_half_of_a_close_set() -> None:
    net = StillNet(500, 1)
    net.bribe(0.2)
    provide(net, 1_000)
    found = shares(net, 1_000, 7)
    assert min(found) >= 0.55
    assert sum(found) / len(found) >= 0.9


def test_nobody_there_is_no_trouble() -> None:
    operation = ProvideMany(names(100), sign, OWN, lambda key, count: [], NOW)
    assert operation.next_asks(NOW) == []
    while not operation.is_done:
        assert operation.wake_at == NOW.s
        assert operation.next_asks(NOW) == []
    assert operation.result.done == 100
    assert operation.result.kept == 0


def test_no_names_are_done_at_once() -> None:
    operation = ProvideMany([], sign, OWN, lambda key, count: [], NOW)
    assert operation.next_asks(NOW) == []
    assert operation.is_done


# --- by script -----------------------------------------------------------------------------------


class Script:
    """A few servers that all know each other, and hand over what they are asked to keep."""

    def __init__(self, count: int, many: int, size: int = SEALED) -> None:
        self.size = size
        self.servers = [
            Contact(PeerId(f"peer {n}"), key_of(b"%d" % n), ("/ip4/10.0.0.1/tcp/1",))
            for n in range(count)
        ]
        self.signed = list[bytes]()
        self.operation = ProvideMany(names(many), self.sign, OWN, self.nearest, NOW)

    def sign(self, name: bytes, wall_ms: int) -> Provision:
        self.signed.append(name)
        return sign(name, wall_ms, self.size)

    def nearest(self, key: Key, count: int) -> list[Contact]:
        return sorted(self.servers, key=lambda one: one.key ^ key)[:count]

    def stores(self, s: float = 0.0) -> list[Wanted]:
        """Answer the looks; return the stores that are wanted until it waits for them."""
        stores, now = list[Wanted](), Moment(s, EPOCH_MS)
        while not self.operation.is_done:
            wanted = self.operation.next_asks(now)
            for one in wanted:
                if isinstance(one.request, FindNode):
                    self.operation.answered(one.tag, Nodes(tuple(self.servers)), now)
                else:
                    stores.append(one)
            if not wanted and self.operation.wake_at > s:
                break
        return stores

    def keep(self, stores: list[Wanted], s: float = 0.0) -> None:
        for one in stores:
            assert isinstance(one.request, AddProviders)
            kept = Stored(len(one.request.provisions))
            self.operation.answered(one.tag, kept, Moment(s, EPOCH_MS))


@pytest.mark.parametrize(
    ("size", "most"), [(SEALED, PROVISIONS_MAX), (500, PROVISIONS_BYTES // 508)]
)
def test_a_message_has_a_bounded_number_of_records_and_of_bytes(size: int, most: int) -> None:
    script = Script(1, 1_000, size)
    sizes = list[int]()
    while stores := script.stores():
        (one,) = stores  # one at a time to each peer
        assert isinstance(one.request, AddProviders)
        sizes.append(len(one.request.provisions))
        script.keep(stores)
    assert sum(sizes) == 1_000
    assert max(sizes) == most
    assert script.operation.result.kept == 1_000
    assert sorted(script.signed) == sorted(names(1_000))  # each once


def test_records_are_signed_when_their_turn_comes() -> None:
    script = Script(1, NAMES_MAX + 10)
    while script.operation.result.kept < NAMES_MAX:
        assert len(script.signed) <= NAMES_MAX
        script.keep(script.stores())
    assert script.operation.result.done == 0
    script.keep(script.stores())
    script.stores()
    assert script.operation.is_done
    assert script.operation.result.done == NAMES_MAX + 10


def test_who_had_too_many_is_asked_again_later_a_few_times() -> None:
    script = Script(1, 10)
    s = 0.0
    for _ in range(TRIES_MAX):
        (one,) = script.stores(s)
        script.operation.answered(one.tag, Stored(0, TOO_MANY), Moment(s, EPOCH_MS))
        if len(script.operation.result.refusals) and not script.stores(s):
            s += PAUSE_S
    assert script.operation.is_done
    assert script.operation.result.refusals == {TOO_MANY: TRIES_MAX}
    assert sorted(script.operation.result.weak) == sorted(names(10))


def test_other_refusals_are_final() -> None:
    script = Script(1, 10)
    (one,) = script.stores()
    script.operation.answered(one.tag, Stored(4, "no room"), NOW)
    assert script.stores() == []
    assert script.operation.is_done
    assert script.operation.result.kept == 4
    assert script.operation.result.refusals == {"no room": 1}
    assert len(script.operation.result.weak) == 10  # nobody tells which four


def test_what_half_of_its_close_set_keeps_is_not_weak() -> None:
    script = Script(4, 10)
    stores = script.stores()
    script.keep(stores[:2])
    for one in stores[2:]:
        script.operation.answered(one.tag, Stored(0, "no room"), NOW)
    script.stores()
    assert script.operation.result.weak == ()
    assert script.operation.result.too_few(names(10)) == ()


def test_a_peer_cannot_keep_more_than_it_was_given() -> None:
    script = Script(1, 10)
    (one,) = script.stores()
    script.operation.answered(one.tag, Stored(10**9), NOW)
    assert script.operation.result.kept == 10


def test_who_is_lost_is_replaced_by_the_next() -> None:
    script = Script(K + 1, 5)
    script.operation = ProvideMany(names(5), sign, OWN, script.nearest, NOW, region=1)
    stores = script.stores()
    lost, *others = stores
    assert isinstance(lost.request, AddProviders)
    script.keep(others)
    script.operation.failed(lost.tag, "timeout", NOW)
    again = script.stores()
    given = [one.request for one in again]
    assert all(isinstance(request, AddProviders) for request in given)
    holders = {str(one.contact.peer) for one in stores} | {str(one.contact.peer) for one in again}
    assert len(holders) == K + 1
    assert lost.contact.peer not in {one.contact.peer for one in again}
    script.keep(again)
    script.stores()
    assert script.operation.result.kept == 5 * K


def test_a_part_that_takes_too_long_is_left() -> None:
    script = Script(1, 10)
    assert len(script.stores()) == 1
    assert script.operation.wake_at == PART_S
    assert script.operation.next_asks(Moment(PART_S, EPOCH_MS)) == []
    assert script.operation.is_done


# --- the atlas -----------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32), servers=st.integers(1, 200), looks=st.integers(0, 30))
def test_what_the_atlas_calls_exact_is_the_truth(seed: int, servers: int, looks: int) -> None:
    rng = random.Random(seed)
    everybody = [
        Contact(PeerId(f"peer {n}"), Key(rng.getrandbits(KEY_BITS)), ("/ip4/10.0.0.1/tcp/1",))
        for n in range(servers)
    ]

    def nearest(key: Key) -> list[Contact]:
        return sorted(everybody, key=lambda one: one.key ^ key)[:K]

    atlas = Atlas(region_of(servers))
    for _ in range(looks):
        target = Key(rng.getrandbits(KEY_BITS))
        atlas.learn(target, nearest(target))
        assert atlas.complete_until(target) > target
    for _ in range(20):
        key = Key(rng.getrandbits(KEY_BITS))
        if atlas.is_exact(key):
            assert atlas.close_set(key)[: len(nearest(key))] == nearest(key)


def around(target: int, farthest: int) -> list[Contact]:
    """Return k contacts of a key, the last one at this distance."""
    distances = [*range(1, K), farthest]
    return [Contact(PeerId(f"at {n ^ target}"), Key(n ^ target)) for n in distances]


def test_blocks_that_touch_are_complete_together() -> None:
    atlas = Atlas(1 << 20)
    atlas.learn(Key(0), around(0, 1500))
    assert atlas.complete_until(0) == 1024
    atlas.learn(Key(5000), around(5000, 1500))
    assert atlas.complete_until(0) == 1024
    atlas.learn(Key(1100), around(1100, 1500))
    assert atlas.complete_until(0) == 2048
    atlas.learn(Key(2100), around(2100, 3000))
    assert atlas.complete_until(0) == 5120
    assert atlas.complete_until(6000) == 6000


def test_a_look_that_sees_too_few_is_repeated_with_care_before_it_is_believed() -> None:
    places = sorted((key_of(name), name) for name in names(3))
    part = Part(places, region=SPACE // 100, now_s=0.0)
    for count in range(2):
        name = part.next_to_look_at()
        assert name == places[0]
        assert (name[0] in part.doubted) == bool(count)
        far = [Contact(PeerId(f"far {n}"), Key(name[0] ^ SPACE // 2 ^ n)) for n in range(K)]
        look = Lookup(name[0], OWN, FindNode(name[1]), far, NOW)
        part.looks.append(look)
        part.looked(look)
    assert part.next_to_look_at() != places[0]


def test_who_is_lost_is_not_learnt_again() -> None:
    atlas = Atlas(SPACE - 1)
    contact = Contact(PeerId("peer"), Key(5), ("/ip4/10.0.0.1/tcp/1",))
    atlas.learn(Key(0), [contact])
    assert atlas.close_set(Key(1)) == [contact]
    atlas.lose(contact)
    atlas.learn(Key(0), [contact])
    assert atlas.close_set(Key(1)) == []


def test_the_close_set_takes_two_of_a_group_and_in_the_region_ten() -> None:
    crowd = [
        Contact(PeerId(f"peer {n}"), Key(n), (f"/ip4/20.0.0.{n}/tcp/1",)) for n in range(1, 31)
    ]
    far = [
        Contact(PeerId(f"far {n}"), Key(1000 + n), (f"/ip4/20.1.{n}.1/tcp/1",)) for n in range(10)
    ]
    atlas = Atlas(0)
    atlas.learn(Key(0), [*crowd, *far])
    assert len(atlas.close_set(Key(0))) == 2 + 10
    atlas = Atlas(100)
    atlas.learn(Key(0), [*crowd, *far])
    assert len(atlas.close_set(Key(0))) == 10 + 10
