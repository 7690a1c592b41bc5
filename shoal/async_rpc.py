"""Calls between programs, for trio programs: `AsyncClient.rpc`, `.rpc_stream`, `.serve`.

The blocking version is in shoal/rpc.py; the frames are described in shoal/rpc_api.py.
"""

import inspect
import logging
import select
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio

from shoal import rpc_api
from shoal.client import CALL_TIMEOUT_S, CONNECT_TIMEOUT_S, READ_BYTES, connect_unix
from shoal.errors import ClientError, TimedOut
from shoal.rpc import MARGIN_S, RETRY_FIRST_S, RETRY_MAX_S
from shoal.rpc_api import (
    Answering,
    Ask,
    Call,
    End,
    Fail,
    Frame,
    Item,
    LinkLost,
    Open,
    Ready,
    Serve,
    check_timeout,
    decode_value,
    encode_value,
    link_error,
)

AHEAD_MAX = 16  # frames read before the function asks for them; then the caller waits
HANGUP_INTERVAL_S = 0.5  # between looks at a link that is not being read

Function = Callable[[Any], Any]
log = logging.getLogger(__name__)


class AsyncLink:
    """Frames over a control connection that left HTTP. Raises LinkLost when it breaks."""

    def __init__(self, stream: trio.SocketStream, ahead: bytes) -> None:
        self._stream = stream
        self._buffer = bytearray(ahead)
        self._sending = trio.Lock()
        self._is_torn = False

    async def send(self, frame: Frame) -> None:
        """Send one frame. Cancelling it in the middle breaks the link."""
        data = rpc_api.pack(frame)
        async with self._sending:
            if self._is_torn:
                raise LinkLost("a frame was cut by a cancelled send")
            self._is_torn = True
            try:
                await self._stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
                raise LinkLost(f"the daemon hung up: {error}") from error
            self._is_torn = False

    @property
    def is_hung_up(self) -> bool:
        """Whether the daemon has hung up, even if not all that it sent was read."""
        ends = select.poll()
        ends.register(self._stream.socket.fileno(), select.POLLRDHUP)
        return bool(ends.poll(0))

    async def receive(self) -> Frame:
        """Return the next frame."""
        length = int.from_bytes(await self._take(rpc_api.LENGTH_BYTES), "big")
        return rpc_api.parse(await self._take(length))

    async def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._buffer += await read_some(self._stream)
        taken = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        return taken


@asynccontextmanager
async def open_link(path: Path, first: Frame) -> AsyncGenerator[AsyncLink]:
    """Connect to the daemon and leave HTTP. The first frame goes along: a round trip less."""
    connect = partial(connect_unix, path, timeout_s=CONNECT_TIMEOUT_S)
    opened = await trio.to_thread.run_sync(connect)  # it waits while the daemon's queue is full
    async with trio.SocketStream(trio.socket.from_stdlib_socket(opened)) as stream:
        try:
            with trio.fail_after(CALL_TIMEOUT_S):
                await stream.send_all(rpc_api.UPGRADE + rpc_api.pack(first))
                answer = rpc_api.Upgrade()
                while (rest := answer.feed(await read_some(stream))) is None:
                    pass
        except trio.TooSlowError as error:
            raise TimedOut("the daemon did not answer in time") from error
        except (trio.BrokenResourceError, OSError) as error:
            raise LinkLost(f"the daemon hung up: {error}") from error
        yield AsyncLink(stream, rest)


async def read_some(stream: trio.SocketStream) -> bytes:
    """Read at least one byte. Raises LinkLost at the end."""
    try:
        data = bytes(await stream.receive_some(READ_BYTES))
    except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
        raise LinkLost(f"the daemon hung up: {error}") from error
    if not data:
        raise LinkLost("the daemon hung up", hint="`shoal logs` may say why")
    return data


class AsyncRpcCall:
    """A streaming call, from either side. One task may send while another receives."""

    def __init__(self, link: AsyncLink, receive: Callable[[], Awaitable[Frame]], peer: str) -> None:
        self._link, self._receive = link, receive
        self.peer = peer
        self._theirs_ended = self._ours_ended = False

    async def send(self, value: object) -> None:
        """Send one value; waits while the other side is not reading."""
        await self._link.send(Item(encode_value(value)))

    async def finish(self) -> None:
        """Say that no more values come from this side. Does nothing the second time."""
        if not self._ours_ended:
            self._ours_ended = True
            await self._link.send(End())

    async def fail(self, error: Fail) -> None:
        """End the call with an error; for the serving side."""
        await self._link.send(error)

    async def receive(self) -> Any:
        """Return the next value. Raises trio.EndOfChannel at the end, ApiError on failure."""
        if self._theirs_ended:
            raise trio.EndOfChannel
        frame = await self._receive()
        match frame:
            case Item(value):
                return decode_value(value)
            case End():
                self._theirs_ended = True
                raise trio.EndOfChannel
            case Fail():
                self._theirs_ended = True
                raise link_error(frame)
            case _:
                raise LinkLost(f"{type(frame).__name__} came where a value belongs")

    def __aiter__(self) -> AsyncIterator[Any]:
        """Iterate over the other side's values to their end."""
        return self

    async def __anext__(self) -> Any:
        """Return the next value."""
        try:
            return await self.receive()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None


async def call(path: Path, peer: str, method: str, value: object, *, timeout_s: float) -> Any:
    """Call a method with one value and return its answer; see `AsyncClient.rpc`."""
    check_timeout(timeout_s)
    encoded = encode_value(value)
    with trio.move_on_after(timeout_s + MARGIN_S):
        async with open_link(path, Ask(peer, method, encoded, timeout_s)) as link:
            try:
                return await AsyncRpcCall(link, link.receive, peer).receive()
            except trio.EndOfChannel:
                raise ClientError("the daemon ended the call without an answer") from None
    raise TimedOut("the daemon did not answer in time")


@asynccontextmanager
async def stream(
    path: Path, peer: str, method: str, *, timeout_s: float | None
) -> AsyncGenerator[AsyncRpcCall]:
    """Open a streaming call; see `AsyncClient.rpc_stream`."""
    check_timeout(timeout_s)
    async with open_link(path, Open(peer, method, timeout_s)) as link:
        yield AsyncRpcCall(link, link.receive, peer)


class Server:
    """Answers calls with functions, on as many links as there are places."""

    def __init__(
        self,
        path: Path,
        functions: Mapping[str, Function],
        streams: Mapping[str, Callable[[AsyncRpcCall], Awaitable[None]]],
    ) -> None:
        self._path = path
        self._functions, self._streams = dict(functions), dict(streams)
        self._offer = Serve([*self._functions, *self._streams])

    async def run(
        self, places: int, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until cancelled; `started()` once all places are registered."""
        async with trio.open_nursery() as nursery:
            for _ in range(places):
                await nursery.start(self._work)
            task_status.started()

    async def _work(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Answer one call after the other; come back whenever the link is lost."""
        status: trio.TaskStatus[None] | None = task_status
        retry_s = RETRY_FIRST_S
        while True:
            try:
                async with open_link(self._path, self._offer) as link:
                    await _registered(link)
                    if status is not None:
                        status.started()
                    status, retry_s = None, 0.0
                    await self._answer_all(link)
            except ClientError as error:
                if status is not None:
                    raise  # the first time it is the caller's business
                log.debug("link lost: %s", error)
            await trio.sleep(retry_s)
            retry_s = min(max(2 * retry_s, RETRY_FIRST_S), RETRY_MAX_S)

    async def _answer_all(self, link: AsyncLink) -> None:
        """Answer calls until the link is lost, which cancels the one in progress."""
        into, arrived = trio.open_memory_channel[Frame](AHEAD_MAX)
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                try:
                    while True:
                        await _hand_over(into, await link.receive(), link)
                except LinkLost:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(read)
            while True:
                frame = await arrived.receive()
                if isinstance(frame, Call):
                    try:
                        await self._answer(AsyncRpcCall(link, arrived.receive, frame.peer), frame)
                    except LinkLost:
                        nursery.cancel_scope.cancel()

    async def _answer(self, opened: AsyncRpcCall, called: Call) -> None:
        with Answering(called.method) as outcome:
            if called.method in self._streams:
                await self._streams[called.method](opened)
            else:
                await _answer_value(self._functions[called.method], opened)
        if outcome.fail is not None:
            await opened.fail(outcome.fail)
        else:
            await opened.finish()


async def _registered(link: AsyncLink) -> None:
    answer = await link.receive()
    if isinstance(answer, Fail):
        raise link_error(answer)
    assert isinstance(answer, Ready), answer


async def _hand_over(into: trio.MemorySendChannel[Frame], frame: Frame, link: AsyncLink) -> None:
    """Give a frame to the function. While it takes none, look whether the caller is still there.

    Raises LinkLost if not.
    """
    while not link.is_hung_up:
        with trio.move_on_after(HANGUP_INTERVAL_S):
            await into.send(frame)
            return
    raise LinkLost("the daemon hung up")


async def _answer_value(function: Function, opened: AsyncRpcCall) -> None:
    answer = function(await anext(opened, None))
    if inspect.isasyncgen(answer):
        async with aclosing(answer) as items:
            async for each in items:
                await opened.send(each)
        return
    await opened.send(await answer if inspect.isawaitable(answer) else answer)
