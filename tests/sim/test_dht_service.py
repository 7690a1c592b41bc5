"""Twenty real DHT services on simulated links and a virtual clock."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

import dht.driver
from dht.finding import AGREE, SPARE
from dht.messages import FindNode, Nodes, Ping, Pong, Stored, Trace
from dht.ports import Reply
from dht.service import DhtService
from dht.state import new_holding
from dht.values import head_name, multi_name
from node.rendezvous import Rendezvous
from tests.sim.dht_links import Links, address, start_member, start_swarm
from tests.sim.replicas import signer
from wire.errors import Busy
from wire.ids import PeerId

HOUR_S = 3600.0


@dataclass
class Party:
    """A host that connects to whom it is told."""

    peer: PeerId
    met: dict[PeerId, list[str]] = field(default_factory=dict[PeerId, list[str]])

    def connected(self) -> list[PeerId]:
        return list(self.met)

    async def connect(self, target: PeerId, addrs: list[str]) -> None:
        await trio.lowlevel.checkpoint()
        self.met[target] = addrs


async def test_everybody_finds_everybody_through_one_bootstrap_peer(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await start_swarm(nursery, Links(), 20)
    for each in swarm:
        assert each.contacts >= 18
    for number in range(1, 21):
        assert await swarm[number % 20].find_peer(signer(number).peer) == [address(number)]
    assert await swarm[3].find_peer(signer(99).peer) == []


async def test_who_asks_while_it_joins_waits_for_that(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    swarm = await start_swarm(nursery, links, 5)
    await swarm[2].provide(b"cid")
    late = await start_member(nursery, links, 7, [signer(1).peer])
    assert late.contacts == 0
    assert await late.providers(b"cid") == [signer(3).peer]


async def test_a_new_address_is_found_after_its_owner_was_asked(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    swarm = await start_swarm(nursery, links, 5)
    moved = signer(5).peer
    links.there[moved].addrs[:] = ["/ip4/10.9.9.9/tcp/1"]
    await trio.sleep(2 * HOUR_S)  # refreshes
    for each in swarm[:4]:
        assert await each.find_peer(moved) == ["/ip4/10.9.9.9/tcp/1"]


async def test_providers_are_found_with_a_third_of_the_swarm_silent(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    swarm = await start_swarm(nursery, links, 20)
    assert (await swarm[2].provide(b"cid")).kept >= 15
    assert (await swarm[7].provide(b"cid")).kept >= 15
    links.silent |= {signer(number).peer for number in range(14, 21)}
    start = trio.current_time()
    assert await swarm[9].providers(b"other") == []
    assert set(await swarm[9].providers(b"cid")) == {signer(3).peer, signer(8).peer}
    assert trio.current_time() - start < 15
    assert swarm[9].node.stats.timeouts


async def test_a_withdrawn_provider_is_forgotten_after_a_day_and_a_live_one_is_not(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await start_swarm(nursery, Links(), 6)
    await swarm[1].provide(b"cid")
    await swarm[2].provide(b"cid")
    swarm[2].withdraw(b"cid")
    await trio.sleep(25 * HOUR_S)
    assert await swarm[4].providers(b"cid") == [signer(2).peer]


async def test_what_nobody_took_is_offered_again(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    alone = await start_member(nursery, links, 1, [])
    assert (await alone.provide(b"cid")).kept == 0
    assert (await alone.put_head("a", b"1")).kept == 0
    assert await alone.providers(b"cid") == [signer(1).peer]
    other = await start_member(nursery, links, 2, [signer(1).peer])
    await trio.sleep(300)
    assert other.view().held == 2


async def test_values_are_found_and_the_newest_of_each_author_wins(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await start_swarm(nursery, Links(), 10)
    assert (await swarm[1].put_head("latest", b"1")).kept >= 8
    await swarm[1].put_head("latest", b"2")
    for number in (1, 2, 3):
        await swarm[number].put_multi("run/r", b"%d" % number)
    await swarm[2].put_multi("run/r", b"new")
    trace = Trace()
    found = await swarm[8].get(head_name(signer(2).peer, "latest"), trace=trace)
    assert [value.data for value in found] == [b"2"]
    assert trace.hops
    assert {hop.outcome for hop in trace.hops} <= {"answered", "flying"}
    members = await swarm[8].get(multi_name("run/r"), paths=4)
    assert {value.author: value.data for value in members} == {
        signer(2).peer: b"1",
        signer(3).peer: b"new",
        signer(4).peer: b"3",
    }
    assert await swarm[8].get(multi_name("run/other")) == ()


async def test_a_value_that_is_kept_is_not_put_again_before_half_life(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await start_swarm(nursery, Links(), 3)
    await swarm[1].put_multi("a", b"1")
    [first] = swarm[1].published()
    await trio.sleep(11 * HOUR_S)
    assert swarm[1].published() == [first]
    await trio.sleep(1.1 * HOUR_S)
    [second] = swarm[1].published()
    assert (second.seq > first.seq, second.data) == (True, b"1")


async def test_requests_in_flight_are_bounded_whatever_is_asked(
    autojump_clock: MockClock, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dht.driver, "FLYING_MAX", 12)
    links = Links()
    swarm = await start_swarm(nursery, links, 10)
    member = links.there[signer(1).peer]
    member.flying_most = 0
    blamed = list[PeerId]()
    monkeypatch.setattr(swarm[0].node.table, "failed", lambda peer, now_s: blamed.append(peer))
    async with trio.open_nursery() as callers:
        for number in range(20):
            callers.start_soon(swarm[0].providers, b"%d" % number)
    assert member.flying_most == 12
    assert blamed == []  # it was not their fault
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


async def test_our_values_live_as_long_as_we_do_and_no_longer(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await start_swarm(nursery, Links(), 6)
    await swarm[1].put_multi("a", b"1")
    await swarm[2].put_multi("a", b"2")
    await swarm[2].forget(multi_name("a"))
    await trio.sleep(30 * HOUR_S)
    assert [value.data for value in await swarm[4].get(multi_name("a"))] == [b"1"]


async def test_the_dead_leave_the_table(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    links = Links()
    swarm = await start_swarm(nursery, links, 8)
    dead = {signer(number).peer for number in (6, 7, 8)}
    for peer in dead:
        await links.stop(peer)
    await trio.sleep(2 * HOUR_S)
    assert dead & {row.peer for row in swarm[0].view().rows} == set()
    assert swarm[0].contacts == 4


async def test_a_leaving_node_does_not_say_where_it_was(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    first, other = await start_swarm(nursery, Links(), 2)
    await trio.sleep(5)
    first.moved()  # the mapping of its port is given back
    await first.leave()
    await trio.sleep(3)
    assert (first.published(), other.view().held) == ([], 0)


async def test_a_leaving_node_hands_over_what_it_holds(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    a, b = [await start_member(nursery, links, n, [signer(1).peer][: n - 1]) for n in (1, 2)]
    await trio.sleep(10)
    await a.put_head("mine", b"1")
    assert b.view().held == 1
    c = await start_member(nursery, links, 3, [signer(2).peer])
    await trio.sleep(1)
    began = trio.current_time()
    await b.leave()
    assert trio.current_time() - began <= 1
    assert isinstance(b.answer(signer(1).peer, None, FindNode(b"x")), Stored)
    await links.stop(signer(1).peer)
    await links.stop(signer(2).peer)
    assert [one.data for one in await c.get(head_name(signer(1).peer, "mine"))] == [b"1"]


async def test_a_client_is_in_no_table_and_holds_nothing_but_finds_everything(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    swarm = await start_swarm(nursery, links, 6)
    client = await start_member(nursery, links, 7, [signer(1).peer])
    client.set_mode(is_server=False)
    await trio.sleep(60)
    assert not client.is_server
    assert client.contacts >= 5
    await swarm[1].put_head("a", b"1")
    assert (await client.provide(b"cid")).kept >= 5
    assert await swarm[4].providers(b"cid") == [signer(7).peer]
    assert links.there[signer(5).peer].heard == {signer(7).peer: [address(7)]}
    assert client.view().held <= 2  # its own
    assert [one.data for one in await client.get(head_name(signer(2).peer, "a"))] == [b"1"]
    assert signer(7).peer not in {row.peer for row in swarm[0].view().rows}
    assert await swarm[3].find_peer(signer(7).peer) == [address(7)]
    links.there[signer(7).peer].addrs[:] = [address(77)]
    await trio.sleep(60)
    assert await swarm[3].find_peer(signer(7).peer) == [address(77)]
    client.set_mode(is_server=True)
    await trio.sleep(2 * HOUR_S)
    assert client.published() == []
    assert signer(7).peer in {row.peer for row in swarm[0].view().rows}


@pytest.mark.parametrize("is_killed", [False, True])
async def test_a_restart_rejoins_from_the_snapshot_without_a_bootstrap_peer(
    autojump_clock: MockClock, nursery: trio.Nursery, tmp_path: Path, is_killed: bool
) -> None:
    links = Links()
    await start_swarm(nursery, links, 6)
    file = tmp_path / "dht.msgpack"
    before = await start_member(nursery, links, 7, [signer(1).peer], file=file)
    await trio.sleep(30)
    await before.put_head("a", b"1")
    await before.put_head("b", b"1")
    await before.forget(head_name(signer(7).peer, "b"))
    if not is_killed:
        await before.leave()
    await links.stop(signer(7).peer)
    await links.stop(signer(1).peer)
    for number in range(2, 7):  # and nobody knows its value any more
        state = links.there[signer(number).peer].dht.node.state
        state.holding = new_holding(state.rng)
    after = await start_member(nursery, links, 7, [], file=file)
    await trio.sleep(60)
    assert after.contacts == 5
    assert [value.name for value in after.published()] == [head_name(signer(7).peer, "a")]
    found = await links.there[signer(3).peer].dht.get(head_name(signer(7).peer, "a"))
    assert [value.data for value in found] == [b"1"]


async def test_an_empty_table_does_not_wipe_the_snapshot(
    autojump_clock: MockClock, nursery: trio.Nursery, tmp_path: Path
) -> None:
    links, file = Links(), tmp_path / "dht.msgpack"
    await start_member(nursery, links, 1, [])
    for _ in range(3):
        one = await start_member(
            nursery, links, 2, [signer(1).peer][: 0 if file.exists() else 1], file=file
        )
        await trio.sleep(30)
        if file.exists():
            links.silent.add(signer(1).peer)
        await one.leave()
        await links.stop(signer(2).peer)
    links.silent.clear()
    last = await start_member(nursery, links, 2, [], file=file)
    await trio.sleep(30)
    assert last.contacts == 1


async def test_a_peer_that_only_asks_and_never_answers_does_not_enter(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    one = await start_member(nursery, links, 1, [])
    ghost = await start_member(nursery, links, 2, [])
    sender = ghost.sender()
    await links.stop(signer(2).peer)
    assert one.answer(signer(2).peer, sender, Ping()) == Pong()
    assert one.answer(signer(2).peer, sender, FindNode(b"x")) == Nodes(())
    await trio.sleep(30)
    assert one.contacts == 0


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


async def test_members_of_a_run_that_know_nobody_meet_in_the_dht(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links, there = Links(), list[Party]()
    for number, each in enumerate(await start_swarm(nursery, links, 9), 1):
        there.append(Party(signer(number).peer))
        is_in = number in (3, 6)
        names = ["tiny"] if is_in else list[str]()
        kinds = {"run": (names.copy, names.copy)}
        rendezvous = Rendezvous(each, there[-1], [address(number)].copy, kinds)
        await nursery.start(rendezvous.run)
    await trio.sleep(60)
    assert [each.met for each in there if each.met] == [
        {signer(6).peer: [address(6)]},
        {signer(3).peer: [address(3)]},
    ]
