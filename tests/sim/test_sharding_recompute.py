"""Asking a node to recompute: what it refuses, and that nothing stays behind."""

from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock

from protocols.sharding.recompute import STEP_S, ask_again
from protocols.sharding.rows import ids_to_rows
from protocols.sharding.wire import RECOMPUTE, Recompute, Recomputed, RowsPart, Sampling
from protocols.sharding.worker_wire import WorkerClose, WorkerOpen
from tests.sim.audited import LAYERS, MODEL, AuditedSwarm
from wire.errors import Busy, NotFound, RemoteError

COUNT = 40
ROWS = ids_to_rows(list(range(COUNT)))


def asked(**changes: object) -> Recompute:
    options: dict[str, object] = {
        "model": MODEL,
        "start": 0,
        "end": 2,
        "count": COUNT,
        "row_bytes": 4,
        "sampling": Sampling(),
        "takes": "ids",
        "gives": "float32",
        **changes,
    }
    return Recompute(**options)  # type: ignore[arg-type]


@pytest.fixture
async def swarm(nursery: trio.Nursery, autojump_clock: MockClock) -> AuditedSwarm:
    return await AuditedSwarm.start(nursery)


async def told(swarm: AuditedSwarm, messages: Sequence[Recompute | RowsPart]) -> Recomputed:
    """Send messages to x as they are."""
    calls = swarm.services["entry"].calls
    async with calls.stream(swarm.peers["x"], RECOMPUTE, timeout_s=5) as call:
        for message in messages:
            await call.send(message)
        return await call.receive()


async def recomputed(swarm: AuditedSwarm) -> Recomputed:
    return await ask_again(swarm.services["entry"].calls, swarm.peers["x"], asked(), ROWS)


async def test_the_same_rows_give_the_same_on_any_node(swarm: AuditedSwarm) -> None:
    calls = swarm.services["entry"].calls
    here = await recomputed(swarm)
    there = await ask_again(calls, swarm.peers["y"], asked(), ROWS)
    assert here == there
    assert (len(here.inputs), len(here.outputs), here.wrong_picks) == (2, 2, [])
    own = swarm.services["x"].calls
    assert await ask_again(own, swarm.peers["x"], asked(), ROWS) == here  # of itself


@pytest.mark.parametrize(
    "messages",
    [
        [RowsPart(ROWS)],
        [asked(), asked()],
        [asked(), RowsPart(b"")],
        [asked(), RowsPart(ROWS[:5])],
        [asked(), RowsPart(ROWS)],  # more than a part may hold
        [asked(count=8193)],
        [asked(count=3), RowsPart(ROWS[:16])],
        [asked(row_bytes=8), RowsPart(ROWS[:16])],
        [asked(takes="float32"), RowsPart(ROWS[:16])],
        [asked(), RowsPart(ids_to_rows([1 << 23]))],  # no token of this model
        [asked(gives="picks"), RowsPart(ROWS[:16])],
        [asked(end=LAYERS), RowsPart(ROWS[:16])],
    ],
)
async def test_nonsense_is_refused_and_leaves_nothing_behind(
    swarm: AuditedSwarm, messages: list[Recompute | RowsPart]
) -> None:
    with pytest.raises(RemoteError) as caught:
        await told(swarm, messages)
    assert caught.value.code == "bad_message"
    await recomputed(swarm)
    said = swarm.workers["x"].asked
    opened = {ask.session for ask in said if isinstance(ask, WorkerOpen)}
    assert opened == {ask.session for ask in said if isinstance(ask, WorkerClose)}
    assert swarm.services["x"].usage(MODEL, 0).free_tokens == (1 << 24) // (64 * LAYERS)


async def test_blocks_that_are_not_here_are_not_recomputed(swarm: AuditedSwarm) -> None:
    for request in (asked(model="f" * 64), asked(end=LAYERS + 1)):
        with pytest.raises(NotFound):
            await told(swarm, [request])


async def test_a_peer_gets_one_recomputation_at_a_time_and_a_silent_one_loses_it(
    swarm: AuditedSwarm,
) -> None:
    calls = swarm.services["entry"].calls
    async with calls.stream(swarm.peers["x"], RECOMPUTE, timeout_s=5) as silent:
        await silent.send(asked())
        await trio.sleep(1)
        with pytest.raises(Busy):
            await recomputed(swarm)
        await trio.sleep(STEP_S)
        await recomputed(swarm)
        with pytest.raises(RemoteError):
            await silent.receive()
