"""Two connections to one peer, one of them through a relay: which is used, and what moves."""

import pytest
import trio

from node.host.addresses import parse_address
from node.host.connection import Connection
from node.host.service import LibP2pHost
from node.host.stream import HostStream
from node.host.views import PeerEvent, PeerMoved, PeerUp
from protocols.channels.service import ChannelService
from protocols.rpc.service import RpcService
from protocols.rpc.wire import MOVE
from tests.daemon.circuits import ring
from tests.daemon.hosts import call, eventually
from tests.daemon.paths import join_directly, wire
from tests.sim.rpc_methods import COUNT, Ask, Reply
from wire.clock import SystemClock
from wire.errors import PeerUnreachable
from wire.ids import PeerId, Signer
from wire.ports import Call, Stream

QUICK_S = 0.2  # for HURRY_S, so that these tests take less of the real clock


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("liveness", "connection"):
        monkeypatch.setattr(f"node.host.{place}.HURRY_S", QUICK_S)


async def echo(call: Call[Reply, Ask]) -> None:
    async for ask in call:
        await call.send(Reply(ask.number))


async def watch(host: LibP2pHost, events: list[PeerEvent]) -> None:
    async for event in host.watch():
        events.append(event)  # noqa: PERF401 - they are looked at meanwhile


def connections(a: LibP2pHost, b: LibP2pHost) -> list[str]:
    return [connection.path for connection in a._peers.of(b.peer)]


async def test_all_moves_to_a_direct_connection_and_the_relayed_one_ends() -> None:
    async with ring() as net, trio.open_nursery() as nursery:
        a, b = net.hosts
        rpcs = [RpcService(host) for host in net.hosts]
        events = list[PeerEvent](), list[PeerEvent]()
        for host, rpc, seen in zip(net.hosts, rpcs, events, strict=True):
            await nursery.start(rpc.run)
            rpc.serve_stream(COUNT, echo)
            nursery.start_soon(watch, host, seen)
        await net.reserve(1)
        await a.connect(b.peer)
        await eventually(lambda: connections(b, a))
        async with (
            rpcs[0].stream(b.peer, COUNT, timeout_s=3) as one,
            rpcs[1].stream(a.peer, COUNT, timeout_s=3) as two,
        ):
            await join_directly(a, b)
            with trio.fail_after(5):
                number = 0
                while net.relay.view().circuits or number < 100:
                    number += 1
                    for stream in (one, two):
                        await stream.send(Ask(number))
                        assert await stream.receive() == Reply(number)
                    await trio.sleep(0.001)
            assert connections(a, b) == connections(b, a) == ["direct"]
            (line,) = [line for peer, line in rpcs[0]._lines.items() if peer == b.peer]
            assert isinstance(line.stream, HostStream)
            assert line.stream.path == "direct"
            assert line.stream.remote in b.addresses()[0]
            for stream in (one, two):
                await stream.send(Ask(7))
                assert await stream.receive() == Reply(7)
        for rpc in rpcs:
            assert rpc.counters.moved == 2
            assert rpc.counters.errors_out == 0
        for seen, other in zip(events, (b, a), strict=True):
            told = [event for event in seen if event.peer == other.peer]
            assert told == [PeerUp(other.peer), PeerMoved(other.peer)]
        nursery.cancel_scope.cancel()


async def test_nothing_new_opens_on_a_retired_connection_unless_it_is_asked_for() -> None:
    async with ring() as net:
        a, b = net.hosts
        ends = list[Stream]()

        async def hold(stream: Stream) -> None:
            ends.append(stream)
            await stream.read(1)

        b.serve("/hold", hold)
        await net.reserve(1)
        old = await a.open(b.peer, "/hold", timeout_s=3)
        assert old.path == "relayed"
        with pytest.raises(PeerUnreachable):
            await a.open(b.peer, "/hold", timeout_s=3, path="direct")
        await join_directly(a, b)
        await eventually(lambda: ends[0].is_retired)
        assert old.is_retired
        assert (await a.open(b.peer, "/hold", timeout_s=3)).path == "direct"
        assert (await b.open(a.peer, "/echo", timeout_s=3)).path == "direct"
        asked = await a.open(b.peer, "/hold", timeout_s=3, path="relayed")
        assert asked.path == "relayed"
        assert (await a.probe(b.peer)).path == "direct"
        assert a.peers()[1].path == "direct"


async def test_a_relayed_connection_that_comes_second_is_retired_when_the_first_has_answered() -> (
    None
):
    async with ring() as net, trio.open_nursery() as nursery:
        a, b = net.hosts
        events = list[PeerEvent]()
        await net.reserve(1)
        await a.connect(b.addresses()[0])
        nursery.start_soon(watch, a, events)
        carrier = await net.clients[0].dial(parse_address(net.through(1)), b.peer)
        place = a._swarm.gate.enter(None)
        assert place is not None
        muxed = await a._swarm.secure(carrier, b.peer)
        await a._swarm.adopt(muxed, carrier, place)
        await eventually(lambda: "relayed" in connections(b, a))
        await eventually(lambda: connections(a, b) == connections(b, a) == ["direct"])
        assert PeerMoved(b.peer) not in events
        await call(a, b)
        nursery.cancel_scope.cancel()


async def test_a_call_on_a_silent_connection_is_made_again_over_a_relay(quick: None) -> None:
    async with ring() as net, wire(net.hosts[1]) as cable, trio.open_nursery() as nursery:
        a, b = net.hosts
        rpc_a, rpc_b = RpcService(a), RpcService(b)
        await nursery.start(rpc_a.run)

        async def answer(_: PeerId, message: bytes) -> bytes:
            return message

        rpc_b.answer("test.net", answer)
        network = rpc_a.network("test.net")
        await a.connect(cable.address)
        assert await network.request(b.peer, b"direct", timeout_s=3) == b"direct"
        await net.reserve(1)
        await eventually(lambda: a.rtt_s(b.peer))
        cable.freeze()
        began = trio.current_time()
        assert await network.request(b.peer, b"again", timeout_s=9) == b"again"
        assert 2 * QUICK_S < trio.current_time() - began < 3 * QUICK_S + 1
        assert connections(a, b) == ["relayed"]
        assert rpc_a.counters.repeated == 1
        nursery.cancel_scope.cancel()


async def test_who_comes_by_a_relay_has_perhaps_lost_the_direct_connection(quick: None) -> None:
    async with ring() as net, wire(net.hosts[1]) as cable:
        a, b = net.hosts
        await a.connect(cable.address)
        await eventually(lambda: a.rtt_s(b.peer) and b.rtt_s(a.peer))
        found = await net.clients[0].reserve(net.centre.peer)
        cable.freeze()
        b._peers.of(a.peer)[0].abort("b has noticed, a has not")
        await eventually(lambda: not connections(b, a))
        b._dialler.forget(a.peer)
        b.learn(a.peer, list(found.addresses))
        await b.connect(a.peer)
        await call(b, a)
        with trio.fail_after(2 * QUICK_S + 1):
            while connections(a, b) != ["relayed"]:  # noqa: ASYNC110 - as tests' `eventually`
                await trio.sleep(0.01)
            await call(a, b)
        assert connections(b, a) == ["relayed"]  # and it is not closed for the dead one's sake


async def test_a_retired_connection_is_the_best_again_if_the_other_breaks() -> None:
    async with ring() as net, trio.open_nursery() as nursery:
        a, b = net.hosts
        events = list[PeerEvent]()
        await net.reserve(1)
        held = await a.open(b.peer, "/never", timeout_s=3)
        assert held.path == "relayed"
        nursery.start_soon(watch, a, events)
        direct = await join_directly(a, b)
        direct.abort("a cable is pulled")
        await eventually(lambda: connections(a, b) == connections(b, a) == ["relayed"])
        await call(a, b)
        await call(b, a)
        await eventually(lambda: events.count(PeerMoved(b.peer)) in (0, 2))
        assert not a._peers.of(b.peer)[0].is_retired
        nursery.cancel_scope.cancel()


async def test_a_change_of_network_finds_what_is_dead_and_dials_who_is_kept(quick: None) -> None:
    async with ring() as net, wire(net.hosts[1]) as cable:
        a, b = net.hosts
        a.keep(b.peer, [cable.address])
        await eventually(lambda: a.rtt_s(b.peer))
        alive = a._peers.of(net.centre.peer)
        cable.freeze()
        await net.reserve(1)
        a.network_changed()
        with trio.fail_after(2 * QUICK_S + 2):
            while connections(a, b) != ["relayed"]:  # noqa: ASYNC110 - as tests' `eventually`
                await trio.sleep(0.01)
        assert a._peers.of(net.centre.peer) == alive


async def test_when_one_falls_silent_all_others_are_asked_at_once(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ring() as net, wire(net.hosts[1]) as cable:
        a, b = net.hosts
        await a.connect(cable.address)
        await eventually(lambda: a.rtt_s(b.peer))
        (alive,) = a._peers.of(net.centre.peer)
        asked = list[Connection]()
        monkeypatch.setattr(Connection, "doubt", lambda each: asked.append(each))
        cable.freeze()
        a._peers.of(b.peer)[0].is_doubted = True
        a._peers.of(b.peer)[0].changed.unpark_all()
        with trio.fail_after(20):  # a busy machine is slow to see it, too
            while connections(a, b):  # noqa: ASYNC110 - as tests' `eventually`
                await trio.sleep(0.01)
        assert alive in asked
        assert {each.peer for each in asked} == {net.centre.peer}  # b may have noticed, too


async def test_a_change_of_network_while_a_connection_is_retired_passes() -> None:
    async with ring() as net:
        a, b = net.hosts
        await net.reserve(1)
        held = await a.open(b.peer, "/never", timeout_s=3)
        assert not a._dialler._as_relays  # what was needed is not remembered for ever
        await join_directly(a, b)
        await eventually(lambda: held.is_retired)
        (old,) = [each for each in a._peers.of(b.peer) if each.is_retired]
        a.network_changed()  # a keep-alive that neither waits nor asks would turn for ever
        await eventually(lambda: not old.is_doubted)
        await call(a, b)


async def test_a_line_to_a_peer_that_does_not_move_keeps_its_calls() -> None:
    async with ring() as net, trio.open_nursery() as nursery:
        a, b = net.hosts
        rpc_a, rpc_b = RpcService(a), RpcService(b)
        await nursery.start(rpc_a.run)
        rpc_b.serve_stream(COUNT, echo)
        del b._sessions.servers[MOVE]  # an older program; its refusal is not waited for
        await net.reserve(1)
        async with rpc_a.stream(b.peer, COUNT, timeout_s=3) as call_:
            await join_directly(a, b)
            for number in range(20):
                await call_.send(Ask(number))
                assert await call_.receive() == Reply(number)
                await trio.sleep(0.01)
        assert rpc_a.counters.moved == 0
        nursery.cancel_scope.cancel()


async def test_a_kept_peer_that_is_away_is_dialled_when_the_network_changes() -> None:
    async with ring() as net:
        a, b = net.hosts
        a.keep(b.peer, ["/ip4/127.0.0.1/tcp/1"])
        await trio.sleep(0.5)
        a._keeping._kept[b.peer].backoff.delay_s = 30.0
        await trio.sleep(0.8)  # it waits for long by now
        b_addresses = b.addresses()
        a._dialler.learn(b.peer, b_addresses)
        assert not connections(a, b)
        a.network_changed()
        await eventually(lambda: connections(a, b) == ["direct"])


async def test_channels_say_everything_once_while_their_streams_move() -> None:
    seeds = [bytes([number]) * 32 for number in (1, 2)]
    async with ring(seeds=seeds) as net, trio.open_nursery() as nursery:
        a, b = net.hosts
        heard = list[bytes](), list[bytes]()
        both = list[ChannelService]()

        async def listen(channels: ChannelService, into: list[bytes]) -> None:
            async with channels.listen("news") as messages:
                async for message in messages:
                    into.append(message.data)  # noqa: PERF401 - it is looked at meanwhile

        for host, seed, into in zip(net.hosts, seeds, heard, strict=True):
            rpc = RpcService(host)
            both.append(ChannelService(host, rpc, Signer(seed), SystemClock()))
            await nursery.start(rpc.run)
            await nursery.start(both[-1].run)
            nursery.start_soon(listen, both[-1], into)
        await net.reserve(1)
        await a.connect(b.peer)
        await eventually(lambda: all(each.views()[0].peers for each in both))
        machines = [dict(each._machine._peers) for each in both]
        words = [b"%d" % number + bytes(10_000) for number in range(400)]
        for number, word in enumerate(words):
            if number == 100:
                nursery.start_soon(join_directly, a, b)
            await both[number % 2].publish("news", word)
            await trio.lowlevel.checkpoint()
        await eventually(lambda: not net.relay.view().circuits)
        await both[0].publish("news", b"the last")
        await eventually(lambda: b"the last" in heard[1])
        assert sorted(heard[0]) == sorted(heard[1]) == sorted([*words, b"the last"])
        assert [dict(each._machine._peers) for each in both] == machines  # nobody came anew
        assert [each._links.moved for each in both] == [1, 1]
        nursery.cancel_scope.cancel()
