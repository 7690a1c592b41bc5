"""What a donor gives: copies, few at a time, after the rounds; nothing that is not asked."""

from functools import partial

import numpy as np
import pytest
import trio
from trio.testing import MockClock

from protocols.modelsync.donor import COPIES_MAX, DOWNLOADS_MAX, DOWNLOADS_OF_PEER, KEPT_S
from protocols.modelsync.state import State, state_root
from protocols.modelsync.state_wire import (
    CHUNKS as CHUNKS_METHOD,
)
from protocols.modelsync.state_wire import (
    Chunk,
    Opened,
    OpenState,
    Page,
    StateAsk,
    Want,
    Wants,
)
from tests.sim.net import Net
from tests.sim.state_swarm import (
    CHUNKS,
    ELEMENTS,
    LANE,
    RUN,
    StateSwarm,
    slow,
    vector,
)
from wire.errors import BadMessage, Busy, NotFound
from wire.ids import Signer


def make(nursery: trio.Nursery, count: int, round_: int = 5) -> StateSwarm:
    swarm = StateSwarm(Net(nursery), count)
    swarm.announce(round_)
    return swarm


def empty() -> np.ndarray:
    return np.zeros(ELEMENTS, np.float32)


async def test_a_state_is_copied_once_on_the_first_request_and_given_while_the_trainer_goes_on(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm, target = make(nursery, 1), empty()
    donor = swarm.holders[0]
    state = donor.announce(7)
    assert donor.copies == 0
    donor.on_send = slow(0.1)

    async def overwrite() -> None:
        await trio.sleep(0.5)
        state[:] = 0  # its trainer needs the buffer

    nursery.start_soon(overwrite)
    await swarm.load(target)
    await swarm.load(empty())
    assert np.array_equal(target, vector(7))
    assert donor.copies == 1


async def test_a_state_that_changes_while_it_is_copied_is_not_given(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = make(nursery, 1)
    state = swarm.holders[0].announce(5)
    state[0] += 1
    with pytest.raises(NotFound, match="while it was copied"):
        await opened(swarm, state_root(vector(5)))


async def opened(
    swarm: StateSwarm, root: bytes, stay_s: float = 0.0, *, by: Signer | None = None
) -> None:
    """Open a state as a joiner does, and keep it open."""
    rpc = swarm.rpc if by is None else swarm.net.rpc(by.peer)
    async with rpc.stream(swarm.holders[0].peer, CHUNKS_METHOD, timeout_s=4) as call:
        await call.send(StateAsk(OpenState(RUN, LANE, root)))
        assert isinstance((await call.receive()).body, Opened)
        assert isinstance((await call.receive()).body, Page)
        await trio.sleep(stay_s)


async def test_copies_are_dropped_when_nobody_has_loaded_from_them_for_a_while(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = make(nursery, 1)
    donor = swarm.holders[0]
    await opened(swarm, state_root(vector(5)))
    donor.announce(6)
    await opened(swarm, state_root(vector(5)))  # the copy is still there
    await trio.sleep(KEPT_S + 1)
    donor.donor.tidy()
    with pytest.raises(NotFound, match="before round 6 by now"):
        await opened(swarm, state_root(vector(5)))


async def test_a_copy_is_kept_for_as_long_as_somebody_loads_from_it(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = make(nursery, 1)
    nursery.start_soon(opened, swarm, state_root(vector(5)), 60.0)
    await trio.sleep(1)
    swarm.announce(6)
    await trio.sleep(2 * KEPT_S)
    swarm.holders[0].donor.tidy()
    await opened(swarm, state_root(vector(5)))
    nursery.cancel_scope.cancel()


async def test_a_lane_has_two_copies_at_most_and_none_that_is_loaded_is_dropped(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = make(nursery, 1)
    for round_ in range(5, 5 + COPIES_MAX):
        swarm.announce(round_)
        nursery.start_soon(opened, swarm, state_root(vector(round_)), 30.0)
        await trio.sleep(1)
    swarm.announce(9)
    with pytest.raises(Busy, match="states of this lane"):
        await opened(swarm, state_root(vector(9)))
    await trio.sleep(30)
    await opened(swarm, state_root(vector(9)))


async def test_only_some_load_at_a_time(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    swarm, root = make(nursery, 1), state_root(vector(5))
    greedy = [Signer(bytes([200 + n]) * 32) for n in range(DOWNLOADS_MAX // DOWNLOADS_OF_PEER)]
    for signer in greedy:
        for _ in range(DOWNLOADS_OF_PEER):
            nursery.start_soon(partial(opened, swarm, root, 30.0, by=signer))
        await trio.sleep(1)
        with pytest.raises(Busy, match="you load"):
            await opened(swarm, root, by=signer)
    with pytest.raises(Busy, match="already"):
        await opened(swarm, root, by=Signer(b"k" * 32))
    await trio.sleep(30)
    await opened(swarm, root, by=Signer(b"k" * 32))


async def test_while_a_round_moves_data_giving_takes_a_twentieth_of_the_time(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm, target = make(nursery, 1), empty()
    donor = swarm.holders[0]
    donor.on_send = slow(0.1)
    donor.is_busy = True

    async def end_the_round() -> None:
        await trio.sleep(10.0)
        donor.is_busy = False

    nursery.start_soon(end_the_round)
    nursery.start_soon(swarm.load, target)
    await trio.sleep(9.9)
    assert len(donor.given) <= 6  # 0.1 s each, and 19 times that of pause
    await trio.sleep(2.0)
    assert np.array_equal(target, vector(5))


async def test_after_its_trainer_has_left_a_node_gives_what_it_kept(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm, target = make(nursery, 1), empty()
    donor = swarm.holders[0]
    state = donor.announce(7)
    donor.donor.announce(RUN, 0, State(7, state_root(state), state, None))
    donor.donor.keep(RUN, [state.copy(), state.copy()])
    state[:] = 0
    await swarm.load(target)
    assert np.array_equal(target, vector(7))
    donor.donor.forget(RUN)
    with pytest.raises(NotFound):
        await opened(swarm, state_root(vector(7)))


@pytest.mark.parametrize(
    "first",
    [StateAsk(Wants([Want(0, bytes(32))])), None],
)
async def test_a_stream_that_does_not_open_a_state_is_refused(
    autojump_clock: MockClock, nursery: trio.Nursery, first: StateAsk | None
) -> None:
    swarm = make(nursery, 1)
    async with swarm.rpc.stream(swarm.holders[0].peer, CHUNKS_METHOD, timeout_s=4) as call:
        await (call.finish() if first is None else call.send(first))
        with pytest.raises(Exception, match="begins with the state") as caught:
            await call.receive()
    assert getattr(caught.value, "code", "") == BadMessage.code


async def test_a_chunk_with_another_hash_is_answered_with_nothing(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = make(nursery, 1)
    root = state_root(vector(5))
    async with swarm.rpc.stream(swarm.holders[0].peer, CHUNKS_METHOD, timeout_s=4) as call:
        await call.send(StateAsk(OpenState(RUN, LANE, root, wants_hashes=False)))
        await call.receive()
        await call.send(StateAsk(Wants([Want(0, bytes(32)), Want(CHUNKS + 5, bytes(32))])))
        assert (await call.receive()).body == Chunk(0, b"")
        assert (await call.receive()).body == Chunk(CHUNKS + 5, b"")
