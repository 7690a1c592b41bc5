"""Sessions on stages: a ring of real services, with workers that pretend, on a virtual clock."""

import pytest
import trio
from trio.testing import MockClock

from protocols.sharding.wire import Broken, Pong, Receipt, Sampling, Work
from tests.sim.pretend_worker import reference
from tests.sim.ring import ENTRY, Swarm, until
from wire.ids import PeerId

PROMPT = [5, 17, 3, 88, 41]
LAYERS = 4


@pytest.fixture
async def swarm(autojump_clock: MockClock, nursery: trio.Nursery) -> Swarm:
    return Swarm(nursery, n_layers=LAYERS)


@pytest.mark.parametrize("cuts", [(0, 4), (0, 2, 4), (0, 1, 2, 3, 4)])
async def test_a_ring_says_what_the_whole_model_says(swarm: Swarm, cuts: tuple[int, ...]) -> None:
    route = await swarm.chain(*cuts)
    async with swarm.ring(route) as ring:
        assert await ring.say(PROMPT, 20) == reference(PROMPT, 20, n_layers=LAYERS)
