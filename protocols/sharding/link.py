"""The daemon's end of the socket to a worker process: ask, and get the answer."""

import socket
from typing import Generic, TypeVar

import msgspec
import trio

from protocols.sharding.wire import FRAME_MAX, Failure, Ready
from wire.codec import decode, encode
from wire.errors import DeadlineExceeded, NotFound, RemoteError
from wire.frames import FrameParser, pack

A = TypeVar("A")  # what the worker answers

_READ_BYTES = 256 * 1024  # asked of the socket at a time
_SEND_S = 10.0  # seconds; the worker's reader thread takes frames at once, or it is stuck


class WorkerGone(NotFound):
    """The worker process ended before it answered."""

    code = "worker_gone"
    hint = "`shoal models` shows its state; its log is in the home directory under models/"


class Link(Generic[A]):
    """Requests to one worker. Answers may come for several requests in flight, in any order."""

    def __init__(
        self, stream: trio.SocketStream, decoder: msgspec.msgpack.Decoder[tuple[int, A]]
    ) -> None:
        self._stream = stream
        self._decoder = decoder
        self._pending: dict[int, trio.MemorySendChannel[A]] = {}
        self._sending = trio.Lock()
        self._next = 1
        self.ready = trio.Event()  # also set when the worker is gone: look at `gone`
        self.gone = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take answers until the worker is gone; then every open request fails."""
        task_status.started()
        frames = FrameParser(FRAME_MAX)
        try:
            while data := await self._stream.receive_some(_READ_BYTES):
                for frame in frames.feed(data):
                    self._take(*decode(frame, self._decoder, FRAME_MAX))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # it was killed: the same as an end
        finally:
            self.gone.set()
            self.ready.set()
            for waiting in self._pending.values():
                waiting.close()
            await trio.aclose_forcefully(self._stream)

    async def ask(self, message: object, *, timeout_s: float) -> A:
        """Ask and wait. Raises WorkerGone, DeadlineExceeded, or the worker's RemoteError."""
        if self.gone.is_set():
            raise WorkerGone("the worker process ended")
        number, self._next = self._next, self._next + 1
        send, receive = trio.open_memory_channel[A](1)  # one answer: it never waits
        self._pending[number] = send
        try:
            with trio.fail_after(timeout_s):
                await self._send(pack(encode((number, message))))
                answer = await receive.receive()
        except trio.TooSlowError as error:
            raise DeadlineExceeded(f"the worker did not answer in {timeout_s:g} s") from error
        except (trio.EndOfChannel, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise WorkerGone("the worker process ended") from error
        finally:
            del self._pending[number]
        if isinstance(answer, Failure):
            raise RemoteError(answer.code, answer.message)
        return answer

    async def _send(self, frame: bytes) -> None:
        """Send a whole frame: half of one would spoil the link for every session."""
        async with self._sending:
            try:
                with trio.fail_after(_SEND_S) as sending:
                    sending.shield = True
                    await self._stream.send_all(frame)
            except trio.TooSlowError:
                await trio.aclose_forcefully(self._stream)
                raise

    def _take(self, number: int, answer: A) -> None:
        if isinstance(answer, Ready):
            self.ready.set()
        waiting = self._pending.get(number)
        if waiting is not None:
            waiting.send_nowait(answer)


def socket_pair() -> tuple[trio.SocketStream, socket.socket]:
    """Return our end, and the end that a child inherits (close it once the child has it)."""
    ours, theirs = socket.socketpair()
    return trio.SocketStream(trio.socket.from_stdlib_socket(ours)), theirs
