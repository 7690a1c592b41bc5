"""Swarms that live through losses, partitions and restarts agree in the end, and soon. Ten thousand
of them: `python -m tests.soak.crdt_swarms 10000`.
"""

import pytest
from trio.testing import MockClock

from tests.sim.crdt_swarm import live
from tests.soak.crdt_swarms import HEALED_MAX_S, heal


@pytest.mark.parametrize("first", range(0, 80, 8))
def test_swarms_agree(first: int) -> None:
    seeds = range(first, first + 8)
    assert {seed: problem for seed in seeds if (problem := live(seed))} == {}


async def test_a_hundred_nodes_agree_within_a_minute_after_a_partition(
    autojump_clock: MockClock,
) -> None:
    assert await heal(100, 1) <= HEALED_MAX_S
