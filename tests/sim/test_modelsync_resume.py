"""A swarm that was off, all of it, goes on from its checkpoints; joiners stall nobody."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
from trio.testing import MockClock

from node.checkpoints import lane_path, load_checkpoint, save_checkpoint
from tests.sim.net import Net
from tests.sim.training import RUN, Swarm, Trainer


def keep(swarm: Swarm, folder: Path, rounds: dict[int, int]) -> None:
    """Save each trainer's state before the round that is named for it."""
    for number, round_ in rounds.items():
        state = swarm.trainers[number].sync.state_of(RUN, 0)
        if state is not None and state.round == round_:
            save_checkpoint(folder / str(number), 0, state)


async def train_and_keep(swarm: Swarm, folder: Path, rounds: dict[int, int]) -> None:
    for round_ in range(1, max(rounds.values()) + 1):
        for trainer in swarm.trainers:
            trainer.seconds_a_round = 1.0
        async with trio.open_nursery() as nursery:
            for trainer in swarm.trainers:
                nursery.start_soon(trainer.go_on, round_)
        keep(swarm, folder, {n: r for n, r in rounds.items() if r == round_})


async def resume(trainer: Trainer, folder: Path) -> None:
    """What node.trainers does when a trainer attaches, and the trainer then."""
    found = load_checkpoint(folder / str(trainer.number), RUN, 0, trainer.states[0])
    attach = trainer.sync.attach

    async def attach_and_adopt(attachment: Any) -> None:
        await attach(attachment)
        if found is not None:
            trainer.round = found.round
            trainer.sync.adopt(RUN, 0, found.certificate)

    trainer.sync.attach = attach_and_adopt  # type: ignore[method-assign]
    await trainer.attach()


async def off_and_on(
    nursery: trio.Nursery, folder: Path, rounds: dict[int, int], back: list[int]
) -> Swarm:
    """Train three nodes, turn all of them off, and some on again."""
    swarm = Swarm(Net(nursery), nursery)
    for _ in range(3):
        await swarm.add(min_members=3)
    async with trio.open_nursery() as attaching:
        for trainer in swarm.trainers:
            attaching.start_soon(trainer.attach)
    await train_and_keep(swarm, folder, rounds)
    for number in range(3):
        swarm.kill(number)
    await trio.sleep(120)
    for number in back:
        await swarm.restart(number, patience_s=2.0)
    async with trio.open_nursery() as resuming:
        for number in back:
            resuming.start_soon(resume, swarm.trainers[number], folder)
    return swarm


async def test_after_all_were_off_the_latest_checkpoint_wins_and_training_goes_on(
    autojump_clock: MockClock, nursery: trio.Nursery, tmp_path: Path
) -> None:
    swarm = await off_and_on(nursery, tmp_path, {0: 2, 1: 3, 2: 4}, [0, 1, 2])
    with trio.fail_after(120):
        async with trio.open_nursery() as rounds:
            for trainer in swarm.trainers:
                rounds.start_soon(trainer.go_on, 6)
    assert len({trainer.roots[6] for trainer in swarm.trainers}) == 1
    first = [trainer.outcomes[0].certificate for trainer in swarm.trainers]
    assert [certificate.round for certificate in first if certificate] == [4, 4, 4]
    nursery.cancel_scope.cancel()


async def test_if_who_had_the_latest_does_not_come_back_the_latest_that_can_be_had_wins(
    autojump_clock: MockClock, nursery: trio.Nursery, tmp_path: Path
) -> None:
    swarm = await off_and_on(nursery, tmp_path, {0: 2, 1: 3, 2: 4}, [0, 1])
    with trio.fail_after(120):
        async with trio.open_nursery() as rounds:
            for trainer in swarm.alive:
                rounds.start_soon(trainer.go_on, 6)
    assert len({trainer.roots[6] for trainer in swarm.alive}) == 1
    first = swarm.trainers[1].outcomes[0].certificate
    assert first is not None
    assert (first.round, len(first.members)) == (3, 2)
    nursery.cancel_scope.cancel()


async def test_a_node_whose_checkpoint_is_lost_takes_the_state_of_the_others(
    autojump_clock: MockClock, nursery: trio.Nursery, tmp_path: Path
) -> None:
    swarm = await off_and_on(nursery, tmp_path, {1: 3, 2: 3}, [0, 1, 2])
    assert not lane_path(tmp_path / "0", 0).exists()
    with trio.fail_after(120):
        async with trio.open_nursery() as rounds:
            for trainer in swarm.trainers:
                rounds.start_soon(trainer.go_on, 5)
    assert len({trainer.roots[5] for trainer in swarm.trainers}) == 1
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("joiners", [1, 3])
async def test_joiners_stall_nobody_and_enter_without_weight(
    autojump_clock: MockClock, nursery: trio.Nursery, joiners: int
) -> None:
    swarm = Swarm(Net(nursery), nursery)
    for _ in range(3):
        await swarm.add(min_members=3)
    members = list(swarm.trainers)
    async with trio.open_nursery() as attaching:
        for trainer in members:
            attaching.start_soon(trainer.attach)
    new: list[Trainer] = []

    async def join_later() -> None:
        await trio.sleep(4.2)
        new.extend([await swarm.add() for _ in range(joiners)])
        async with trio.open_nursery() as training:
            for trainer in new:
                training.start_soon(trainer.train, 12)

    with trio.fail_after(120):
        async with trio.open_nursery() as rounds:
            for trainer in members:
                rounds.start_soon(trainer.go_on, 12)
            rounds.start_soon(join_later)
    took = np.diff(members[0].committed_at)
    assert max(took) <= 1.05 * min(took) + 0.1  # of 1 s; a few round trips to more members
    assert len({trainer.roots[12] for trainer in swarm.trainers}) == 1
    for trainer in new:
        certificate = trainer.outcomes[0].certificate
        assert certificate is not None
        weights = dict(zip(certificate.contributors, certificate.weights, strict=True))
        assert weights[swarm.peer(trainer.number)] == 0
        assert trainer.fetched <= 2
    nursery.cancel_scope.cancel()
