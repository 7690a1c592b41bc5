"""The fault matrix: every fault, in every state of a round, at every role, on a virtual clock.

In each cell: who is well commits the round within a bound and is in its certificate; who is not,
is not; all means are exact over their contributors and all replicas have the same bits at the end,
also those that came back; no daemon ends. `python -m tests.soak.fault_matrix 50` runs it with other
seeds (`make soak-learn`).
"""

import random
from itertools import product

import pytest
import trio
from trio.testing import MockClock

from tests.sim import training
from tests.sim.faults import FAULTS, PHASES, ROLES, ROUND, FaultyRpc, Injector
from tests.sim.net import Net
from tests.sim.training import Swarm

NODES = 4
ROUNDS = 3
SMALL = 40_000  # elements: what is tested are messages
PATIENCE_S = 1.5  # for a slow trainer, or a Ready that does not come
# Seconds of the protocol's own that a fault may cost who is well, on top of a normal round.
BOUND_S = {"kill": 1.0, "cut": 1.0, "freeze": 3.0, "slow": 3.0, "corrupt": 3.0, "lie": 3.0}
CELLS = list(product(FAULTS, PHASES, ROLES))
NEXT_S = 1.0  # a trainer's own time between rounds
WITHIN_S = 300.0


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
            seconds_a_round=NEXT_S + (rng.random() * 0.2 if seed else number * 0.001),
        )
    swarm.injector = injector = Injector(swarm, fault, phase, role, rng.randrange(3) if seed else 0)
    await swarm.train(ROUNDS, within_s=WITHIN_S)
    if injector.at is None:
        pytest.skip(f"no {phase} was sent in this round")
    check(swarm, injector)
    return injector


def check(swarm: Swarm, injector: Injector) -> None:
    """What must hold after a fault."""
    assert injector.at is not None
    swarm.check(ROUNDS)
    healthy = [swarm.trainers[number] for number in injector.healthy]
    ill = swarm.peer(injector.victim)
    for trainer in healthy:
        assert trainer.fetched == 0, "who is well need not load a state"
        assert [o.certificate.round for o in trainer.outcomes if o.certificate] == list(
            range(ROUNDS)
        )
        certificate = trainer.outcomes[ROUND].certificate
        assert certificate is not None
        assert {swarm.peer(n) for n in injector.healthy} <= set(certificate.members)
        if injector.fault not in ("cut",) and injector.phase in ("ack", "go", "data"):
            assert ill not in certificate.members
        took_s = trainer.committed_at[ROUND] - injector.at
        normal_s = trainer.outcomes[0].seconds
        allowed_s = BOUND_S[injector.fault] + normal_s + NEXT_S * 0.2
        if injector.phase == "ready":
            allowed_s += PATIENCE_S
        assert took_s <= allowed_s, f"{took_s:.2f} s of {allowed_s:.2f}"
    assert swarm.net.errors == []


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small vectors, and messages through the injector."""
    monkeypatch.setattr(training, "ELEMENTS", SMALL)
    monkeypatch.setattr(training, "Tripwire", FaultyRpc)


@pytest.mark.parametrize(("fault", "phase", "role"), CELLS)
async def test_a_fault_in_any_state_at_any_role_leaves_out_who_has_it_and_nobody_else(
    autojump_clock: MockClock, nursery: trio.Nursery, fault: str, phase: str, role: str
) -> None:
    await run_cell(fault, phase, role, 0, nursery)
    nursery.cancel_scope.cancel()
