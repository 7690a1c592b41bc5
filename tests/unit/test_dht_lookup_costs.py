"""What lookups cost and find where nobody comes or goes: hops, messages, time; dead and liars."""

import random
from statistics import mean

from dht.key import KEY_BITS, SPACE, Key, key_of
from dht.lookup import PATHS, Lookup
from dht.messages import FindNode, Moment
from dht.operation import QUERY_S
from dht.table import K
from tests.unit.dht_still_net import EPOCH_MS, HOSTILE, StillNet

NOW = Moment(0.0, EPOCH_MS)


def many(
    net: StillNet, count: int, *, paths: int = 1, region: int = 0
) -> tuple[list[Lookup], list[float], float]:
    """Look for names from anywhere; return the lookups, how long they took, and how many of them
    found the nearest server that is honest and alive."""
    rng = random.Random(7)
    alive = net.nearest(Key(0), len(net.members))
    lookups, times, found = list[Lookup](), list[float](), 0
    for number in range(count):
        name = b"name %d" % number
        own = rng.choice(alive)
        seeds = net.seeds(own, key_of(name))
        lookup = Lookup(
            key_of(name), own.peer, FindNode(name), seeds, NOW, paths=paths, region=region
        )
        times.append(net.run(lookup))
        nearest = next(one for one in net.nearest(lookup.target, 2) if one.peer != own.peer)
        found += nearest.peer in {one.peer for one in lookup.result}
        lookups.append(lookup)
    return lookups, sorted(times), found / count


def test_ten_thousand_nodes_three_hops_and_fewer_than_40_messages() -> None:
    lookups, times, found = many(StillNet(10_000), 60)
    assert found == 1.0
    assert mean(lookup.hops for lookup in lookups) <= 2.7  # the facts' reference: 2.4
    assert max(lookup.hops for lookup in lookups) <= 4
    assert mean(lookup.requests for lookup in lookups) <= 32
    assert times[-1] < 0.6


def test_a_third_dead_costs_one_time_out() -> None:
    net = StillNet(2_000)
    net.kill(0.3)
    lookups, times, found = many(net, 100)
    assert found == 1.0
    assert mean(lookup.requests for lookup in lookups) <= 45
    assert times[95] <= 2 * QUERY_S


def test_two_thirds_dead_cost_three_time_outs_at_most() -> None:
    net = StillNet(2_000)
    net.kill(0.7)
    lookups, times, found = many(net, 100)
    assert found >= 0.98
    assert mean(lookup.requests for lookup in lookups) <= 95
    assert times[95] <= 3 * QUERY_S


def test_a_fifth_hostile_do_not_hide_the_nearest_from_four_paths() -> None:
    net = StillNet(2_000)
    net.bribe(0.2)
    lookups, _, found = many(net, 100, paths=PATHS)
    assert found == 1.0
    assert mean(lookup.requests for lookup in lookups) <= 60


def test_sybils_ground_next_to_a_key_from_few_networks_hide_nobody() -> None:
    net = StillNet(1_000, groups=900)
    name = b"name"
    for number in range(45):
        near = Key(key_of(name) ^ net.rng.getrandbits(KEY_BITS - 14))
        net.add(near, f"/ip4/66.0.{number % 4}.{number}/tcp/1", HOSTILE)
    net.sort()
    own = net.nearest(Key(0), 1)[0]
    region = SPACE // 1000 * 25
    lookup = Lookup(
        key_of(name), own.peer, FindNode(name), net.seeds(own, key_of(name)), NOW,
        paths=PATHS, region=region,
    )  # fmt: skip
    net.run(lookup)
    close = {contact.peer for contact in lookup.close_set()}
    honest = [one.peer for one in net.nearest(key_of(name), K) if one.peer != own.peer]
    assert len(close & set(honest)) >= K - 4
