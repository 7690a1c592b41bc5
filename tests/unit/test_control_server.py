"""The control server on real sockets: bounds, refusals, streams, and clients that misbehave."""

import json
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest
import trio
from trio.testing import MockClock

import shoal
from node.broadcast import Broadcast
from node.control.api import Api, Event, Events, Raw, Request
from node.control.http import BODY_MAX_BYTES, HEADERS_WAIT_S, STALL_WAIT_S
from node.control.server import ControlServer, check_uid
from node.control.web import Forbidden, keys_of
from shoal.async_client import AsyncClient
from shoal.client import connect_unix
from wire.errors import UsageError

TOKEN = "t" * 43


class Echo(msgspec.Struct):
    """What a test handler says."""

    text: str


@dataclass
class Server:
    """A running server with a few routes, and what they noticed."""

    path: Path
    control: ControlServer
    began: trio.Event = field(default_factory=trio.Event)
    cancelled: trio.Event = field(default_factory=trio.Event)
    feed: Broadcast[Event] = field(default_factory=Broadcast[Event])
    subscribed: trio.Event = field(default_factory=trio.Event)

    def client(self) -> AsyncClient:
        return shoal.connect_async(socket=self.path)

    async def open(self) -> trio.SocketStream:
        link = connect_unix(self.path, timeout_s=1.0)
        return trio.SocketStream(trio.socket.from_stdlib_socket(link))

    async def echo(self, request: Request) -> Echo:
        return Echo(request.read(Echo).text + request.query.get("more", ""))

    async def slow(self, _: Request) -> None:
        self.began.set()
        try:
            await trio.sleep_forever()
        finally:
            self.cancelled.set()

    async def bug(self, _: Request) -> None:
        raise ZeroDivisionError("oops")

    async def wrapped(self, _: Request) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._refuse)

    async def _refuse(self) -> None:
        raise UsageError("not like this")

    async def stream(self, _: Request) -> Events:
        return Events(self._stream())

    async def _stream(self) -> AsyncGenerator[Event | list[Event]]:
        try:
            async with self.feed.read() as events:
                self.subscribed.set()
                async for event in events:
                    if event.name == "fail":
                        raise UsageError("the stream broke")
                    if event.name == "end":
                        return
                    yield [event, event] if event.name == "pair" else event
        finally:
            self.cancelled.set()

    async def raw(self, _: Request) -> Raw:
        return Raw(b"hi", "text/plain")


@asynccontextmanager
async def serving(folder: Path, *, connections_max: int = 8) -> AsyncIterator[Server]:
    api = Api()
    server = Server(folder / "control.sock", ControlServer(api, connections_max=connections_max))
    api.add("POST", "/echo", server.echo, summary="", body=Echo, reply=Echo)
    api.add("GET", "/slow", server.slow, summary="")
    api.add("GET", "/bug", server.bug, summary="")
    api.add("GET", "/wrapped", server.wrapped, summary="")
    api.add("GET", "/stream", server.stream, summary="", events=True)
    api.add("GET", "/raw", server.raw, summary="", reply=Raw)
    async with trio.open_nursery() as nursery:
        await nursery.start(server.control.serve_unix, server.path)
        yield server
        nursery.cancel_scope.cancel()


async def read_all(stream: trio.SocketStream) -> bytes:
    return b"".join([bytes(chunk) async for chunk in stream])


async def test_a_call_is_answered_typed(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        echo = await server.client().call("POST", "/echo?more=!", Echo("hi"), reply=Echo)
        assert echo == Echo("hi!")


async def test_the_synchronous_client_gets_the_same(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        client = shoal.connect(socket=server.path)

        def call() -> Echo:
            return client.call("POST", "/echo", Echo("hi"), reply=Echo)

        assert await trio.to_thread.run_sync(call) == Echo("hi")


async def test_the_socket_is_ours_alone_and_goes_with_the_server(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        assert stat.S_IMODE(server.path.stat().st_mode) == 0o600
    assert not server.path.exists()
    with pytest.raises(shoal.DaemonUnreachable):
        await server.client().status()


async def test_a_stale_socket_and_a_symlink_are_replaced_but_no_file(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    path.symlink_to(tmp_path / "elsewhere")
    async with serving(tmp_path) as server:
        assert stat.S_ISSOCK(path.lstat().st_mode)
        assert server.path == path
    path.write_text("precious")
    with pytest.raises(BaseExceptionGroup) as caught:
        async with serving(tmp_path):
            pass
    assert caught.group_contains(UsageError, match="is in the way")
    assert path.read_text() == "precious"


async def test_a_path_over_the_kernels_limit_works(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    async with serving(folder) as server:
        assert (await server.client().call("POST", "/echo", Echo("a"), reply=Echo)).text == "a"


@pytest.mark.parametrize(
    ("method", "path", "code", "status"),
    [
        ("GET", "/nothing", "not_found", 404),
        ("GET", "/echo", "method", 405),
        ("POST", "/echo", "usage", 400),
        ("GET", "/bug", "internal", 500),
        ("GET", "/wrapped", "usage", 400),
    ],
)
async def test_errors_have_a_code_and_a_status(
    tmp_path: Path, method: str, path: str, code: str, status: int
) -> None:
    async with serving(tmp_path) as server:
        with pytest.raises(shoal.ApiError) as caught:
            await server.client().call(method, path)
        assert (caught.value.code, caught.value.status) == (code, status)


async def test_a_mebibyte_of_garbage_gets_one_refusal_and_the_next_client_is_served(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path) as server:
        async with await server.open() as stream, trio.open_nursery() as nursery:

            async def send() -> None:
                await stream.send_all(os.urandom(1024 * 1024))

            nursery.start_soon(send)
            answer = await read_all(stream)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.count(b"HTTP/1.1") == 1
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "usage"
        await server.client().call("POST", "/echo", Echo("still"), reply=Echo)


async def test_a_body_over_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        async with await server.open() as stream:
            length = str(BODY_MAX_BYTES + 1).encode()
            head = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: " + length
            await stream.send_all(head + b"\r\n\r\n")
            await stream.send_eof()
            answer = await read_all(stream)
        assert answer.startswith(b"HTTP/1.1 413 ")


async def test_a_connection_is_kept_for_the_next_request(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, await server.open() as stream:
        request = b"GET /raw HTTP/1.1\r\nHost: x\r\n\r\n"
        await stream.send_all(request + request)  # the second one ahead of the first's answer
        answer = b""
        while answer.count(b"\r\n\r\nhi") < 2:
            chunk = await stream.receive_some()
            assert chunk
            answer += chunk


async def test_a_silent_client_is_dropped_at_the_deadline(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    autojump_clock.autojump_threshold = 0.05  # real sockets need a moment of real time
    async with serving(tmp_path) as server, await server.open() as stream:
        await stream.send_all(b"GET /raw HTTP/1.1\r\nHost:")
        assert await stream.receive_some() == b""
        assert HEADERS_WAIT_S <= trio.current_time() < HEADERS_WAIT_S + 1


async def test_idle_clients_give_way_to_a_new_one(tmp_path: Path) -> None:
    async with serving(tmp_path, connections_max=4) as server:
        idle = [await server.open() for _ in range(10)]
        await server.client().call("POST", "/echo", Echo("in"), reply=Echo)
        with trio.fail_after(HEADERS_WAIT_S / 2):  # long before its own deadline
            assert await idle[0].receive_some() == b""
        for stream in idle:
            await stream.aclose()


async def test_when_all_are_busy_a_new_client_is_told_so(tmp_path: Path) -> None:
    async with serving(tmp_path, connections_max=1) as server, trio.open_nursery() as nursery:
        nursery.start_soon(server.client().call, "GET", "/slow")
        await server.began.wait()
        with pytest.raises(shoal.ApiError) as caught:
            await server.client().call("GET", "/raw")
        assert caught.value.code == "busy"
        nursery.cancel_scope.cancel()


async def test_a_handler_is_cancelled_when_its_client_hangs_up(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.client().call, "GET", "/slow")
            await server.began.wait()
            nursery.cancel_scope.cancel()
        with trio.fail_after(5):
            await server.cancelled.wait()


async def test_events_arrive_in_order_and_an_error_ends_the_stream(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, trio.open_nursery() as nursery:

        async def feed() -> None:
            await server.subscribed.wait()
            server.feed.send(Event(Echo("one"), name="echo"))
            server.feed.send(Event("two\nlines"))
            server.feed.send(Event("", name="pair"))
            server.feed.send(Event("", name="fail"))

        nursery.start_soon(feed)
        seen: list[tuple[str, bytes]] = []
        async with aclosing(server.client().events("GET", "/stream")) as events:
            seen += [((await anext(events)).name, b""), ("", (await anext(events)).data)]
            assert [(await anext(events)).name for _ in range(2)] == ["pair", "pair"]
            with pytest.raises(shoal.ApiError, match="the stream broke"):
                await anext(events)
        assert seen == [("echo", b""), ("", b"two\nlines")]


async def test_a_stream_that_ends_well_ends_the_iteration(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, trio.open_nursery() as nursery:

        async def feed() -> None:
            await server.subscribed.wait()
            server.feed.send(Event(Echo("one")))
            server.feed.send(Event("", name="end"))

        nursery.start_soon(feed)
        async with aclosing(server.client().events("GET", "/stream")) as events:
            assert [event.data async for event in events] == [b'{"text":"one"}']


async def test_a_client_that_stopped_reading_does_not_keep_the_server(tmp_path: Path) -> None:
    with trio.fail_after(5):
        async with serving(tmp_path) as server:
            stream = await server.open()
            await stream.send_all(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
            await server.subscribed.wait()
            for _ in range(100):  # far more than the socket holds
                server.feed.send(Event("x" * 100_000))
                await trio.lowlevel.checkpoint()
    assert server.cancelled.is_set()
    await stream.aclose()


async def test_a_stalled_stream_is_dropped_in_the_end(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    autojump_clock.autojump_threshold = 0.05
    async with serving(tmp_path) as server, await server.open() as stream:
        await stream.send_all(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        await server.subscribed.wait()
        for _ in range(100):
            server.feed.send(Event("x" * 100_000))
        await server.cancelled.wait()
        assert STALL_WAIT_S <= trio.current_time() < STALL_WAIT_S + 60


async def test_draining_waits_for_a_reply_but_not_for_long(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    autojump_clock.autojump_threshold = 0.05
    async with serving(tmp_path) as server, trio.open_nursery() as nursery:
        await server.control.drain()
        assert trio.current_time() == 0
        nursery.start_soon(server.client().call, "GET", "/slow")
        await server.began.wait()
        await server.control.drain()
        assert 0.4 < trio.current_time() < 1
        nursery.cancel_scope.cancel()


def test_other_users_are_refused_but_not_root() -> None:
    check_uid(os.getuid())
    check_uid(0)
    with pytest.raises(Forbidden, match="may not use the daemon"):
        check_uid(os.getuid() + 1)


async def test_the_loopback_port_answers_with_the_token_only(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, trio.open_nursery() as nursery:
        port: int = await nursery.start(server.control.serve_tcp, "127.0.0.1", 0, keys_of(TOKEN))
        answers: list[bytes] = []
        for more in (b"", b"Authorization: Bearer " + TOKEN.encode() + b"\r\n"):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                host = f"Host: localhost:{port}\r\nConnection: close\r\n".encode()
                await stream.send_all(b"GET /raw HTTP/1.1\r\n" + host + more + b"\r\n")
                answers.append(await read_all(stream))
        assert answers[0].startswith(b"HTTP/1.1 401 ")
        assert answers[1].startswith(b"HTTP/1.1 200 ")
        nursery.cancel_scope.cancel()
