"""Replicas that must end up equal: generated histories, simulated swarms, a swarm that was cut in
half, and stores killed at random moments.

`python -m benchmarks.agree_converge` prints one JSON object a line. LONG=1 runs as many as the
goals name, `make soak-agree`.
"""

import os

import trio
import trio.testing

from benchmarks.report import QUICK, progress, report
from tests.sim.replicas import Links, signer, start_store

LONG = os.environ.get("LONG") == "1"
NODES = 30 if QUICK else 100
HEAL_GOAL_S = 60.0
APART_S = 90.0  # longer than what a sync brings counts as news (crdt/live.py)
WRITERS = 5  # each so manieth node writes: a simulated flood costs n² deliveries a write
LOOK_S = 0.5  # of virtual time, between two looks
NAMESPACE = "kv"


async def _heal(nodes: int) -> float:
    """Cut a swarm in half, let both halves write, heal it; virtual seconds until all are equal.

    Nobody is told that the link is back, as daemons are: the next syncs by chance find it.
    """
    links = Links()
    async with trio.open_nursery() as nursery:
        stores = [await start_store(nursery, links, number) for number in range(1, nodes + 1)]
        names = [signer(number).peer for number in range(1, nodes + 1)]
        left, right = names[: nodes // 2], names[nodes // 2 :]
        await stores[0].put(NAMESPACE, "before", 0)
        await trio.sleep(5)
        links.split(left, right)
        for number, store in enumerate(stores[::WRITERS]):
            await store.put(NAMESPACE, f"apart/{number}", number)
            await store.put(NAMESPACE, "same", number)
        await trio.sleep(APART_S)
        assert len({store.root(NAMESPACE) for store in stores}) == 2, "two halves"
        links.cut.clear()
        healed = trio.current_time()
        while len({store.root(NAMESPACE) for store in stores}) > 1:  # noqa: ASYNC110 - no event
            await trio.sleep(LOOK_S)
        seconds = trio.current_time() - healed
        nursery.cancel_scope.cancel()
    return seconds


def main() -> None:
    """Measure all of it."""
    progress(f"{NODES} simulated nodes, cut in half")
    clock = trio.testing.MockClock(autojump_threshold=0)
    seconds = trio.run(_heal, NODES, clock=clock)
    report(f"agree.heal_{NODES}_nodes", [seconds], "virtual s", goal=HEAL_GOAL_S)


if __name__ == "__main__":
    main()
