"""What breaks in the Rust system that describes the same stack (facts: lattica, section 3), here.

Real hosts on loopback. Each test is one of its failures, and says what happened there.
"""

import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

import shoal
from protocols.rpc.service import RpcService
from protocols.rpc.wire import PROTOCOL
from tests.daemon.hosts import make_host, running
from tests.daemon.processes import Daemon, daemons
from wire.codec import Message
from wire.errors import NotFound, RemoteError
from wire.ids import PeerId
from wire.ports import Call, Method

PATIENCE_S = 30.0
PAGE_BYTES = os.sysconf("SC_PAGESIZE")


class Text(Message, frozen=True):
    """Anything."""

    data: bytes = b""
    number: int = 0


ECHO = Method("test.echo", Text, Text, at_once=256)
SLOW = Method("test.slow", Text, Text)
RAISE = Method("test.raise", Text, Text)
TALK = Method("test.talk", Text, Text, at_once=256)
COUNT = Method("test.count", Text, Text, frame_max=128 * 1024)
BREAK = Method("test.break", Text, Text)


@dataclass
class Server:
    """The answering side, and how often its handlers ran."""

    release: trio.Event = field(default_factory=trio.Event)
    runs: dict[str, int] = field(default_factory=dict[str, int])

    def serve(self, rpc: RpcService) -> None:
        rpc.serve(ECHO, self.echo)
        rpc.serve(SLOW, self.slow)
        rpc.serve(RAISE, self.fail)
        rpc.serve_stream(TALK, self.talk)
        rpc.serve_stream(COUNT, self.count)
        rpc.serve_stream(BREAK, self.break_off)

    def ran(self, name: str) -> None:
        self.runs[name] = self.runs.get(name, 0) + 1

    async def echo(self, _peer: PeerId, text: Text) -> Text:
        return text

    async def slow(self, _peer: PeerId, text: Text) -> Text:
        await self.release.wait()
        return text

    async def fail(self, _peer: PeerId, text: Text) -> Text:
        self.ran("raise")
        if text.number:
            raise NotFound("no such fish")
        raise ZeroDivisionError("a bug of the handler")

    async def talk(self, call: Call[Text, Text]) -> None:
        async for text in call:
            await call.send(text)

    async def count(self, call: Call[Text, Text]) -> None:
        wanted = await call.receive()
        for number in range(wanted.number):
            await call.send(Text(wanted.data, number))

    async def break_off(self, call: Call[Text, Text]) -> None:
        self.ran("break")
        await call.send(Text(number=0))
        await call.send(Text(number=1))
        raise ZeroDivisionError("in the middle of the stream")


@dataclass
class Pair:
    """A calls B."""

    rpc: RpcService
    peer: PeerId
    server: Server

    async def echo(self, number: int) -> None:
        answer = await self.rpc.call(self.peer, ECHO, Text(number=number), timeout_s=PATIENCE_S)
        assert answer.number == number

    async def talk(self, number: int) -> None:
        async with self.rpc.stream(self.peer, TALK, timeout_s=PATIENCE_S) as call:
            await call.send(Text(b"x" * 16, number))
            assert (await call.receive()).number == number
            await call.finish()
            with pytest.raises(trio.EndOfChannel):
                await call.receive()


@asynccontextmanager
async def pair() -> AsyncIterator[Pair]:
    a, b = make_host(), make_host()
    rpc_a, rpc_b, server = RpcService(a), RpcService(b), Server()
    server.serve(rpc_b)
    async with running(a, b):
        a.learn(b.peer, b.addresses())
        with trio.fail_after(2 * PATIENCE_S):
            yield Pair(rpc_a, b.peer, server)


async def test_a_thousand_streams_at_once_complete() -> None:
    """There: 4 in flight hung in 4 of 5 runs, a burst of 200 in 8 of 9, at times the whole node."""
    async with pair() as each:
        async with trio.open_nursery() as nursery:
            for number in range(1000):
                nursery.start_soon(each.talk, number)
        await each.echo(1)


async def test_many_rounds_of_streams_in_flight_complete() -> None:
    """There: 10 in flight wedged in 5 of 5 runs."""

    async def talk_on(first: int) -> None:
        for number in range(first, first + 30):
            await each.talk(number)

    async with pair() as each, trio.open_nursery() as nursery:
        for lane in range(10):
            nursery.start_soon(talk_on, 100 * lane)


@pytest.mark.parametrize(("items", "size"), [(5000, 16), (600, 64 * 1024)])
async def test_a_consumer_that_is_slow_loses_no_item(items: int, size: int) -> None:
    """There: the iterator just ended after 513 items of 5000, without an error."""
    async with pair() as each, each.rpc.stream(each.peer, COUNT, timeout_s=5) as call:
        await call.send(Text(b"x" * size, items))
        await trio.sleep(0.5)
        seen = [text.number async for text in call]
        assert seen == list(range(items))


async def test_a_consumer_at_full_speed_loses_no_item() -> None:
    """There: 14,240, 20,000 and 20,000 of 20,000 over TCP."""
    async with pair() as each, each.rpc.stream(each.peer, COUNT, timeout_s=5) as call:
        await call.send(Text(b"x" * 16, 20_000))
        seen = [text.number async for text in call]
        assert seen == list(range(20_000))


async def test_a_stream_and_calls_beside_it_all_go_on() -> None:
    """There: 5 calls beside one stream froze the server in 2 of 4 tries; 50 in each."""
    seen = list[int]()

    async def consume() -> None:
        async with each.rpc.stream(each.peer, COUNT, timeout_s=5) as call:
            await call.send(Text(b"x" * 64 * 1024, 1000))
            async for text in call:
                seen.append(text.number)

    async with pair() as each:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(consume)
            for number in range(50):
                nursery.start_soon(each.talk, number)
                nursery.start_soon(each.echo, number)
        assert seen == list(range(1000))


async def test_a_slow_handler_blocks_nobody_else() -> None:
    """There: a handler of 4 s blocked all other calls for 3.8 s."""
    late = list[Text]()

    async def wait() -> None:
        late.append(await each.rpc.call(each.peer, SLOW, Text(number=7), timeout_s=PATIENCE_S))

    async with pair() as each:
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(wait)
            for number in range(100):
                await each.echo(number)
                await each.talk(number)
            assert late == []
            each.server.release.set()
        assert len(late) == 20


async def test_a_handler_that_raises_runs_once_and_its_error_arrives_typed() -> None:
    """There: it ran three times; streams said "Response channel closed" whatever had happened."""
    async with pair() as each:
        with pytest.raises(RemoteError, match="no such fish") as caught:
            await each.rpc.call(each.peer, RAISE, Text(number=1), timeout_s=5)
        assert caught.value.code == "not_found"
        with pytest.raises(RemoteError, match="ZeroDivisionError") as caught:
            await each.rpc.call(each.peer, RAISE, Text(), timeout_s=5)
        assert caught.value.code == "internal"
        assert each.server.runs == {"raise": 2}
        unknown = Method("test.unknown", Text, Text)
        with pytest.raises(RemoteError) as caught:
            await each.rpc.call(each.peer, unknown, Text(), timeout_s=5)
        assert caught.value.code == "unknown_method"


async def test_a_stream_that_breaks_off_does_not_look_like_one_that_ends() -> None:
    """There: an exception in an iterator was a normal end."""
    async with pair() as each:
        async with each.rpc.stream(each.peer, BREAK, timeout_s=5) as call:
            seen = [(await call.receive()).number for _ in range(2)]
            with pytest.raises(RemoteError, match="ZeroDivisionError") as caught:
                await call.receive()
        assert caught.value.code == "internal"
        assert (seen, each.server.runs) == ([0, 1], {"break": 1})


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


@pytest.mark.parametrize(
    "bomb",
    [
        b"\x80\x80\x80\x80\x04",
        b"\xff\xff\xff\x7f",
        b"\xff\xff\x03\xdd\x3f\xff\xff\xff",
        b"\x05\xc6\x40\x00\x00\x00",
    ],
    ids=["1 GiB, 5 bytes of varint", "256 MiB", "array of 2^30", "bytes of 2^30"],
)
async def test_five_bytes_allocate_nothing(bomb: bytes) -> None:
    """There: 5 bytes on the RPC stream took the server from 27 to 1051 MB."""
    a, b = make_host(), make_host()
    rpc_a, rpc_b, server = RpcService(a), RpcService(b), Server()
    server.serve(rpc_b)
    async with running(a, b):
        a.learn(b.peer, b.addresses())
        await rpc_a.call(b.peer, ECHO, Text(), timeout_s=5)
        before = resident_bytes()
        for _ in range(20):
            stream = await a.open(b.peer, PROTOCOL, timeout_s=5)
            await stream.write(bomb)
            await trio.sleep(0.01)
            await stream.reset()
        assert resident_bytes() - before < 20 * 1024 * 1024
        await rpc_a.call(b.peer, ECHO, Text(), timeout_s=5)


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Daemon]]:
    with daemons(tmp_path_factory.mktemp("rivals"), "ada", "bob") as (ada, bob):
        ada.start()
        bob.start("--join", ada.client.ticket())
        ada.client.wait(peers=1, timeout_s=PATIENCE_S)
        yield [ada, bob]


def ask(daemon: Daemon, peer: str, method: str, *, timeout_s: float = PATIENCE_S) -> object:
    return daemon.client.rpc(peer, method, "hello", timeout_s=timeout_s)


def test_a_peer_killed_in_mid_call_is_an_error_soon_and_calls_work_again(
    swarm: list[Daemon],
) -> None:
    """There: the call failed after 4.3 s, and each later one took 6.3 s."""
    ada, bob = swarm
    peer, began = bob.client.id().peer, 0.0

    def die(_: object) -> None:
        nonlocal began
        began = time.monotonic()
        assert bob.process is not None
        bob.process.kill()

    with bob.client.serve({"die": die, "echo": lambda value: value}):
        assert ask(ada, peer, "echo") == "hello"
        with pytest.raises(shoal.ApiError) as caught:
            ask(ada, peer, "die")
        assert caught.value.code == "unreachable"
        assert time.monotonic() - began < 3.0
        bob.wait()
        with pytest.raises(shoal.ApiError) as caught:
            ask(ada, peer, "echo", timeout_s=2.0)
        assert caught.value.code in ("unreachable", "deadline")
        bob.start()
        ada.client.wait(peers=1, timeout_s=PATIENCE_S)
        until(lambda: answers(ada, peer))  # the program has come back by itself


def answers(daemon: Daemon, peer: str) -> bool:
    try:
        return ask(daemon, peer, "echo", timeout_s=5.0) == "hello"
    except shoal.ApiError as error:
        if error.code not in ("unknown_method", "unreachable"):
            raise
        return False


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
