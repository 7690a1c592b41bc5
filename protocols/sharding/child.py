"""The worker's end of its socket: frames of (number, message) in, (number, answer) out.

For the child processes of the daemon (stage worker, tokenizer); blocking, one request at a time in
order of arrival. A reader thread watches for the end of the socket: the daemon is gone then, also
after kill -9, and the process ends at once, whatever it computes.
"""

import os
import queue
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn, TypeVar

import msgspec

from protocols.sharding.wire import FRAME_MAX, Failure, Ready
from wire.codec import decode, encode
from wire.errors import ShoalError
from wire.frames import FrameParser, pack

Q = TypeVar("Q")

_READ_BYTES = 256 * 1024  # asked of the socket at a time
_WAITING_MAX = 256  # requests; the daemon has fewer sessions than this
_MESSAGE_MAX = 1000  # characters of an error that cross


class Daemon:
    """The daemon, as its child sees it. Made first, so that the child never outlives it."""

    def __init__(self, fd: int) -> None:
        self._link = socket.socket(fileno=fd)
        self._link.set_inheritable(False)
        self._waiting: queue.Queue[memoryview] = queue.Queue(
            _WAITING_MAX
        )  # full: the socket fills up
        threading.Thread(target=self._read, name="daemon", daemon=True).start()

    def serve(
        self, decoder: msgspec.msgpack.Decoder[tuple[int, Q]], answer: Callable[[Q], object]
    ) -> NoReturn:
        """Say that we are ready, then answer requests until the daemon is gone."""
        self._send(0, Ready(resident_bytes()))
        while True:
            number, request = decode(self._waiting.get(), decoder, FRAME_MAX)
            self._send(number, _answer(request, answer))

    def _send(self, number: int, answer: object) -> None:
        try:
            self._link.sendall(pack(encode((number, answer))))
        except OSError:
            os._exit(0)

    def _read(self) -> None:
        frames = FrameParser(FRAME_MAX)
        while True:
            try:
                data = self._link.recv(_READ_BYTES)
            except OSError:
                data = b""
            if not data:
                os._exit(0)
            for frame in frames.feed(data):
                self._waiting.put(frame)


def resident_bytes() -> int:
    """Return the memory that this process holds."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _answer(request: Q, answer: Callable[[Q], object]) -> object:
    """Answer one request; an error of one session never ends the process."""
    try:
        return answer(request)
    except ShoalError as error:
        return Failure(error.code, str(error)[:_MESSAGE_MAX])
    except Exception as error:  # the outermost boundary of the process: it goes to its log
        traceback.print_exc(file=sys.stderr)
        return Failure("internal", f"{type(error).__name__}: {error}"[:_MESSAGE_MAX])
