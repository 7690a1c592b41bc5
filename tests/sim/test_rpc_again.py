"""Calls that are made again after the connection broke, and calls beside large ones."""

import pytest
import trio
from trio.testing import MockClock

from tests.sim.net import Net
from tests.sim.rpc_methods import DOUBLE, LATENCY_S, A, Ask, B, Blob, Reply, double
from wire.errors import NotFound, PeerUnreachable
from wire.ids import PeerId
from wire.ports import Call, Method

REPEATABLE = Method("test.repeatable", Ask, Reply, is_repeatable=True)
LARGE = Method("test.large", Blob, Blob, frame_max=65 * 1024 * 1024)
KEY = b"this very call"


@pytest.fixture
def net(nursery: trio.Nursery) -> Net:
    return Net(nursery, latency_s=LATENCY_S)


class Slow:
    """A handler that takes a second; counts how often it began and ended."""

    def __init__(self) -> None:
        self.begun = self.done = 0

    async def __call__(self, peer: PeerId, ask: Ask) -> Reply:
        self.begun += 1
        await trio.sleep(1)
        self.done += 1
        return Reply(self.done)


async def break_after(net: Net, seconds: float) -> None:
    await trio.sleep(seconds)
    net.cut(A, B)
    net.heal()


async def test_a_repeatable_call_survives_a_broken_connection(
    autojump_clock: MockClock, net: Net, nursery: trio.Nursery
) -> None:
    slow = Slow()
    net.rpc(B).serve(REPEATABLE, slow)
    nursery.start_soon(break_after, net, 0.5)
    assert await net.rpc(A).call(B, REPEATABLE, Ask(1), timeout_s=5) == Reply(1)
    assert (slow.begun, slow.done) == (2, 1)
    assert net.rpc(A).counters.repeated == 1


async def test_other_calls_are_never_made_twice_by_themselves(
    autojump_clock: MockClock, net: Net, nursery: trio.Nursery
) -> None:
    slow = Slow()
    net.rpc(B).serve(DOUBLE, slow)
    nursery.start_soon(break_after, net, 0.5)
    with pytest.raises(PeerUnreachable):
        await net.rpc(A).call(B, DOUBLE, Ask(1), timeout_s=5)
    await trio.sleep(5)
    assert slow.begun == 1


async def test_a_call_with_a_key_that_was_done_is_not_done_again(
    autojump_clock: MockClock, net: Net, nursery: trio.Nursery
) -> None:
    slow = Slow()
    net.rpc(B).serve(DOUBLE, slow)
    nursery.start_soon(break_after, net, 2 * LATENCY_S + 1 + 1.5 * LATENCY_S)  # with the answer
    answer = await net.rpc(A).call(B, DOUBLE, Ask(1), timeout_s=5, key=KEY)
    assert answer == await net.rpc(A).call(B, DOUBLE, Ask(1), timeout_s=5, key=KEY) == Reply(1)
    assert slow.begun == 1
    assert net.rpc(A).counters.repeated == 1
    assert net.rpc(B).counters.replayed == 2
    assert await net.rpc(A).call(B, DOUBLE, Ask(1), timeout_s=5, key=b"another") == Reply(2)


async def test_a_call_with_a_key_that_was_cut_short_is_done(
    autojump_clock: MockClock, net: Net, nursery: trio.Nursery
) -> None:
    slow = Slow()
    net.rpc(B).serve(DOUBLE, slow)
    nursery.start_soon(break_after, net, 0.5)
    assert await net.rpc(A).call(B, DOUBLE, Ask(1), timeout_s=5, key=KEY) == Reply(1)
    assert (slow.begun, slow.done) == (2, 1)


async def test_the_same_key_twice_at_once_is_one_piece_of_work(
    autojump_clock: MockClock, net: Net
) -> None:
    slow, replies = Slow(), list[Reply]()
    net.rpc(B).serve(DOUBLE, slow)

    async def call() -> None:
        replies.append(await net.rpc(A).call(B, DOUBLE, Ask(1), timeout_s=5, key=KEY))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(call)
    assert replies == [Reply(1)] * 5
    assert slow.begun == 1


async def test_an_error_is_an_answer_too(autojump_clock: MockClock, net: Net) -> None:
    count = 0

    async def fail(peer: PeerId, ask: Ask) -> Reply:
        nonlocal count
        count += 1
        raise NotFound(f"try {count}")

    net.rpc(B).serve(DOUBLE, fail)
    for _ in range(2):
        with pytest.raises(NotFound, match="try 1"):
            await net.rpc(A).call(B, DOUBLE, Ask(1), timeout_s=5, key=KEY)


async def test_a_call_of_few_bytes_does_not_wait_behind_64_mb(
    autojump_clock: MockClock, net: Net
) -> None:
    ended = list[str]()

    async def swallow(peer: PeerId, blob: Blob) -> Blob:
        return Blob(len(blob.data).to_bytes(4, "big"))

    net.rpc(B).serve(LARGE, swallow)
    net.rpc(B).serve(DOUBLE, double)
    data = bytes(64_000_000)

    async def large() -> None:
        reply = await net.rpc(A).call(B, LARGE, Blob(data), timeout_s=600)
        assert int.from_bytes(reply.data, "big") == len(data)
        ended.append("large")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(large)
        await trio.sleep(10 * LATENCY_S)
        for _ in range(5):
            began = trio.current_time()
            await net.rpc(A).call(B, DOUBLE, Ask(1), timeout_s=1)
            assert trio.current_time() - began == pytest.approx(2 * LATENCY_S)
            ended.append("small")
    assert ended == ["small"] * 5 + ["large"]


async def test_a_slow_handler_delays_nobody(autojump_clock: MockClock, net: Net) -> None:
    net.rpc(B).serve(REPEATABLE, Slow())
    net.rpc(B).serve(DOUBLE, double)
    async with trio.open_nursery() as nursery:

        async def slow() -> None:
            await net.rpc(A).call(B, REPEATABLE, Ask(1), timeout_s=5)

        nursery.start_soon(slow)
        await trio.sleep(0.5)
        began = trio.current_time()
        await net.rpc(A).call(B, DOUBLE, Ask(1), timeout_s=1)
        assert trio.current_time() - began == pytest.approx(2 * LATENCY_S)


async def test_a_slow_reader_loses_nothing(autojump_clock: MockClock, net: Net) -> None:
    async def count(call: Call[Reply, Ask]) -> None:
        for number in range(5000):
            await call.send(Reply(number))

    method = Method("test.items", Ask, Reply)
    net.rpc(B).serve_stream(method, count)
    async with net.rpc(A).stream(B, method, timeout_s=1) as call:
        await trio.sleep(1)
        numbers = list[int]()
        async for reply in call:
            numbers.append(reply.number)
            if reply.number % 500 == 0:
                await trio.sleep(0.1)
    assert numbers == list(range(5000))
