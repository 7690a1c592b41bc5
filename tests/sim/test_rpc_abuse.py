"""Peers that take without giving: answers nobody reads, lines half closed, calls left half sent."""

import gc
import weakref

import pytest
import trio
from trio.testing import MockClock

from protocols.rpc import caller, line, wire
from protocols.rpc.answers import AGE_S, KEPT_BYTES, KEPT_MAX, KEPT_OF_PEER_MAX, Answers
from protocols.rpc.call import BodyType
from protocols.rpc.line import WAITING_BYTES
from protocols.rpc.server import Endpoint, Load
from protocols.rpc.wire import PROTOCOL, WINDOW_BYTES
from tests.sim import net as net_module
from tests.sim.net import Net
from tests.sim.rpc_methods import BULK, COUNT, DOUBLE, LATENCY_S, A, Ask, B, Blob, C, Reply, Sleeper
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
    monkeypatch.setattr(net_module, "ATTACHED_BYTES", 10_000)
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
    autojump_clock: MockClock, net: Net, nursery: trio.Nursery
) -> None:
    async def read_nothing(stream: Stream) -> None:
        await trio.sleep_forever()

    async def cut() -> None:
        await trio.sleep(1)
        net.cut(A, B)

    net.host(B).serve(PROTOCOL, read_nothing)
    async with (
        net.rpc(A).stream(B, LARGE, timeout_s=1) as large,
        net.rpc(A).stream(B, COUNT, timeout_s=1) as small,
    ):
        await large.send(Blob(bytes(WAITING_BYTES + 2 * WINDOW_BYTES)))
        nursery.start_soon(cut)
        with trio.fail_after(2), pytest.raises(PeerUnreachable):
            await small.send(Ask(1))


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


async def test_one_peer_cannot_make_us_forget_the_answers_to_others(
    autojump_clock: MockClock,
) -> None:
    answers, done = Answers(), list[PeerId]()

    async def ask(peer: PeerId, number: int) -> bool:
        async def work() -> bytes:
            done.append(peer)
            return b"answer"

        return (await answers.once((peer, "m", number.to_bytes(4, "big")), work))[1]

    assert not await ask(A, 1)
    for number in range(KEPT_MAX + 100):
        assert not await ask(B, number)
    assert await ask(A, 1)
    last = KEPT_MAX + 99
    assert [await ask(B, last - back) for back in (0, KEPT_OF_PEER_MAX - 1)] == [True, True]
    assert not await ask(B, last - KEPT_OF_PEER_MAX)
    await trio.sleep(700)
    assert not await ask(C, 1)
    assert not await ask(A, 1)  # too old by now


async def test_work_in_progress_is_not_forgotten_and_large_answers_are_not_kept(
    autojump_clock: MockClock,
) -> None:
    answers, begun = Answers(), list[bytes]()

    async def ask(key: bytes, size: int = 0, wait_s: float = 0) -> bytes:
        async def work() -> bytes:
            begun.append(key)
            await trio.sleep(wait_s)
            return bytes(size)

        return (await answers.once((A, "m", key), work))[0]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, b"slow", 7, 2 * AGE_S)
        await trio.sleep(AGE_S + 1)
        for number in range(KEPT_OF_PEER_MAX + 10):
            await ask(number.to_bytes(4, "big"))
        assert len(await ask(b"slow")) == 7
    for _ in range(2):
        assert len(await ask(b"large", KEPT_BYTES + 1)) == KEPT_BYTES + 1
        assert len(await ask(b"small", KEPT_BYTES)) == KEPT_BYTES
    assert (begun.count(b"slow"), begun.count(b"large"), begun.count(b"small")) == (1, 2, 1)


def test_a_peer_whose_calls_are_over_is_not_counted() -> None:
    load = Load()
    endpoint = Endpoint("m", 1, 1, BodyType(Ask), BodyType(Reply))
    load.enter(A, endpoint)
    with pytest.raises(Busy):
        load.enter(A, endpoint)
    load.leave(A, endpoint)
    assert not load.calls


async def test_all_peers_together_have_no_more_than_so_many_answers(
    autojump_clock: MockClock,
) -> None:
    answers = Answers()

    async def ask(peer: PeerId, number: int) -> bool:
        async def work() -> bytes:
            return b""

        return (await answers.once((peer, "m", number.to_bytes(4, "big")), work))[1]

    peers = [PeerId(str(number)) for number in range(KEPT_MAX // 100 + 1)]
    for peer in peers:
        for number in range(100):
            await ask(peer, number)
    assert await ask(peers[-1], 0)
    assert not await ask(peers[0], 0)


class Request:
    """Something large."""


async def test_an_error_that_is_kept_does_not_keep_the_request(autojump_clock: MockClock) -> None:
    answers, refs = Answers(), list[weakref.ref[Request]]()

    async def handle(request: Request) -> bytes:
        raise NotFound("no")

    async def ask() -> None:
        request = Request()
        refs.append(weakref.ref(request))

        async def work() -> bytes:
            return await handle(request)

        with pytest.raises(RemoteError if len(refs) > 1 else NotFound, match="no") as caught:
            await answers.once((A, "m", b"key"), work)
        assert getattr(caught.value, "code", "") == "not_found"

    await ask()
    gc.collect()
    assert refs[0]() is None
    await ask()
