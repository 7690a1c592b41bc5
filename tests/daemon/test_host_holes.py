"""Punched sockets become connections: real hosts on loopback, where nothing is in between."""

import socket
from functools import partial

import pytest
import trio

from node.host.addresses import Address
from node.host.admission import NotAdmitted
from node.host.listeners import connected
from node.host.service import LibP2pHost
from node.reach.attempts import Attempts
from node.tickets import SwarmKey
from tests.daemon.hosts import call, eventually, make_host, running
from wire.errors import PeerUnreachable

SHORT_S = 0.6  # for a try of which one side sees by itself that it is over


def place_of(host: LibP2pHost) -> Address:
    return host.listeners[0].address


async def punch(a: LibP2pHost, b: LibP2pHost) -> None:
    """Both sides try, as DCUtR makes them; `a` is its initiator."""
    async with trio.open_nursery() as nursery:
        for one, other in ((a, b), (b, a)):
            targets = [place_of(other)]
            attempts = Attempts(
                one.holes, other.peer, targets, begins=one is a, rtt_s=0.001, within_s=SHORT_S
            )
            nursery.start_soon(attempts.run)


async def test_both_connect_and_one_connection_of_both_is_kept() -> None:
    a, b = make_host(), make_host()
    async with running(a, b):
        await punch(a, b)
        for one, other in ((a, b), (b, a)):
            (view,) = one.peers()
            assert (view.path, view.connections) == ("direct", 1)
            await call(one, other)
        ends = [(view.address, view.direction) for host in (a, b) for view in host.peers()]
        assert {str(place_of(a)), str(place_of(b))} & {address for address, _ in ends}
        assert any(view.is_punched for host in (a, b) for view in host.peers())


async def test_the_one_that_does_not_begin_does_so_where_nobody_else_begins() -> None:
    a, b = make_host(), make_host()
    async with running(a, b):
        # b, which waits for the initiator's first byte, has met a's listener.
        await Attempts(b.holes, a.peer, [place_of(a)], begins=False, rtt_s=0.001).run()
        assert [view.direction for view in b.peers()] == ["out"]
        await call(b, a)


async def test_somebody_else_at_an_address_is_left_alone_after_two_handshakes() -> None:
    a, b, stranger = make_host(), make_host(), make_host()
    async with running(a, b, stranger):
        target = [place_of(stranger)]
        await Attempts(a.holes, b.peer, target, begins=True, rtt_s=0.001, within_s=SHORT_S).run()
        assert not a.peers()
        assert stranger.counters().accepted == 2
        assert not a.counters().connections


async def test_a_refusal_is_not_yet() -> None:
    a = make_host()
    with socket.create_server(("127.0.0.1", 0)) as free:
        target = Address("ip4", "127.0.0.1", int(free.getsockname()[1]))
    late = make_host(listen=str(target))
    async with running(a), trio.open_nursery() as nursery:
        attempts = Attempts(a.holes, late.peer, [target], begins=True, rtt_s=0.001)
        nursery.start_soon(attempts.run)
        await eventually(lambda: attempts.refusals)
        async with running(late):
            await eventually(lambda: a.peers() and late.peers())
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("is_ours", [True, False])
async def test_only_who_chooses_closes_what_is_secured(*, is_ours: bool) -> None:
    a, b = make_host(), make_host()
    async with running(a, b):
        stream = await connected(a.holes.connect(place_of(b)))
        async with trio.open_nursery() as nursery:
            adopt = partial(a.holes.adopt, initiator=True, is_ours=is_ours)
            nursery.start_soon(adopt, stream, b.peer)
            while not a._swarm.live:  # pyright: ignore[reportPrivateUsage] - it is secured then
                await trio.lowlevel.checkpoint()
            assert not a.peers()
            nursery.cancel_scope.cancel()
        if is_ours:
            await eventually(lambda: not a.counters().connections and not b.peers())
        else:
            await eventually(a.peers)
            await call(a, b)


async def test_another_swarms_node_is_not_adopted() -> None:
    a, b = make_host(), make_host(key=SwarmKey(b"o" * 32))
    async with running(a, b):
        stream = await connected(a.holes.connect(place_of(b)))
        with pytest.raises((NotAdmitted, PeerUnreachable)):
            await a.holes.adopt(stream, b.peer, initiator=True, is_ours=True)
        await eventually(lambda: not a.counters().connections)
