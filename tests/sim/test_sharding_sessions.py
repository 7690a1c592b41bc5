"""Sessions on stages: a ring of real services, with workers that pretend, on a virtual clock."""

import msgspec
import pytest
import trio
from trio.testing import MockClock

from protocols.sharding.receipts import RECEIPT_TAG
from protocols.sharding.sessions import IDLE_S
from protocols.sharding.wire import (
    HISTORY,
    ORPHAN_S,
    RECORD_S,
    End,
    History,
    Open,
    Place,
    Pong,
    Receipt,
    Sampling,
    Work,
)
from tests.sim.pretend_worker import MODEL, decode_rows, reference
from tests.sim.ring import (
    ENTRY,
    LAYERS,
    LONG,
    PROMPT,
    Ring,
    Swarm,
    expected,
    go_on,
    open_tickets,
)
from wire.errors import BadMessage, NotFound, RemoteError
from wire.ids import PeerId, Signer, verify


@pytest.fixture
async def swarm(nursery: trio.Nursery) -> Swarm:
    return Swarm(nursery, n_layers=LAYERS)


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
