"""Calls between programs, for plain scripts: `Client.rpc`, `Client.rpc_stream`, `Client.serve`.

Blocking sockets and threads; the trio version is in shoal/async_rpc.py. The frames are described
in shoal/rpc_api.py.
"""

import inspect
import logging
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from shoal import rpc_api
from shoal.client import CALL_TIMEOUT_S, CONNECT_TIMEOUT_S, READ_BYTES, connect_unix
from shoal.errors import ClientError, TimedOut
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

PLACES = 8  # calls that one `serve` answers at a time, unless it says otherwise
RETRY_FIRST_S, RETRY_MAX_S = 0.1, 5.0  # between attempts to come back to a daemon that went away
MARGIN_S = 5.0  # how much later than the daemon's own deadline we give up on the daemon

Function = Callable[[Any], Any]
log = logging.getLogger(__name__)


class Link:
    """Frames over a control connection that left HTTP. Raises LinkLost when it breaks."""

    def __init__(self, path: Path, first: Frame) -> None:
        self._socket = connect_unix(path, timeout_s=CONNECT_TIMEOUT_S)
        self._buffer = bytearray()
        self._sending = threading.Lock()
        with ExitStack() as unless_done:
            unless_done.callback(self._socket.close)
            self._upgrade(rpc_api.pack(first))
            unless_done.pop_all()

    def _upgrade(self, ahead: bytes) -> None:
        """Leave HTTP. The first frame goes along: a round trip less."""
        self._send_all(rpc_api.UPGRADE + ahead)
        answer = rpc_api.Upgrade()
        while (rest := answer.feed(self._read())) is None:
            pass
        self._buffer += rest
        self._socket.settimeout(None)

    def settimeout(self, timeout_s: float | None) -> None:
        """Bound each wait for the daemon."""
        self._socket.settimeout(timeout_s)

    def close(self) -> None:
        """Hang up; a thread that reads is woken."""
        with suppress(OSError):  # the daemon has hung up before
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def send(self, frame: Frame) -> None:
        """Send one frame; waits while the daemon is not reading."""
        data = rpc_api.pack(frame)
        with self._sending:
            self._send_all(data)

    def receive(self) -> Frame:
        """Return the next frame."""
        length = int.from_bytes(self._take(rpc_api.LENGTH_BYTES), "big")
        return rpc_api.parse(self._take(length))

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._buffer += self._read()
        taken = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        return taken

    def _read(self) -> bytes:
        try:
            data = self._socket.recv(READ_BYTES)
        except TimeoutError as error:
            raise TimedOut("the daemon did not answer in time") from error
        except OSError as error:
            raise LinkLost(f"the daemon hung up: {error}") from error
        if not data:
            raise LinkLost("the daemon hung up", hint="`shoal logs` may say why")
        return data

    def _send_all(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise LinkLost(f"the daemon hung up: {error}") from error


class RpcCall:
    """A streaming call, from either side. One thread may send while another receives."""

    def __init__(self, link: Link, peer: str) -> None:
        self.link = link
        self.peer = peer
        self.failure: Exception | None = None  # of what is sent for us; the reader raises it
        self._theirs_ended = self._ours_ended = False

    def send(self, value: object) -> None:
        """Send one value; waits while the other side is not reading."""
        self.link.send(Item(encode_value(value)))

    def finish(self) -> None:
        """Say that no more values come from this side. Does nothing the second time."""
        if not self._ours_ended:
            self._ours_ended = True
            self.link.send(End())

    def receive(self) -> Any:
        """Return the next value. Raises EOFError at the end, ApiError if the call failed."""
        if self._theirs_ended:
            raise EOFError("the other side sends no more values")
        try:
            frame = self.link.receive()
        except LinkLost:
            if self.failure is not None:
                raise self.failure from None
            raise
        match frame:
            case Item(value):
                return decode_value(value)
            case End():
                self._theirs_ended = True
                raise EOFError("the other side sends no more values")
            case Fail():
                self._theirs_ended = True
                raise link_error(frame)
            case _:
                raise LinkLost(f"{type(frame).__name__} came where a value belongs")

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the other side's values to their end."""
        while True:
            try:
                value = self.receive()
            except EOFError:
                return
            yield value

    def __enter__(self) -> "RpcCall":
        """Use it in a `with` block; leaving it ends the call, wherever it is."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Hang up."""
        self.link.close()


def call(path: Path, peer: str, method: str, value: object, *, timeout_s: float) -> Any:
    """Call a method with one value and return its answer; see `Client.rpc`."""
    check_timeout(timeout_s)
    encoded = encode_value(value)
    with RpcCall(Link(path, Ask(peer, method, encoded, timeout_s)), peer) as opened:
        opened.link.settimeout(timeout_s + MARGIN_S)
        try:
            return opened.receive()
        except EOFError:
            raise ClientError("the daemon ended the call without an answer") from None


def stream(
    path: Path, peer: str, method: str, values: Iterable[object] | None, timeout_s: float | None
) -> RpcCall:
    """Open a streaming call; see `Client.rpc_stream`."""
    check_timeout(timeout_s)
    opened = RpcCall(Link(path, Open(peer, method, timeout_s)), peer)
    if values is not None:
        threading.Thread(target=_send_values, args=(opened, values), daemon=True).start()
    return opened


def _send_values(opened: RpcCall, values: Iterable[object]) -> None:
    try:
        for value in values:
            opened.send(value)
        opened.finish()
    except LinkLost:
        return  # the reader learns it by itself, and what the daemon said before
    except Exception as error:  # of the values, which are the caller's own code, too
        opened.failure = error
        opened.link.close()


class Serving:
    """Functions that peers may call, for as long as this is open. `Client.serve` makes it."""

    def __init__(
        self,
        path: Path,
        functions: Mapping[str, Function],
        streams: Mapping[str, Callable[[RpcCall], None]],
        places: int,
    ) -> None:
        self._path = path
        self._functions, self._streams = dict(functions), dict(streams)
        self._names = [*self._functions, *self._streams]
        self._stop = threading.Event()
        self._links: list[Link | None] = [None] * places
        first = [self._register() for _ in range(places)]
        self._threads = [
            threading.Thread(target=self._work, args=(number, link), daemon=True)
            for number, link in enumerate(first)
        ]
        for thread in self._threads:
            thread.start()

    def wait(self) -> None:
        """Serve until `close` is called (by another thread), or Ctrl-C is pressed."""
        self._stop.wait()

    def close(self) -> None:
        """Serve no more. Calls in progress are cut; functions that run are not stopped."""
        self._stop.set()
        for link in self._links:
            if link is not None:
                link.close()

    def __enter__(self) -> "Serving":
        """Serve for the length of a `with` block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Serve no more."""
        self.close()

    def _register(self) -> Link:
        link = Link(self._path, Serve(self._names))
        link.settimeout(CALL_TIMEOUT_S)
        answer = link.receive()
        if isinstance(answer, Fail):
            link.close()
            raise link_error(answer)
        link.settimeout(None)
        assert isinstance(answer, Ready), answer
        return link

    def _work(self, number: int, link: Link | None) -> None:
        """Answer one call after the other; come back whenever the link is lost."""
        retry_s = RETRY_FIRST_S
        while not self._stop.is_set():
            try:
                link = link or self._register()
                self._links[number], retry_s = link, RETRY_FIRST_S
                while True:
                    frame = link.receive()
                    if isinstance(frame, Call):
                        self._answer(link, frame)
            except ClientError as error:
                log.debug("link lost: %s", error)
            finally:  # also of a function that exits: nobody must wait for this place
                if link is not None:
                    link.close()
            if link is None:
                self._stop.wait(retry_s)
                retry_s = min(2 * retry_s, RETRY_MAX_S)
            link = None

    def _answer(self, link: Link, called: Call) -> None:
        opened = RpcCall(link, called.peer)
        with Answering(called.method) as outcome:
            if called.method in self._streams:
                self._streams[called.method](opened)
            else:
                self._answer_value(self._functions[called.method], opened)
        if outcome.fail is not None:
            link.send(outcome.fail)
        else:
            opened.finish()

    def _answer_value(self, function: Function, opened: RpcCall) -> None:
        value = next(iter(opened), None)
        answer = function(value)
        if inspect.isgenerator(answer):
            for each in answer:
                opened.send(each)
        else:
            opened.send(answer)
