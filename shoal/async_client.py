"""The client for trio programs: the calls of shoal.client, with h11 over the control socket."""

import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, overload
from urllib.parse import quote

import h11
import trio

from shoal import api, async_rpc, blob_api
from shoal.blob_api import (
    BLOB_TIMEOUT_S,
    add_body,
    blob_path,
    blob_pieces,
    get_body,
    get_path,
    last_blob,
)
from shoal.channels import Channel, Message, Publish, Published, Subscribe
from shoal.client import CALL_TIMEOUT_S, CONNECT_TIMEOUT_S, READ_BYTES, connect_unix
from shoal.dht import AsyncDht
from shoal.errors import HungUp, TimedOut
from shoal.messages import api_error, decode_reply, encode_body, socket_path
from shoal.reach import NetCheck
from shoal.rpc_api import RpcMethod
from shoal.sse import Parser
from shoal.store import AsyncStore

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
                raise HungUp("the daemon hung up") from error

    async def status(self) -> api.Status:
        """Return the daemon at a glance."""
        return await self.call("GET", "/v1/status", reply=api.Status)

    async def id(self) -> api.Identity:
        """Return the node's peer ID, name and addresses."""
        return await self.call("GET", "/v1/id", reply=api.Identity)

    async def peers(self) -> list[api.Peer]:
        """Return the connected peers, nearest first."""
        return await self.call("GET", "/v1/peers", reply=list[api.Peer])

    async def netcheck(self) -> NetCheck:
        """Return how this node is reached, with checks that say what to do."""
        return await self.call("GET", "/v1/netcheck", reply=NetCheck)

    async def members(self) -> list[api.Member]:
        """Return the swarm's members, connected or not."""
        return await self.call("GET", "/v1/members", reply=list[api.Member])

    async def ping(
        self,
        peer: str,
        *,
        count: int = 4,
        interval_s: float = 1.0,
        timeout_s: float = 5.0,
        until_direct: bool = False,
    ) -> AsyncGenerator[api.Pong]:
        """Ping a peer (its ID, a prefix of it, or its name); yield one answer each.

        until_direct: end with the first answer that came directly.
        """
        request = api.PingRequest(peer, count, interval_s, timeout_s, until_direct)
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

    async def rpc(
        self, peer: str, method: str, value: object = None, *, timeout_s: float = CALL_TIMEOUT_S
    ) -> Any:
        """Call a method that a program of a peer serves; see `Client.rpc`. Cancelling it cancels
        the function, if that is asynchronous.
        """
        return await async_rpc.call(self.path, peer, method, value, timeout_s=timeout_s)

    def rpc_stream(
        self, peer: str, method: str, *, timeout_s: float | None = None
    ) -> AbstractAsyncContextManager[async_rpc.AsyncRpcCall]:
        """Call a method with any number of values each way; `timeout_s` bounds all of it."""
        return async_rpc.stream(self.path, peer, method, timeout_s=timeout_s)

    async def rpc_methods(self, peer: str = "") -> list[RpcMethod]:
        """Return what the programs of a peer serve, or those of this node."""
        path = f"/v1/rpc/methods?peer={quote(peer, safe='')}"
        return await self.call("GET", path, reply=list[RpcMethod])

    async def serve(
        self,
        functions: Mapping[str, Callable[[Any], Any]] | None = None,
        *,
        streams: Mapping[str, Callable[[async_rpc.AsyncRpcCall], Awaitable[None]]] | None = None,
        places: int = 8,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Let peers call functions of this program, `places` calls at a time, until cancelled.

        A function of `functions` gets the caller's value and returns or awaits the answer, or
        is an async generator of a stream of them. One of `streams` gets the call, to receive and
        send as it likes. A function is cancelled when its caller gives up.
        """
        server = async_rpc.Server(self.path, functions or {}, streams or {})
        await server.run(places, task_status=task_status)

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

    async def add(
        self, path: str | os.PathLike[str], *, mode: str = "copy", name: str = "", pin: bool = True
    ) -> blob_api.Blob:
        """Add a file or a folder as a blob; `blob_api.AddBlob` tells the modes."""
        body = add_body(path, mode, name, pin=pin)
        return await _last_blob(self.blob_events("/v1/blobs", body))

    async def get(
        self,
        cid: str,
        path: str | os.PathLike[str] | None = None,
        *,
        peers: Sequence[str] = (),
        pin: bool = False,
    ) -> blob_api.Blob:
        """Fetch a blob, and write it to `path` if given. What has arrived stays if it fails."""
        body = get_body(path, peers, pin=pin)
        return await _last_blob(self.blob_events(get_path(cid), body))

    async def blob_events(
        self, path: str, body: object = None
    ) -> AsyncGenerator[blob_api.BlobProgress]:
        """Post a request about blobs; yield its progress, the last one with the result."""
        async with aclosing(self.events("POST", path, body, timeout_s=CALL_TIMEOUT_S)) as events:
            async for event in events:
                yield decode_reply(event.data, blob_api.BlobProgress)

    async def read(
        self, cid: str, start: int = 0, stop: int | None = None, *, peers: Sequence[str] = ()
    ) -> bytes:
        """Return bytes `start` to `stop` (or the end) of a file; fetches only what holds them."""
        pieces = list[bytes]()
        for path, wanted in blob_pieces(cid, start, stop, peers):
            pieces.append(await self.call("GET", path, reply=bytes, timeout_s=BLOB_TIMEOUT_S))
            if len(pieces[-1]) < wanted:
                break
        return b"".join(pieces)

    async def blobs(self) -> blob_api.BlobList:
        """Return the blobs here, and how full it is."""
        return await self.call("GET", "/v1/blobs", reply=blob_api.BlobList)

    async def blob(self, cid: str) -> blob_api.BlobDetail:
        """Return one blob, and of a folder the files."""
        return await self.call("GET", blob_path(cid), reply=blob_api.BlobDetail)

    async def pin(self, cid: str, *, pinned: bool = True) -> blob_api.Blob:
        """Pin a blob, so that it is never collected; or let it go, see `unpin`."""
        body = blob_api.PinBlob(pinned)
        return await self.call("POST", f"{blob_path(cid)}/pin", body, reply=blob_api.Blob)

    async def unpin(self, cid: str) -> blob_api.Blob:
        """Let a blob go when there is no room."""
        return await self.pin(cid, pinned=False)

    async def rm(self, cid: str) -> blob_api.Collected:
        """Throw a blob away, pinned or not."""
        return await self.call("DELETE", blob_path(cid), reply=blob_api.Collected)

    async def gc(self) -> blob_api.Collected:
        """Throw away every blob that is not pinned nor in use."""
        return await self.call(
            "POST", "/v1/blobs/gc", reply=blob_api.Collected, timeout_s=BLOB_TIMEOUT_S
        )

    async def verify(self) -> list[blob_api.Blob]:
        """Hash all blobs; return those that were wrong, and are not whole here any more."""
        last: list[blob_api.Blob] = []
        async with aclosing(self.blob_events("/v1/blobs/verify")) as events:
            async for progress in events:
                last = progress.decayed
        return last

    @property
    def store(self) -> AsyncStore:
        """The store that the swarm agrees on."""
        return AsyncStore(self)

    @property
    def dht(self) -> AsyncDht:
        """Finding peers, providers and small values."""
        return AsyncDht(self)

    async def down(self) -> None:
        """Ask the daemon to drain and stop; it answers before it does."""
        await self.call("POST", "/v1/down")


async def _last_blob(events: AsyncGenerator[blob_api.BlobProgress]) -> blob_api.Blob:
    async with aclosing(events):
        return last_blob([progress async for progress in events])


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
