"""`shoal.join`: scripts that average vectors, in threads of their own."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from shoal.errors import ClientError
from shoal.learn.exact import state_root, weighted_mean
from shoal.rounds import Round, join
from tests.sim.run_nodes import RunNodes

OPTIONS: dict[str, Any] = {"elements": 5000, "min_members": 3, "wire": "int8"}


def vector(seed: int) -> Any:
    return np.random.default_rng(seed).standard_normal(5000, dtype=np.float32)


def average(client: object, seed: int, options: dict[str, Any]) -> list[Round]:
    with join("mine", client=client, **options) as run:  # type: ignore[arg-type]
        assert not run.value.any()
        return [run.round(vector(seed + n), weight=1.0 + seed) for n in range(0, 20, 10)]


async def in_threads(*jobs: Any) -> list[Any]:
    found: dict[int, Any] = {}

    async def one(number: int, job: Any) -> None:
        found[number] = await trio.to_thread.run_sync(job)

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for number, job in enumerate(jobs):
                nursery.start_soon(one, number, job)
    return [found[number] for number in range(len(jobs))]


@pytest.mark.parametrize("wire", ["float32", "int8", "topk"])
async def test_every_script_gets_the_same_bits_and_knows_with_whom(
    nursery: trio.Nursery, tmp_path: Path, wire: str
) -> None:
    nodes = RunNodes(nursery, tmp_path)
    clients = [await nodes.add() for _ in range(3)]
    options = OPTIONS | {"wire": wire}
    ends = await in_threads(*(partial(average, c, s, options) for s, c in enumerate(clients)))
    for rounds in zip(*ends, strict=True):
        assert len({r.value.tobytes() for r in rounds}) == 1
        assert len({r.root for r in rounds}) == 1
        assert rounds[0].members == sorted(nodes.peers)
        assert rounds[0].root == state_root(rounds[0].value).hex()
        assert rounds[0].missed == 0
    if wire == "float32":
        order = sorted(range(3), key=lambda n: nodes.peers[n])
        expected = weighted_mean([vector(n) for n in order], [1.0 + n for n in order])
        assert ends[0][0].value.tobytes() == expected.tobytes()
    nursery.cancel_scope.cancel()


async def test_who_comes_later_has_the_value_and_takes_part(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    nodes = RunNodes(nursery, tmp_path)
    options: dict[str, Any] = {"elements": 4, "wire": "float32"}
    first, second = await nodes.add(), await nodes.add()
    ones = np.ones(4, dtype=np.float32)
    joined = trio.Event()

    def begins(until: Any) -> list[Round]:
        rounds: list[Round] = []
        with join("mine", client=first, **options) as run:
            while len(rounds) < 2 or len(rounds[-1].members) < 2 or rounds[-1].value[0] == 1:
                rounds.append(run.round(ones))
                if len(rounds) == 2:
                    trio.from_thread.run_sync(until.set)
        return rounds

    def follows() -> tuple[Any, Round]:
        with join("mine", client=second, **options) as run:
            had = run.value
            return had, run.round(3 * ones)

    async def later() -> tuple[Any, Round]:
        await joined.wait()
        return await trio.to_thread.run_sync(follows)

    found: list[Any] = []
    with trio.fail_after(30):
        async with trio.open_nursery() as both:

            async def run_later() -> None:
                found.append(await later())

            both.start_soon(run_later)
            rounds = await trio.to_thread.run_sync(begins, joined)
    had, mine = found[0]
    assert had.tolist() == [1.0] * 4
    assert mine.value.tolist() == [2.0] * 4
    assert mine.missed == 0
    assert rounds[-1].value.tolist() == [2.0] * 4
    nursery.cancel_scope.cancel()


async def test_what_cannot_be_averaged_is_refused_here(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    nodes = RunNodes(nursery, tmp_path)
    client = await nodes.add()

    def wrong(values: Any) -> None:
        with join("mine", elements=3, client=client) as run:
            run.round(values)

    for values in (np.ones(4), np.array([1.0, np.nan, 1.0]), np.array([1e30, 0.0, 0.0])):
        with pytest.raises(ClientError, match="numbers; the run has 3"):
            await trio.to_thread.run_sync(wrong, values)
    nursery.cancel_scope.cancel()
