"""Lines that move to a better connection, with all calls on them, over an in-memory network."""

import random

import pytest
import trio
from trio.testing import MockClock

from protocols.rpc import wire
from protocols.rpc.wire import MOVE, PROTOCOL, TOKEN_BYTES
from tests.sim.net import RETIRED_S, Net
from tests.sim.net_stream import SimStream
from tests.sim.rpc_methods import BULK, COUNT, DOUBLE, LATENCY_S, A, Ask, B, Blob, Reply
from wire import codec, frames
from wire.errors import BadMessage, PeerUnreachable
from wire.ids import PeerId
from wire.ports import Call, Stream


@pytest.fixture
def net(nursery: trio.Nursery) -> Net:
    return Net(nursery, latency_s=LATENCY_S)


def lines(net: Net) -> list[SimStream]:
    """The callers' ends of all lines."""
    return [stream for stream in net.streams(A, B) if stream.owner.peer == A]


async def test_a_line_moves_with_the_calls_on_it(autojump_clock: MockClock, net: Net) -> None:
    async def slow(_: PeerId, ask: Ask) -> Reply:
        await trio.sleep(2 * RETIRED_S)
        return Reply(ask.number)

    async def echo(call: Call[Reply, Ask]) -> None:
        async for ask in call:
            await call.send(Reply(ask.number))

    net.rpc(B).serve(DOUBLE, slow)
    net.rpc(B).serve_stream(COUNT, echo)
    got = list[Reply]()

    async def ask() -> None:
        got.append(await net.rpc(A).call(B, DOUBLE, Ask(7), timeout_s=60))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        async with net.rpc(A).stream(B, COUNT, timeout_s=1) as call:
            await call.send(Ask(1))
            assert await call.receive() == Reply(1)
            net.move(A, B)
            for number in range(2, 200):
                await call.send(Ask(number))
                assert await call.receive() == Reply(number)
                await trio.sleep(RETIRED_S / 50)  # beyond the end of the old connection
    assert got == [Reply(7)]  # neither repeated nor lost
    assert net.rpc(A).counters.moved == net.rpc(B).counters.moved == 1
    assert net.rpc(A).counters.repeated == net.rpc(A).counters.errors_out == 0
    assert [stream.is_retired for stream in lines(net)] == [False]


@pytest.mark.parametrize("seed", range(8))
async def test_nothing_is_lost_or_doubled_by_moves_in_the_middle_of_messages(
    autojump_clock: MockClock, net: Net, seed: int
) -> None:
    """Large messages both ways at once, in pieces, while the line moves again and again."""
    rng = random.Random(seed)
    there = [rng.randbytes(rng.choice((10, 100_000, 900_000))) for _ in range(30)]
    back = [rng.randbytes(rng.choice((10, 100_000, 900_000))) for _ in range(30)]
    got_there, got_back = list[bytes](), list[bytes]()

    async def answer(call: Call[Blob, Blob]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, call, back)
            async for message in call:
                got_there.append(message.data)

    async def send(call: Call[Blob, Blob], messages: list[bytes]) -> None:
        for data in messages:
            await call.send(Blob(data))
            await trio.sleep(rng.random() * 0.05)

    async def move() -> None:
        while True:
            await trio.sleep(rng.random() * 0.3)
            net.move(A, B)

    net.rpc(B).serve_stream(BULK, answer)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(move)
        async with net.rpc(A).stream(B, BULK, timeout_s=1) as call:
            async with trio.open_nursery() as sending:
                sending.start_soon(send, call, there)
                while len(got_back) < len(back):
                    got_back.append((await call.receive()).data)
            await call.finish()
            with pytest.raises(trio.EndOfChannel):
                await call.receive()
        nursery.cancel_scope.cancel()
    assert (got_there, got_back) == (there, back)
    assert net.rpc(A).counters.moved >= 2
    assert not net.errors


async def test_both_ends_move_their_own_lines(autojump_clock: MockClock, net: Net) -> None:
    async def echo(call: Call[Reply, Ask]) -> None:
        async for ask in call:
            await call.send(Reply(ask.number))

    for peer in (A, B):
        net.rpc(peer).serve_stream(COUNT, echo)
    async with (
        net.rpc(A).stream(B, COUNT, timeout_s=1) as one,
        net.rpc(B).stream(A, COUNT, timeout_s=1) as two,
    ):
        net.move(A, B)
        await trio.sleep(2 * RETIRED_S)
        for call in (one, two):
            await call.send(Ask(3))
            assert await call.receive() == Reply(3)
    assert net.rpc(A).counters.moved == net.rpc(B).counters.moved == 2


async def test_a_line_whose_old_connection_breaks_in_the_move_is_lost_and_calls_are_repeated(
    autojump_clock: MockClock, net: Net
) -> None:
    network = net.network(A, "test.net")
    calls = 0

    async def answer(_: PeerId, message: bytes) -> bytes:
        nonlocal calls
        calls += 1
        await trio.sleep(1)
        return message

    net.rpc(B).answer("test.net", answer)

    async def cut() -> None:
        await trio.sleep(0.5)
        old = net.streams(A, B)
        net.move(A, B)
        await trio.sleep(2.5 * LATENCY_S)  # the new stream is open, the last word not heard
        for stream in old:
            stream.break_at(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cut)
        with trio.fail_after(3):
            assert await network.request(B, b"hello", timeout_s=10) == b"hello"
    assert calls == 2
    assert net.rpc(A).counters.moved == net.rpc(B).counters.moved == 0
    await trio.sleep(60)
    assert net.rpc(A).counters.lines == net.rpc(B).counters.lines == 1


async def test_a_new_connection_that_breaks_in_the_move_costs_the_line_a_second(
    autojump_clock: MockClock, net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def meet(*_: object) -> None:
        await trio.sleep_forever()  # its server's task has ended with the connection

    monkeypatch.setattr("protocols.rpc.moves.Departures.meet", meet)
    calls = 0

    async def answer(_: PeerId, message: bytes) -> bytes:
        nonlocal calls
        calls += 1
        await trio.sleep(1)
        return message

    net.rpc(B).answer("test.net", answer)

    async def cut() -> None:
        await trio.sleep(0.5)
        old = net.streams(A, B)
        net.move(A, B)
        await trio.sleep(10 * LATENCY_S)  # the last word is said
        for stream in net.streams(A, B):
            if stream not in old:
                stream.break_at(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cut)
        with trio.fail_after(4):  # not the half minute that both sides may take to move
            network = net.network(A, "test.net")
            assert await network.request(B, b"hello", timeout_s=10) == b"hello"
    assert calls == 2


async def test_a_peer_that_does_not_move_gets_a_new_line_for_new_calls(
    autojump_clock: MockClock, net: Net
) -> None:
    async def slow(_: PeerId, ask: Ask) -> Reply:
        await trio.sleep(ask.number)
        return Reply(ask.number)

    net.rpc(B).serve(DOUBLE, slow)
    del net.host(B)._servers[MOVE]  # an older program
    got = list[Reply]()

    async def ask(number: int) -> None:
        got.append(await net.rpc(A).call(B, DOUBLE, Ask(number), timeout_s=60))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, 5)
        await trio.sleep(1)
        net.move(A, B)
        await trio.sleep(1)
        nursery.start_soon(ask, 20)
    assert got == [Reply(5), Reply(20)]


async def test_nobody_moves_anothers_line_or_makes_the_server_wait_for_ever(
    autojump_clock: MockClock, net: Net
) -> None:
    async def echo(call: Call[Reply, Ask]) -> None:
        async for ask in call:
            await call.send(Reply(ask.number))

    net.rpc(B).serve_stream(COUNT, echo)
    token = bytes(TOKEN_BYTES)
    c = net.host(PeerId("C"))
    async with net.rpc(A).stream(B, COUNT, timeout_s=1) as call:
        stolen = await c.open(B, MOVE, timeout_s=1)
        await stolen.write(token)
        own = await c.open(B, PROTOCOL, timeout_s=1)
        move = frames.pack(codec.encode(wire.Move(token)))
        await own.write(move + move)  # a second last word
        with pytest.raises(PeerUnreachable):
            await own.read(100)  # it was taken for what it is
        await trio.sleep(60)
        with pytest.raises(PeerUnreachable):
            await stolen.read(1)
        half = await c.open(B, MOVE, timeout_s=1)
        await half.write(token[1:])
        await trio.sleep(60)
        with pytest.raises(PeerUnreachable):
            await half.read(1)
        await call.send(Ask(1))
        assert await call.receive() == Reply(1)
    assert not net.errors
    assert len(net.rpc(B)._departures) == 0


async def test_a_server_that_moves_lines_by_itself_breaks_the_protocol(
    autojump_clock: MockClock, net: Net
) -> None:
    async def push(stream: Stream) -> None:
        await stream.write(frames.pack(codec.encode(wire.Move(bytes(TOKEN_BYTES)))))
        await trio.sleep_forever()

    net.host(B).serve(PROTOCOL, push)
    with pytest.raises(BadMessage):
        await net.rpc(A).call(B, DOUBLE, Ask(1), timeout_s=5)
    assert net.rpc(A).counters.bad_messages == 1


async def test_silence_is_looked_for_while_somebody_waits_for_an_answer(
    autojump_clock: MockClock, net: Net
) -> None:
    async def slow(_: PeerId, ask: Ask) -> Reply:
        await trio.sleep(5)
        return Reply(ask.number)

    net.rpc(B).serve(DOUBLE, slow)

    async def ask() -> None:
        await net.rpc(A).call(B, DOUBLE, Ask(1), timeout_s=60)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.sleep(1)
        (line,) = lines(net)
        assert line.waits
        net.move(A, B)
        await trio.sleep(1)
        (line,) = lines(net)
        assert line.waits
        assert not line.is_retired
    assert not line.waits
