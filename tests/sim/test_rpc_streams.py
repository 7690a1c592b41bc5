"""Streaming calls over an in-memory network: both ways, back-pressure, leaving."""

import pytest
import trio
from trio.testing import MockClock

from protocols.rpc import wire
from protocols.rpc.line import WAITING_BYTES
from protocols.rpc.machine import WIDE_BYTES
from protocols.rpc.wire import PROTOCOL, WINDOW_BYTES
from tests.sim.net import Net
from tests.sim.rpc_methods import (
    BULK,
    COUNT,
    LATENCY_S,
    A,
    Ask,
    B,
    Blob,
    Reply,
    Sleeper,
)
from wire import codec, frames
from wire.errors import NotFound, RemoteError
from wire.ports import Call, Method, Stream


@pytest.fixture
def net(nursery: trio.Nursery) -> Net:
    return Net(nursery, latency_s=LATENCY_S)


async def test_streaming_goes_both_ways_at_once(autojump_clock: MockClock, net: Net) -> None:
    async def echo(call: Call[Reply, Ask]) -> None:
        async for ask in call:
            await call.send(Reply(ask.number + 1))

    net.rpc(B).serve_stream(COUNT, echo)
    async with net.rpc(A).stream(B, COUNT, timeout_s=1) as call:
        assert call.peer == B
        for number in range(5):
            await call.send(Ask(number))
            assert await call.receive() == Reply(number + 1)
        await call.finish()
        with pytest.raises(trio.EndOfChannel):
            await call.receive()
    await trio.sleep(1)
    assert net.rpc(B).counters.active_in == 0


async def test_a_half_closed_call_still_receives(autojump_clock: MockClock, net: Net) -> None:
    async def total(call: Call[Reply, Ask]) -> None:
        await call.send(Reply(sum([ask.number async for ask in call])))

    net.rpc(B).serve_stream(COUNT, total)
    async with net.rpc(A).stream(B, COUNT, timeout_s=1) as call:
        for number in range(100):
            await call.send(Ask(number))
        await call.finish()
        assert [reply async for reply in call] == [Reply(4950)]


async def test_what_was_sent_before_leaving_normally_is_handled(
    autojump_clock: MockClock, net: Net
) -> None:
    seen = list[int]()

    async def collect(call: Call[Reply, Ask]) -> None:
        async for ask in call:
            await trio.sleep(1)
            seen.append(ask.number)

    net.rpc(B).serve_stream(COUNT, collect)
    async with net.rpc(A).stream(B, COUNT, timeout_s=1) as call:
        for number in range(20):
            await call.send(Ask(number))
    await trio.sleep(30)
    assert seen == list(range(20))


async def test_leaving_a_stream_by_an_exception_cancels_the_handler(
    autojump_clock: MockClock, net: Net
) -> None:
    sleeper = Sleeper()
    net.rpc(B).serve_stream(COUNT, sleeper)
    with pytest.raises(KeyError, match="mine"):  # noqa: PT012
        async with net.rpc(A).stream(B, COUNT, timeout_s=1):
            await sleeper.started.wait()
            raise KeyError("mine")
    began = trio.current_time()
    await trio.sleep(1)
    assert sleeper.cancelled_at == pytest.approx(began + LATENCY_S)


async def test_a_handler_that_goes_on_sending_to_one_who_left_is_stopped(
    autojump_clock: MockClock, net: Net
) -> None:
    ended_at = list[float]()

    async def flood(call: Call[Blob, Blob]) -> None:
        try:
            while True:
                await call.send(Blob(bytes(100_000)))
        finally:
            ended_at.append(trio.current_time())

    net.rpc(B).serve_stream(BULK, flood)
    async with net.rpc(A).stream(B, BULK, timeout_s=1) as call:
        await call.receive()
    left_at = trio.current_time()
    await trio.sleep(1)
    assert ended_at == [pytest.approx(left_at + LATENCY_S)]
    assert net.rpc(B).counters.active_in == 0


async def test_a_sender_learns_that_the_server_failed(autojump_clock: MockClock, net: Net) -> None:
    async def refuse(call: Call[Blob, Blob]) -> None:
        await call.receive()
        raise NotFound("not here")

    net.rpc(B).serve_stream(BULK, refuse)
    with pytest.raises(RemoteError, match="not here"):  # noqa: PT012
        async with net.rpc(A).stream(B, BULK, timeout_s=1) as call:
            while True:
                await call.send(Blob(bytes(500_000)))


async def test_a_blocked_sender_learns_of_the_failure_of_a_server_that_no_longer_reads(
    autojump_clock: MockClock, net: Net
) -> None:
    async def fail_and_stop_reading(stream: Stream) -> None:
        await stream.read(100)
        await stream.write(frames.pack(codec.encode(wire.Fail(0, "not_found", "not here"))))
        await trio.sleep_forever()

    net.host(B).serve(PROTOCOL, fail_and_stop_reading)
    with trio.fail_after(1), pytest.raises(RemoteError, match="not here"):  # noqa: PT012
        async with net.rpc(A).stream(B, BULK, timeout_s=1) as call:
            while True:
                await call.send(Blob(bytes(500_000)))


async def test_sending_to_a_server_that_is_done_is_an_error(
    autojump_clock: MockClock, net: Net
) -> None:
    async def first(call: Call[Reply, Ask]) -> None:
        await call.receive()

    net.rpc(B).serve_stream(COUNT, first)
    with pytest.raises(RemoteError) as caught:  # noqa: PT012
        async with net.rpc(A).stream(B, COUNT, timeout_s=1) as call:
            while True:
                await call.send(Ask(1))
                await trio.sleep(LATENCY_S)
    assert caught.value.code == "call_ended"


async def test_an_unread_call_stalls_its_sender(autojump_clock: MockClock, net: Net) -> None:
    gate, sent = trio.Event(), list[int]()

    async def lazy(call: Call[Blob, Blob]) -> None:
        await gate.wait()
        assert [len(blob.data) async for blob in call] == [100_000] * 20

    net.rpc(B).serve_stream(BULK, lazy)
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            async with net.rpc(A).stream(B, BULK, timeout_s=1) as call:
                for number in range(20):
                    await call.send(Blob(bytes(100_000)))
                    sent.append(number)

        nursery.start_soon(send)
        await trio.sleep(60)
        assert len(sent) * 100_000 < WINDOW_BYTES + WIDE_BYTES + 4 * 100_000
        gate.set()
    assert len(sent) == 20
    await trio.sleep(1)
    assert net.rpc(B).counters.errors_in == 0


async def test_a_peer_that_reads_no_answers_fills_no_memory(
    autojump_clock: MockClock, net: Net
) -> None:
    sent = 0

    async def flood(call: Call[Blob, Ask]) -> None:
        nonlocal sent
        while True:
            await call.send(Blob(bytes(8_000_000)))
            sent += 1

    net.rpc(B).serve_stream(Method("test.flood", Ask, Blob, frame_max=8 << 20), flood)
    stream = await net.host(A).open(B, PROTOCOL, timeout_s=1)
    for number in range(100):
        await stream.write(frames.pack(codec.encode(wire.Open(number, "test.flood", 0))))
    await trio.sleep(60)
    assert sent == WAITING_BYTES // 8_000_000 + 1
    assert net.bytes_sent[B] < sent * WINDOW_BYTES
    stream.drop()
    await trio.sleep(1)
    assert net.rpc(B).counters.active_in == 0
