"""`python -m tests.soak.crdt_swarms 10000 [FIRST]`: so many swarms live through partitions, losses
and restarts; then a hundred nodes are put together again after a partition. Prints a line of JSON.
"""

import json
import random
import sys
import time

import trio
from trio.testing import MockClock

from tests.sim.crdt_swarm import live
from tests.sim.crdt_syncers import Links, Node
from tests.unit.crdt_making import Chain

RECONNECTED = 3  # connections that each node makes to the other half as the partition ends
HEALED_MAX_S = 60.0  # what the swarm may take to be equal


def halves(links: Links, size: int) -> list[Node]:
    """Found nodes of which each half knows its own writes only, and some nodes one more each."""
    nodes = [Node(links, number, interval_s=30.0) for number in range(1, size + 1)]
    rng = random.Random(size)
    for number, node in enumerate(nodes):
        chain = Chain(10_000 + number)
        records = [
            chain.put(f"k/{number}/{at}", ms=rng.randrange(10**5) + at * 10**5) for at in range(5)
        ]
        for other in nodes:
            if nodes.index(other) % 2 == number % 2:
                other.put(*records)
        if number % 10 == 0:
            node.put(chain.put(f"last/{number}"))
    return nodes


async def heal(size: int, seed: int) -> float:
    """Return after how many seconds all are equal once a partition has ended."""
    links = Links(latency_s=0.05)
    nodes = halves(links, size)
    rng = random.Random(seed)
    links.loses = lambda _: rng.random() < 0.02
    start_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        for node in nodes:
            nursery.start_soon(node.syncer.run)
        for at, node in enumerate(nodes):  # connections across come up again
            for other in rng.sample(nodes[1 - at % 2 :: 2], RECONNECTED):
                node.syncer.peer_up(other.peer)
                other.syncer.peer_up(node.peer)
        while len({node.replica.fingerprint() for node in nodes}) > 1:  # noqa: ASYNC110 - nobody tells
            await trio.sleep(1.0)
        nursery.cancel_scope.cancel()
    return trio.current_time() - start_s


def main(count: int, first: int = 0) -> int:
    """Run the swarms of `count` numbers, and heal a large one."""
    start_s, divergences = time.monotonic(), dict[int, str]()
    for seed in range(first, first + count):
        problem = live(seed)
        if problem:
            divergences[seed] = problem
    seconds = round(time.monotonic() - start_s, 1)
    healed_s = trio.run(heal, 100, first, clock=MockClock(autojump_threshold=0))
    result = {"swarms": count, "seconds": seconds, "divergences": divergences, "healed_s": healed_s}
    print(json.dumps(result))
    return 1 if divergences or healed_s > HEALED_MAX_S else 0


if __name__ == "__main__":
    sys.exit(main(*(int(argument) for argument in sys.argv[1:])))
