"""Links on real sockets: the change of protocol, garbage, programs and callers that misbehave."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from msgspec import Raw

import shoal
from node.apps.service import AppRpc
from node.control.api import Api
from node.control.links import LINKS_MAX
from node.control.rpc import routes
from node.control.server import ControlServer
from shoal.async_client import AsyncClient
from shoal.async_rpc import AsyncLink, AsyncRpcCall, open_link
from shoal.client import connect_unix
from shoal.rpc_api import UPGRADE, Ask, Call, End, Fail, Item, LinkLost, Open, Ready, Serve, pack
from tests.sim.net import Net
from tests.sim.rpc_methods import A, B
from wire.errors import NotFound
from wire.ids import PeerId

PATIENCE_S = 5.0


@dataclass
class Nodes:
    """A calls, B's programs answer; each has a control socket."""

    a: Path
    b: Path
    apps: AppRpc  # B's

    @property
    def caller(self) -> AsyncClient:
        return shoal.connect_async(socket=self.a)

    @property
    def server(self) -> AsyncClient:
        return shoal.connect_async(socket=self.b)


def resolve(name: str) -> PeerId:
    if name not in (A, B):
        raise NotFound(f"no member {name!r}")
    return PeerId(name)


@asynccontextmanager
async def nodes(folder: Path) -> AsyncIterator[Nodes]:
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            net = Net(nursery, latency_s=0)
            apps = {peer: AppRpc(net.rpc(peer)) for peer in (A, B)}
            for peer, each in apps.items():
                api = Api()
                routes(api, each, resolve)
                await nursery.start(ControlServer(api).serve_unix, folder / peer)
            yield Nodes(folder / A, folder / B, apps[B])
            nursery.cancel_scope.cancel()


async def settled(apps: AppRpc, places: int) -> None:
    """Wait until so many places are there, all of them free."""
    with trio.fail_after(PATIENCE_S):
        while True:
            found = apps.places.offered()
            if (
                sum(each.places - each.busy for each in found)
                == places
                == sum(each.places for each in found)
            ):
                return
            await trio.sleep(0.005)


def raw(value: object) -> Raw:
    return Raw(msgspec.msgpack.encode(value))


async def test_without_an_upgrade_the_route_says_what_it_wants(tmp_path: Path) -> None:
    async with nodes(tmp_path) as each:
        with pytest.raises(shoal.ApiError, match="Upgrade: shoal-link") as caught:
            await each.caller.call("GET", "/v1/rpc/link")
        assert caught.value.code == "usage"


async def test_what_is_sent_ahead_of_the_answer_is_not_lost(tmp_path: Path) -> None:
    async with nodes(tmp_path) as each, trio.open_nursery() as nursery:
        await nursery.start(serve, each.server)
        link = connect_unix(each.a, timeout_s=5)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(link))
        async with stream:
            await stream.send_all(UPGRADE + pack(Ask(B, "double", raw(4), 5.0)))
            heard = b""
            while not heard.endswith(pack(End())):
                heard += await stream.receive_some()
            assert heard.partition(b"\r\n\r\n")[2] == pack(Item(raw(8))) + pack(End())
        nursery.cancel_scope.cancel()


async def serve(client: AsyncClient, *, task_status: trio.TaskStatus[None]) -> None:
    async def first(call: AsyncRpcCall) -> None:
        await call.send(await call.receive())

    async def stuck(_: AsyncRpcCall) -> None:
        await trio.sleep_forever()

    await client.serve(
        {"double": lambda value: 2 * value},
        streams={"first": first, "stuck": stuck},
        places=1,
        task_status=task_status,
    )


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (b"\xff\xff\xff\xff", "over the limit"),
        (b"\x00\x00\x00\x02hi", "not a frame"),
        (pack(End()), "does not begin with End"),
        (pack(Serve([])), "between 1 and"),
        (pack(Serve(["no/name"])), "no method's name"),
        (pack(Ask("nobody", "double", raw(1), 5.0)), "no member"),
        (pack(Open(B, "double", None)) + pack(Ready()), "Ready came where a value belongs"),
        (pack(Open(B, "double", None)) + pack(Item(Raw(b"\xd4\x01\x00"))), "extension"),
        (b"\x00\x00\x00\x14\x95\xa3ask\xa1B\xa6double\x01\xcb\x7f\xf8" + bytes(6), "not a frame"),
    ],
)
async def test_nonsense_is_refused_with_a_reason_and_the_daemon_goes_on(
    tmp_path: Path, sent: bytes, says: str
) -> None:
    async with nodes(tmp_path) as each, trio.open_nursery() as nursery:
        await nursery.start(serve, each.server)
        stream = trio.SocketStream(
            trio.socket.from_stdlib_socket(connect_unix(each.a, timeout_s=PATIENCE_S))
        )
        async with stream:
            await stream.send_all(UPGRADE + sent)
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += await stream.receive_some(1)
            link = AsyncLink(stream, b"")
            answer = await link.receive()
            assert isinstance(answer, Fail)
            assert says in answer.message
            with pytest.raises(LinkLost):
                await link.receive()
        await settled(each.apps, 3)
        assert await each.caller.rpc(B, "double", 1) == 2
        nursery.cancel_scope.cancel()


ODD = Serve(["odd"])


async def test_a_program_that_speaks_out_of_turn_is_let_go(tmp_path: Path) -> None:
    async with nodes(tmp_path) as each, open_link(each.b, ODD) as link:
        assert await link.receive() == Ready()
        await link.send(Item(raw(1)))
        answer = await link.receive()
        assert isinstance(answer, Fail)
        assert "outside of a call" in answer.message
        await settled(each.apps, 0)


async def test_a_program_that_answers_nonsense_costs_its_call_only(tmp_path: Path) -> None:
    async with (
        nodes(tmp_path) as each,
        open_link(each.b, ODD) as link,
        trio.open_nursery() as nursery,
    ):
        assert await link.receive() == Ready()

        async def ask() -> None:
            with pytest.raises(shoal.ApiError) as caught:
                await each.caller.rpc(B, "odd", 1)
            assert caught.value.code == "unavailable"

        nursery.start_soon(ask)
        assert await link.receive() == Call(A, "odd")
        await link._stream.send_all(b"\x00\x00\x00\x01\xc1")


async def test_a_call_that_ends_early_leaves_its_place_usable(tmp_path: Path) -> None:
    async with nodes(tmp_path) as each, trio.open_nursery() as nursery:
        await nursery.start(serve, each.server)
        for number in range(20):
            async with each.caller.rpc_stream(B, "first") as call:
                for _ in range(5):
                    await call.send(number)
                assert [value async for value in call] == [number]
            assert await each.caller.rpc(B, "double", number) == 2 * number
        nursery.cancel_scope.cancel()


async def test_a_program_that_does_not_read_stalls_its_caller_only(tmp_path: Path) -> None:
    async with nodes(tmp_path) as each, trio.open_nursery() as nursery:
        await nursery.start(serve, each.server)
        sent = 0
        async with each.caller.rpc_stream(B, "stuck", timeout_s=0.5) as call:

            async def pour() -> None:
                nonlocal sent
                with suppress(LinkLost):
                    while True:
                        await call.send(bytes(100_000))
                        sent += 1

            nursery.start_soon(pour)
            with pytest.raises(shoal.ApiError, match="not done within") as caught:
                await call.receive()
            assert caught.value.code == "deadline"
        assert 0 < sent < 200  # the buffers on the way, and no more
        assert await each.caller.rpc(B, "double", 4) == 8  # it has been cancelled
        nursery.cancel_scope.cancel()


async def test_a_caller_that_hangs_up_cancels_the_function(tmp_path: Path) -> None:
    gone = trio.Event()

    async def hang(value: Any) -> None:
        try:
            await trio.sleep_forever()
        finally:
            gone.set()

    async with nodes(tmp_path) as each, trio.open_nursery() as nursery:

        async def serve_hang(task_status: trio.TaskStatus[None]) -> None:
            await each.server.serve({"hang": hang}, places=1, task_status=task_status)

        await nursery.start(serve_hang)
        async with open_link(each.a, Ask(B, "hang", raw(1), 60.0)):
            await trio.sleep(0.05)
        with trio.fail_after(PATIENCE_S):
            await gone.wait()
        await settled(each.apps, 1)
        nursery.cancel_scope.cancel()


async def test_places_are_bounded(tmp_path: Path) -> None:
    async with nodes(tmp_path) as each, trio.open_nursery() as nursery:

        async def serve_all(task_status: trio.TaskStatus[None]) -> None:
            await each.server.serve({"x": str}, places=LINKS_MAX, task_status=task_status)

        await nursery.start(serve_all)
        with pytest.raises(shoal.ApiError, match="places already") as caught:
            await trio.to_thread.run_sync(shoal.connect(socket=each.b).serve, {"y": str})
        assert caught.value.code == "busy"
        assert await each.caller.rpc(B, "x", 1) == "1"
        nursery.cancel_scope.cancel()


async def test_a_caller_that_goes_while_nothing_moves_frees_the_place(tmp_path: Path) -> None:
    async with nodes(tmp_path) as each, trio.open_nursery() as nursery:
        await nursery.start(serve, each.server)
        async with each.caller.rpc_stream(B, "stuck") as call:
            with trio.move_on_after(0.3):
                while True:
                    await call.send(bytes(100_000))
        await settled(each.apps, 3)
        assert await each.caller.rpc(B, "double", 4) == 8
        nursery.cancel_scope.cancel()
