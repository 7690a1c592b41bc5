"""The daemon's end of the socket to a worker process.

Nothing here waits for the worker to read: a step goes from the task that received it straight into
the socket, and its answer from the reader straight to who posted it, so that a step costs no switch
of tasks beyond the two readers'.
"""

import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

import msgspec
import structlog
import trio

from protocols.sharding.wire import FRAME_MAX
from protocols.sharding.worker_wire import Failure, Ready, WorkerAnswer
from wire.codec import decode, encode
from wire.errors import BadMessage, DeadlineExceeded, NotFound, RemoteError
from wire.frames import FrameParser, pack

A = TypeVar("A")  # what the worker answers

_READ_BYTES = 256 * 1024  # asked of the socket at a time
BACKLOG_BYTES = 4 * FRAME_MAX  # that wait for the socket; above it who has large ones waits

log = structlog.get_logger(__name__)


class WorkerGone(NotFound):
    """The worker process ended before it answered."""

    code = "worker_gone"
    hint = "`shoal model ls` shows its state; its log is in the home directory under models/"


class Worker(Protocol):
    """What computes a span: the link to its process."""

    gone: trio.Event

    def post(self, message: object, on_answer: Callable[[WorkerAnswer | None], None]) -> int:
        """Ask without waiting; see `Link.post`."""
        ...

    async def ask(self, message: object, *, timeout_s: float) -> WorkerAnswer:
        """Ask and wait. Raises WorkerGone, DeadlineExceeded, or the worker's RemoteError."""
        ...

    async def room(self) -> None:
        """Wait while too much waits to be sent."""
        ...


class Link(Generic[A]):
    """Requests to one worker. Answers may come for several requests in flight, in any order."""

    def __init__(
        self, stream: trio.SocketStream, decoder: msgspec.msgpack.Decoder[tuple[int, A]]
    ) -> None:
        self.readiness: Ready | None = None  # what the worker said when it was ready
        self.ready = trio.Event()  # also set when the worker is gone: look at `gone`
        self.gone = trio.Event()
        self._stream = stream
        self._decoder = decoder
        self._pending: dict[int, Callable[[A | None], None]] = {}
        self._next = 1
        self._backlog = deque[memoryview]()
        self._backlog_bytes = 0
        self._lot = trio.lowlevel.ParkingLot()  # who waits for room, or for something to send

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take answers until the worker is gone; then every open request hears of it."""
        task_status.started()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                await self._read()
                nursery.cancel_scope.cancel()
        finally:
            self.gone.set()
            self.ready.set()
            self._lot.unpark_all()
            pending, self._pending = self._pending, {}
            for on_answer in pending.values():
                on_answer(None)
            await trio.aclose_forcefully(self._stream)

    def post(self, message: object, on_answer: Callable[[A | None], None]) -> int:
        """Ask without waiting; returns the number of the request.

        `on_answer` is called in the reader's turn, so it must not wait: with the answer, a Failure
        included, or with None if the worker is gone. Raises WorkerGone if it is so already.
        """
        if self.gone.is_set():
            raise WorkerGone("the worker process ended")
        number, self._next = self._next, self._next + 1
        self._pending[number] = on_answer
        self._send(pack(encode((number, message))))
        return number

    async def ask(self, message: object, *, timeout_s: float) -> A:
        """Ask and wait. Raises WorkerGone, DeadlineExceeded, or the worker's RemoteError."""
        answered = trio.Event()
        answers = list[A | None]()

        def on_answer(answer: A | None) -> None:
            answers.append(answer)
            answered.set()

        number = self.post(message, on_answer)
        try:
            with trio.move_on_after(timeout_s):
                await answered.wait()
        finally:
            self._pending.pop(number, None)
        if not answers:
            raise DeadlineExceeded(f"the worker did not answer in {timeout_s:g} s")
        answer = answers[0]
        if answer is None:
            raise WorkerGone("the worker process ended")
        if isinstance(answer, Failure):
            raise RemoteError(answer.code, answer.message)
        return answer

    async def room(self) -> None:
        """Wait while too much waits to be sent."""
        while self._backlog_bytes > BACKLOG_BYTES and not self.gone.is_set():
            await self._lot.park()

    def _send(self, frame: bytes) -> None:
        """Hand a frame to the socket; what it does not take at once goes later, in order."""
        rest = memoryview(frame)
        if not self._backlog:
            rest = rest[self._put(rest) :]
        if rest:
            self._backlog.append(rest)
            self._backlog_bytes += len(rest)
            self._lot.unpark_all()

    def _put(self, frame: memoryview) -> int:
        """Return how much the socket took. If the worker is gone, the reader will see it."""
        fd = self._stream.socket.fileno()
        if fd < 0:
            return len(frame)
        try:
            return os.write(fd, frame)
        except BlockingIOError:
            return 0
        except OSError:
            return len(frame)

    async def _write(self) -> None:
        """Send the backlog."""
        while True:
            while self._backlog:
                try:
                    await trio.lowlevel.wait_writable(self._stream.socket)
                except (trio.ClosedResourceError, OSError):
                    return  # the reader sees it, too
                frame = self._backlog.popleft()
                count = self._put(frame)
                self._backlog_bytes -= count
                if count < len(frame):
                    self._backlog.appendleft(frame[count:])
                self._lot.unpark_all()
            await self._lot.park()

    async def _read(self) -> None:
        frames = FrameParser(FRAME_MAX)
        try:
            while data := await self._stream.receive_some(_READ_BYTES):
                for frame in frames.feed(data):
                    self._take(*decode(frame, self._decoder, FRAME_MAX))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # it was killed: the same as an end
        except BadMessage as error:  # as good as gone: what it says next cannot be understood
            log.error("worker.bad_message", error=str(error))

    def _take(self, number: int, answer: A) -> None:
        if isinstance(answer, Ready):
            self.readiness = answer
            self.ready.set()
        on_answer = self._pending.pop(number, None)
        if on_answer is not None:
            on_answer(answer)


def socket_pair() -> tuple[trio.SocketStream, socket.socket]:
    """Return our end, and the end that a child inherits (close it once the child has it)."""
    ours, theirs = socket.socketpair()
    return trio.SocketStream(trio.socket.from_stdlib_socket(ours)), theirs
