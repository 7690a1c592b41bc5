"""What a node learns of the network's size from its own looks."""

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
