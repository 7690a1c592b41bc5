"""What peers that break the rules of RPC come to, over an in-memory network."""

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from protocols.rpc import service, wire
from protocols.rpc.wire import PROTOCOL
from tests.sim.net import Net
from tests.sim.rpc_methods import (
    COUNT,
    DOUBLE,
    LATENCY_S,
    A,
    Ask,
    B,
    Blob,
    C,
    Reply,
    Sleeper,
    double,
    three,
)
from wire import codec, frames
from wire.errors import (
    BadMessage,
    PeerUnreachable,
    RemoteError,
)
from wire.ports import Method, Stream


@pytest.fixture
def net(nursery: trio.Nursery) -> Net:
    return Net(nursery, latency_s=LATENCY_S)


@pytest.mark.parametrize(
    "garbage", [b"\xff" * 100, b"GET / HTTP/1.1\r\n" * 9, frames.pack(b"\x93\x00\xa1m\xa1m")]
)
async def test_garbage_ends_its_line_only(
    autojump_clock: MockClock, net: Net, garbage: bytes
) -> None:
    net.rpc(B).serve(DOUBLE, double)
    stream = await net.host(A).open(B, PROTOCOL, timeout_s=1)
    await stream.write(garbage)
    with pytest.raises(PeerUnreachable):
        await stream.read(1000)
    assert net.rpc(B).counters.bad_messages == 1
    assert await net.rpc(A).call(B, DOUBLE, Ask(21), timeout_s=1) == Reply(42)


@pytest.mark.parametrize(
    "messages",
    [
        [wire.Data(0, memoryview(b"x"))],  # of a call that was never made
        [wire.Open(5, "test.count", 0), wire.Open(5, "test.count", 0)],
        [wire.Open(5, "test.count", 0), wire.Open(4, "test.count", 0)],
        [wire.Open(5, "test.count", 0), wire.End(5), wire.Data(5, memoryview(b"x"))],
        [wire.Open(5, "test.count", 0), wire.End(5), wire.End(5)],
        [wire.Open(5, "test.count", 0), wire.Part(5, memoryview(b"x")), wire.End(5)],
        [wire.Open(5, "test.count", 0), *[wire.Data(5, memoryview(bytes(60_000)))] * 5],
        [wire.Open(5, "test.count", 0), *[wire.Part(5, memoryview(bytes(60_000)))] * 2],
        [wire.Open(5, "test.count", 0), wire.Credit(5, wire.CREDIT_MAX)],
    ],
    ids=lambda messages: "-".join(type(message).__name__ for message in messages),
)
async def test_one_who_breaks_the_rules_loses_the_line(
    autojump_clock: MockClock, net: Net, messages: list[wire.ToServer]
) -> None:
    sleeper = Sleeper()
    net.rpc(B).serve_stream(COUNT, sleeper)
    stream = await net.host(A).open(B, PROTOCOL, timeout_s=1)
    for message in messages:
        await stream.write(frames.pack(codec.encode(message)))
    with trio.fail_after(1), pytest.raises(PeerUnreachable):  # noqa: PT012
        while True:
            await stream.read(1000)
    assert net.rpc(B).counters.bad_messages == 1
    assert net.rpc(B).counters.active_in == 0


async def test_a_message_of_the_wrong_type_is_bad_and_never_reaches_the_handler(
    autojump_clock: MockClock, net: Net
) -> None:
    net.rpc(B).serve(DOUBLE, double)
    wrong = Method("test.double", Blob, Reply)
    with pytest.raises(RemoteError) as caught:
        await net.rpc(A).call(B, wrong, Blob(b"1"), timeout_s=1)
    assert caught.value.code == "bad_message"
    other = Method("test.double", Ask, Blob)
    with pytest.raises(BadMessage):
        await net.rpc(A).call(B, other, Ask(1), timeout_s=1)


async def test_a_peer_has_few_lines(autojump_clock: MockClock, net: Net) -> None:
    net.rpc(B).serve(DOUBLE, double)
    silent = [
        await net.host(A).open(B, PROTOCOL, timeout_s=1) for _ in range(service.LINES_OF_PEER_MAX)
    ]
    with pytest.raises(PeerUnreachable):
        await net.rpc(A).call(B, DOUBLE, Ask(1), timeout_s=1)
    net.rpc(B).serve(COUNT, three)
    assert await net.rpc(C).call(B, COUNT, Ask(1), timeout_s=1) == Reply(3)
    silent[0].drop()
    await trio.sleep(1)
    assert await net.rpc(A).call(B, DOUBLE, Ask(1), timeout_s=1) == Reply(2)


async def test_a_server_that_answers_nonsense_is_a_bad_message(
    autojump_clock: MockClock, net: Net
) -> None:
    async def nonsense(stream: Stream) -> None:
        await stream.read(100)
        await stream.write(b"\xff\xff\xff\xff\xff")
        await trio.sleep(100)

    net.host(B).serve(PROTOCOL, nonsense)
    with pytest.raises(BadMessage):
        await net.rpc(A).call(B, DOUBLE, Ask(1), timeout_s=1)
    with pytest.raises(BadMessage):
        async with net.rpc(A).stream(B, COUNT, timeout_s=1) as call:
            await call.receive()
    await wait_all_tasks_blocked()
