"""Links: control connections that carry calls between a user's program and the daemon.

The frames are in shoal/rpc_api.py. A link that cannot go on, because a frame was cut or a call
cancelled in its middle, is closed: the program notices, stops, and makes a new one.
"""

import select
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from node.apps.places import Incoming, Unavailable
from node.apps.service import AppRpc, Outgoing
from node.control.http import HungUp
from shoal import rpc_api as frames
from shoal.errors import ClientError
from wire.errors import (
    Busy,
    PeerUnreachable,
    RemoteError,
    ShoalError,
    UsageError,
)
from wire.faults import root_cause
from wire.ids import PeerId

LINKS_MAX = 64  # programs' places: half of the control server's connections
NAMES_MAX = 64  # methods of one program
FIRST_FRAME_S = 10.0  # for the frame that says what the link is for
HANGUP_INTERVAL_S = 1.0  # between looks at a link that is not being read
READ_BYTES = 64 * 1024

_HINTS = {
    "unknown_method": "`shoal rpc methods PEER` lists what it serves",
    "unavailable": "start the program again; `shoal rpc methods PEER` shows when it is there",
    "busy": "try again soon, or serve it with more places",
    "is_stream": "`shoal rpc call --stream`, or `client.rpc_stream`",
}

Resolve = Callable[[str], PeerId]  # a member's name or ID; raises UsageError, NotFound


class Link:
    """Frames over an upgraded connection. One task reads, one writes."""

    def __init__(self, stream: trio.abc.Stream, ahead: bytes) -> None:
        self._stream = stream
        self._buffer = bytearray(ahead)
        self._writing = False
        self._closed = False

    @property
    def is_open(self) -> bool:
        """False once it is closed, or a frame was cut by a cancelled write."""
        return not self._closed and not self._writing

    def close(self) -> None:
        """Close it without waiting; the reader sees the end."""
        self._closed = True
        if isinstance(self._stream, trio.SocketStream):
            self._stream.socket.close()

    @property
    def is_hung_up(self) -> bool:
        """Whether the program has gone, even if not all that it sent was read."""
        if not isinstance(self._stream, trio.SocketStream):
            return False
        ends = select.poll()
        ends.register(self._stream.socket.fileno(), select.POLLRDHUP)
        return bool(ends.poll(0))

    async def read(self) -> frames.Frame:
        """Return the next frame. Raises HungUp at the end, UsageError for what is none."""
        head = await self._take(frames.LENGTH_BYTES)
        length = int.from_bytes(head, "big")
        if length > frames.FRAME_MAX:
            raise UsageError(f"frame of {length} B is over the limit of {frames.FRAME_MAX} B")
        try:
            return frames.parse(await self._take(length))
        except ClientError as error:
            raise UsageError(str(error)) from error

    async def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            try:
                data = await self._stream.receive_some(READ_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
                raise HungUp from error
            if not data:
                raise HungUp
            self._buffer += data
        with memoryview(self._buffer) as view:
            taken = bytes(view[:size])
        del self._buffer[:size]
        return taken

    async def write(self, frame: frames.Frame) -> None:
        """Send one frame; waits while the program is not reading. Raises HungUp."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._writing = True  # and it stays so if this is cancelled in the middle
        try:
            await self._stream.send_all(frames.pack(frame))
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
            raise HungUp from error
        self._writing = False


class ProgramPlace:
    """A place in a program: implements `node.apps.places.Place` over its link."""

    def __init__(self, link: Link, methods: frozenset[str]) -> None:
        self._link = link
        self._methods = methods
        self._into: trio.MemorySendChannel[frames.Frame] | None = None

    @property
    def methods(self) -> frozenset[str]:
        """The names it answers."""
        return self._methods

    @property
    def is_open(self) -> bool:
        """False once it will answer no further call."""
        return self._link.is_open

    async def run(self) -> None:
        """Read what the program says until it hangs up, which ends the call in progress."""
        try:
            while True:
                frame = await self._link.read()
                if self._into is None:
                    raise UsageError(f"{type(frame).__name__} came outside of a call")
                try:
                    await self._into.send(frame)
                except trio.BrokenResourceError:
                    return  # the call has been cancelled, and the link closed
        finally:
            if self._into is not None:
                self._link.close()  # `answer` may be writing: nobody else may
                self._into.close()

    async def answer(self, call: Incoming) -> None:
        """Answer one call. Raises Unavailable if the program goes, RemoteError if it fails."""
        self._into, arrived = trio.open_memory_channel[frames.Frame](0)
        is_over = False
        try:
            await self._link.write(frames.Call(call.peer, call.method))
            async with _beside(self._hand_over, call):
                async for frame in arrived:
                    if not isinstance(frame, frames.Item):
                        is_over = True
                        _check_end(frame)
                        return
                    await call.send(frame.value)
        except HungUp:
            pass
        finally:
            arrived.close()
            self._into = None
            if not is_over or not self._link.is_open:
                self._link.close()  # the program is in the middle of something: it starts anew
        raise Unavailable(f"the program went away while it answered {call.method}")

    async def _hand_over(self, call: Incoming) -> None:
        """Give the program the caller's values."""
        try:
            while True:
                await self._link.write(frames.Item(await call.receive()))
        except trio.EndOfChannel:
            await self._link.write(frames.End())


class Links:
    """What the link route runs: callers and programs that serve."""

    def __init__(self, apps: AppRpc, resolve: Resolve) -> None:
        self._apps, self._resolve = apps, resolve
        self._serving = 0

    async def run(self, stream: trio.abc.Stream, ahead: bytes) -> None:
        """Serve one link to its end."""
        link = Link(stream, ahead)
        try:
            match await _first_frame(link):
                case frames.Serve(methods):
                    await self._serve(link, frozenset(methods))
                case frames.Ask() as ask:
                    await self._ask(link, ask)
                case frames.Open() as opening:
                    await self._stream(link, opening)
                case other:
                    raise UsageError(f"a link does not begin with {type(other).__name__}")
        except HungUp:
            return
        except (ShoalError, ExceptionGroup) as error:
            cause = root_cause(error)
            if isinstance(cause, HungUp):
                return
            if not isinstance(cause, ShoalError):
                raise
            if link.is_open:
                await link.write(_fail_of(cause))

    async def _serve(self, link: Link, methods: frozenset[str]) -> None:
        if self._serving >= LINKS_MAX:
            raise Busy(f"programs have {LINKS_MAX} places already", hint="serve with fewer places")
        if not 1 <= len(methods) <= NAMES_MAX:
            raise UsageError(f"a program serves between 1 and {NAMES_MAX} methods")
        place = ProgramPlace(link, methods)
        self._serving += 1
        try:
            with self._apps.places.offer(place):
                await link.write(frames.Ready())
                self._apps.places.put(place)  # only now: a call must not overtake `Ready`
                await place.run()
        finally:
            self._serving -= 1

    async def _ask(self, link: Link, ask: frames.Ask) -> None:
        peer = self._resolve(ask.peer)
        async with _beside(_hear_hangup, link):
            answer = await self._apps.call(
                peer, ask.method, bytes(ask.value), timeout_s=ask.timeout_s
            )
            await link.write(frames.Item(answer))
            await link.write(frames.End())

    async def _stream(self, link: Link, opening: frames.Open) -> None:
        peer = self._resolve(opening.peer)
        async with (
            self._apps.stream(peer, opening.method, timeout_s=opening.timeout_s) as call,
            _beside(_take_values, link, call),
            _beside(_watch_hangup, link),
        ):
            try:
                while True:
                    await link.write(frames.Item(await call.receive()))
            except trio.EndOfChannel:
                await link.write(frames.End())


async def _first_frame(link: Link) -> frames.Frame:
    with trio.move_on_after(FIRST_FRAME_S):
        return await link.read()
    raise UsageError(f"no frame within {FIRST_FRAME_S:g} s")


async def _take_values(link: Link, call: Outgoing) -> None:
    """Send the values of a caller's program on; its hanging up ends the call."""
    while isinstance(frame := await link.read(), frames.Item):
        try:
            await call.send(frame.value)
        except (RemoteError, PeerUnreachable):
            break  # the answering side has ended: what it said is still to be read
    else:
        if not isinstance(frame, frames.End):
            raise UsageError(f"{type(frame).__name__} came where a value belongs")
        await call.finish()
    await _hear_hangup(link)


async def _hear_hangup(link: Link) -> None:
    while True:
        await link.read()


async def _watch_hangup(link: Link) -> None:
    """Notice that a program went while what it sent cannot be read, for want of room."""
    while not link.is_hung_up:  # noqa: ASYNC110 - the kernel sets no event of ours
        await trio.sleep(HANGUP_INTERVAL_S)
    raise HungUp


@asynccontextmanager
async def _beside(work: Callable[..., Awaitable[None]], *args: object) -> AsyncGenerator[None]:
    """Run a task for as long as the block; if it fails, so does the block, with its error."""
    failure: ShoalError | HungUp | None = None
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            nonlocal failure
            try:
                await work(*args)
            except (ShoalError, HungUp) as error:
                failure = failure or error
                nursery.cancel_scope.cancel()

        nursery.start_soon(run)
        try:
            yield
        except (ShoalError, HungUp) as error:  # carried out of the nursery, which would wrap it
            failure = failure or error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _check_end(frame: frames.Frame) -> None:
    """Raise what the program answered, if it is an error."""
    match frame:
        case frames.End():
            return
        case frames.Fail(code, message):
            raise RemoteError(code, message)
        case _:
            raise UsageError(f"{type(frame).__name__} came where an answer belongs")


def hinted(error: ShoalError) -> ShoalError:
    """Say what to do about an error that came from afar without a hint."""
    error.hint = error.hint or _HINTS.get(error.code, "")
    return error


def _fail_of(error: ShoalError) -> frames.Fail:
    hinted(error)
    return frames.Fail(error.code, str(error), error.hint)
