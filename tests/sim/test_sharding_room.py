"""Room on stages: admission, parking and reuse, budgets, draining; on a virtual clock."""

import msgspec
import pytest
import trio
from trio.testing import MockClock

from protocols.sharding.room import PARKED_S, Parked, Room, part_of
from protocols.sharding.wire import (
    ORPHAN_S,
    Broken,
    Open,
    Place,
    Sampling,
    Work,
)
from protocols.sharding.worker_wire import WorkerOpen
from tests.sim.pretend_worker import MODEL
from tests.sim.ring import (
    ENTRY,
    KEYS,
    LAYERS,
    LONG,
    PROMPT,
    TWIN,
    Ring,
    Swarm,
    expected,
    go_on,
    open_tickets,
    until,
)
from wire.errors import Busy, NotFound
from wire.ids import PeerId


@pytest.fixture
async def swarm(nursery: trio.Nursery) -> Swarm:
    return Swarm(nursery, n_layers=LAYERS)


async def test_a_full_stage_says_how_long_to_wait(autojump_clock: MockClock, swarm: Swarm) -> None:
    route = await swarm.chain(0, 4, tokens=1000)
    async with swarm.ring(route, max_tokens=700):
        with pytest.raises(Busy, match="are free") as caught:
            await first_word(swarm, route, max_tokens=400)
        assert caught.value.retry_after_s == pytest.approx(5.0)
        with pytest.raises(Busy, match="what is left is for others"):
            await first_word(swarm, route, max_tokens=100)
        await swarm.add("other")
        async with swarm.ring(route, entry=PeerId("other"), max_tokens=250) as ring:
            assert await ring.say(PROMPT, 3) == expected(3)


async def test_the_span_with_more_room_is_used(autojump_clock: MockClock, swarm: Swarm) -> None:
    route = await swarm.chain(0, 4, tokens=400)
    node = swarm.nodes[route[0][0]]
    smaller = node.workers[0]
    larger = node.host(swarm.nursery, 0, 4, n_layers=LAYERS, tokens=900)
    async with swarm.ring(route, max_tokens=200):
        await until(lambda: larger.span.sessions)
        assert not smaller.span.sessions


async def first_word(swarm: Swarm, route: list[tuple[PeerId, int, int]], max_tokens: int) -> None:
    service = swarm.nodes[ENTRY].service
    ring = Ring(swarm.nursery, service, route, n_layers=LAYERS, max_tokens=max_tokens)
    _ = (await ring.open(0)).opened


async def test_another_span_with_room_is_used_when_one_is_full(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    route = await swarm.chain(0, 4, tokens=400)
    node = swarm.nodes[route[0][0]]
    node.host(swarm.nursery, 0, 4, n_layers=LAYERS, tokens=300)
    async with swarm.ring(route, max_tokens=300), swarm.ring(route, max_tokens=220) as second:
        assert await second.say(PROMPT, 4) == expected(4)
        with pytest.raises(Busy):
            await first_word(swarm, route, max_tokens=200)


async def test_a_draining_span_ends_what_it_has_and_takes_nothing_new(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    route = await swarm.chain(0, 4)
    service = swarm.nodes[route[0][0]].service
    async with swarm.ring(route) as ring:
        found = await ring.say(PROMPT, 2)
        service.drain(MODEL, 0)
        with pytest.raises(NotFound, match="on their way elsewhere"):
            await first_word(swarm, route, max_tokens=20)
        assert not await service.drained(MODEL, 0, 3.0)
        assert await go_on(ring, found, 5) == expected(5)
        await ring.end()
    assert await service.drained(MODEL, 0, 3.0)
    service.detach(MODEL, 0)
    await trio.sleep(0.1)
    with pytest.raises(NotFound):
        service.usage(MODEL, 0)


async def test_a_draining_span_parks_nothing(autojump_clock: MockClock, swarm: Swarm) -> None:
    route = await swarm.chain(0, 4)
    async with swarm.ring(route) as ring:
        await ring.say(LONG, 5)
        swarm.nodes[route[0][0]].service.drain(MODEL, 0)
        await ring.end(KEYS[:4])
    await trio.sleep(0.1)
    assert open_tickets(swarm) == 0


async def test_a_detached_span_ends_its_sessions(autojump_clock: MockClock, swarm: Swarm) -> None:
    route = await swarm.chain(0, 4)
    async with swarm.ring(route) as ring:
        await ring.say(PROMPT, 2)
        swarm.nodes[route[0][0]].service.detach(MODEL, 0)
        await ring.controls[0].ended.wait()
        assert ring.controls[0].error is not None
        assert ring.controls[0].error.code == "worker_gone"


async def parked(swarm: Swarm, route: list[tuple[PeerId, int, int]]) -> None:
    async with swarm.ring(route) as ring:
        await ring.say(LONG, 5)
        await ring.end(KEYS[:4])
    await trio.sleep(0.1)


async def test_a_parked_session_is_the_beginning_of_a_later_one(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    route = await swarm.chain(0, 2, 4)
    await parked(swarm, route)
    assert open_tickets(swarm) == 2
    prompt = [*LONG[:48], 1, 2, 3]
    async with swarm.ring(route, keys=[*KEYS[:3], bytes(16)]) as ring:
        assert [control.opened.position for control in ring.controls] == [48, 48]
        ring.history.begin(b"".join(t.to_bytes(4, "little") for t in prompt[:48]))
        ring.tokens = prompt[:48]
        assert await ring.say(prompt[48:], 5) == expected(5, prompt)
        works = [msgspec.msgpack.decode(r.work, type=Work) for r in await ring.end()]
        assert [(work.base, work.position) for work in works] == [(48, 55)] * 2


async def test_keys_of_more_than_was_computed_count_for_that_only(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    route = await swarm.chain(0, 2, 4)
    async with swarm.ring(route) as ring:
        await ring.say(LONG, 2)
        await ring.end(KEYS)
    async with swarm.ring(route, keys=KEYS) as ring:
        assert [control.opened.position for control in ring.controls] == [48, 48]  # of 61 rows


async def test_a_reused_prefix_leaves_a_row_to_compute(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    route = await swarm.chain(0, 4)
    await parked(swarm, route)
    async with swarm.ring(route, keys=KEYS[:4], max_tokens=40) as ring:
        assert ring.controls[0].opened.position == 39


def test_of_parked_sessions_the_one_used_longest_ago_goes_first() -> None:
    room = Room(1000, own=ENTRY)
    opening = Open(
        bytes(16), MODEL, 0, 4, 100, Sampling(), ENTRY, Place(ENTRY, 4), "ids", "picks", KEYS[:1]
    )
    for ticket in (1, 2):
        keys = [KEYS[ticket - 1]]
        assert not room.park(Parked(ticket, ENTRY, part_of(opening), keys, 16, 250, 9e9, None))
    found = room.match(ENTRY, opening)
    assert found is not None
    assert (found[0].ticket, found[1]) == (1, 16)
    assert [one.ticket for one in room.reserve(ENTRY, 600)] == [2]


async def test_a_reused_prefix_is_replayed_to_a_replacement(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    route = await swarm.chain(0, 2, 4)
    await parked(swarm, route)
    for name, start, end in (("x", 0, 2), ("y", 2, 4)):
        (await swarm.add(name)).host(swarm.nursery, start, end, n_layers=LAYERS)
    async with swarm.ring(route, keys=KEYS[:3]) as ring:
        prompt = [*LONG[:48], 9]
        ring.history.begin(b"".join(t.to_bytes(4, "little") for t in prompt[:48]))
        ring.tokens = prompt[:48]
        found = await ring.say([9], 3)
        for index, name in ((1, "y"), (0, "x")):
            swarm.net.kill(route[index][0])
            await ring.replace(index, PeerId(name))
            ring.step(found[-1:])
            found += await ring.picked()
        assert found == expected(5, prompt)


async def test_only_the_same_entry_finds_what_it_parked(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    route = await swarm.chain(0, 2, 4)
    await parked(swarm, route)
    await swarm.add("other")
    async with swarm.ring(route, entry=PeerId("other"), keys=KEYS) as ring:
        assert [control.opened.position for control in ring.controls] == [0, 0]
    async with swarm.ring(route, keys=KEYS, codec="int8") as ring:  # other rows, another history
        assert [control.opened.position for control in ring.controls] == [0, 0]


async def test_parked_sessions_go_after_a_while(autojump_clock: MockClock, swarm: Swarm) -> None:
    route = await swarm.chain(0, 2, 4)
    await parked(swarm, route)
    await trio.sleep(PARKED_S + 6)
    assert open_tickets(swarm) == 0


async def test_parked_sessions_are_the_first_to_go_for_room(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    route = await swarm.chain(0, 4, tokens=800)
    await parked(swarm, route)
    worker = swarm.nodes[route[0][0]].workers[0]
    async with swarm.ring(route, max_tokens=600):
        assert open_tickets(swarm) == 2
        await swarm.add("other")
        async with swarm.ring(route, entry=PeerId("other"), max_tokens=180):
            await until(lambda: open_tickets(swarm) == 2)
    await trio.sleep(ORPHAN_S + 1)
    assert open_tickets(swarm) == 0
    await parked(swarm, route)
    async with swarm.ring(route, max_tokens=600, keys=KEYS) as ring:
        assert ring.controls[0].opened.position == 64
        opened = [ask for ask in worker.asked if isinstance(ask, WorkerOpen)]
        assert not opened[-1].take  # a copy: there is room for both


async def test_a_parked_session_is_used_up_by_one_that_needs_its_room(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    route = await swarm.chain(0, 4, tokens=690)
    await parked(swarm, route)
    worker = swarm.nodes[route[0][0]].workers[0]
    await swarm.add("other")
    async with (
        swarm.ring(route, entry=PeerId("other"), max_tokens=120),
        swarm.ring(route, max_tokens=517, keys=KEYS) as ring,
    ):
        assert ring.controls[0].opened.position == 64
        opened = [ask for ask in worker.asked if isinstance(ask, WorkerOpen)]
        assert opened[-1].take
        assert open_tickets(swarm) == 2
        ring.history.begin(b"".join(t.to_bytes(4, "little") for t in LONG))
        ring.tokens = [*LONG]
        assert await ring.say([5], 2) == expected(2, [*LONG, 5])


async def test_histories_over_the_budget_are_forgotten_oldest_first(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    await swarm.add(ENTRY)
    for name, start, end in (("s0", 0, 2), ("s1", 2, 4)):
        node = await swarm.add(name, history_bytes=32 * 100)
        node.host(swarm.nursery, start, end, n_layers=LAYERS)
    (await swarm.add("twin")).host(swarm.nursery, 2, 4, n_layers=LAYERS)
    route = [(PeerId("s0"), 0, 2), (PeerId("s1"), 2, 4)]
    async with swarm.ring(route) as old, swarm.ring(route) as young:
        for ring in (old, young):
            assert await ring.say(LONG, 3) == expected(3, LONG)
        for ring in (young, old):
            ring.route[1] = (TWIN, 2, 4)
            ring.controls[1] = await ring.open(1)
            await ring.rewire(2)
            await ring.rewire(0)
            ring.step([1])
        await young.picked()
        broken = await old.controls[0].heard(Broken)
        assert broken.forgot
        assert "not kept any more" in broken.why


async def test_room_is_lent_for_audits(autojump_clock: MockClock, swarm: Swarm) -> None:
    route = await swarm.chain(0, 4, tokens=1000)
    service = swarm.nodes[route[0][0]].service
    async with service.borrow(MODEL, 1, 3, tokens=800, peer=ENTRY) as (worker, ticket):
        assert service.usage(MODEL, 0).free_tokens == 600
        assert worker is service.worker_for(MODEL, 1, 3)
        opening = WorkerOpen(ticket, 1, 3, 800, Sampling(), "float32", "float32")
        await worker.ask(opening, timeout_s=1)
        assert open_tickets(swarm) == 1
    await trio.sleep(0.1)
    assert (service.usage(MODEL, 0).free_tokens, open_tickets(swarm)) == (1000, 0)


async def test_a_session_that_had_all_the_room_is_parked(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    route = await swarm.chain(0, 4, tokens=700)
    async with swarm.ring(route, max_tokens=520) as ring:
        await ring.say(LONG, 5)
        await ring.end(KEYS[:4])
        usage = swarm.nodes[route[0][0]].service.usage(MODEL, 0)
        assert (usage.sessions, usage.free_tokens) == (0, 700)
    async with swarm.ring(route, max_tokens=520, keys=KEYS) as ring:
        assert ring.controls[0].opened.position == 64
