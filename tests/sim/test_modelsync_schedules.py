"""Whatever order messages take, whoever dies: never two results of a round, and it goes on."""

import random

import pytest

from tests.sim.schedules import SIGNERS, World

SCHEDULES = 60  # a parameter; thousands were run when this was written


def chaos(world: World, steps: int) -> None:
    """Loss, partitions, deaths and returns; most of the voters stay, or nobody could know more."""
    for _ in range(steps):
        world.step()
        if world.random.random() < 0.5:
            world.everybody_works()
        event = world.random.random()
        gone = [signer for signer in SIGNERS[: world.count] if signer.peer not in world.nodes]
        if event < 0.004 and len(gone) < (world.count - 1) // 2:
            victim = world.random.choice(list(world.nodes))
            if not world.is_last_to_know(victim):
                world.random.choice([world.kill, world.leave])(victim)
        elif event < 0.012 and gone:
            world.start(world.random.choice(gone))
        elif event < 0.016:
            size = world.random.randint(1, world.count // 2)
            world.parted = frozenset(
                world.random.sample(list(world.nodes), min(size, len(world.nodes)))
            )
        elif event < 0.03:
            world.parted = frozenset()


@pytest.mark.parametrize("seed", range(SCHEDULES))
def test_never_two_results_of_a_round_and_progress_while_a_quorum_lives(seed: int) -> None:
    world = World(count=3 + seed % 3, random=random.Random(seed), loss=(seed % 4) * 0.07)
    chaos(world, 700)
    world.loss, world.haste, world.parted = 0.0, 0.01, frozenset()
    world.disorder = 4
    for signer in SIGNERS[: world.count]:
        if signer.peer not in world.nodes:
            world.start(signer)  # of the last two members, one alone is no quorum
    reached = max(node.round for node in world.nodes.values())
    for _ in range(4000):
        world.step()
        world.everybody_works()
        if min(node.round for node in world.nodes.values()) >= reached + 2:
            break
    else:
        raise AssertionError(f"no progress beyond round {reached} with {len(world.nodes)} nodes")
