"""What becomes of a strategy's lanes when a member is slow, comes late, or brings nothing."""

import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trio

from shoal.errors import ClientError
from shoal.trainer import Trainer, flatten, load_vector
from tests.sim.run_nodes import RunNodes
from tests.sim.test_modelsync_training import in_threads
from tests.tiny_learner import Learner

ROUNDS = 6
STRATEGIES: dict[str, dict[str, Any]] = {
    "diloco": {"every": 2},
    "streaming": {"every": 4, "fragments": 2, "delay": 2},
    "eager": {"every": 2},
    "dilocox": {"every": 2, "rank": 2},
}


def options(name: str, **more: Any) -> dict[str, Any]:
    base = {"run": "tiny", "rounds": ROUNDS, "strategy": name, "wire": "float32", "patience_s": 0.0}
    return base | STRATEGIES[name] | more


@pytest.mark.parametrize("name", sorted(STRATEGIES))
async def test_a_member_that_was_left_behind_catches_up_in_every_lane(
    nursery: trio.Nursery, tmp_path: Path, name: str
) -> None:
    nodes = RunNodes(nursery, tmp_path)
    clients = [await nodes.add() for _ in range(3)]
    ahead = [threading.Event(), threading.Event()]
    back = threading.Event()

    def one(learner: Learner, client: Any, number: int) -> tuple[Any, str]:
        how = options(name, min_members=3, patience_s=0.5)
        with Trainer(learner.model, learner.optimizer, client=client, **how) as trainer:
            while not trainer.done:
                if number == 2 and trainer.round == 1 and not back.is_set():
                    assert all(event.wait(20) for event in ahead)
                    back.set()
                if number < 2 and trainer.round >= 3:
                    ahead[number].set()
                    assert back.wait(20)
                trainer.step(learner.step(trainer.member, trainer.global_step))
            return flatten(learner.model), trainer.root

    ends = await in_threads([partial(one, Learner(), c, n) for n, c in enumerate(clients)])
    assert len({root for _, root in ends}) == 1
    assert len({parameters.tobytes() for parameters, _ in ends}) == 1
    members = [len(c.members) for c in await nodes.runs[0].certificates("tiny")]
    assert 2 in members
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("name", ["diloco", "streaming"])
async def test_who_missed_the_last_rounds_records_where_the_run_has_ended(
    nursery: trio.Nursery, tmp_path: Path, name: str
) -> None:
    nodes = RunNodes(nursery, tmp_path)
    clients = [await nodes.add() for _ in range(3)]
    begun, over = threading.Event(), [threading.Event(), threading.Event()]

    def one(learner: Learner, client: Any, number: int) -> tuple[Any, str]:
        how = options(name, min_members=3, patience_s=0.5)
        with Trainer(learner.model, client=client, evaluate=lambda: 0.5, **how) as trainer:
            while not trainer.done:
                if trainer.round == 1:
                    begun.set()
                if number == 2 and begun.is_set():
                    assert all(event.wait(20) for event in over)
                trainer.step(learner.step(trainer.member, trainer.global_step))
            end = flatten(learner.model), trainer.root
        if number < 2:
            over[number].set()
        return end

    ends = await in_threads([partial(one, Learner(), c, n) for n, c in enumerate(clients)])
    assert len({parameters.tobytes() for parameters, _ in ends}) == 1
    for runs in nodes.runs:
        last = (await runs.metrics("tiny"))[-1]
        assert (last.round, last.root, last.val_loss) == (ROUNDS, ends[0][1], 0.5)
    late = await nodes.runs[2].metrics("tiny")
    assert [m.round for m in late] != list(range(ROUNDS + 1))
    assert (late[-1].peers, late[-1].bytes_in) == (0, 0)  # of a round that it was not in
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("name", sorted(STRATEGIES))
async def test_who_joins_late_enters_every_lane_without_data_and_ends_alike(
    nursery: trio.Nursery, tmp_path: Path, name: str
) -> None:
    nodes = RunNodes(nursery, tmp_path)
    first, second = await nodes.add(), await nodes.add()
    begun, joined = threading.Event(), threading.Event()

    def begin() -> tuple[Any, str]:
        learner = Learner()
        with Trainer(learner.model, client=first, **options(name, patience_s=20.0)) as trainer:
            while not trainer.done:
                if trainer.round == 2 and trainer.steps % 2:  # else the moments were sick too
                    begun.set()
                    assert joined.wait(20)
                trainer.step(learner.step(trainer.member, trainer.global_step))
            return flatten(learner.model), trainer.root

    def follow() -> tuple[Any, str]:
        assert begun.wait(20)
        learner = Learner(seed=7)  # whatever it begins with is not the run's
        threading.Timer(0.3, joined.set).start()
        with Trainer(learner.model, client=second, **options(name, patience_s=20.0)) as trainer:
            assert trainer.round >= 2
            while not trainer.done:
                trainer.step(learner.step(trainer.member, trainer.global_step))
            return flatten(learner.model), trainer.root

    ends = await in_threads([begin, follow])
    assert ends[0][1] == ends[1][1]
    assert ends[0][0].tobytes() == ends[1][0].tobytes()
    late = nodes.peers[1]
    weights = [
        c.weights[c.contributors.index(late)]
        for c in await nodes.runs[0].certificates("tiny")
        if late in c.contributors
    ]
    assert weights[0] == 0.0
    assert 1.0 in weights
    nursery.cancel_scope.cancel()


async def test_a_round_to_which_nobody_brings_data_changes_nothing(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    nodes = RunNodes(nursery, tmp_path)
    clients = [await nodes.add() for _ in range(2)]

    def sick(learner: Learner, client: Any) -> tuple[Any, str]:
        how = options("diloco", min_members=2, patience_s=20.0)
        roots: list[str] = []
        with Trainer(learner.model, client=client, **how) as trainer:
            while not trainer.done:
                learner.step(trainer.member, trainer.global_step)
                if trainer.round == 2 and trainer.steps % 2:  # else the moments were sick too
                    load_vector(learner.model, np.full(161, np.nan, dtype=np.float32))
                trainer.step()
                if trainer.steps % 2 == 0:
                    roots.append(trainer.root)
            assert roots[2] == roots[1]
            assert len(set(roots)) == ROUNDS - 1
            return flatten(learner.model), trainer.root

    ends = await in_threads([partial(sick, Learner(), client) for client in clients])
    assert ends[0][1] == ends[1][1]
    assert bool(np.isfinite(ends[0][0]).all())
    nursery.cancel_scope.cancel()


async def test_a_model_in_bfloat16_is_averaged_in_float32(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    nodes = RunNodes(nursery, tmp_path)
    client = await nodes.add()

    def once() -> tuple[Any, str]:
        model = Learner().model.to(torch.bfloat16)
        start = flatten(model)
        how: dict[str, Any] = {"run": "half", "rounds": 1, "every": 1, "wire": "float32"}
        how |= {"strategy": "diloco", "momentum": 0.0, "lr": 0.5}
        with Trainer(model, client=client, **how) as trainer:
            moved = np.asarray(start + 2.0**-6, dtype=np.float32)
            load_vector(model, moved)
            delta = start - flatten(model)  # what bfloat16 keeps of it
            trainer.step()
            assert trainer.parameters_hash
            assert all(p.dtype == torch.bfloat16 for p in model.parameters())
            exact = torch.from_numpy(start - np.float32(0.5) * delta)
            assert np.array_equal(flatten(model), exact.to(torch.bfloat16).float().numpy())
            return flatten(model), trainer.root

    await in_threads([once])
    nursery.cancel_scope.cancel()


async def test_options_that_a_strategy_does_not_take_are_said_at_once(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    nodes = RunNodes(nursery, tmp_path)
    client = await nodes.add()

    def wrong(**more: Any) -> None:
        Trainer(Learner().model, run="tiny", rounds=1, client=client, **more)

    for more, words in (
        ({"sync_every": 3}, "diloco has no 'sync_every'"),
        ({"strategy": "sgd"}, "no strategy 'sgd'"),
        ({"lr": -1.0}, "lr is above 0"),
        ({"wire": "int3"}, "no such codec"),
        ({"aggregator": "best"}, "best"),
    ):
        with pytest.raises(ClientError, match=words):
            await trio.to_thread.run_sync(partial(wrong, **more))
    nursery.cancel_scope.cancel()
