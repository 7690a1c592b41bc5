"""States from many donors: exact, whoever dies, lies, stalls or goes on; nobody waits."""

import numpy as np
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from protocols.modelsync import joining
from protocols.modelsync.joining import LOST_S, StateLost
from protocols.modelsync.state import CHUNK_ELEMENTS, state_root
from tests.sim.net import Net
from tests.sim.state_swarm import (
    CHUNKS,
    ELEMENTS,
    OnSend,
    StateSwarm,
    corrupting,
    empty_handed,
    honest,
    other_hashes,
    slow,
    stalling,
    unasked,
    vector,
    wrong_chunk,
)
from wire.errors import DeadlineExceeded


def make(nursery: trio.Nursery, count: int, round_: int = 5) -> StateSwarm:
    swarm = StateSwarm(Net(nursery), count)
    swarm.announce(round_)
    return swarm


def empty() -> np.ndarray:
    return np.zeros(ELEMENTS, np.float32)


async def test_a_state_comes_from_all_donors_at_once_and_is_exact(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm, target, seen = make(nursery, 3), empty(), list[tuple[int, int]]()
    for holder in swarm.holders:
        holder.on_send = slow(0.1)
    loaded = await swarm.load(target, progress=lambda right, chunks: seen.append((right, chunks)))
    assert loaded is not None
    assert (loaded.round, loaded.root) == (5, state_root(target))
    assert np.array_equal(target, vector(5))
    assert loaded.certificate == swarm.certificate(4)
    assert (loaded.bytes_in, loaded.corrupt) == (4 * ELEMENTS, 0)
    assert set(loaded.donors) == {h.peer for h in swarm.holders}
    assert seen == [(right, CHUNKS) for right in range(CHUNKS + 1)]


async def test_three_donors_are_faster_than_one(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    took: list[float] = []
    for count in (1, 3):
        swarm = make(nursery, count)
        for holder in swarm.holders:
            holder.on_send = slow(1.0)
        began = trio.current_time()
        await swarm.load(empty())
        took.append(trio.current_time() - began)
    assert took[0] >= 2.5 * took[1]


@pytest.mark.parametrize(
    ("bad", "is_caught"),
    [
        (corrupting, True),
        (other_hashes, True),
        (wrong_chunk, True),
        (unasked, True),
        (empty_handed, False),
    ],
)
async def test_what_one_donor_spoils_comes_from_others_and_a_liar_is_asked_no_more(
    autojump_clock: MockClock, nursery: trio.Nursery, bad: OnSend, is_caught: bool
) -> None:
    swarm, target = make(nursery, 3), empty()
    swarm.holders[0].on_send = bad
    for holder in swarm.holders[1:]:
        holder.on_send = slow(1.0)
    loaded = await swarm.load(target)
    assert loaded is not None
    assert np.array_equal(target, vector(5))
    assert loaded.corrupt == 1 if bad is corrupting else loaded.corrupt <= 1
    assert (swarm.holders[0].peer in loaded.donors) is False
    if is_caught:
        assert len(swarm.holders[0].given) <= 2


async def test_a_donor_that_stalls_or_is_slow_holds_up_nothing(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm, target = make(nursery, 3), empty()
    swarm.holders[0].on_send = stalling
    swarm.holders[1].on_send = slow(20.0)
    swarm.holders[2].on_send = slow(0.1)
    began = trio.current_time()
    await swarm.load(target)
    assert np.array_equal(target, vector(5))
    assert trio.current_time() - began < 3.0


async def test_a_donor_that_dies_costs_only_what_it_had_on_order(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm, target = make(nursery, 3), empty()
    for holder in swarm.holders:
        holder.on_send = slow(0.5)
    nursery.start_soon(kill_later, swarm, 0, 0.9)
    loaded = await swarm.load(target)
    assert np.array_equal(target, vector(5))
    assert loaded is not None
    assert loaded.bytes_in == 4 * ELEMENTS


async def kill_later(swarm: StateSwarm, number: int, after_s: float) -> None:
    await trio.sleep(after_s)
    swarm.net.kill(swarm.holders[number].peer)


async def test_what_has_arrived_survives_the_loss_of_all_donors_for_a_while(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm, target = make(nursery, 2), empty()
    for holder in swarm.holders:
        holder.on_send = slow(1.0)

    async def cut_all() -> None:
        await trio.sleep(3.5)
        for holder in swarm.holders:
            swarm.net.kill(holder.peer)
        await trio.sleep(60)
        for holder in swarm.holders:
            swarm.net.revive(holder.peer)

    nursery.start_soon(cut_all)
    loaded = await swarm.load(target)
    assert np.array_equal(target, vector(5))
    assert loaded is not None
    assert loaded.bytes_in <= 4 * ELEMENTS
    assert trio.current_time() > 60


async def test_if_nobody_comes_back_it_is_an_error_and_the_next_call_fetches_only_the_rest(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm, target = make(nursery, 1), empty()
    donor = swarm.holders[0]
    donor.on_send = slow(1.0)
    nursery.start_soon(kill_later, swarm, 0, 6.5)
    with pytest.raises(DeadlineExceeded, match="lane 1 of run run before round 1"):
        await swarm.load(target)
    right = chunks_of(target, vector(5))
    assert 3 <= len(right) < CHUNKS
    assert right | chunks_of(target, empty()) == set(range(CHUNKS))  # nothing else is in it
    swarm.net.revive(donor.peer)
    donor.given.clear()
    await swarm.load(target)
    assert np.array_equal(target, vector(5))
    assert set(donor.given) == set(range(CHUNKS)) - right


def chunks_of(one: np.ndarray, other: np.ndarray) -> set[int]:
    """Numbers of the chunks that two states have alike."""
    slices = [slice(n * CHUNK_ELEMENTS, (n + 1) * CHUNK_ELEMENTS) for n in range(CHUNKS)]
    return {n for n, where in enumerate(slices) if np.array_equal(one[where], other[where])}


async def test_only_chunks_that_neither_the_target_nor_our_own_state_has_are_fetched(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm, held, target = make(nursery, 2), vector(5), empty()
    held[3 * CHUNK_ELEMENTS] += 1  # we have diverged in chunk 3
    target[:] = vector(5)
    target[3 * CHUNK_ELEMENTS :] = 0
    loaded = await swarm.load(target, at_least=5, root=state_root(vector(5)), held=held)
    assert loaded is not None
    assert np.array_equal(target, vector(5))
    assert [index for holder in swarm.holders for index in holder.given] == [3]
    assert loaded.bytes_in == 4 * CHUNK_ELEMENTS


async def test_a_state_of_that_very_round_must_have_the_root_that_is_sought(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = make(nursery, 2)
    with pytest.raises(DeadlineExceeded):
        await swarm.load(empty(), at_least=5, root=bytes(32))


async def test_if_nobody_is_ahead_nothing_is_loaded(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm, target = make(nursery, 2), empty()
    assert await swarm.load(target, at_least=6, must_exist=False) is None
    assert not target.any()


async def test_a_state_that_half_of_the_members_claim_is_taken_after_a_while(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """After the whole swarm was off members have different checkpoints: the latest wins."""
    swarm, target = make(nursery, 3, round_=3), empty()
    swarm.holders[1].announce(5)
    swarm.net.kill(swarm.holders[2].peer)
    loaded = await swarm.load(target, at_least=4, must_exist=False)
    assert loaded is not None
    assert (loaded.round, loaded.donors) == (5, (swarm.holders[1].peer,))
    assert np.array_equal(target, vector(5))
    assert trio.current_time() > joining.GRACE_S


async def test_a_majority_that_claims_a_state_and_does_not_give_it_holds_nobody_up_for_ever(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm, target = make(nursery, 3), empty()
    for holder in swarm.holders[:2]:
        holder.announce(5, vector(99))
        holder.on_send = stalling
    began = trio.current_time()
    loaded = await swarm.load(target)
    assert loaded is not None
    assert np.array_equal(target, vector(5))
    assert trio.current_time() - began < 20


async def test_of_several_states_that_nobody_gives_each_is_tried_once(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm, target = StateSwarm(Net(nursery), 6), empty()
    for holder, state in zip(swarm.holders, (99, 99, 99, 98, 98, 5), strict=True):
        holder.announce(5, vector(state))
        holder.on_send = honest if state == 5 else stalling
    began = trio.current_time()
    await swarm.load(target)
    assert np.array_equal(target, vector(5))
    assert trio.current_time() - began < 30


async def test_when_the_members_go_on_the_download_moves_and_keeps_equal_chunks(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm, target = make(nursery, 3), empty()
    after = vector(5)
    after[: 4 * CHUNK_ELEMENTS] = vector(6)[: 4 * CHUNK_ELEMENTS]
    for holder in swarm.holders:
        holder.on_send = slow(1.0)

    async def go_on() -> None:
        await trio.sleep(2.5)
        for holder in swarm.holders:
            holder.announce(6, after.copy())

    nursery.start_soon(go_on)
    loaded = await swarm.load(target)
    assert loaded is not None
    assert loaded.round == 6
    assert np.array_equal(target, after)
    assert loaded.bytes_in < 4 * (ELEMENTS + 5 * CHUNK_ELEMENTS)


async def test_members_that_are_faster_than_the_download_are_not_chased_for_ever(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm, target = make(nursery, 2), empty()
    for holder in swarm.holders:
        holder.on_send = slow(2.0)

    async def train() -> None:
        for round_ in range(6, 100):
            await trio.sleep(6.0)
            for holder in swarm.holders:
                holder.announce(round_)

    nursery.start_soon(train)
    loaded = await swarm.load(target)
    assert loaded is not None
    assert np.array_equal(target, vector(loaded.round))
    assert 5 <= loaded.round <= 5 + joining.MOVES_MAX + 4
    nursery.cancel_scope.cancel()


behaviours = st.sampled_from([honest, corrupting, other_hashes, wrong_chunk, empty_handed,
                              stalling, slow(0.3), slow(5.0)])  # fmt: skip
deaths = st.lists(st.tuples(st.integers(0, 3), st.floats(0, 10), st.booleans()), max_size=6)


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(acts=st.lists(behaviours, min_size=4, max_size=4), deaths=deaths, moves=st.integers(0, 3))
def test_a_target_ends_with_exactly_the_root_or_in_an_error_with_no_garbage(
    acts: list[OnSend], deaths: list[tuple[int, float, bool]], moves: int
) -> None:
    trio.run(exactly, acts, deaths, moves, clock=MockClock(autojump_threshold=0))


async def exactly(acts: list[OnSend], deaths: list[tuple[int, float, bool]], moves: int) -> None:
    async with trio.open_nursery() as nursery:
        swarm, target = make(nursery, 4), empty()
        for holder, act in zip(swarm.holders, acts, strict=True):
            holder.on_send = act

        async def live() -> None:
            for number, after_s, comes_back in deaths:
                await trio.sleep(after_s)
                swarm.net.kill(swarm.holders[number].peer)
                if comes_back:
                    await trio.sleep(1.0)
                    swarm.net.revive(swarm.holders[number].peer)

        async def go_on() -> None:
            for round_ in range(6, 6 + moves):
                await trio.sleep(1.5)
                for holder in swarm.holders:
                    holder.announce(round_)

        nursery.start_soon(live)
        nursery.start_soon(go_on)
        try:
            loaded = await swarm.load(target)
        except DeadlineExceeded:
            known = [empty(), *(vector(5 + n) for n in range(moves + 1))]
            assert set.union(*(chunks_of(target, one) for one in known)) == set(range(CHUNKS))
        else:
            assert loaded is not None
            assert state_root(target) == loaded.root == state_root(vector(loaded.round))
        nursery.cancel_scope.cancel()


async def test_many_lanes_do_not_each_wait_for_the_same_dead_members(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = make(nursery, 3)
    for holder in swarm.holders:
        swarm.net.cut(holder.peer, swarm.rpc.peer, silent=True)
    for _ in range(64):
        assert await swarm.load(empty(), at_least=6, must_exist=False) is None
    assert trio.current_time() < 5


# -- a state that is lost ----------------------------------------------------------------------


async def test_a_state_that_most_of_its_makers_are_without_is_lost(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = make(nursery, 3)
    swarm.net.kill(swarm.holders[2].peer)
    with pytest.raises(StateLost, match="before round 7"):
        await swarm.load(empty(), at_least=7)
    assert LOST_S <= trio.current_time() < LOST_S + 10


@pytest.mark.parametrize("case", ["most are away", "one still makes it", "nobody made it"])
async def test_a_state_is_not_lost_if_somebody_may_have_it(
    autojump_clock: MockClock, nursery: trio.Nursery, case: str
) -> None:
    swarm = make(nursery, 3)
    if case == "most are away":
        for holder in swarm.holders[1:]:
            swarm.net.kill(holder.peer)
    elif case == "one still makes it":
        swarm.holders[0].next_round = 7
    else:
        swarm.makers = []
    with pytest.raises(DeadlineExceeded):
        await swarm.load(empty(), at_least=7)


async def test_who_is_slow_to_announce_is_waited_for(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm, target = make(nursery, 3), empty()

    async def announce_late() -> None:
        await trio.sleep(LOST_S - 2)
        swarm.announce(7)

    nursery.start_soon(announce_late)
    await swarm.load(target, at_least=7)
    assert np.array_equal(target, vector(7))
