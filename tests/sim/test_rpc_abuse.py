"""Peers that take without giving: answers nobody reads, lines half closed, calls left half sent."""

import pytest
import trio
from trio.testing import MockClock

from protocols.rpc import caller, line, wire
from protocols.rpc.call import BodyType
from protocols.rpc.line import WAITING_BYTES
from protocols.rpc.server import Endpoint, Load
from protocols.rpc.service import RpcService
from protocols.rpc.wire import PROTOCOL, WINDOW_BYTES
from tests.sim import net_stream
from tests.sim.net import Net
from tests.sim.rpc_methods import (
    BULK,
    COUNT,
    DOUBLE,
    LATENCY_S,
    A,
    Ask,
    B,
    Blob,
    Reply,
    SecondLine,
    Sleeper,
)
from wire import codec, frames
from wire.errors import Busy, NotFound, PeerUnreachable, RemoteError
from wire.ids import PeerId
from wire.ports import Call, Method, Stream

LARGE = Method("test.large", Blob, Blob, frame_max=2 * WAITING_BYTES)


@pytest.fixture
def net(nursery: trio.Nursery) -> Net:
    return Net(nursery, latency_s=LATENCY_S)


def pack(message: object) -> bytes:
    return frames.pack(codec.encode(message))


async def test_errors_that_nobody_reads_fill_no_memory(
    autojump_clock: MockClock, net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(net_stream, "ATTACHED_BYTES", 10_000)
    monkeypatch.setattr(line, "URGENT_ABUSE_BYTES", 100_000)
    net.rpc(B)
    stream = await net.host(A).open(B, PROTOCOL, timeout_s=1)
    for number in range(5000):
        await stream.write(pack(wire.Open(number, "x", 0)))
    await trio.sleep(1)
    with pytest.raises(PeerUnreachable):
        await stream.read(1000)
    assert net.rpc(B).counters.bad_messages == 1
    assert net.rpc(B).counters.lines == 0
    assert net.bytes_sent[B] < 20_000


async def test_a_large_message_that_is_not_wanted_makes_room_for_other_calls(
    autojump_clock: MockClock, net: Net
) -> None:
    async def refuse_the_first(stream: Stream) -> None:
        await stream.read(1000)
        await trio.sleep(1)
        await stream.write(pack(wire.Fail(0, "not_found", "not here")))
        await trio.sleep_forever()

    net.host(B).serve(PROTOCOL, refuse_the_first)
    async with (
        net.rpc(A).stream(B, LARGE, timeout_s=1) as large,
        net.rpc(A).stream(B, COUNT, timeout_s=1) as small,
    ):
        await large.send(Blob(bytes(WAITING_BYTES + 2 * WINDOW_BYTES)))
        began = trio.current_time()
        with trio.fail_after(10):
            await small.send(Ask(1))
        assert 0.5 < trio.current_time() - began < 2
        with pytest.raises(NotFound):
            await large.receive()
        net.cut(A, B)


async def test_who_waits_for_room_learns_that_the_line_is_lost(
    autojump_clock: MockClock,
    net: Net,
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(net_stream, "ATTACHED_BYTES", 0)
    monkeypatch.setattr(line, "URGENT_MAX_BYTES", 1000)

    async def read_nothing(stream: Stream) -> None:
        await trio.sleep_forever()

    async def cut() -> None:
        await trio.sleep(1)
        net.cut(A, B)

    net.host(B).serve(PROTOCOL, read_nothing)
    async with net.rpc(A).stream(B, COUNT, timeout_s=1) as call:
        nursery.start_soon(cut)
        with trio.fail_after(2), pytest.raises(PeerUnreachable):  # noqa: PT012
            while trio.current_time() < 1:
                await call.send(Ask(1))


async def test_a_line_that_the_server_finishes_is_thrown_away(
    autojump_clock: MockClock, net: Net
) -> None:
    is_reset = trio.Event()

    async def finish(stream: Stream) -> None:
        await stream.finish()
        with pytest.raises(PeerUnreachable):  # noqa: PT012
            while await stream.read(1000):
                pass
        is_reset.set()

    net.host(B).serve(PROTOCOL, finish)
    with pytest.raises(PeerUnreachable):
        await net.rpc(A).call(B, DOUBLE, Ask(1), timeout_s=1)
    with trio.fail_after(1):
        await is_reset.wait()


async def test_a_handler_does_not_wait_for_the_rest_of_what_its_caller_gave_up(
    autojump_clock: MockClock, net: Net
) -> None:
    async def slow(call: Call[Blob, Blob]) -> None:
        await trio.sleep(15)
        async for _ in call:
            pass

    net.rpc(B).serve_stream(LARGE, slow)
    async with net.rpc(A).stream(B, LARGE, timeout_s=1) as call:
        await call.send(Blob(b""))
        await call.send(Blob(bytes(2 * WINDOW_BYTES)))
    await trio.sleep(60)
    assert net.rpc(B).counters.active_in == 0


async def test_a_message_after_the_end_of_its_call_ends_the_line(
    autojump_clock: MockClock, net: Net
) -> None:
    async def fail_and_go_on(stream: Stream) -> None:
        await stream.read(1000)
        await stream.write(pack(wire.Fail(0, "failed", "no")))
        await stream.write(pack(wire.Data(0, memoryview(b"x"))))
        await trio.sleep_forever()

    net.host(B).serve(PROTOCOL, fail_and_go_on)
    with pytest.raises(RemoteError):  # noqa: PT012
        async with net.rpc(A).stream(B, COUNT, timeout_s=1) as call:
            await trio.sleep(1)
            await call.receive()
    assert net.rpc(A).counters.bad_messages == 1


async def test_an_answer_that_there_is_no_room_for_is_cancelled_at_the_server(
    autojump_clock: MockClock, net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "BUDGET_BYTES", 100_000)
    ended = trio.Event()

    async def answer(call: Call[Blob, Blob]) -> None:
        try:
            await call.send(Blob(bytes(1_000_000)))
            await trio.sleep_forever()
        finally:
            ended.set()

    net.rpc(B).serve_stream(BULK, answer)
    async with net.rpc(A).stream(B, BULK, timeout_s=1) as call:
        with pytest.raises(Busy):
            await call.receive()
        with trio.fail_after(1):
            await ended.wait()
    assert net.rpc(A).counters.bad_messages == 0  # what came meanwhile is nobody's fault


async def test_a_request_that_there_is_no_room_for_cancels_its_handler(
    autojump_clock: MockClock, net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "BUDGET_BYTES", 100_000)
    sleeper = Sleeper()
    net.rpc(B).serve_stream(BULK, sleeper)
    async with net.rpc(A).stream(B, BULK, timeout_s=1) as call:
        await call.send(Blob(bytes(1_000_000)))
        with trio.fail_after(1), pytest.raises(Busy):
            await call.receive()
    assert sleeper.cancelled_at > 0


async def test_many_lines_hold_no_more_than_one(
    autojump_clock: MockClock, net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "BUDGET_BYTES", 1_000_000)
    net.rpc(B).serve_stream(BULK, Sleeper())
    second = RpcService(SecondLine(net.host(A)))
    async with (
        net.rpc(A).stream(B, BULK, timeout_s=1) as one,
        second.stream(B, BULK, timeout_s=1) as two,
    ):
        await one.send(Blob(bytes(600_000)))
        await trio.sleep(1)
        await two.send(Blob(bytes(600_000)))
        with trio.fail_after(1), pytest.raises(Busy):
            await two.receive()
        await one.send(Blob(b"still there"))


async def test_all_who_wait_for_a_line_learn_at_once_that_there_is_none(
    autojump_clock: MockClock, net: Net
) -> None:
    async def call() -> None:
        with pytest.raises(PeerUnreachable):
            await net.rpc(A).call(B, DOUBLE, Ask(1), timeout_s=10)
        assert trio.current_time() == pytest.approx(2 * LATENCY_S)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(call)


async def test_no_more_answers_are_made_for_one_who_takes_none(
    autojump_clock: MockClock, net: Net
) -> None:
    begun, size = 0, 8_000_000

    async def large(peer: PeerId, ask: Ask) -> Blob:
        nonlocal begun
        begun += 1
        return Blob(bytes(size))

    net.rpc(B).serve(Method("test.big", Ask, Blob, frame_max=2 * size), large)
    stream = await net.host(A).open(B, PROTOCOL, timeout_s=1)
    body = memoryview(codec.encode(Ask(1)))
    for number in range(20):
        await stream.write(pack(wire.Ask(number, "test.big", 0, b"", body)))
        await trio.sleep(0.1)
    assert begun == WAITING_BYTES // size + 1


async def test_an_answer_to_one_who_left_is_dropped(autojump_clock: MockClock, net: Net) -> None:
    async def slow(peer: PeerId, ask: Ask) -> Reply:
        await trio.sleep(1)
        return Reply(1)

    net.rpc(B).serve(DOUBLE, slow)
    stream = await net.host(A).open(B, PROTOCOL, timeout_s=1)
    body = memoryview(codec.encode(Ask(1)))
    await stream.write(pack(wire.Ask(0, DOUBLE.name, 0, b"", body)) + pack(wire.Left(0)))
    await trio.sleep(2)
    counters = net.rpc(B).counters
    assert (counters.calls_in, counters.active_in, counters.errors_in) == (1, 0, 0)
    assert net.bytes_sent[B] == 0


async def test_a_cancelled_call_is_no_error_and_not_answered(
    autojump_clock: MockClock, net: Net
) -> None:
    net.rpc(B).serve_stream(COUNT, Sleeper())
    stream = await net.host(A).open(B, PROTOCOL, timeout_s=1)
    await stream.write(pack(wire.Open(0, COUNT.name, 0)))
    await trio.sleep(1)
    await stream.write(pack(wire.Cancel(0)))
    await trio.sleep(1)
    counters = net.rpc(B).counters
    assert (counters.calls_in, counters.active_in, counters.errors_in) == (1, 0, 0)
    assert net.bytes_sent[B] == 0


async def test_an_error_that_does_not_fit_the_wire_is_made_to(
    autojump_clock: MockClock, net: Net
) -> None:
    async def fail(peer: PeerId, ask: Ask) -> Reply:
        raise RemoteError("Not Like This!" if ask.number else "x" * 33, "\ud800" + "long" * 500)

    net.rpc(B).serve(DOUBLE, fail)
    for number in range(2):
        with pytest.raises(RemoteError, match=r"^[?](long)+lo") as caught:
            await net.rpc(A).call(B, DOUBLE, Ask(number), timeout_s=1)
        assert caught.value.code == "failed"
    assert net.rpc(A).counters.bad_messages == 0


async def test_finishing_twice_is_finishing(autojump_clock: MockClock, net: Net) -> None:
    async def slow(call: Call[Reply, Ask]) -> None:
        async for _ in call:
            pass
        await trio.sleep(1)
        await call.send(Reply(1))

    net.rpc(B).serve_stream(COUNT, slow)
    async with net.rpc(A).stream(B, COUNT, timeout_s=1) as call:
        for _ in range(2):
            await call.finish()
        assert await call.receive() == Reply(1)
    assert net.rpc(B).counters.bad_messages == 0


async def test_a_receiver_that_was_cancelled_loses_nothing(
    autojump_clock: MockClock, net: Net
) -> None:
    async def late(call: Call[Reply, Ask]) -> None:
        for number in range(3):
            await trio.sleep(1)
            await call.send(Reply(number))

    net.rpc(B).serve_stream(COUNT, late)
    async with net.rpc(A).stream(B, COUNT, timeout_s=1) as call:
        with trio.move_on_after(0.5):
            await call.receive()
        await trio.sleep(1)
        assert [reply.number async for reply in call] == [0, 1, 2]


async def test_who_gives_up_waiting_for_a_place_leaves_the_methods_place_free(
    autojump_clock: MockClock, net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caller, "CALLS_MAX", 2)
    one = Method("test.one", Ask, Reply, at_once=1)
    many = Method("test.many", Ask, Reply)
    sleeper = Sleeper()
    net.rpc(B).serve(many, sleeper)

    async def three(peer: PeerId, ask: Ask) -> Reply:
        return Reply(3)

    async def wait() -> None:
        await net.rpc(A).call(B, many, Ask(1), timeout_s=100)

    net.rpc(B).serve(one, three)
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(wait)
        await trio.sleep(1)
        with trio.move_on_after(1):
            await net.rpc(A).call(B, one, Ask(1), timeout_s=10)
        nursery.cancel_scope.cancel()
    assert await net.rpc(A).call(B, one, Ask(1), timeout_s=1) == Reply(3)


def test_a_peer_whose_calls_are_over_is_not_counted() -> None:
    load = Load()
    endpoint = Endpoint("m", 1, 1, BodyType(Ask), BodyType(Reply))
    load.enter(A, endpoint)
    with pytest.raises(Busy):
        load.enter(A, endpoint)
    load.leave(A, endpoint)
    assert not load.calls
