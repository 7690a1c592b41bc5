"""Relays, callers and called that do what they like: others are served, and memory is bounded."""

import secrets

import pytest
import trio

from node.host.backoff import ADDRESSES_MAX
from node.host.stream import HostStream
from node.host.yamux_stream import FIRST_WINDOW_BYTES
from node.reach import joint, messages, relay
from node.reach.hop import ASKS_PER_S, RelayBudget
from node.reach.joint import Way
from node.reach.messages import (
    HOP,
    STOP,
    Answer,
    Connect,
    Reserve,
    Status,
    pack_hop,
    pack_stop,
    read_hop,
)
from tests.daemon.circuits import UNPACED, Ring, ring
from tests.daemon.hosts import PATIENCE_S, call, eventually, exchange
from wire.errors import PeerUnreachable, ShoalError
from wire.frames import pack
from wire.ports import Stream

SECRET = b"what only the two ends may know, and no relay between them" * 20


async def ask(net: Ring, number: int, said: bytes) -> Status | None:
    """Say something on a hop stream; return the relay's answer, None if it hangs up."""
    stream = await net.hosts[number].open(net.centre.peer, HOP, timeout_s=PATIENCE_S)
    try:
        await stream.write(said)
        with trio.fail_after(PATIENCE_S):
            answer = read_hop(await messages.receive(stream))
    except PeerUnreachable:
        return None
    finally:
        stream.drop()
    assert isinstance(answer, Answer)
    return answer.status


async def write_on(stream: HostStream, data: bytes) -> None:
    while True:
        await stream.write(data)


async def test_a_thousand_requests_a_second_of_one_peer_keep_nobody_else_waiting() -> None:
    async with ring(4) as net:
        a, b = net.hosts[:2]
        await net.reserve(1)
        await call(a, b)

        async def flood() -> None:
            for _ in range(50):
                assert await ask(net, 2, pack_hop(Reserve())) is not Status.MALFORMED_MESSAGE

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(flood)
            for _ in range(5):
                with trio.fail_after(PATIENCE_S):
                    await call(a, b)
                    await net.reserve(3)
        assert net.relay.view().refused > 500
        reserved = net.relay.view().reservations
        assert len(reserved) <= 3  # one a peer, however often it asks
        assert net.centre.counters().server_errors == 0


async def test_who_asks_too_often_is_told_so() -> None:
    async with ring(1) as net:
        answers = [await ask(net, 0, pack_hop(Reserve())) for _ in range(ASKS_PER_S + 8)]
        assert answers[:ASKS_PER_S] == [Status.OK] * ASKS_PER_S
        assert Status.RESOURCE_LIMIT_EXCEEDED in answers[ASKS_PER_S:]


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (pack(b"\xff" * 40), Status.MALFORMED_MESSAGE),
        (pack(b""), Status.MALFORMED_MESSAGE),
        (b"\xff\xff\xff\xff", Status.MALFORMED_MESSAGE),
        (pack(bytes(5000)), Status.MALFORMED_MESSAGE),
        (pack_hop(Answer(Status.OK)), Status.UNEXPECTED_MESSAGE),
    ],
    ids=["noise", "nothing", "endless", "long", "an answer"],
)
async def test_nonsense_said_to_a_relay_is_answered(said: bytes, answer: Status) -> None:
    async with ring() as net:
        assert await ask(net, 0, said) is answer
        await net.reserve(1)
        await call(net.hosts[0], net.hosts[1])
        assert net.centre.counters().server_errors == 0


async def test_nonsense_said_to_whom_a_circuit_is_brought_to_ends_its_stream_only() -> None:
    async with ring() as net:
        a, b = net.hosts
        for said in (pack(b"\xff" * 40), b"\xff" * 9, pack_stop(Answer(Status.OK))):
            stream = await net.centre.open(b.peer, STOP, timeout_s=PATIENCE_S)
            await stream.write(said)
        for _ in range(3):  # circuits that begin well, and bring no handshake
            stream = await net.centre.open(b.peer, STOP, timeout_s=PATIENCE_S)
            await stream.write(pack_stop(Connect(a.peer)) + secrets.token_bytes(500))
        await eventually(lambda: b.counters().failed_handshakes == 3)
        assert b.counters().server_errors == 0
        await net.reserve(1)
        await call(a, b)


async def test_no_circuit_leads_to_its_caller_or_to_who_did_not_ask_for_one() -> None:
    async with ring() as net:
        a, b = net.hosts
        await net.reserve(0)
        assert await ask(net, 0, pack_hop(Connect(a.peer))) is Status.PERMISSION_DENIED
        assert await ask(net, 0, pack_hop(Connect(b.peer))) is Status.NO_RESERVATION
        assert await ask(net, 0, pack_hop(Connect(net.centre.peer))) is Status.NO_RESERVATION


async def test_a_reservation_ends_with_its_connection() -> None:
    async with ring() as net:
        a, b = net.hosts
        await net.reserve(1)
        await b.disconnect(net.centre.peer)
        await eventually(lambda: not net.relay.view().reservations)
        with pytest.raises(PeerUnreachable, match="no reservation there"):
            await a.connect(b.peer)


async def test_a_target_that_never_answers_costs_its_caller_a_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relay, "ANSWER_S", 0.3)

    async def never(_stream: Stream) -> None:
        await trio.sleep_forever()

    async with ring(3) as net:
        a, b, c = net.hosts
        await net.reserve(1)
        await net.reserve(2)
        b._sessions.servers[STOP] = never  # pyright: ignore[reportPrivateUsage]
        async with trio.open_nursery() as nursery:

            async def fail() -> None:
                with pytest.raises(PeerUnreachable, match="cannot reach the peer"):
                    await a.connect(b.peer)

            nursery.start_soon(fail)
            await call(a, c)
        await eventually(lambda: len(net.relay.view().circuits) == 1)


async def test_a_slow_reader_costs_a_window_each_way_and_stops_its_caller_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ways = list[Way]()
    make = Way.__init__

    def note(way: Way, source: HostStream, target: HostStream, most_bytes: int) -> None:
        make(way, source, target, most_bytes)
        ways.append(way)

    monkeypatch.setattr(joint.Way, "__init__", note)

    async def take_and_stop(stream: Stream) -> None:
        await stream.write(pack_stop(Answer(Status.OK)))
        await trio.sleep_forever()

    async with ring(3) as net:
        a, b, c = net.hosts
        await net.reserve(1)
        await net.reserve(2)
        b._sessions.servers[STOP] = take_and_stop  # pyright: ignore[reportPrivateUsage]
        stream = await a.open(net.centre.peer, HOP, timeout_s=PATIENCE_S)
        await stream.write(pack_hop(Connect(b.peer)))
        sent = 0
        with trio.move_on_after(1.5):
            while True:
                await stream.write(bytes(10_000))
                sent += 10_000
        assert sent < 4 * FIRST_WINDOW_BYTES  # the sender's, the relay's, and the reader's
        assert len(ways) == 2
        held = [len(way._waiting) for way in ways]  # pyright: ignore[reportPrivateUsage]
        assert max(held) <= FIRST_WINDOW_BYTES
        await call(a, c)
        stream.drop()
        await eventually(lambda: len(net.relay.view().circuits) == 1)


async def test_a_relay_that_dies_ends_what_runs_through_it_at_once() -> None:
    async with ring() as net:
        a, b = net.hosts
        await net.reserve(1)
        stream = await a.open(b.peer, "/count", timeout_s=PATIENCE_S)
        await stream.write(bytes(1000))

        async def send() -> None:
            with pytest.raises(PeerUnreachable):
                await write_on(stream, bytes(100_000))

        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                await trio.sleep(0.1)
                for peer in (a.peer, b.peer):
                    for held in net.centre._peers.of(peer):  # pyright: ignore[reportPrivateUsage]
                        held.abort("the relay dies")
        await eventually(lambda: not (a.connected() or b.connected()))
        assert a.counters().server_errors == b.counters().server_errors == 0


async def test_a_relay_reads_nothing_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, alters = bytearray(), False
    put = Way.put

    def tap(way: Way, data: bytes | memoryview) -> None:
        seen.extend(data)
        changed = bytearray(data)
        if alters:
            changed[len(changed) // 2] ^= 1
        put(way, bytes(changed))

    monkeypatch.setattr(Way, "put", tap)
    async with ring(3) as net:
        a, b, c = net.hosts
        await net.reserve(1)
        await net.reserve(2)
        await call(a, c, SECRET)
        stream = await a.open(b.peer, "/echo", timeout_s=PATIENCE_S)
        await exchange(stream, SECRET)
        assert len(seen) > 4 * len(SECRET)
        assert SECRET[:16] not in seen
        alters = True
        with pytest.raises(ShoalError):
            await exchange(stream, SECRET)
        alters = False
        await eventually(lambda: b.peer not in a.connected())
        await call(a, b)  # a new connection, through the same relay
        assert a.counters().server_errors == b.counters().server_errors == 0


async def test_circuits_are_counted_at_both_ends() -> None:
    budget = RelayBudget(rate_bytes_s=UNPACED, circuits_per_peer=2)
    async with ring(4, budget=budget) as net:
        *others, target = net.hosts
        await net.reserve(3)
        for other in others[:2]:
            await call(other, target)
        with pytest.raises(PeerUnreachable, match="it is full"):
            await others[2].connect(target.peer)
        await others[0].disconnect(target.peer)
        await eventually(lambda: len(net.relay.view().circuits) == 1)
        await call(others[2], target)


async def test_what_a_member_tells_of_its_relay_pushes_out_nothing_that_the_relay_told() -> None:
    async with ring() as net:
        a, b = net.hosts
        await net.reserve(1)
        before = a.addresses_of(net.centre.peer)
        told = [
            f"/ip4/127.0.0.1/tcp/{port}/p2p/{net.centre.peer}/p2p-circuit/p2p/{b.peer}"
            for port in range(1, ADDRESSES_MAX + 1)
        ]
        a.learn(b.peer, told)
        await call(a, b)
        assert a.addresses_of(net.centre.peer)[: len(before)] == before


async def test_who_asks_and_leaves_at_once_keeps_no_reservation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    receive = messages.receive

    async def late(stream: HostStream) -> bytes:
        body = await receive(stream)
        await net.centre.disconnect(stream.peer)
        with trio.CancelScope(shield=True):
            await trio.sleep(0.1)  # until all have heard that it left
        return body

    monkeypatch.setattr(relay, "receive", late)
    async with ring(1) as net:
        with pytest.raises(PeerUnreachable):
            await net.clients[0].reserve(net.centre.peer)
        await trio.sleep(0.2)
        assert net.relay.view().reservations == ()
