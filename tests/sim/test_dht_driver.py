"""The driver of the DHT under load, and cancelled: by callers, or itself; a virtual clock."""

import pytest
import trio
from trio.testing import MockClock

import dht.driver
from dht.driver import OPERATIONS_MAX
from dht.finding import AGREE, SPARE
from dht.ports import Reply
from dht.service import DhtService
from tests.sim.dht_links import Links, start_swarm
from tests.sim.replicas import signer
from wire.errors import Busy


async def test_requests_in_flight_are_bounded_whatever_is_asked(
    autojump_clock: MockClock, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dht.driver, "FLYING_MAX", 12)
    links = Links()
    swarm = await start_swarm(nursery, links, 10)
    member = links.there[signer(1).peer]
    member.flying_most = 0
    async with trio.open_nursery() as callers:
        for number in range(20):
            callers.start_soon(swarm[0].providers, b"%d" % number)
    assert member.flying_most == 12
    assert len(await swarm[0].closest(b"x")) == 9


async def test_what_we_could_not_send_costs_no_peer_its_place_in_the_table(
    autojump_clock: MockClock, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = Links()
    swarm = await start_swarm(nursery, links, 10)
    with monkeypatch.context() as busy:
        busy.setattr(dht.driver, "FLYING_MAX", 0)
        for _ in range(3):
            assert await swarm[0].providers(b"a") == []
    assert swarm[0].contacts == 9

    async def full(*_: object, **__: object) -> Reply:
        await trio.lowlevel.checkpoint()
        raise Busy("64 requests wait already")

    monkeypatch.setattr(links.there[signer(1).peer], "ask", full)
    for _ in range(3):
        assert await swarm[0].providers(b"a") == []
    assert swarm[0].contacts == 9


async def test_who_gives_up_ends_the_operation_and_leaves_nothing_behind(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    swarm = await start_swarm(nursery, links, 20)
    links.silent |= {signer(number).peer for number in range(2, 21)}
    before = links.requests
    with trio.move_on_after(0.7) as scope:
        await swarm[0].providers(b"cid")
    assert scope.cancelled_caught
    assert links.requests - before == 2 * (AGREE + SPARE)  # those that are slow fill no place
    assert not swarm[0].node._running
    await trio.sleep(3.1)
    member = links.there[signer(1).peer]
    before = links.requests
    assert member.flying == 0
    await trio.sleep(20)
    assert links.requests - before < 20  # it looks who is left, and goes on with no lookup


async def test_a_flood_of_callers_waits_for_its_turn_and_the_rest_is_told(
    autojump_clock: MockClock, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dht.driver, "WAITING_MAX", 100)
    links = Links()
    swarm = await start_swarm(nursery, links, 8)
    done, refused = list[int](), list[int]()

    async def look(one: DhtService, number: int) -> None:
        try:
            assert await one.providers(b"%d" % number) == []
            done.append(number)
        except Busy:
            refused.append(number)

    async with trio.open_nursery() as callers:
        for number in range(400):
            callers.start_soon(look, swarm[0], number)
    assert len(done) == 164
    assert len(refused) == 236

    monkeypatch.setattr(dht.driver, "WAITING_MAX", 0)
    async with trio.open_nursery() as callers:
        for number in range(OPERATIONS_MAX):
            callers.start_soon(look, swarm[0], number)
        await trio.sleep(0.01)
        with pytest.raises(Busy):
            await swarm[0].provide(b"cid")
    assert not swarm[0].provides(b"cid")  # nor would it ever be told


async def test_a_service_that_ends_ends_its_requests(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    swarm = await start_swarm(nursery, links, 8)
    links.silent |= {signer(number).peer for number in range(2, 9)}
    member = links.there[signer(1).peer]
    nursery.start_soon(swarm[0].providers, b"cid")
    await trio.sleep(0.5)
    assert member.flying > 0
    await links.stop(signer(1).peer)
    assert member.flying == 0
