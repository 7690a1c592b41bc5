"""The client for trio programs: the calls of shoal.client, with h11 over the control socket."""

import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import TypeVar, overload

import h11
import trio

from shoal import api
from shoal.channels import Channel, Message, Publish, Published, Subscribe
from shoal.client import CALL_TIMEOUT_S, CONNECT_TIMEOUT_S, READ_BYTES, connect_unix
from shoal.errors import ClientError, TimedOut
from shoal.messages import api_error, decode_reply, encode_body, socket_path
from shoal.sse import Parser

T = TypeVar("T")


class AsyncClient:
    """A typed view of one daemon, for trio. Raises ClientError and its subclasses."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @overload
    async def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        reply: type[T],
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> T: ...
    @overload
    async def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        reply: None = None,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> None: ...
    async def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        reply: type[T] | None = None,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> T | None:
        """One request, one answer. Cancelling it cancels the daemon's work on it too."""
        try:
            with trio.fail_after(timeout_s):
                async with aclosing(self._exchange(method, path, body)) as chunks:
                    data = b"".join([chunk async for chunk in chunks])
        except trio.TooSlowError as error:
            raise TimedOut(f"the daemon did not answer within {timeout_s:g} s") from error
        return None if reply is None else decode_reply(data, reply)

    async def events(
        self, method: str, path: str, body: object = None, *, timeout_s: float | None = None
    ) -> AsyncGenerator[api.Event]:
        """Yield server-sent events until the daemon ends the stream; see `Client.events`.

        An async generator: close it (`contextlib.aclosing`) when leaving it early.
        """
        parser = Parser()
        async with aclosing(self._exchange(method, path, body, silence_s=timeout_s)) as chunks:
            async for chunk in chunks:
                for event in parser.feed(chunk):
                    if event.name == "error":
                        raise api_error(500, event.data)
                    yield event

    async def _exchange(
        self, method: str, path: str, body: object, *, silence_s: float | None = None
    ) -> AsyncGenerator[bytes]:
        """Send one request and yield the answer's body as it comes. Raises on error statuses."""
        connect = partial(connect_unix, self.path, timeout_s=CONNECT_TIMEOUT_S)
        link = await trio.to_thread.run_sync(connect)  # it waits while the daemon's queue is full
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(link))
        async with stream:
            http = h11.Connection(h11.CLIENT)
            data = encode_body(body)
            headers = [("Host", "localhost"), ("Connection", "close")]
            if data:
                headers.append(("Content-Type", "application/json"))
            headers.append(("Content-Length", str(len(data))))
            outgoing: list[h11.Event] = [h11.Request(method=method, target=path, headers=headers)]
            outgoing += [h11.Data(data=data), h11.EndOfMessage()]
            try:
                for item in outgoing:
                    await stream.send_all(http.send(item) or b"")
                async with aclosing(_answer(stream, http, silence_s)) as chunks:
                    async for chunk in chunks:
                        yield chunk
            except (trio.BrokenResourceError, h11.RemoteProtocolError, OSError) as error:
                raise ClientError(f"the daemon hung up: {error}") from error

    async def status(self) -> api.Status:
        """Return the daemon at a glance."""
        return await self.call("GET", "/v1/status", reply=api.Status)

    async def id(self) -> api.Identity:
        """Return the node's peer ID, name and addresses."""
        return await self.call("GET", "/v1/id", reply=api.Identity)

    async def peers(self) -> list[api.Peer]:
        """Return the connected peers, nearest first."""
        return await self.call("GET", "/v1/peers", reply=list[api.Peer])

    async def members(self) -> list[api.Member]:
        """Return the swarm's members, connected or not."""
        return await self.call("GET", "/v1/members", reply=list[api.Member])

    async def ping(
        self, peer: str, *, count: int = 4, interval_s: float = 1.0, timeout_s: float = 5.0
    ) -> AsyncGenerator[api.Pong]:
        """Ping a peer (its ID, a prefix of it, or its name); yield one answer each."""
        request = api.PingRequest(peer, count, interval_s, timeout_s)
        events = self.events("POST", "/v1/ping", request, timeout_s=CALL_TIMEOUT_S)
        async with aclosing(events):
            async for event in events:
                yield decode_reply(event.data, api.Pong)

    async def wait(self, *, peers: int, timeout_s: float = CALL_TIMEOUT_S) -> api.Waited:
        """Wait until at least so many peers are connected. Raises with code "deadline" if not."""
        path = f"/v1/wait?peers={peers}&timeout={timeout_s:g}"
        return await self.call("GET", path, reply=api.Waited, timeout_s=timeout_s + CALL_TIMEOUT_S)

    async def ticket(self) -> str:
        """Return the string with which another machine joins this swarm. It is a secret."""
        return (await self.call("GET", "/v1/ticket", reply=api.Ticket)).ticket

    async def health(self) -> api.Health:
        """Return how the daemon works; raises with code "unhealthy" while it is not ready."""
        return await self.call("GET", "/v1/health", reply=api.Health)

    async def publish(self, topic: str, data: bytes) -> Published:
        """Publish on a topic; what is over 64 KiB goes as a blob. Returns when it is on its way."""
        body = Publish(topic, data)
        return await self.call("POST", "/v1/channels/publish", body, reply=Published)

    async def subscribe(
        self,
        topic: str,
        *,
        last: int | None = None,
        since_s: float | None = None,
        authors: list[str] | None = None,
    ) -> AsyncGenerator[Message]:
        """Yield the messages of a topic; see `Client.subscribe`. Close it when leaving early."""
        body = Subscribe(topic, last, since_s, authors or [])
        events = self.events("POST", "/v1/channels/subscribe", body, timeout_s=CALL_TIMEOUT_S)
        async with aclosing(events):
            async for event in events:
                if event.name != "ready":
                    yield decode_reply(event.data, Message)

    async def channels(self) -> list[Channel]:
        """Return the topics that the daemon is subscribed to."""
        return await self.call("GET", "/v1/channels", reply=list[Channel])

    async def down(self) -> None:
        """Ask the daemon to drain and stop; it answers before it does."""
        await self.call("POST", "/v1/down")


async def _answer(
    stream: trio.SocketStream, http: h11.Connection, silence_s: float | None
) -> AsyncGenerator[bytes]:
    """Yield the body of a good answer; raise ApiError with the body of a bad one."""
    status, refusal = 0, b""
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await _read(stream, silence_s))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            if status < 400:
                yield bytes(event.data)
            else:
                refusal += event.data
        elif isinstance(event, h11.EndOfMessage):
            if status >= 400:
                raise api_error(status, refusal)
            return


async def _read(stream: trio.SocketStream, silence_s: float | None) -> bytes:
    with trio.move_on_after(float("inf") if silence_s is None else silence_s):
        return bytes(await stream.receive_some(READ_BYTES))
    raise TimedOut(f"the daemon was silent for {silence_s:g} s")


def connect_async(
    home: str | os.PathLike[str] | None = None, socket: str | os.PathLike[str] | None = None
) -> AsyncClient:
    """Return a trio client of the daemon of a state directory; see `shoal.connect`."""
    return AsyncClient(socket_path(home, socket))
