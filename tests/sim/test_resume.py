"""Training that goes on from checkpoints after the whole swarm was off."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from shoal.errors import ClientError
from shoal.trainer import Trainer, flatten
from tests.sim.run_nodes import RunNodes
from tests.sim.test_modelsync_training import in_threads
from tests.tiny_learner import Learner

ROUNDS, EVERY = 6, 3


def train(learner: Learner, client: Any, until: int, **options: Any) -> tuple[Any, str]:
    """Train up to a round, or to the end."""
    keys: dict[str, Any] = {"run": "tiny", "rounds": ROUNDS, "every": EVERY, "min_members": 2}
    with Trainer(learner.model, learner.optimizer, client=client, **keys | options) as trainer:
        while trainer.round < until:
            trainer.step(learner.step(trainer.member, trainer.global_step))
        return (flatten(learner.model), trainer.global_step), trainer.root


async def swarm(nursery: trio.Nursery, home: Path) -> list[Any]:
    nodes = RunNodes(nursery, home)
    return [await nodes.add() for _ in range(2)]


@pytest.mark.parametrize("wire", ["float32", "int4"])
async def test_all_come_back_with_their_optimizers_and_go_on(
    nursery: trio.Nursery, tmp_path: Path, wire: str
) -> None:
    clients = await swarm(nursery, tmp_path)
    await in_threads([partial(train, Learner(), c, 2, wire=wire) for c in clients])
    later = await swarm(nursery, tmp_path)  # other daemons with the same homes
    learners = [Learner(), Learner()]
    ends = await in_threads(
        [partial(train, own, c, ROUNDS, wire=wire) for own, c in zip(learners, later, strict=True)]
    )
    assert len({root for _, root in ends}) == 1
    assert len({parameters.tobytes() for (parameters, _), _ in ends}) == 1
    assert [step for (_, step), _ in ends] == [ROUNDS * EVERY] * 2
    for learner in learners:  # two rounds before; the third is entered without data
        steps = {int(state["step"]) for state in learner.optimizer.state.values()}
        assert steps == {(ROUNDS - 1) * EVERY}
    nursery.cancel_scope.cancel()


async def test_a_checkpoint_of_another_model_is_an_error_that_says_what_to_do(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    (first, _) = await swarm(nursery, tmp_path)
    await in_threads([partial(train, Learner(), first, 2, min_members=1)])
    (again, _) = await swarm(nursery, tmp_path)

    def other() -> None:
        learner = Learner()
        learner.model.append(learner.model[0])
        train(learner, again, 3, min_members=1, strategy="localsgd")

    with pytest.raises(ClientError, match="elements"):
        await trio.to_thread.run_sync(other)
    nursery.cancel_scope.cancel()


async def test_a_damaged_file_of_the_optimizer_is_said(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    (first, _) = await swarm(nursery, tmp_path)
    await in_threads([partial(train, Learner(), first, 2, min_members=1)])
    (path,) = tmp_path.rglob("trainer-*.safetensors")  # noqa: ASYNC240 - a test
    path.write_bytes(path.read_bytes()[:50])
    (again, _) = await swarm(nursery, tmp_path)
    with pytest.raises(ClientError, match="is damaged"):
        await trio.to_thread.run_sync(partial(train, Learner(), again, 3, min_members=1))
    nursery.cancel_scope.cancel()
