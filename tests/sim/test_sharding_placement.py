"""Many nodes place one model, each by itself: real placers, a late store, a virtual clock."""

import random
from dataclasses import replace
from itertools import pairwise

import pytest

from protocols.sharding.placement import Host, Lease, View, Wish, rank, weakest
from protocols.sharding.plan import Plan, plan
from protocols.sharding.sharing import Worker, share
from tests.sim.placement_world import MODEL, Node, World
from wire.ids import PeerId

SETTLED_S = 25.0  # claims, then fetching and loading
GAP_S = 10.0  # within which blocks of a dead node are taken, from when it is seen to be dead


def world_of(
    count: int,
    *,
    blocks: int,
    room: int,
    seed: int,
    knows: bool = True,
    spread: float = 0.0,
    nodes: int = 0,
    replicas: int = 1,
) -> World:
    """Make nodes whose speed is within 2**±spread."""
    world, draw = World(blocks=blocks, seed=seed, nodes=nodes, replicas=replicas), random.Random(0)
    for _ in range(count):
        pace_us = int(1000 * 2 ** draw.uniform(-spread, spread))
        world.add(room=room, pace_us=pace_us, knows=knows)
    return world


def petals_least(world: World) -> float:
    """What Petals' greedy rule gets: everybody, one after the other, takes the weakest window."""
    alive = [node for node in world.nodes.values() if node.alive]
    best = 0.0
    for turn in range(3):
        random.Random(turn).shuffle(alive)
        rates = [0.0] * world.shape.blocks
        for node in alive:
            length = min(node.room_blocks, world.shape.blocks)
            start, end = weakest(rates, length)
            for block in range(start, end):
                rates[block] += 1e6 / (length * node.pace_us)
        best = max(best, min(rates))
    return best


def held_by(world: World, node: Node) -> int:
    return sum(end - start for peer, start, end in world.spans() if peer == node.peer)


def test_four_equal_nodes_split_a_model_without_gap_or_overlap() -> None:
    world = world_of(4, blocks=30, room=30, seed=1)
    world.run(SETTLED_S)
    spans = world.spans()
    assert [(start, end) for _, start, end in spans] == [(0, 8), (8, 16), (16, 23), (23, 30)]
    assert len({peer for peer, _, _ in spans}) == 4
    assert (world.begun, world.left) == (4, 0)
    order = [rank(MODEL, PeerId(peer)) for peer, _, _ in spans]
    assert order == sorted(order)


@pytest.mark.parametrize("seed", range(2))
def test_fifty_strangers_who_start_at_once_agree_without_moving(seed: int) -> None:
    """Each learns of the others in its own time, and of their claims even later."""
    world = world_of(50, blocks=100, room=10, seed=seed, knows=False, spread=2.0)
    assert world.run(GAP_S + 2, until=world.is_covered)
    world.run(SETTLED_S)
    assert min(world.cover()) >= 1
    assert world.begun <= 52  # a second span, where two saw different things, is the exception
    assert world.left == 0
    assert min(world.rates()) >= 0.75 * petals_least(world)


def test_speed_counts() -> None:
    world = World(blocks=40, seed=0)
    slow, fast = world.add(room=40, pace_us=4000), world.add(room=40, pace_us=1000)
    world.run(SETTLED_S)
    assert (held_by(world, slow), held_by(world, fast)) == (8, 32)


def test_a_model_is_split_over_as_many_nodes_as_were_asked_for_the_fastest() -> None:
    world = World(blocks=12, seed=3, nodes=2)
    nodes = [world.add(room=12, pace_us=pace_us) for pace_us in (4000, 1000, 4000, 1000)]
    world.run(SETTLED_S)
    assert [held_by(world, node) for node in nodes] == [0, 6, 0, 6]


@pytest.mark.parametrize("seed", range(2))
def test_blocks_of_a_dead_node_are_taken_by_free_nodes_in_time(seed: int) -> None:
    world = world_of(20, blocks=24, room=3, seed=seed)  # 20 x 3: all free nodes are needed thrice
    for _ in range(6):
        world.add(room=0)  # they look on, and offer nothing
    world.run(SETTLED_S)
    victims = [node for node in world.nodes.values() if held_by(world, node)][:3]
    began = world.now
    for node in victims:
        world.kill(node)
    assert world.run(3.0 + GAP_S, until=world.is_covered)
    assert world.now - began <= 3.0 + GAP_S
    world.run(SETTLED_S)
    assert min(world.cover()) >= 1
    assert max(world.cover()) <= 2


def test_without_a_free_node_one_with_room_takes_a_second_span_and_is_relieved_later() -> None:
    world = world_of(4, blocks=20, room=10, seed=5)
    world.run(SETTLED_S)
    victim = next(iter(world.nodes.values()))
    world.kill(victim)
    assert world.run(3.0 + GAP_S, until=world.is_covered)
    world.run(SETTLED_S)
    assert min(world.cover()) == 1
    before = len(world.spans())
    assert before > 3  # three nodes, one of them with two
    joined = world.add(room=10)
    world.run(3 * SETTLED_S)
    assert held_by(world, joined) > 0
    assert min(world.cover()) >= 1
    assert len({peer for peer, _, _ in world.spans()}) == len(world.spans()) == 4


def test_joins_and_deaths_never_thrash() -> None:
    """A death and a join every half minute for five minutes: moves stay few, gaps short."""
    world, draw = world_of(16, blocks=32, room=6, seed=7, spread=1.0), random.Random(7)
    world.run(SETTLED_S)
    changes = 10
    before = world.begun
    for _ in range(changes):
        alive = [node for node in world.nodes.values() if node.alive]
        world.kill(draw.choice(alive))
        world.add(room=6, pace_us=int(1000 * 2 ** draw.uniform(-1, 1)), knows=False)
        assert world.run(3.0 + GAP_S, until=world.is_covered)
        world.run(30.0)
    assert min(world.cover()) >= 1
    assert world.begun - before <= 3 * changes
    quiet = world.begun
    world.run(300.0)
    assert world.begun - quiet <= 4  # then it comes to rest


def test_replicas_that_the_record_asks_for_are_shared_out_as_well() -> None:
    world = world_of(6, blocks=12, room=6, seed=2, replicas=2)
    world.run(2 * SETTLED_S)
    assert min(world.cover()) == 2
    world.kill(next(node for node in world.nodes.values() if held_by(world, node)))
    world.run(2 * SETTLED_S)
    assert min(world.cover()) == 2


@pytest.mark.parametrize(("count", "room"), [(2, 12), (3, 12), (5, 6)])
def test_replicas_that_are_asked_for_later_go_beside_the_parts_that_all_have(
    count: int, room: int
) -> None:
    world = world_of(count, blocks=12, room=room, seed=9)
    world.run(SETTLED_S)
    assert world.cover() == [1] * 12
    world.replicas = 2
    world.run(2 * SETTLED_S)
    assert world.cover() == [2] * 12
    assert len({(peer, block) for peer, *span in world.spans() for block in range(*span)}) == 24
    begun = world.begun
    world.run(600.0)
    assert world.begun == begun
    world.replicas = 1
    world.run(2 * SETTLED_S)
    assert world.cover() == [1] * 12


def test_a_busy_model_gets_a_replica_and_lets_it_go_when_it_was_idle_for_long() -> None:
    world = world_of(2, blocks=8, room=4, seed=4)
    world.run(SETTLED_S)
    spare = [world.add(room=4), world.add(room=4)]
    world.run(SETTLED_S)
    assert max(world.cover()) == 1  # nobody asked for more
    hot = [node for node in world.nodes.values() if node not in spare]

    def tell(load: int, seconds: float) -> None:
        for _ in range(int(seconds / 5)):
            for node in hot:
                node.load = load
            for node in world.nodes.values():
                world.renew(node)
            world.run(5.0)

    tell(900, 25)
    assert max(world.cover(("claimed", "fetching", "loading", "ready"))) == 1  # not yet
    tell(900, 40)
    assert min(world.cover()) == 2
    tell(0, 560)
    assert min(world.cover()) == 2
    tell(0, 100)
    assert world.cover() == [1] * 8


def test_a_span_moves_to_where_it_lifts_the_weakest_block_and_only_once() -> None:
    world = World(blocks=8, seed=6)
    told = [
        world.add(room=8, wish=Wish(start, start + 4)) for start in (0, 0, 0, 0, 4)
    ]  # one node has half of the model, four have the other half
    world.run(SETTLED_S)
    assert world.cover() == [4] * 4 + [1] * 4
    for node in told[1:]:
        node.wish = None  # from now on they may do what they think best
    world.run(300.0)
    counts = world.cover()
    assert min(counts) >= 2
    assert world.left <= 2
    begun = world.begun
    world.run(600.0)
    assert world.begun == begun


def test_what_a_person_wished_is_kept() -> None:
    world = World(blocks=12, seed=8)
    told = world.add(room=12, wish=Wish(3, 5))
    other = world.add(room=12)
    world.run(2 * SETTLED_S)
    assert (told.peer, 3, 5) in world.spans()
    assert min(world.cover()) == 1
    assert held_by(world, other) == 10
    told.wish = Wish(0, 12)
    world.run(SETTLED_S)
    assert [span for span in world.spans() if span[0] == told.peer] == [(told.peer, 0, 12)]


def test_what_is_in_the_way_of_a_wish_is_given_up_before_it_is_claimed() -> None:
    """A span is named by its first block: two that begin at the same one cannot be told apart."""
    me = PeerId("me")
    view = View(
        me,
        World(blocks=12, seed=0).shape,
        [Host(me, 12)],
        [Lease(me, 3, 5, "ready")],
        wish=Wish(3, 12),
    )
    assert plan(view) == Plan(None, (3,))
    assert plan(replace(view, leases=[])) == Plan((3, 12))


def test_parts_follow_each_other_whatever_the_speeds() -> None:
    draw = random.Random(11)
    for _ in range(200):
        blocks = draw.randint(1, 40)
        workers = [
            Worker(PeerId(f"p{n}"), draw.randint(0, 12), 2 ** draw.uniform(-2, 2))
            for n in range(draw.randint(1, 12))
        ]
        world = World(blocks=blocks, seed=0)
        given = share(world.shape, [(0, blocks)], workers)
        room = sum(worker.room_bytes for worker in workers)
        spans = [given[worker.peer] for worker in workers if worker.peer in given]
        assert spans[:1] == [] or spans[0][0] == 0
        assert all(one[1] == two[0] for one, two in pairwise(spans))
        assert sum(end - start for start, end in spans) == min(blocks, room)
        rooms = {worker.peer: worker.room_bytes for worker in workers}
        assert all(end - start <= rooms[peer] for peer, (start, end) in given.items())
        if room >= blocks:
            pace = {worker.peer: worker.block_s for worker in workers}
            longest = max((end - start) * pace[peer] for peer, (start, end) in given.items())
            fewer = [sum(min(w.room_bytes, int(longest * (1 - 1e-9) / w.block_s)) for w in workers)]
            assert fewer[0] < blocks  # nothing shorter would do
