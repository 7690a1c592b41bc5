"""One lane: a socket of its own, and a thread for each direction, which live in a nursery.

The threads block in the kernel or in OpenSSL nearly all of the time, and hold no GIL there; the
event loop sees a lane begin and end, and no byte of it.
"""

import contextlib
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable

import trio

from protocols.bulk.desk import Desk, Job, Wake
from protocols.bulk.records import (
    RECORD_MAX,
    SEALED_HEADER_BYTES,
    TAG_BYTES,
    Opener,
    Sealer,
)
from protocols.bulk.wire import PIECE_MAX
from wire.errors import BadMessage

# Of the threads: the event loop, which all calls wait for, goes first on a busy machine. The p99 of
# a small call beside a transfer was 2-7 ms with it, 9-84 ms without (2 cores, load 10, 1 GB at 700
# to 900 MB/s either way). Beside others' work at 0, a lane still gets a quarter of a core.
NICE = 5

log = logging.getLogger(__name__)


class Lane:
    """An authorised connection to a peer. The socket blocks, and is the lane's to close."""

    def __init__(
        self, number: int, desk: Desk, sock: socket.socket, sealer: Sealer, opener: Opener
    ) -> None:
        self.number = number
        self.desk = desk
        self._socket = sock
        self._sealer, self._opener = sealer, opener
        self._is_over = False
        self.used_at = time.monotonic()
        self.wire_in = self.wire_out = 0  # bytes at the socket; each is one thread's to count
        self.fault: BadMessage | None = None

    async def run(self) -> None:
        """Carry pieces until the connection breaks, or `close`. Never raises."""
        try:
            async with trio.open_nursery() as nursery:
                scope = nursery.cancel_scope
                nursery.start_soon(self._thread, self._write, scope)
                nursery.start_soon(self._thread, self._read, scope)
                try:
                    await trio.sleep_forever()
                finally:
                    self.close()
        finally:
            self._socket.close()

    def close(self) -> None:
        """End it: whoever is blocked in the socket is woken. Safe to repeat, from any thread."""
        self._is_over = True
        with contextlib.suppress(OSError):  # the other side was faster
            self._socket.shutdown(socket.SHUT_RDWR)
        self.desk.wake()

    async def _thread(self, work: Callable[[], None], scope: trio.CancelScope) -> None:
        """Run one direction. Not on trio's threads: those serve others next, and stay nice."""
        over = Wake()
        name = f"bulk lane {self.number} {work.__name__}"
        thread = threading.Thread(target=self._fenced, args=(work, over), name=name, daemon=True)
        thread.start()
        with trio.CancelScope(shield=True):  # `close` wakes it
            await over.wait()
        thread.join()  # that was its last line
        scope.cancel()

    def _fenced(self, work: Callable[[], None], over: Wake) -> None:
        if sys.platform == "linux":  # where a thread has a priority of its own
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        try:
            work()
        except OSError as error:
            log.debug("lane.broke peer=%s lane=%d %s", self.desk.peer, self.number, error)
        except BadMessage as error:
            self.fault = error
            log.debug("lane.fault peer=%s lane=%d %s", self.desk.peer, self.number, error)
        except Exception:  # a boundary, the thread's: a bug, but one lane's only
            log.exception("lane.failed peer=%s lane=%d", self.desk.peer, self.number)
        finally:
            over.set()

    def _write(self) -> None:
        record = memoryview(bytearray(RECORD_MAX))
        spare = memoryview(bytearray(PIECE_MAX))  # touched, and so resident, for files only
        while not self._sealer.is_spent:
            job = self.desk.take(self.number, lambda: self._is_over)
            if job is None:
                return
            if (sealed := self._seal(job, spare, record)) is None:
                continue
            self._socket.sendall(sealed)
            self.wire_out += len(sealed)
            self.used_at = time.monotonic()

    def _seal(self, job: Job, spare: memoryview, record: memoryview) -> memoryview | None:
        """Read and encrypt a piece; None if it cannot be read."""
        failure: OSError | None = None
        try:
            data = job.departure.source.read(job.piece.offset, spare[: job.piece.length])
            return self._sealer.seal(job.transfer, job.piece.offset, data, record)
        except OSError as error:
            failure = error
            return None
        finally:
            self.desk.sealed(job, failure)

    def _read(self) -> None:
        head = memoryview(bytearray(SEALED_HEADER_BYTES))
        body = memoryview(bytearray(PIECE_MAX + TAG_BYTES))
        spare = memoryview(bytearray(PIECE_MAX))
        while self._fill(head):
            header = self._opener.header(head)
            sealed = body[: header[2] + TAG_BYTES]
            if not self._fill(sealed):
                return

            def fill(place: memoryview, sealed: memoryview = sealed) -> None:
                self._opener.body(sealed, place)

            self.desk.put(header, spare, fill)
            self.used_at = time.monotonic()

    def _fill(self, buffer: memoryview) -> bool:
        """Receive exactly so many bytes; False if the lane ends before. One system call or few."""
        done = 0
        while done < len(buffer):
            count = self._socket.recv_into(buffer[done:], 0, socket.MSG_WAITALL)
            if not count:
                return False
            done += count
            self.wire_in += count
        return True
