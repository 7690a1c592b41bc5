"""The fault matrix: every fault, in every state of a round, at every role, on a virtual clock.

In each cell: who is well commits the round within a bound and is in its certificate; who is not,
is not; all means are exact over their contributors and all replicas have the same bits at the end,
also those that came back; no daemon ends. `python -m tests.soak.fault_matrix 50` runs it with other
seeds (`make soak-learn`).
"""

import random
from itertools import product
from unittest import mock

import pytest
import trio
from trio.testing import MockClock

from tests.sim import training
from tests.sim.faults import FAULTS, PHASES, ROLES, ROUND, FaultyRpc, Injector
from tests.sim.net import Net
from tests.sim.training import RUN, Swarm
from wire.ids import PeerId

NODES = 4
ROUNDS = 3
SMALL = 40_000  # elements: what is tested are messages
PATIENCE_S = 1.5  # for a slow trainer, or a Ready that does not come
# Seconds of the protocol's own that a fault may cost who is well, on top of a normal round.
# A slow one beats on, each other message takes 6 s: only waits for what is due, and rates, show it.
BOUND_S = {"kill": 1.0, "cut": 1.0, "freeze": 3.0, "slow": 8.0, "corrupt": 3.0, "lie": 3.0}
CELLS = list(product(FAULTS, PHASES, ROLES))
# States in which a fault shows before all have signed: then the certificate is without its node.
BEFORE = ("ready", "prepare", "ack", "go", "data")
LEFT_OUT = {
    "kill": BEFORE,
    "freeze": BEFORE,
    "slow": ("ack", "go", "data"),
    "corrupt": ("ack", "data", "done"),
    "lie": ("data", "done"),
}
AGAINST_WORD = ("ready", "prepare", "go", "commit")  # said to each member by itself
NEXT_S = 1.0  # a trainer's own time between rounds
SPREAD_S = 0.2  # by which trainers differ
WITHIN_S = 120.0


class FaultySwarm(Swarm):
    """A swarm with an injector."""

    injector: Injector | None = None


async def run_cell(fault: str, phase: str, role: str, seed: int, nursery: trio.Nursery) -> Injector:
    """Train through one fault and check all that must hold."""
    rng = random.Random(f"{fault} {phase} {role} {seed}")
    net = Net(nursery, latency_s=rng.choice([0.001, 0.01, 0.05]) if seed else 0.01)
    swarm = FaultySwarm(net, nursery)
    for number in range(NODES):
        await swarm.add(
            min_members=NODES,
            patience_s=PATIENCE_S,
            seconds_a_round=NEXT_S + (rng.random() * SPREAD_S if seed else number * 0.001),
        )
    swarm.injector = injector = Injector(swarm, fault, phase, role, rng.randrange(3) if seed else 0)
    await swarm.train(ROUNDS, within_s=WITHIN_S)
    assert injector.at is not None, f"no {phase} was sent in this round"
    check(swarm, injector)
    return injector


def check(swarm: Swarm, injector: Injector) -> None:
    """What must hold after a fault."""
    assert injector.at is not None
    swarm.check(ROUNDS)
    assert swarm.net.errors == []
    assert all(not t.sync.failure_of(RUN) for t in swarm.alive), "a daemon's part has ended"
    doubted = doubtful(swarm, injector)
    well = [t for t in swarm.trainers if t.number not in {injector.victim, *doubted}]
    for trainer in well:
        check_well(swarm, injector, trainer, {swarm.peer(t.number) for t in well})


def doubtful(swarm: Swarm, injector: Injector) -> set[int]:
    """Who may be left out beside, or instead of, the one with the fault: one at most.

    Nobody can know which end of a cut link ought to be left out, nor whether a proposer told a
    member nonsense or the member only says so: it is word against word.
    """
    outcomes = [o for n in injector.healthy for o in swarm.trainers[n].outcomes]
    certificates = [o.certificate for o in outcomes if o.certificate is not None]
    members = next(c.members for c in certificates if c.round == ROUND)
    out = {n for n in injector.healthy if swarm.peer(n) not in members}
    if injector.fault == "cut":
        assert out <= {injector.dupe}
        assert not out or swarm.peer(injector.victim) in members, "both ends were left out"
        return {injector.dupe}
    if (injector.fault, injector.phase) == ("slow", "commit"):
        # One may hear that the others are in the next round before it hears how this one ended.
        late = {n for n in injector.healthy if swarm.trainers[n].fetched}
        assert len(late) <= 1, "more than one had to load a state"
        return late
    if injector.fault in ("lie", "corrupt") and injector.phase in AGAINST_WORD:
        # Or in the round after it: who was blamed is not waited for until it is heard again.
        out |= {n for n in injector.healthy if swarm.trainers[n].fetched}
        assert len(out) <= 1, "more than one was left out who is well"
        return out
    return set()


def check_well(
    swarm: Swarm, injector: Injector, trainer: training.Trainer, well: set[PeerId]
) -> None:
    """What must hold of one who had no fault."""
    assert injector.at is not None
    assert trainer.fetched == 0, "who is well need not load a state"
    assert len(trainer.outcomes) == ROUNDS
    outcome = trainer.outcomes[ROUND]
    assert outcome.certificate is not None
    members = set(outcome.certificate.members)
    assert well <= members, "somebody who is well was left out"
    if injector.acted and injector.phase in LEFT_OUT.get(injector.fault, ()):
        ill = swarm.peer(injector.victim)  # it may lead the next attempt, if it behaves in that
        assert ill not in members or outcome.certificate.proposer == ill, "the faulty one is in"
    took_s = trainer.committed_at[ROUND] - injector.at
    allowed_s = BOUND_S[injector.fault] + trainer.outcomes[0].seconds + SPREAD_S
    if injector.phase == "ready":
        allowed_s += PATIENCE_S
    assert took_s <= allowed_s, f"commit after {took_s:.2f} s of {allowed_s:.2f}"


def run(fault: str, phase: str, role: str, seed: int) -> None:
    """Run one cell from beginning to end: small vectors, and all messages through the injector."""

    async def cell() -> None:
        async with trio.open_nursery() as nursery:
            await run_cell(fault, phase, role, seed, nursery)
            nursery.cancel_scope.cancel()

    with mock.patch.multiple(training, ELEMENTS=SMALL, Tripwire=FaultyRpc):
        trio.run(cell, clock=MockClock(autojump_threshold=0))


@pytest.mark.parametrize(("fault", "phase", "role"), CELLS)
def test_who_is_well_goes_on_within_a_bound_and_is_exact(fault: str, phase: str, role: str) -> None:
    run(fault, phase, role, seed=0)
