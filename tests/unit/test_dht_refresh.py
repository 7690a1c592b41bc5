"""What a node learns of the network's size from its own looks."""

from dht.refresh import EARLY_S, LATELY_S, LOOKS, WHOLE_S
from dht.table import K
from tests.unit.dht_swarm import Swarm


def test_a_look_that_ended_too_early_does_not_tell_how_large_the_network_is() -> None:
    swarm = Swarm(100)
    swarm.join()
    swarm.run(60)
    node = swarm.add()
    swarm.do(node, node.bootstrap, [swarm.contact(next(iter(swarm.nodes.values())))])
    swarm.run(30)
    before = node.size.size()
    assert before > 2 * K
    chore = node.upkeep.refresh.ourselves(swarm.moment)
    few = node.table.closest(node.state.key, K - 2)
    chore.then(few, swarm.moment)
    assert node.size.size() > before / 2


def test_a_newcomer_looks_at_the_size_of_the_network_a_few_times_before_it_is_sure() -> None:
    swarm = Swarm(60)
    swarm.join()
    swarm.run(60)
    node = swarm.add()
    swarm.do(node, node.bootstrap, [swarm.contact(next(iter(swarm.nodes.values())))])
    assert node.size.looks == 1
    swarm.run(2.5 * EARLY_S)
    assert node.size.looks == LOOKS
    swarm.run(0.7 * WHOLE_S)
    assert node.size.looks == LOOKS


def test_in_a_small_network_nobody_has_to_look_how_large_it_is() -> None:
    swarm = Swarm(10)
    swarm.join()
    swarm.run(4 * EARLY_S)
    assert max(node.size.looks for node in swarm.nodes.values()) == 1


def test_neighbours_of_whom_nothing_was_heard_lately_do_not_count() -> None:
    swarm = Swarm(100)
    swarm.join()
    swarm.run(10)
    node = next(iter(swarm.nodes.values()))
    node.size.saw(node.state.key, node.table.closest(node.state.key, K))
    assert node.size.looks == 1
    before = node.size.size()
    for contact in node.table.closest(node.state.key, K // 2):
        entry = node.table.entry(contact.peer)
        assert entry is not None
        entry.seen_s = swarm.moment.s - 2 * LATELY_S
    node.upkeep.refresh._see_who_is_near(swarm.moment)
    assert 0 < node.size.size() < 0.8 * before
