"""How large the network is, from a few looks; and that who grinds identities hardly moves it."""

import random
from bisect import bisect_left

from hypothesis import given, settings
from hypothesis import strategies as st

from dht.key import KEY_BITS, Key
from dht.messages import Contact
from dht.size import LOOKS_MAX, REGION_SLACK, SPACE, NetworkSize
from dht.table import K
from wire.ids import PeerId


class Network:
    """Uniform keys, and who is nearest to a key among them."""

    def __init__(self, size: int, seed: int) -> None:
        self.rng = random.Random(seed)
        self.keys = sorted(self.rng.getrandbits(KEY_BITS) for _ in range(size))

    def nearest(self, target: int, count: int = K) -> list[Contact]:
        """The nearest keys, nearest first: those of the smallest subtree that has enough."""
        low, high = 0, len(self.keys)
        for bits in range(KEY_BITS - 1, -1, -1):
            prefix = target >> bits
            a, b = (bisect_left(self.keys, (prefix + more) << bits) for more in (0, 1))
            if b - a < count:
                break
            low, high = a, b
        order = sorted(self.keys[low:high], key=lambda key: key ^ target)
        return [Contact(PeerId("peer"), Key(key)) for key in order[:count]]

    def look(self, size: NetworkSize, looks: int) -> None:
        for _ in range(looks):
            target = Key(self.rng.getrandbits(KEY_BITS))
            size.saw(target, self.nearest(target))

    def grind(self, beside: int, count: int, bits: int = 40) -> None:
        """Add identities that share so many bits with a key."""
        sybils = [beside ^ self.rng.getrandbits(KEY_BITS - bits) for _ in range(count)]
        self.keys = sorted([*self.keys, *sybils])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.floats(2, 4.7), st.integers(0, 1 << 32))
def test_it_is_within_a_third_of_the_truth(magnitude: float, seed: int) -> None:
    count = round(10**magnitude)
    network, size = Network(count, seed), NetworkSize()
    network.look(size, LOOKS_MAX)
    assert 0.7 * count <= size.size() <= 1.3 * count


def test_it_is_within_a_third_at_a_hundred_thousand_after_a_dozen_looks() -> None:
    network, size = Network(100_000, seed=1), NetworkSize()
    network.look(size, 12)
    assert 70_000 <= size.size() <= 130_000


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(1000, 5000), st.integers(0, 1 << 32))
def test_its_region_has_nearly_all_of_the_k_nearest(count: int, seed: int) -> None:
    network, size = Network(count, seed), NetworkSize()
    network.look(size, LOOKS_MAX)
    inside = list[int]()
    for _ in range(100):
        target = network.rng.getrandbits(KEY_BITS)
        near = network.nearest(target, 4 * K)
        inside.append(sum(one.key ^ target <= size.region() for one in near))
    assert K <= sum(inside) / len(inside) <= 1.3 * REGION_SLACK * K


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(0, 1 << 32))
def test_sybils_beside_us_and_beside_some_targets_hardly_move_it(seed: int) -> None:
    network, size = Network(2000, seed), NetworkSize()
    own = Key(network.rng.getrandbits(KEY_BITS))
    network.grind(own, 200)
    size.saw(own, network.nearest(own))
    alone = size.size()
    for _ in range(7):
        target = Key(network.rng.getrandbits(KEY_BITS))
        network.grind(target, 45)
        size.saw(target, network.nearest(target))
    network.look(size, LOOKS_MAX - 8)
    assert alone > 1e9
    assert 1000 <= size.size() <= 3000


def test_our_own_neighbourhood_counts_once_however_often_we_look() -> None:
    for seed in range(10):
        network, size = Network(2000, seed), NetworkSize()
        own = Key(network.rng.getrandbits(KEY_BITS))
        network.grind(own, 40)
        network.look(size, LOOKS_MAX - 1)
        size.saw(own, network.nearest(own))
        before = size.size()
        for _ in range(100):
            size.saw(own, network.nearest(own))
        assert size.size() == before


def test_of_two_looks_the_lower_is_believed() -> None:
    network, size = Network(2000, seed=4), NetworkSize()
    own = Key(network.rng.getrandbits(KEY_BITS))
    network.look(size, 1)
    before = size.size()
    network.grind(own, 40)
    size.saw(own, network.nearest(own))
    assert size.size() == before


def test_it_follows_a_network_that_grows_and_shrinks() -> None:
    size = NetworkSize()
    for count in (3000, 300, 3000):
        Network(count, seed=count).look(size, LOOKS_MAX)
        assert 0.7 * count <= size.size() <= 1.3 * count


def test_looks_that_nobody_answered_tell_nothing() -> None:
    network, size = Network(2000, seed=7), NetworkSize()
    network.look(size, 3)
    before = size.size()
    for target in range(LOOKS_MAX):
        size.saw(Key(target), [])
    assert size.size() == before


def test_a_small_network_is_counted_and_its_region_is_the_whole_space() -> None:
    size = NetworkSize()
    assert (size.size(), size.region()) == (0.0, SPACE - 1)
    size.saw(Key(1), [])
    assert (size.size(), size.region()) == (0.0, SPACE - 1)
    network = Network(K - 1, seed=5)
    size = NetworkSize()
    network.look(size, 3)
    assert (size.size(), size.region()) == (K - 1, SPACE - 1)


def test_who_sees_k_knows_that_there_are_k() -> None:
    for seed in range(20):
        network, size = Network(K, seed), NetworkSize()
        network.look(size, 1)
        assert size.size() >= K


def test_the_region_grows_with_the_count_and_ends_at_the_space() -> None:
    network, size = Network(1000, seed=6), NetworkSize()
    network.look(size, LOOKS_MAX)
    expected = 5 * REGION_SLACK / size.size()
    assert abs(size.region(5) / SPACE - expected) < 1e-9
    assert size.region(5) < size.region() < size.region(100) < SPACE
    assert size.region(2000) == SPACE - 1
