"""Sessions on stages: a ring of real services, with workers that pretend, on a virtual clock."""

import random

import msgspec
import pytest
import trio
from trio.testing import MockClock

from protocols.sharding.receipts import RECEIPT_TAG
from protocols.sharding.room import PARKED_S
from protocols.sharding.sessions import IDLE_S
from protocols.sharding.wire import (
    HISTORY,
    ORPHAN_S,
    RECORD_S,
    Broken,
    End,
    History,
    Open,
    Place,
    Pong,
    Receipt,
    Sampling,
    Work,
)
from protocols.sharding.worker_wire import WorkerOpen
from tests.sim.pretend_worker import MODEL, decode_rows, reference
from tests.sim.ring import ENTRY, Ring, Swarm, until
from wire.errors import BadMessage, Busy, NotFound, RemoteError
from wire.ids import PeerId, Signer, verify

PROMPT = [5, 17, 3, 88, 41]
LONG = [(7 * i + i * i) % 97 for i in range(60)]
LAYERS = 4
TWIN = PeerId("twin")
KEYS = [bytes([i]) * 16 for i in range(8)]


@pytest.fixture
async def swarm(nursery: trio.Nursery) -> Swarm:
    return Swarm(nursery, n_layers=LAYERS)


def expected(count: int, prompt: list[int] = PROMPT) -> list[int]:
    return reference(prompt, count, n_layers=LAYERS)


async def go_on(ring: Ring, found: list[int], count: int) -> list[int]:
    while len(found) < count:
        ring.step(found[-1:])
        found += await ring.picked()
    return found


def open_tickets(swarm: Swarm) -> int:
    workers = [worker for node in swarm.nodes.values() for worker in node.workers.values()]
    return sum(len(worker.span.sessions) for worker in workers)


@pytest.mark.parametrize("cuts", [(0, 4), (0, 2, 4), (0, 1, 2, 3, 4)])
@pytest.mark.parametrize("codec", ["float32", "int8"])
async def test_a_ring_says_what_the_whole_model_says(
    autojump_clock: MockClock, swarm: Swarm, cuts: tuple[int, ...], codec: str
) -> None:
    route = await swarm.chain(*cuts)
    async with swarm.ring(route, codec=codec) as ring:
        assert await ring.say(PROMPT, 20) == expected(20)


async def test_a_token_costs_one_message_on_each_link(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    route = await swarm.chain(0, 2, 4)
    async with swarm.ring(route) as ring:
        found = await ring.say(PROMPT, 2)
        began_at = trio.current_time()
        await go_on(ring, found, 12)
        per_token_s = (trio.current_time() - began_at) / 10
        assert per_token_s == pytest.approx(3 * 0.01 + 2 * 0.01)  # links and computing


async def test_two_stages_and_the_entry_on_one_node_use_no_network(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    node = await swarm.add(ENTRY)
    for start, end in ((0, 2), (2, 4)):
        node.host(swarm.nursery, start, end, n_layers=LAYERS)
    async with swarm.ring([(ENTRY, 0, 2), (ENTRY, 2, 4)]) as ring:
        assert await ring.say(PROMPT, 10) == expected(10)
        assert len(await ring.end()) == 2
    assert swarm.net.bytes_sent == {}


async def test_a_session_may_use_a_part_of_a_span(autojump_clock: MockClock, swarm: Swarm) -> None:
    await swarm.add(ENTRY)
    for name, start, end in (("a", 0, 3), ("b", 1, 4)):
        (await swarm.add(name)).host(swarm.nursery, start, end, n_layers=LAYERS)
    async with swarm.ring([(PeerId("a"), 0, 2), (PeerId("b"), 2, 4)]) as ring:
        assert await ring.say(PROMPT, 5) == expected(5)
        # Two blocks of three: so much of the cache.
        assert (
            swarm.nodes[PeerId("a")].service.usage(MODEL, 0).free_tokens == 4096 - 512 * 2 // 3 - 1
        )


async def test_a_long_prompt_is_computed_by_the_stages_at_the_same_time(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    route = await swarm.chain(0, 1, 2, 3, 4)
    async with swarm.ring(route) as ring:
        began_at = trio.current_time()
        for start in range(0, 60, 6):
            ring.step(LONG[start : start + 6], picks=int(start == 54))
        found = await ring.picked()
        assert found == expected(1, LONG)
        assert trio.current_time() - began_at < 0.01 * (5 + 4 + 9) + 0.06  # not 10 * 4 steps


async def test_a_wrong_draft_is_taken_back(autojump_clock: MockClock, swarm: Swarm) -> None:
    route = await swarm.chain(0, 2, 4)
    right = expected(4)
    async with swarm.ring(route) as ring:
        ring.step(PROMPT)
        assert await ring.picked() == right[:1]
        ring.step([right[0], right[1], 77, 78], picks=4)
        assert (await ring.picked())[:2] == right[1:3]
        ring.step([right[2]], position=len(PROMPT) + 2)
        assert await ring.picked() == right[3:4]


async def test_a_sampled_answer_is_the_same_whatever_the_ring(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    route = await swarm.chain(0, 2, 4)
    warm = Sampling(temperature=1.0, seed=9)
    async with swarm.ring(route, sampling=warm) as ring:
        found = await ring.say(PROMPT, 12)
    assert found == reference(PROMPT, 12, n_layers=LAYERS, sampling=warm)
    assert found != expected(12)


@pytest.mark.parametrize("lost", [0, 1, 2])
@pytest.mark.parametrize("fault", ["kill", "crash"])
async def test_a_lost_stage_is_replaced_and_only_it_computes_again(
    autojump_clock: MockClock, swarm: Swarm, lost: int, fault: str
) -> None:
    route = await swarm.chain(0, 1, 3, 4)
    _, start, end = route[lost]
    twin = (await swarm.add("twin")).host(swarm.nursery, start, end, n_layers=LAYERS)
    async with swarm.ring(route) as ring:
        found = await ring.say(PROMPT, 9)
        node = swarm.nodes[route[lost][0]]
        if fault == "kill":
            swarm.net.kill(node.peer)
        else:
            node.workers[start].crash()
        ring.step(found[-1:])
        await ring.controls[lost].ended.wait()
        error = ring.controls[lost].error
        assert error is not None
        assert error.code == ("unreachable" if fault == "kill" else "worker_gone")
        await ring.replace(lost, TWIN)
        found += await ring.picked()
        assert await go_on(ring, found, 20) == expected(20)
    rows = [swarm.nodes[peer].workers[start].span.rows for peer, start, _ in ring.route]
    assert rows == [len(PROMPT) + 19] * 3  # each row once
    assert twin.span.rows == len(PROMPT) + 19


async def test_all_stages_may_be_lost_at_once(autojump_clock: MockClock, swarm: Swarm) -> None:
    route = await swarm.chain(0, 2, 4)
    for name, start, end in (("x", 0, 2), ("y", 2, 4)):
        (await swarm.add(name)).host(swarm.nursery, start, end, n_layers=LAYERS)
    async with swarm.ring(route) as ring:
        found = await ring.say(PROMPT, 9)
        ring.step(found[-1:])
        for peer, _, _ in route:
            swarm.net.kill(peer)
        ring.route[1] = (PeerId("y"), 2, 4)
        await ring.replace(0, PeerId("x"))
        await ring.replace(1, PeerId("y"))
        found += await ring.picked()
        assert await go_on(ring, found, 20) == expected(20)


async def test_a_broken_link_between_stages_is_told_and_mended_by_a_rewire(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    route = await swarm.chain(0, 2, 4)
    async with swarm.ring(route) as ring:
        found = await ring.say(PROMPT, 3)
        swarm.net.cut(PeerId("s0"), PeerId("s1"))
        ring.step(found[-1:])
        broken = await ring.controls[0].heard(Broken)
        assert (broken.next, broken.forgot) == (Place("s1", 2), False)
        swarm.net.heal()
        await ring.rewire(0)
        found += await ring.picked()
        assert await go_on(ring, found, 9) == expected(9)


async def test_a_feed_whose_connection_is_new_goes_on_without_a_word(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    route = await swarm.chain(0, 2, 4)
    async with swarm.ring(route) as ring:
        found = await ring.say(PROMPT, 3)
        swarm.net.cut(PeerId("s0"), PeerId("s1"))
        swarm.net.heal()
        assert await go_on(ring, found, 9) == expected(9)
        assert not any(isinstance(said, Broken) for said in ring.controls[0].said)


@pytest.mark.parametrize("lost", ["picks", "feed", "all"])
async def test_an_entry_whose_path_changes_goes_on_with_the_same_sessions(
    autojump_clock: MockClock, swarm: Swarm, lost: str
) -> None:
    route = await swarm.chain(0, 2, 4)
    async with swarm.ring(route) as ring:
        found = await ring.say(PROMPT, 3)
        ring.step(found[-1:])
        if lost in ("picks", "all"):
            swarm.net.cut(ENTRY, PeerId("s1"))
        if lost in ("feed", "all"):
            swarm.net.cut(ENTRY, PeerId("s0"))
        await trio.sleep(5)
        swarm.net.heal()
        for index, control in enumerate(ring.controls):
            if control.ended.is_set():
                ring.controls[index] = await ring.open(index)
                assert ring.controls[index].opened.position >= len(PROMPT) + 2
        await ring.rewire(-1)
        found += await ring.picked()
        assert await go_on(ring, found, 12) == expected(12)
    assert [swarm.nodes[p].workers[s].span.rows for p, s, _ in route] == [len(PROMPT) + 11] * 2


async def test_an_entry_that_does_not_come_back_is_given_up(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    route = await swarm.chain(0, 2, 4)
    async with swarm.ring(route) as ring:
        await ring.say(PROMPT, 3)
        swarm.net.kill(ENTRY)
        await trio.sleep(ORPHAN_S - 1)
        assert open_tickets(swarm) == 2
        await trio.sleep(2)
        assert open_tickets(swarm) == 0
    for peer, start, _ in route:
        usage = swarm.nodes[peer].service.usage(MODEL, start)
        assert (usage.sessions, usage.free_tokens) == (0, 4096)


async def test_a_session_without_steps_is_given_up(autojump_clock: MockClock, swarm: Swarm) -> None:
    route = await swarm.chain(0, 4)
    async with swarm.ring(route) as ring:
        await ring.say(PROMPT, 3)
        await trio.sleep(IDLE_S / 2)
        await ring.ping(0)
        await ring.controls[0].heard(Pong)
        await trio.sleep(IDLE_S / 2 + 1)
        assert isinstance(ring.controls[0].error, RemoteError)
        assert ring.controls[0].error.code == "deadline"
    assert open_tickets(swarm) == 0


async def test_a_session_opened_by_another_peer_stays_its_entry_s(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    route = await swarm.chain(0, 4)
    await swarm.add("thief")
    async with swarm.ring(route) as ring:
        found = await ring.say(PROMPT, 3)
        thief = Ring(swarm.nursery, swarm.nodes[PeerId("thief")].service, route, n_layers=LAYERS)
        thief.session = ring.session
        control = await thief.open(0)
        with pytest.raises(RemoteError, match="another session of that name"):
            _ = control.opened
        assert await go_on(ring, found, 6) == expected(6)


async def test_pings_reach_the_process_and_a_frozen_one_is_reported(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    route = await swarm.chain(0, 4)
    node = swarm.nodes[route[0][0]]
    async with swarm.ring(route) as ring:
        await ring.ping(0)
        await ring.controls[0].heard(Pong)
        node.workers[0].frozen = True
        await trio.sleep(1)
        ring.controls[0].said.clear()
        await ring.ping(0)
        await trio.sleep(15)
        assert (ring.controls[0].said, node.stuck) == ([], 0)
        await trio.sleep(10)
        assert node.stuck == 1
        node.workers[0].crash()  # its host kills it
        await ring.controls[0].ended.wait()
        assert ring.controls[0].error is not None
        assert ring.controls[0].error.code == "worker_gone"
    with pytest.raises(NotFound):
        node.service.usage(MODEL, 0)


async def test_a_worker_in_a_long_step_still_answers_pings(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    route = await swarm.chain(0, 4)
    worker = swarm.nodes[route[0][0]].workers[0]
    worker.step_s = 100.0
    async with swarm.ring(route) as ring:
        ring.step(PROMPT)
        await trio.sleep(1)
        await ring.ping(0)
        await ring.controls[0].heard(Pong)
        assert ring.picks == []


async def test_the_end_is_signed(autojump_clock: MockClock, swarm: Swarm) -> None:
    route = await swarm.chain(0, 2, 4)
    async with swarm.ring(route, codec="float16") as ring:
        found = await ring.say(PROMPT, 4)
        receipts = await ring.end()
    works = [msgspec.msgpack.decode(receipt.work, type=Work) for receipt in receipts]
    for (peer, start, end), receipt, work in zip(route, receipts, works, strict=True):
        signer = Signer(peer.encode().ljust(32))
        assert verify(signer.peer, RECEIPT_TAG, receipt.work, receipt.signature)
        assert (work.session, work.model, work.entry) == (ring.session, MODEL, ENTRY)
        assert (work.start, work.end, work.base, work.position) == (start, end, 0, 8)
    assert [(work.takes, work.gives) for work in works] == [
        ("ids", "float16"),
        ("float16", "picks"),
    ]
    assert works[0].outputs == works[1].inputs
    assert [token for _, token in works[1].picks] == found
    await trio.sleep(1)
    assert open_tickets(swarm) == 0


async def test_rows_are_kept_for_a_while_for_audits_by_the_entry_alone(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    route = await swarm.chain(0, 2, 4)
    await swarm.add("other")
    async with swarm.ring(route) as ring:
        await ring.say(PROMPT, 4)
        asked = History(ring.session, 0)
        with pytest.raises(NotFound):
            await history(swarm, ENTRY, asked)
        await ring.end()
        assert len(decode_rows(await history(swarm, ENTRY, asked), 32)) == len(PROMPT) + 3
        with pytest.raises(NotFound):
            await history(swarm, PeerId("other"), asked)
        await trio.sleep(RECORD_S + 6)
        with pytest.raises(NotFound):
            await history(swarm, ENTRY, asked)


async def history(swarm: Swarm, by: PeerId, asked: History) -> bytes:
    calls = swarm.nodes[by].service.calls
    async with calls.stream(PeerId("s0"), HISTORY, timeout_s=5) as call:
        await call.send(asked)
        await call.finish()
        return b"".join([part.rows async for part in call])


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


@pytest.mark.parametrize(
    "change",
    [
        {"takes": "float32"},
        {"gives": "picks"},
        {"gives": "ids"},
        {"next": Place("s1", 3)},
    ],
)
async def test_a_part_that_does_not_fit_the_model_is_refused(
    autojump_clock: MockClock, swarm: Swarm, change: dict[str, object]
) -> None:
    route = await swarm.chain(0, 2, 4)
    ring = Ring(swarm.nursery, swarm.nodes[ENTRY].service, route, n_layers=LAYERS)
    opening: Open = msgspec.structs.replace(ring.opening(0), **change)
    control = await ring.open(0, opening)
    assert control.error is not None
    assert control.error.code == BadMessage.code
    assert open_tickets(swarm) == 0


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


async def test_a_session_is_opened_anew_right_after_its_end(
    autojump_clock: MockClock, swarm: Swarm
) -> None:
    route = await swarm.chain(0, 2, 4)
    async with swarm.ring(route) as ring:
        found = await ring.say(PROMPT, 5)
        await ring.controls[0].call.send(End())
        await ring.controls[0].heard(Receipt)
        ring.controls[0] = await ring.open(0)
        assert ring.controls[0].opened.position == 0
        await ring.rewire(-1)
        assert await go_on(ring, found, 9) == expected(9)
    rows = [swarm.nodes[peer].workers[start].span.rows for peer, start, _ in route]
    assert rows == [2 * len(PROMPT) + 8 + 4, len(PROMPT) + 8]


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_happens_to_the_feeds_no_row_is_lost_or_doubled(
    autojump_clock: MockClock, swarm: Swarm, seed: int
) -> None:
    """Links break and mend, feeds are opened anew and drafts are wrong, all at random moments."""
    luck = random.Random(seed)
    route = await swarm.chain(0, 1, 3, 4)
    answer = expected(60)

    async def trouble(ring: Ring) -> None:
        while True:
            await trio.sleep(luck.expovariate(8))
            index = luck.randrange(-1, 3)
            here = route[index][0] if index >= 0 else ENTRY
            there = route[index + 1][0] if index < 2 else ENTRY
            if luck.random() < 0.5:
                swarm.net.cut(here, there)
                await trio.sleep(luck.choice((0.0, 0.05, 0.3)))
                swarm.net.heal()
                await trio.sleep(0.02)
                for number, control in enumerate(ring.controls):
                    if control.ended.is_set():
                        ring.controls[number] = await ring.open(number)
            await ring.rewire(index)

    async with swarm.ring(route) as ring, trio.open_nursery() as nursery:
        nursery.start_soon(trouble, ring)
        ring.step(PROMPT[:3], picks=0)
        ring.step(PROMPT[3:])
        found = await ring.picked()
        while len(found) < 60:
            guess = [token if luck.random() < 0.7 else 1 for token in answer[len(found) :][:3]]
            ring.step(
                [found[-1], *guess], position=len(PROMPT) + len(found) - 1, picks=len(guess) + 1
            )
            picks = await ring.picked()
            right = next((i for i, token in enumerate(guess) if picks[i] != token), len(guess))
            found += picks[: right + 1]
        nursery.cancel_scope.cancel()
    assert found[:60] == answer
