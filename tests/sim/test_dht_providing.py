"""Real DHT services that say what they have, on simulated links and a virtual clock."""

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from dht.service import PROVIDED_MAX
from dht.snapshot import NAMES_MAX
from dht.state import new_holding
from dht.values import head_name
from tests.sim.dht_links import Links, start_member, start_swarm
from tests.sim.replicas import signer
from wire.errors import UsageError

HOUR_S = 3600.0


async def test_what_the_caller_gave_up_is_provided_all_the_same(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    first, other = await start_swarm(nursery, links, 2)
    with trio.move_on_after(0):
        await first.provide_many([b"many"])
    with trio.move_on_after(0):
        await first.provide(b"one")
    assert first.provided() == [b"many", b"one"]
    await trio.sleep(1.1 * HOUR_S)
    assert other.view().held == 2


async def test_what_is_withdrawn_is_told_to_nobody_by_us(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    alone = await start_member(nursery, Links(), 1, [])
    await alone.provide(b"cid")
    assert (alone.provides(b"cid"), alone.view().held) == (True, 1)
    alone.withdraw(b"cid")
    assert (alone.provides(b"cid"), alone.view().held) == (False, 0)
    assert await alone.providers(b"cid") == []


@pytest.mark.parametrize("is_killed", [False, True])
async def test_who_was_told_to_provide_does_so_after_a_restart_too(
    autojump_clock: MockClock, nursery: trio.Nursery, tmp_path: Path, is_killed: bool
) -> None:
    links, file = Links(), tmp_path / "dht.msgpack"
    swarm = await start_swarm(nursery, links, 6)
    before = await start_member(nursery, links, 7, [signer(1).peer], file=file)
    await trio.sleep(30)
    await before.provide(b"not any more")
    before.withdraw(b"not any more")
    await before.provide(b"told")
    await before.provide_many([b"on the disk"])
    if not is_killed:
        await before.leave()
    await links.stop(signer(7).peer)
    for member in swarm:  # and nobody knows it any more
        member.node.state.holding = new_holding(member.node.state.rng)
    after = await start_member(nursery, links, 7, [], file=file)
    await trio.sleep(60)
    assert after.provided() == [b"told"]
    assert await swarm[3].providers(b"told") == [signer(7).peer]


async def test_there_is_an_end_to_what_one_can_be_told_to_provide(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    alone = await start_member(nursery, Links(), 1, [])
    for number in range(NAMES_MAX):
        await alone.provide(b"%d" % number)
    await alone.provide(b"7")
    with pytest.raises(UsageError, match="1000 names"):
        await alone.provide(b"one more")
    alone.withdraw(b"7")
    await alone.provide(b"one more")


async def test_who_is_about_to_join_stores_when_it_has_joined(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    swarm = await start_swarm(nursery, links, 60)
    late = await start_member(nursery, links, 99, [signer(1).peer])
    await trio.sleep(0.01)  # it asks the only one whom it knows
    before = links.requests
    kept = await late.put_head("a", b"1")
    assert 20 <= kept.asked < 45  # of 60
    assert links.requests > before
    assert (await swarm[0].get(head_name(signer(99).peer, "a")))[0].data == b"1"


async def test_many_are_provided_at_a_fraction_of_the_messages(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    swarm = await start_swarm(nursery, links, 12)
    names = [b"%d" % number for number in range(1200)]
    before = links.requests
    assert await swarm[2].provide_many(names) >= 11 * len(names)
    assert links.requests - before < 400
    for name in names[::200]:
        assert await swarm[7].providers(name) == [signer(3).peer]
    for name in names[:3]:
        swarm[2].withdraw(name)
    assert swarm[2].view().provided == len(names) - 3
    assert not swarm[2]._own._sealed


async def test_too_many_names_and_names_that_are_none_are_the_callers_fault(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    alone = await start_member(nursery, Links(), 1, [])
    for names in ([b""], [b"a" * 257], [b"%d" % number for number in range(PROVIDED_MAX + 1)]):
        with pytest.raises(UsageError):
            await alone.provide_many(names)
    assert alone.view().provided == 0
    for name in ("", "peer", "a" * 300, "a\n"):
        with pytest.raises(UsageError):
            await alone.put_head(name, b"1")
    with pytest.raises(UsageError):
        await alone.put_multi("a", bytes(8193))
    assert alone.published() == []
