"""One HTTP/1.1 connection: h11 over a trio stream, with a bound on everything.

Knows bytes, requests and replies, not routes. hypercorn under trio cannot stop while a client has
stopped reading (it sends in a shielded scope); here every wait can be cancelled.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

import h11
import msgspec
import trio

from node.control.api import Event, Events, Raw, Request
from wire.errors import ShoalError, UsageError

HEADERS_MAX_BYTES = 16 * 1024  # of one request line with its headers; a browser sends 2 KiB
BODY_MAX_BYTES = 8 * 1024 * 1024  # a long chat with its history; tensors go by shared memory
QUERY_MAX = 32  # query parameters
HEADERS_WAIT_S = 10.0  # for the whole head of a request, and for silence after connecting
BODY_WAIT_S = 30.0  # for the whole body: the link is this machine's own
REUSE_WAIT_S = 60.0  # how long a kept-alive connection may be silent
SEND_WAIT_S = 30.0  # for a client to take a reply
STALL_WAIT_S = 600.0  # for a client to take one event: a suspended `shoal logs -f` may come back
PING_INTERVAL_S = 15.0  # a comment in silent event streams, so that both ends notice a dead one
PIPELINE_MAX_BYTES = 64 * 1024  # bytes a client may send ahead while its request is served
LINGER_S = 1.0  # reading on after a refusal, so that the client sees it before the reset
LINGER_MAX_BYTES = 16 * 1024 * 1024
READ_BYTES = 64 * 1024
REFUSAL_CHARS = 120  # of what h11 says about bytes that are no request: it quotes them
CURL = "curl --unix-socket HOME/control.sock http://shoal/v1/status"


class TooLarge(ShoalError):
    """The body is over the limit."""

    code = "too_large"
    exit_code = 2


class HungUp(Exception):
    """The client is gone, or too slow: nothing more can be said to it."""


@dataclass(frozen=True)
class Head:
    """A request as it arrived; header names are lower case, the last of two equal ones wins."""

    request: Request
    headers: Mapping[str, str]


class Connection:
    """One client. `read` and `reply` take turns; both raise HungUp when it is over."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEADERS_MAX_BYTES)
        self._used = False

    async def read(self) -> Head | None:
        """Return the next request; None at a clean end.

        Raises UsageError or TooLarge for what is no request (reply with it, then stop).
        """
        try:
            wait_s = REUSE_WAIT_S if self._used else HEADERS_WAIT_S
            with _within(wait_s):
                head = await self._next()
            if not isinstance(head, h11.Request):
                return None
            self._used = True
            with _within(BODY_WAIT_S):
                return _head(head, await self._body(head))
        except h11.RemoteProtocolError as error:
            text = f"not an HTTP request: {error}"[:REFUSAL_CHARS]
            raise UsageError(text, hint=CURL) from error

    async def _body(self, head: h11.Request) -> bytes:
        length = next((value for name, value in head.headers if name == b"content-length"), b"0")
        if int(length) > BODY_MAX_BYTES:  # h11 has checked that these are digits
            raise TooLarge(f"body of {int(length)} B is over the limit of {BODY_MAX_BYTES} B")
        if self._http.they_are_waiting_for_100_continue:
            go_on = h11.InformationalResponse(status_code=100, headers=[])
            await self._send(self._http.send(go_on), SEND_WAIT_S)
        body = bytearray()
        while True:
            event = await self._next()
            if not isinstance(event, h11.Data):
                return bytes(body)
            body += event.data
            if len(body) > BODY_MAX_BYTES:
                raise TooLarge(f"body is over the limit of {BODY_MAX_BYTES} B")

    async def _next(self) -> object:
        while True:
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                return event
            self._http.receive_data(await self._receive())

    async def _receive(self) -> bytes:
        try:
            return bytes(await self._stream.receive_some(READ_BYTES))
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
            raise HungUp from error

    def reuse(self) -> bool:
        """Make ready for the next request on this connection; False if it has to be closed."""
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return True

    async def hear_hangup(self) -> None:
        """Return when the client goes away; keep what it sends meanwhile for the next `read`."""
        ahead = 0
        while ahead <= PIPELINE_MAX_BYTES:
            try:
                data = await self._receive()
            except HungUp:
                return
            if not data:
                return
            self._http.receive_data(data)
            ahead += len(data)

    async def reply(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        """Send a whole reply."""
        fields = [*headers.items(), ("Content-Length", str(len(body)))]
        head = h11.Response(status_code=status, headers=fields)
        data = (self._http.send(head) or b"") + (self._http.send(h11.Data(data=body)) or b"")
        await self._send(data + (self._http.send(h11.EndOfMessage()) or b""), SEND_WAIT_S)

    async def reply_raw(self, raw: Raw) -> None:
        """Send a reply in a content type of its own."""
        await self.reply(raw.status, raw.body, {"Content-Type": raw.content_type, **raw.headers})

    async def stream(self, events: Events, say_error: Callable[[Exception], Event | None]) -> None:
        """Send events until the source ends. An error of the source becomes a last event."""
        fields = [("Content-Type", "text/event-stream"), ("Cache-Control", "no-store")]
        head = h11.Response(status_code=200, headers=fields)
        await self._send(self._http.send(head), SEND_WAIT_S)
        into, out = trio.open_memory_channel[Event | list[Event]](
            0
        )  # the source waits for the client

        hung_up: HungUp | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_pump, events.source, into, say_error)
            try:
                async with out:
                    await self._forward(out)
            except HungUp as error:  # carried out of the nursery by hand: it would wrap it
                hung_up = error
                nursery.cancel_scope.cancel()
        if hung_up is not None:
            raise hung_up
        await self._send(self._http.send(h11.EndOfMessage()), SEND_WAIT_S)

    async def _forward(self, out: trio.MemoryReceiveChannel[Event | list[Event]]) -> None:
        while True:
            data = b": still here\n\n"
            with trio.move_on_after(PING_INTERVAL_S):
                try:
                    data = _encode(await out.receive())
                except trio.EndOfChannel:
                    return
            await self._send(self._http.send(h11.Data(data=data)), STALL_WAIT_S)

    async def switch(self, protocol: str) -> tuple[trio.abc.Stream, bytes]:
        """Leave HTTP: return the stream and what the client has sent ahead.

        Raises UsageError (nothing was sent yet) if the client did not ask to.
        """
        if self._http.their_state in (h11.DONE, h11.MUST_CLOSE):  # not MIGHT_SWITCH_PROTOCOL
            raise UsageError(f"this route wants `Connection: Upgrade` and `Upgrade: {protocol}`")
        fields = [("Connection", "Upgrade"), ("Upgrade", protocol)]
        head = h11.InformationalResponse(status_code=101, headers=fields)
        await self._send(self._http.send(head), SEND_WAIT_S)
        return self._stream, self._http.trailing_data[0]

    async def linger(self) -> None:
        """Read on for a moment after a refusal: closing at once would destroy it on its way."""
        if isinstance(self._stream, trio.SocketStream):
            try:
                await self._stream.send_eof()
            except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
                return
        read = 0
        with trio.move_on_after(LINGER_S):
            while read < LINGER_MAX_BYTES:
                try:
                    data = await self._receive()
                except HungUp:
                    return
                if not data:
                    return
                read += len(data)

    async def _send(self, data: bytes | None, wait_s: float) -> None:
        try:
            with _within(wait_s):
                await self._stream.send_all(data or b"")
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
            raise HungUp from error


async def _pump(
    source: AsyncIterator[Event | list[Event]],
    into: trio.MemorySendChannel[Event | list[Event]],
    say_error: Callable[[Exception], Event | None],
) -> None:
    """Move events from the source to the sender. The source lives and ends in this task."""
    async with into:
        try:
            async for event in source:
                await into.send(event)
        except trio.BrokenResourceError:
            return  # the sender has stopped
        except Exception as error:
            last = say_error(error)
            if last is None:
                raise
            await into.send(last)
        finally:
            close: Callable[[], Awaitable[None]] | None = getattr(source, "aclose", None)
            if close is not None:
                await close()


def _encode(found: Event | list[Event]) -> bytes:
    if isinstance(found, Event):
        return encode_event(found)
    return b"".join([encode_event(event) for event in found])


def encode_event(event: Event) -> bytes:
    """Encode one server-sent event; a str is sent as it is, anything else as JSON."""
    data = event.data if isinstance(event.data, str) else msgspec.json.encode(event.data).decode()
    lines = [f"event: {event.name}"] if event.name else []
    lines += [f"data: {line}" for line in data.split("\n")]
    # A log line may hold half a surrogate pair (a file name that is not UTF-8): show it as "?".
    return ("\n".join(lines) + "\n\n").encode("utf-8", "replace")


def _head(head: h11.Request, body: bytes) -> Head:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
    try:
        target = urlsplit(head.target.decode("ascii"))
        query = dict(parse_qsl(target.query, keep_blank_values=True, max_num_fields=QUERY_MAX))
    except ValueError as error:  # UnicodeDecodeError is one
        raise UsageError(f"not a request target: {error}") from error
    request = Request(head.method.decode("ascii"), target.path or "/", {}, query, body)
    return Head(request, headers)


@contextmanager
def _within(seconds: float) -> Generator[None]:
    """Bound a block in time; too slow counts as hung up."""
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError as error:
        raise HungUp from error
