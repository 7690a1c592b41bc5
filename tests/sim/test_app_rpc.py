"""Calls to users' programs on a virtual clock: places, waiting, deadlines, programs that go."""

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
import trio
from msgspec import Raw
from trio.testing import MockClock

from node.apps.places import GRACE_S, WAITING_PER_PEER_MAX, Incoming, Unavailable
from node.apps.service import OPEN_S, AppRpc
from node.apps.wire import STREAM, VALUE_MAX, Open, Up, Value
from tests.sim.net import Net
from tests.sim.rpc_methods import A, B, C
from wire.errors import DeadlineExceeded, PeerUnreachable, RemoteError, UsageError

Answer = Callable[[Incoming], Coroutine[Any, Any, None]]


class FakePlace:
    """A place whose program is a coroutine."""

    def __init__(self, answer: Answer, *methods: str) -> None:
        self.methods, self.is_open = frozenset(methods), True
        self._answer = answer

    async def answer(self, call: Incoming) -> None:
        await self._answer(call)


def pack(value: object) -> bytes:
    return msgspec.msgpack.encode(value)


def unpack(value: Raw) -> Any:
    return msgspec.msgpack.decode(value)


async def double(call: Incoming) -> None:
    await call.send(Raw(pack(unpack(await call.receive()) * 2)))


async def echo(call: Incoming) -> None:
    with suppress(trio.EndOfChannel):
        while True:
            await call.send(await call.receive())


async def slow(call: Incoming) -> None:
    await trio.sleep(1.0)
    await double(call)


@dataclass
class Pair:
    """A calls, B's programs answer."""

    a: AppRpc
    b: AppRpc
    net: Net
    offers: ExitStack

    def offer(self, place: FakePlace) -> None:
        """Let B have one more place."""
        self.offers.enter_context(self.b.places.offer(place))
        self.b.places.put(place)


@asynccontextmanager
async def pair(answer: Answer, *methods: str, places: int = 1) -> AsyncIterator[Pair]:
    async with trio.open_nursery() as nursery:
        net = Net(nursery)
        with ExitStack() as offers:
            made = Pair(AppRpc(net.rpc(A)), AppRpc(net.rpc(B)), net, offers)
            for _ in range(places):
                made.offer(FakePlace(answer, *methods))
            yield made
            nursery.cancel_scope.cancel()


async def test_values_and_streams_cross(autojump_clock: MockClock) -> None:
    async with pair(double, "double") as made:
        a, b = made.a, made.b
        assert unpack(await a.call(B, "double", pack([1, b"x"]), timeout_s=5)) == [1, b"x"] * 2
        assert [each.name for each in await a.methods(B, timeout_s=5)] == ["double"]
        assert (a.counters.calls_out, b.counters.calls_in) == (1, 1)
    async with pair(echo, "echo") as made, made.a.stream(B, "echo") as call:
        for number in range(20):
            await call.send(Raw(pack(number)))
            assert unpack(await call.receive()) == number
        await call.finish()
        with pytest.raises(trio.EndOfChannel):
            await call.receive()


async def test_calls_wait_in_order_for_a_place(autojump_clock: MockClock) -> None:
    done = list[tuple[int, float]]()

    async def ask(number: int) -> None:
        await trio.sleep(number / 10)
        await a.call(B, "slow", pack(number), timeout_s=60)
        done.append((number, trio.current_time()))

    async with pair(slow, "slow", places=2) as made:
        a = made.a
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(ask, number)
        assert [number for number, _ in done] == list(range(6))
        assert done[-1][1] - began == pytest.approx(3.1, abs=0.2)  # two at a time


async def test_one_peer_cannot_take_the_whole_queue(autojump_clock: MockClock) -> None:
    codes = list[str]()

    async def ask(apps: AppRpc) -> None:
        try:
            await apps.call(B, "slow", pack(1), timeout_s=600)
        except RemoteError as error:
            codes.append(error.code)

    async with pair(slow, "slow") as made:
        a, b, c = made.a, made.b, AppRpc(made.net.rpc(C))
        async with trio.open_nursery() as nursery:
            for _ in range(WAITING_PER_PEER_MAX + 3):
                nursery.start_soon(ask, a)
            await trio.sleep(0.5)
            assert codes == ["busy"] * 2  # one is answered, the rest of the bound waits
            assert b.counters.refused == 2
            assert unpack(await c.call(B, "slow", pack(1), timeout_s=600)) == 2


async def test_a_deadline_cancels_the_program_and_frees_its_place(
    autojump_clock: MockClock,
) -> None:
    cancelled = list[float]()

    async def hang(call: Incoming) -> None:
        if unpack(await call.receive()):
            try:
                await trio.sleep_forever()
            finally:
                cancelled.append(trio.current_time())
        await call.send(Raw(pack("free")))

    async def hang_in_a_stream(a: AppRpc) -> None:
        async with a.stream(B, "hang", timeout_s=2) as call:
            await call.send(Raw(pack(True)))
            await call.receive()

    async with pair(hang, "hang") as made:
        a = made.a
        began = trio.current_time()
        with pytest.raises(DeadlineExceeded):
            await a.call(B, "hang", pack(True), timeout_s=2)
        assert unpack(await a.call(B, "hang", pack(False), timeout_s=2)) == "free"
        with pytest.raises(DeadlineExceeded):
            await hang_in_a_stream(a)
        with trio.move_on_after(2):
            await a.call(B, "hang", pack(True), timeout_s=100)
        assert unpack(await a.call(B, "hang", pack(False), timeout_s=2)) == "free"
        assert [round(at - began) for at in cancelled] == [2, 4, 6]


async def test_a_stream_whose_caller_is_silent_ends_at_its_own_deadline(
    autojump_clock: MockClock,
) -> None:
    async with pair(echo, "echo") as made:
        rpc = made.net.rpc(C)
        async with rpc.stream(B, STREAM, timeout_s=5) as call:
            await call.send(Up(Open("echo", 3000)))
            with pytest.raises(RemoteError) as caught:
                await call.receive()
            assert caught.value.code == "deadline"
        async with rpc.stream(B, STREAM, timeout_s=5) as call:
            began = trio.current_time()
            with pytest.raises(RemoteError) as caught:
                await call.receive()
            assert caught.value.code == "deadline"
            assert trio.current_time() - began == pytest.approx(OPEN_S, abs=0.5)
        assert [each.busy for each in made.b.places.offered()] == [0]


async def test_a_program_that_goes_fails_its_calls_soon_and_those_that_wait(
    autojump_clock: MockClock,
) -> None:
    async def go(_: Incoming) -> None:
        await trio.sleep(0.5)
        place.is_open = False
        offered.__exit__(None, None, None)
        raise Unavailable("the program went away")

    async with pair(echo, "other") as made:
        a, b = made.a, made.b
        place = FakePlace(go, "frail")
        with pytest.raises(RemoteError, match="no program here serves frail") as caught:
            await a.call(B, "frail", pack(1), timeout_s=60)
        assert caught.value.code == "unknown_method"
        offered = b.places.offer(place)
        offered.__enter__()
        b.places.put(place)
        codes = list[tuple[str, float]]()

        async def ask() -> None:
            with pytest.raises(RemoteError) as caught:
                await a.call(B, "frail", pack(1), timeout_s=60)
            codes.append((caught.value.code, trio.current_time()))

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            nursery.start_soon(ask)
        assert [code for code, _ in codes] == ["unavailable", "unavailable"]
        assert codes[-1][1] - began < 0.5 + GRACE_S + 0.2
        await ask()
        assert codes[-1][0] == "unavailable"


async def test_a_program_that_comes_back_within_the_grace_loses_no_call(
    autojump_clock: MockClock,
) -> None:
    async with pair(echo, "other") as made, trio.open_nursery() as nursery:
        a, b = made.a, made.b
        with b.places.offer(FakePlace(double, "double")):
            pass

        async def come_back() -> None:
            await trio.sleep(GRACE_S / 2)
            made.offer(FakePlace(double, "double"))

        nursery.start_soon(come_back)
        assert unpack(await a.call(B, "double", pack(4), timeout_s=60)) == 8


async def test_a_link_that_breaks_cancels_the_program(autojump_clock: MockClock) -> None:
    gone = trio.Event()

    async def hang(_: Incoming) -> None:
        try:
            await trio.sleep_forever()
        finally:
            gone.set()

    async with pair(hang, "hang") as made, trio.open_nursery() as nursery:

        async def cut() -> None:
            await trio.sleep(1)
            made.net.cut(A, B)

        nursery.start_soon(cut)
        with pytest.raises(PeerUnreachable):
            await made.a.call(B, "hang", pack(1), timeout_s=600)
        with trio.fail_after(5):
            await gone.wait()
        assert [each.busy for each in made.b.places.offered()] == [0]


@pytest.mark.parametrize(
    ("method", "value", "says"),
    [
        ("No Name", b"\xc0", "no method's name"),
        ("x" * 65, b"\xc0", "no method's name"),
        ("ok", b"\x91" * 40 + b"\xc0", "levels"),
        ("ok", b"\xc1", "extension"),
        ("ok", b"\xc6" + VALUE_MAX.to_bytes(4, "big") + bytes(VALUE_MAX), "over the limit"),
    ],
)
async def test_what_is_over_a_bound_never_leaves_this_node(
    autojump_clock: MockClock, method: str, value: bytes, says: str
) -> None:
    async with pair(double, "ok") as made:
        a, b = made.a, made.b
        with pytest.raises(UsageError, match=says):
            await a.call(B, method, value, timeout_s=5)
        assert b.counters.calls_in == 0


@pytest.mark.parametrize(
    "bomb", [b"\x91" * 100 + b"\xc0", b"\xdd\xff\xff\xff\xff", b"\xd4\x01\x00"]
)
async def test_a_peers_bomb_reaches_no_program(autojump_clock: MockClock, bomb: bytes) -> None:
    reached = list[Incoming]()

    async def note(call: Incoming) -> None:
        reached.append(call)

    async with pair(echo, "echo") as made:
        made.offer(FakePlace(note, "note"))
        b, rpc = made.b, made.net.rpc(C)
        for messages in [
            [Up(Open("echo", 0)), Up(Value(Raw(bomb)))],
            [Up(Value(Raw(pack(1))))],
            [Up(Open("echo", 0)), Up(Open("echo", 0))],
        ]:
            async with rpc.stream(B, STREAM, timeout_s=5) as call:
                for message in messages:
                    await call.send(message)
                with pytest.raises(RemoteError) as caught:
                    await call.receive()
                assert caught.value.code == "bad_message"
        assert reached == []
        assert [each.busy for each in b.places.offered()] == [0, 0]
