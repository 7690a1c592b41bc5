"""Stores on the real RPC, as the daemon wires them."""

import random

import pytest
import trio
from trio.testing import MockClock

from crdt.service import Channel, StoreService
from crdt.wire import FRAME_MAX
from protocols.channels.service import ChannelService
from tests.sim.net import Net
from tests.sim.replicas import Silence, SimClock, in_place, signer
from wire.errors import BadMessage, RemoteError


async def start_store(
    nursery: trio.Nursery, net: Net, number: int, channel: Channel | None = None
) -> StoreService:
    own = signer(number)
    rpc, host = net.rpc(own.peer), net.host(own.peer)
    store = StoreService(
        rpc.network("crdt.sync", frame_max=FRAME_MAX),
        channel or Silence(),
        SimClock(),
        own,
        ":memory:",
        peers=host.connected,
        off_loop=in_place,
        rng=random.Random(number),
    )
    rpc.answer("crdt.sync", store.answer, frame_max=FRAME_MAX)
    await nursery.start(store.run)
    return store


async def test_stores_sync_over_rpc_and_again_after_a_cut(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    net = Net(nursery)
    a, b = [await start_store(nursery, net, number) for number in (1, 2)]
    for index in range(300):
        await a.put("runs", f"k/{index}", "x" * 1000)
    assert (await b.sync_with(signer(1).peer)).entries_in == 300
    net.cut(signer(1).peer, signer(2).peer)
    await a.put("runs", "k/0", "new")
    await trio.sleep(100)
    assert a.state_root("runs") != b.state_root("runs")
    net.heal()
    a.peer_up(signer(2).peer)
    await trio.sleep(100)
    assert a.state_root("runs") == b.state_root("runs")


async def test_an_entry_goes_out_on_the_real_channel_and_nobody_is_blamed(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    net, stores, channels = Net(nursery), list[StoreService](), list[ChannelService]()
    for number in range(1, 6):
        own = signer(number)
        channel = ChannelService(
            net.host(own.peer), net.rpc(own.peer), own, SimClock(), off_loop=in_place
        )
        await nursery.start(channel.run)
        channels.append(channel)
        stores.append(await start_store(nursery, net, number, channel))
    await trio.sleep(2)  # they meet
    for number, store in enumerate(stores):
        await store.put("runs", f"k/{number}", number)
    await trio.sleep(1)
    assert [len(store.scan("runs")) for store in stores] == [5] * 5
    assert [channel.stats.invalid for channel in channels] == [0] * 5
    assert [channel.stats.published for channel in channels] == [1] * 5


async def test_a_bad_request_comes_back_as_its_code(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    net = Net(nursery)
    await start_store(nursery, net, 1)
    network = net.rpc(signer(2).peer).network("crdt.sync")
    with pytest.raises(RemoteError) as caught:
        await network.request(signer(1).peer, b"garbage", timeout_s=5)
    assert caught.value.code == BadMessage.code
