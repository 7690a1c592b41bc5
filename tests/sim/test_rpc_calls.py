"""Unary calls over an in-memory network: deadlines, cancellation, faults."""

import logging

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from protocols.rpc import caller, server
from protocols.rpc.machine import MessageTooBig
from protocols.rpc.service import RpcService
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
    C,
    Reply,
    SecondLine,
    Sleeper,
    double,
)
from wire.errors import (
    Busy,
    DeadlineExceeded,
    NotFound,
    PeerUnreachable,
    RemoteError,
)
from wire.ids import PeerId
from wire.ports import Method


@pytest.fixture
def net(nursery: trio.Nursery) -> Net:
    return Net(nursery, latency_s=LATENCY_S)


async def test_the_first_call_takes_two_round_trips_and_each_other_one(
    autojump_clock: MockClock, net: Net
) -> None:
    net.rpc(B).serve(DOUBLE, double)
    for trips in (2, 1, 1):
        began = trio.current_time()
        assert await net.rpc(A).call(B, DOUBLE, Ask(21), timeout_s=1) == Reply(42)
        assert trio.current_time() - began == pytest.approx(trips * 2 * LATENCY_S)


async def test_a_thousand_calls_at_once_share_one_stream(
    autojump_clock: MockClock, net: Net
) -> None:
    net.rpc(B).serve(DOUBLE, double)
    replies = list[Reply]()

    async def call(number: int) -> None:
        replies.append(await net.rpc(A).call(B, DOUBLE, Ask(number), timeout_s=10))

    async with trio.open_nursery() as nursery:
        for number in range(1000):
            nursery.start_soon(call, number)
    assert sorted(reply.number for reply in replies) == [2 * number for number in range(1000)]
    assert len(net.host(A).streams) == net.rpc(A).counters.lines == 1
    assert net.rpc(B).counters.refused == 0  # beyond a number that B allows, they wait here


async def test_a_finished_call_leaves_nothing_behind(autojump_clock: MockClock, net: Net) -> None:
    net.rpc(B).serve(DOUBLE, double)
    for number in range(20):
        await net.rpc(A).call(B, DOUBLE, Ask(number), timeout_s=1)
    await trio.sleep(1)
    assert net.rpc(B).counters.active_in == 0
    assert len(net.host(A).streams) == len(net.host(B).streams) == 1
    net.cut(A, B)
    await trio.sleep(1)
    assert net.rpc(A).counters.lines == net.rpc(B).counters.lines == 0
    assert (net.rpc(A).counters.calls_out, net.rpc(B).counters.calls_in) == (20, 20)
    assert net.rpc(A).counters.bytes_out == net.rpc(B).counters.bytes_in > 0
    assert net.rpc(B).counters.bytes_out == net.rpc(A).counters.bytes_in > 0


async def test_our_errors_keep_their_code_and_text(autojump_clock: MockClock, net: Net) -> None:
    async def fail(peer: PeerId, ask: Ask) -> Reply:
        raise NotFound(f"no {ask.number}")

    net.rpc(B).serve(DOUBLE, fail)
    with pytest.raises(NotFound, match="no 7") as caught:  # of the very type that was raised
        await net.rpc(A).call(B, DOUBLE, Ask(7), timeout_s=1)
    assert isinstance(caught.value, RemoteError)
    assert caught.value.code == "not_found"
    assert net.rpc(A).counters.errors_out == net.rpc(B).counters.errors_in == 1


async def test_an_error_inside_the_handler_s_own_nursery_keeps_its_code(
    autojump_clock: MockClock, net: Net
) -> None:
    async def fail() -> None:
        raise NotFound("deep")

    async def handler(peer: PeerId, ask: Ask) -> Reply:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
        raise AssertionError

    net.rpc(B).serve(DOUBLE, handler)
    with pytest.raises(RemoteError, match="deep") as caught:
        await net.rpc(A).call(B, DOUBLE, Ask(7), timeout_s=1)
    assert caught.value.code == "not_found"


async def test_a_bug_in_a_handler_is_logged_and_ends_its_call_only(
    autojump_clock: MockClock, net: Net, caplog: pytest.LogCaptureFixture
) -> None:
    async def bug(peer: PeerId, ask: Ask) -> Reply:
        raise ZeroDivisionError("secret")

    net.rpc(B).serve(DOUBLE, bug)
    net.rpc(B).serve(COUNT, double)
    with caplog.at_level(logging.ERROR), pytest.raises(RemoteError) as caught:
        await net.rpc(A).call(B, DOUBLE, Ask(7), timeout_s=1)
    assert caught.value.code == "internal"
    assert "secret" not in str(caught.value)
    assert "ZeroDivisionError: secret" in caplog.text
    assert await net.rpc(A).call(B, COUNT, Ask(1), timeout_s=1) == Reply(2)
    assert net.errors == []


async def test_an_unknown_method_is_a_typed_error(autojump_clock: MockClock, net: Net) -> None:
    net.rpc(B)
    with pytest.raises(RemoteError, match=r"test\.double") as caught:
        await net.rpc(A).call(B, DOUBLE, Ask(1), timeout_s=1)
    assert caught.value.code == "unknown_method"
    with pytest.raises(RemoteError) as caught:
        async with net.rpc(A).stream(B, COUNT, timeout_s=1) as call:
            await call.receive()
    assert caught.value.code == "unknown_method"


async def test_an_absent_peer_is_unreachable(autojump_clock: MockClock, net: Net) -> None:
    with pytest.raises(PeerUnreachable):
        await net.rpc(A).call(B, DOUBLE, Ask(1), timeout_s=1)
    assert net.rpc(A).counters.errors_out == 1


async def test_the_deadline_holds_at_both_ends(autojump_clock: MockClock, net: Net) -> None:
    sleeper = Sleeper()
    net.rpc(B).serve(DOUBLE, sleeper)
    began = trio.current_time()
    with pytest.raises(DeadlineExceeded, match=r"test\.double: no answer of B within 2 s"):
        await net.rpc(A).call(B, DOUBLE, Ask(1), timeout_s=2)
    assert trio.current_time() - began == pytest.approx(2)
    await trio.sleep(1)
    assert sleeper.cancelled_at == pytest.approx(began + 2, abs=2 * LATENCY_S)


async def test_the_server_keeps_the_deadline_when_the_caller_has_vanished_silently(
    autojump_clock: MockClock,
    net: Net,
) -> None:
    sleeper = Sleeper()
    net.rpc(B).serve(DOUBLE, sleeper)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_call_until_deadline, net)
        await sleeper.started.wait()
        net.cut(A, B, silent=True)
    await trio.sleep(1)
    assert sleeper.cancelled_at == pytest.approx(began + 2, abs=3 * LATENCY_S)


async def _call_until_deadline(net: Net) -> None:
    with pytest.raises(DeadlineExceeded):
        await net.rpc(A).call(B, DOUBLE, Ask(1), timeout_s=2)


async def test_cancelling_a_call_cancels_the_working_handler_at_once(
    autojump_clock: MockClock, net: Net
) -> None:
    sleeper = Sleeper()
    net.rpc(B).serve(DOUBLE, sleeper)
    async with trio.open_nursery() as nursery:

        async def call() -> None:
            await net.rpc(A).call(B, DOUBLE, Ask(1), timeout_s=1000)

        nursery.start_soon(call)
        await sleeper.started.wait()
        began = trio.current_time()
        nursery.cancel_scope.cancel()
    await trio.sleep(1)
    assert sleeper.cancelled_at == pytest.approx(began + LATENCY_S)
    assert net.rpc(B).counters.active_in == 0


async def test_a_broken_link_is_noticed_at_both_ends(autojump_clock: MockClock, net: Net) -> None:
    sleeper = Sleeper()
    net.rpc(B).serve(DOUBLE, sleeper)
    async with trio.open_nursery() as nursery:

        async def call() -> None:
            with pytest.raises(PeerUnreachable):
                await net.rpc(A).call(B, DOUBLE, Ask(1), timeout_s=1000)

        nursery.start_soon(call)
        await sleeper.started.wait()
        net.cut(A, B)
    await wait_all_tasks_blocked()
    assert sleeper.cancelled_at == trio.current_time()


async def test_a_big_message_crosses_whole(autojump_clock: MockClock, net: Net) -> None:
    async def echo(peer: PeerId, blob: Blob) -> Blob:
        return blob

    net.rpc(B).serve(BULK, echo)
    data = bytes(range(256)) * 4000
    assert await net.rpc(A).call(B, BULK, Blob(data), timeout_s=60) == Blob(data)
    with pytest.raises(MessageTooBig):
        await net.rpc(A).call(B, BULK, Blob(bytes(1 << 20)), timeout_s=60)


async def test_an_oversized_answer_is_an_error_not_a_hang(
    autojump_clock: MockClock, net: Net
) -> None:
    async def grow(peer: PeerId, blob: Blob) -> Blob:
        return Blob(bytes(1 << 20))

    net.rpc(B).serve(BULK, grow)
    with pytest.raises(RemoteError) as caught:
        await net.rpc(A).call(B, BULK, Blob(b""), timeout_s=60)
    assert caught.value.code == "too_big"


async def test_calls_beyond_the_limit_of_a_peer_are_refused_and_others_are_served(
    autojump_clock: MockClock, net: Net
) -> None:
    gate, outcomes = trio.Event(), list[str]()

    async def wait(peer: PeerId, ask: Ask) -> Reply:
        await gate.wait()
        return Reply(ask.number)

    net.rpc(B).serve(COUNT, wait)
    second = RpcService(SecondLine(net.host(A)))  # a caller that counts for itself

    async def call(rpc: RpcService) -> None:
        try:
            await rpc.call(B, COUNT, Ask(1), timeout_s=100)
            outcomes.append("done")
        except Busy:
            outcomes.append("busy")

    async with trio.open_nursery() as nursery:
        for _ in range(caller.CALLS_MAX):
            nursery.start_soon(call, net.rpc(A))
            nursery.start_soon(call, second)
        await trio.sleep(1)
        assert outcomes == ["busy"] * (2 * caller.CALLS_MAX - server.CALLS_MAX)
        nursery.start_soon(call, net.rpc(C))
        await trio.sleep(1)
        gate.set()
    assert outcomes.count("done") == server.CALLS_MAX + 1
    assert net.rpc(B).counters.refused == outcomes.count("busy")


async def test_no_more_calls_of_a_method_run_at_once_than_it_allows(
    autojump_clock: MockClock, net: Net
) -> None:
    running, most = 0, 0

    async def work(peer: PeerId, ask: Ask) -> Reply:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await trio.sleep(1)
        running -= 1
        return Reply(ask.number)

    few = Method("test.few", Ask, Reply, at_once=3)
    greedy = Method("test.few", Ask, Reply)
    net.rpc(B).serve(few, work)
    net.rpc(B).serve(DOUBLE, double)
    refused = list[RemoteError]()

    async def call(method: Method[Ask, Reply]) -> None:
        try:
            await net.rpc(A).call(B, method, Ask(1), timeout_s=100)
        except RemoteError as error:
            refused.append(error)

    async with trio.open_nursery() as nursery:
        for _ in range(9):
            nursery.start_soon(call, few)
        await trio.sleep(0.5)
        assert await net.rpc(A).call(B, DOUBLE, Ask(1), timeout_s=0.1) == Reply(2)
    assert (most, refused) == (3, [])
    async with trio.open_nursery() as nursery:
        for _ in range(9):
            nursery.start_soon(call, greedy)
    assert most == 3
    assert [error.code for error in refused] == ["busy"] * 6


async def test_bytes_in_and_bytes_out_under_a_name(autojump_clock: MockClock, net: Net) -> None:
    async def shout(peer: PeerId, message: bytes) -> bytes:
        return peer.encode() + message.upper()

    net.rpc(B).answer("test.shout", shout)
    network = net.network(A, "test.shout")
    assert network.peer == A
    assert await network.request(B, b"hey", timeout_s=1) == b"AHEY"
    whole = bytes(64 * 1024)
    with pytest.raises(RemoteError, match="over the limit"):
        await network.request(B, whole, timeout_s=9)  # its answer has one byte more
    with pytest.raises(MessageTooBig):
        await network.request(B, whole + b"1", timeout_s=9)
