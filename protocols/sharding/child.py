"""The child's end of its socket: frames of (number, message) in, (number, answer) out.

For the child processes of the daemon (stage worker, tokenizer); blocking. A reader thread takes the
frames, so that some can be answered at once, whatever the process computes. It also watches for the
end of the socket: the daemon is gone then, also after kill -9, and the process ends at once.
"""

import os
import queue
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn, TypeVar

import msgspec

from protocols.sharding.wire import FRAME_MAX
from protocols.sharding.worker_wire import Failure, Ready
from wire.codec import decode, encode
from wire.errors import ShoalError
from wire.frames import FrameParser, pack

Q = TypeVar("Q")

_READ_BYTES = 256 * 1024  # asked of the socket at a time
_WAITING_MAX = 1024  # requests; the daemon waits for answers, and has fewer sessions than this
_SMALL_BYTES = 64  # what is answered at once is no longer than this: steps are not parsed twice
_MESSAGE_MAX = 1000  # characters of an error that cross


class Daemon:
    """The daemon, as its child sees it. Made first, so that the child never outlives it."""

    def __init__(self, fd: int) -> None:
        self._link = socket.socket(fileno=fd)
        self._link.set_inheritable(False)
        self._sending = threading.Lock()
        # Full: the reader waits, and the socket fills up.
        self._waiting: queue.Queue[memoryview] = queue.Queue(_WAITING_MAX)
        self._at_once: Callable[[memoryview], tuple[int, object] | None] = lambda _: None
        threading.Thread(target=self._read, name="daemon", daemon=True).start()

    def serve(
        self, decoder: msgspec.msgpack.Decoder[tuple[int, Q]], answer: Callable[[Q], object]
    ) -> NoReturn:
        """Say that we are ready, then answer requests one by one until the daemon is gone."""
        self.send(0, Ready(resident_bytes()))
        while True:
            for number, request in self.waiting(decoder):
                try:
                    self.send(number, answer(request))
                except Exception as error:  # one request never ends the process
                    self.send(number, failure(error))

    def waiting(
        self,
        decoder: msgspec.msgpack.Decoder[tuple[int, Q]],
        *,
        timeout_s: float | None = None,
    ) -> list[tuple[int, Q]]:
        """Return the requests that have come, in order; if there are none, wait for one."""
        frames = list[memoryview]()
        if timeout_s != 0.0:
            with suppress(queue.Empty):
                frames.append(self._waiting.get(timeout=timeout_s))
        while not self._waiting.empty():
            frames.append(self._waiting.get())
        return [decode(frame, decoder, FRAME_MAX) for frame in frames]

    def answer_at_once(
        self,
        decoder: msgspec.msgpack.Decoder[tuple[int, Q]],
        answer: Callable[[Q], object | None],
    ) -> None:
        """Let the reader thread answer small requests, those for which `answer` says something."""

        def at_once(frame: memoryview) -> tuple[int, object] | None:
            number, request = decode(frame, decoder, FRAME_MAX)
            said = answer(request)
            return None if said is None else (number, said)

        self._at_once = at_once

    def send(self, number: int, answer: object) -> None:
        """Answer a request; 0: nothing was asked."""
        frame = pack(encode((number, answer)))
        try:
            with self._sending:
                self._link.sendall(frame)
        except OSError:
            os._exit(0)

    def _read(self) -> None:
        try:
            self._take_frames()
        except Exception:  # the thread's outermost boundary: without it nobody sees the daemon go
            traceback.print_exc(file=sys.stderr)
        finally:
            os._exit(0)

    def _take_frames(self) -> None:
        frames = FrameParser(FRAME_MAX)
        while True:
            try:
                data = self._link.recv(_READ_BYTES)
            except OSError:
                return
            if not data:
                return
            for frame in frames.feed(data):
                said = self._at_once(frame) if len(frame) <= _SMALL_BYTES else None
                if said is None:
                    self._waiting.put(frame)
                else:
                    self.send(*said)


def resident_bytes() -> int:
    """Return the memory that this process holds."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def failure(error: Exception) -> Failure:
    """Say what went wrong; of what is no error of ours, the log gets the whole story."""
    if isinstance(error, ShoalError):
        return Failure(error.code, str(error)[:_MESSAGE_MAX])
    traceback.print_exception(error, file=sys.stderr)
    return Failure("internal", f"{type(error).__name__}: {error}"[:_MESSAGE_MAX])
