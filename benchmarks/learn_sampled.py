"""MoDeST: forty nodes of which four in five do not answer; the round goes on. On a virtual clock.

`python -m benchmarks.learn_sampled` prints one JSON object a line. Real ModelSync over in-memory
streams with 50 ms of delay; who does not answer hangs as a frozen process does: nobody is told.
"""

import random
from unittest import mock

import trio
from trio.testing import MockClock

from benchmarks.report import QUICK, progress, report
from tests.sim import training
from tests.sim.net import Net
from tests.sim.training import Swarm

NODES, SAMPLE, ELEMENTS = 40, 4, 8_192
DEAF = 0.8  # share of the nodes
ROUNDS_BEFORE, AFTER_S = 2, 30.0 if QUICK else 120.0  # simulated seconds
NEXT_S = 1.0


async def _live(nursery: trio.Nursery) -> tuple[float, float]:
    """Seconds a round before and after most have fallen silent."""
    net = Net(nursery, latency_s=0.05)
    swarm = Swarm(net, nursery)
    for _ in range(NODES):
        await swarm.add(min_members=NODES, patience_s=2.0, sample=SAMPLE, seconds_a_round=NEXT_S)
    began, ends = trio.current_time(), [trio.CancelScope() for _ in swarm.trainers]

    async def train(trainer: training.Trainer) -> None:
        with ends[trainer.number]:
            await trainer.train(1 << 20)

    before_s, made = 0.0, 0
    with trio.move_on_after(AFTER_S * 2):
        async with trio.open_nursery() as training_:
            for trainer in swarm.trainers:
                training_.start_soon(train, trainer)
            while max(t.round for t in swarm.trainers) < ROUNDS_BEFORE:  # noqa: ASYNC110
                await trio.sleep(0.1)
            before_s = (trio.current_time() - began) / ROUNDS_BEFORE
            answering = _silence(swarm, ends)
            first = max(t.round for t in answering)
            await trio.sleep(AFTER_S)
            made = max(t.round for t in answering) - first
            training_.cancel_scope.cancel()
    return before_s, AFTER_S / made if made else float("inf")


def _silence(swarm: Swarm, ends: list[trio.CancelScope]) -> list[training.Trainer]:
    """Let most nodes hang, with their trainers; return the others."""
    rng = random.Random(0)
    deaf = set(rng.sample(range(NODES), int(DEAF * NODES)))
    for number in deaf:
        ends[number].cancel()
        swarm.scopes[number].cancel()
        for other in range(NODES):
            if other != number:
                swarm.net.cut(swarm.peer(number), swarm.peer(other), silent=True)
    return [trainer for trainer in swarm.trainers if trainer.number not in deaf]


async def _main() -> tuple[float, float]:
    async with trio.open_nursery() as nursery:
        found = await _live(nursery)
        nursery.cancel_scope.cancel()
    return found


def main() -> None:
    """Simulate and report."""
    progress(f"{NODES} nodes, {DEAF:.0%} of them silent")
    with mock.patch.object(training, "ELEMENTS", ELEMENTS):
        before_s, after_s = trio.run(_main, clock=MockClock(autojump_threshold=0))
    what = f"s a round, {DEAF:.0%} of {NODES} silent"
    goes_on = after_s != float("inf")
    report(
        *("learn.sampled_silent", [after_s] if goes_on else [], what),
        against="all answering",
        against_values=[before_s],
        why="" if goes_on else f"no round in {AFTER_S:g} simulated s",
    )


if __name__ == "__main__":
    main()
