"""Bulk transfers while the path between two hosts changes: through a relay, then directly."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio

from node.reach.hop import RelayBudget
from protocols.bulk.service import BulkService
from protocols.rpc.service import RpcService
from tests.daemon.circuits import Ring, ring
from tests.daemon.hosts import PATIENCE_S, eventually
from tests.daemon.paths import join_directly

MB = 1_000_000
DATA = secrets.token_bytes(40 * MB)
RELAY_BYTES_S = 20 * MB


@dataclass
class Pair:
    """Two hosts that reach each other through a relay, with calls and bulk."""

    net: Ring
    rpcs: list[RpcService]
    bulks: list[BulkService]


@asynccontextmanager
async def relayed() -> AsyncIterator[Pair]:
    async with (
        ring(budget=RelayBudget(rate_bytes_s=RELAY_BYTES_S)) as net,
        trio.open_nursery() as nursery,
    ):
        rpcs = [RpcService(host) for host in net.hosts]
        bulks = [
            BulkService(rpc, host.lanes, stall_s=PATIENCE_S)
            for rpc, host in zip(rpcs, net.hosts, strict=True)
        ]
        for part in (*rpcs, *bulks):
            await nursery.start(part.run)
        await net.reserve(1)
        await net.hosts[0].connect(net.hosts[1].peer)
        yield Pair(net, rpcs, bulks)
        nursery.cancel_scope.cancel()


async def transfer(pair: Pair, sender: int, *, upgrade: bool, is_punched: bool = False) -> int:
    """Move DATA; once some is there a direct connection joins. Returns what the relay moved after
    that.
    """
    hosts, place, at = pair.net.hosts, bytearray(len(DATA)), list[int]()
    begun = trio.Event()

    def progress(done: int, size: int) -> None:
        if done > 2 * MB:
            begun.set()

    async def receive() -> None:
        await pair.bulks[1 - sender].receive_into(hosts[sender].peer, b"key", place)

    async def join() -> None:
        await begun.wait()
        await join_directly(hosts[0], hosts[1], is_punched=is_punched)
        at.append(pair.net.relay.view().moved_bytes)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            if upgrade:
                nursery.start_soon(join)
            await pair.bulks[sender].send(hosts[1 - sender].peer, b"key", DATA, progress=progress)
    assert place == DATA
    return pair.net.relay.view().moved_bytes - sum(at)


@pytest.mark.parametrize("sender", [0, 1])
@pytest.mark.parametrize("is_punched", [False, True])
async def test_a_transfer_goes_on_directly_when_it_can(sender: int, is_punched: bool) -> None:
    async with relayed() as pair:
        relayed_bytes = await transfer(pair, sender, upgrade=True, is_punched=is_punched)
        assert relayed_bytes < 2 * MB  # what was on its way already: 0.7 MB at most, measured
        counters = pair.bulks[sender].counters
        assert counters.fallbacks == 1
        assert bool(counters.lanes_made) != is_punched
        await eventually(lambda: not pair.net.relay.view().circuits)
        for rpc in pair.rpcs:
            assert rpc.counters.errors_out == 0


async def test_nothing_is_dialled_through_a_relay() -> None:
    async with relayed() as pair:
        asked = pair.rpcs[1].counters.calls_in
        await transfer(pair, 0, upgrade=False)
        assert pair.rpcs[1].counters.calls_in == asked + 1  # the transfer, and no lane
        assert pair.bulks[0].counters.lanes_made == 0
