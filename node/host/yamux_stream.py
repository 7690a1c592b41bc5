"""One Yamux stream: its two windows, its buffer or its sink, its end. See node/host/yamux.py."""

import logging
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, TypeVarTuple

import trio
from libp2p.abc import IMuxedStream
from libp2p.stream_muxer.exceptions import MuxedStreamClosed, MuxedStreamEOF, MuxedStreamReset

from node.host import yamux_frames as frames
from node.host.negotiate import Awaited, proposal
from wire.errors import BadMessage, PeerUnreachable, ShoalError
from wire.ports import PUSH_MAX, Sink

if TYPE_CHECKING:
    from node.host.yamux import MuxedConnection

log = logging.getLogger(__name__)

Ts = TypeVarTuple("Ts")

FIRST_WINDOW_BYTES = 256 * 1024  # fixed by the specification
WINDOW_MAX_BYTES = 4 * 1024 * 1024  # 100 MB/s over 40 ms of round trip
ATTACHED_WINDOW_BYTES = 16 * 1024 * 1024  # nothing is kept below a sink: it bounds itself
CREDIT_MAX_BYTES = 1 << 31  # what a peer may grant in all: beyond is an attack on arithmetic
_GROW_WITHIN_ROUND_TRIPS = 4.0  # half a window read faster than this: the window is the limit


class MuxedStream(IMuxedStream):
    """Made by its connection only. Errors are libp2p's MuxedStream*."""

    def __init__(self, stream_id: int, connection: "MuxedConnection") -> None:
        self.stream_id = stream_id
        self.muxed_conn = self._connection = connection
        self._buffer = bytearray()
        self._window = FIRST_WINDOW_BYTES
        self._credit_in = FIRST_WINDOW_BYTES  # what the peer may still send
        self._credit_out = FIRST_WINDOW_BYTES  # what we may still send
        self._sink: Sink | None = None  # until its `on_end`
        self._awaited: Awaited | None = None  # before anything that the reader gets
        self._is_paced = False  # the sink says itself when it can take more
        self._read_since_update = 0
        self._last_update_at = trio.current_time()
        self._no_more_in = self._no_more_out = False
        self._is_reset = False  # no direction works any more
        self._end_reason = "stream reset"
        self._is_cut = False  # and the peer had more to say
        self._readable = trio.lowlevel.ParkingLot()
        self._writable = trio.lowlevel.ParkingLot()
        self._write_lock = trio.Lock()  # two writers: whole writes, one after the other

    async def read(self, n: int | None = None) -> bytes:
        """Return between 1 and `n` bytes. Raises MuxedStreamEOF at the end, MuxedStreamReset."""
        # No turn of the loop if there is something: it ends, and only another task brings more.
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._buffer:
            if self._is_cut:
                raise MuxedStreamReset(self._end_reason)
            if self._no_more_in:
                raise MuxedStreamEOF("end of stream")
            await self._readable.park()
        size = len(self._buffer) if n is None or n < 0 else min(n, len(self._buffer))
        data = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        self._return_credit(size)
        return data

    async def write(self, data: bytes) -> None:
        """Send all of `data`, waiting for the peer to take it. Raises MuxedStreamClosed, -Reset."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._write_lock.locked() or len(data) > self._sendable:
            async with self._write_lock:
                await self._write_in_parts(memoryview(data))
        elif data:
            self._send(data)
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def _write_in_parts(self, left: memoryview) -> None:
        while left:
            if self._is_reset:
                raise MuxedStreamReset(self._end_reason)
            if self._no_more_out:
                raise MuxedStreamClosed("stream finished")
            if not self._credit_out:
                await self._writable.park()
            elif not self._connection.has_room:
                await self._connection.room.park()
            else:
                size = min(len(left), self._sendable)
                self._send(left[:size])
                left = left[size:]

    @property
    def _sendable(self) -> int:
        """Bytes that a writer may send now, in one frame."""
        if self._no_more_out or not self._connection.has_room:
            return 0
        return min(self._credit_out, frames.BODY_MAX)

    def _send(self, data: bytes | memoryview) -> None:
        self._credit_out -= len(data)
        self._connection.send_data(self.stream_id, data)

    def attach(self, sink: Sink, *, paced: bool = False) -> None:
        """Hand everything that arrives to `sink` (wire.ports.Stream), what is here at once.

        paced: no more than FIRST_WINDOW_BYTES come that the sink has not told of in `took`.
        """
        self._sink, self._is_paced = sink, paced
        if self._buffer:
            data = bytes(self._buffer)
            self._buffer.clear()
            self._tell(sink.on_data, data)
        if self._no_more_in:
            self._end_sink(self._end_reason if self._is_cut else None)
        elif not paced:
            self._top_up()

    def took(self, size_bytes: int) -> None:
        """The paced sink is done with so much of what it was given."""
        self._return_credit(size_bytes)

    @property
    def has_credit(self) -> bool:
        """True if the peer takes a whole push more."""
        return self._credit_out >= PUSH_MAX and not self._no_more_out

    @property
    def has_room(self) -> bool:
        """True if `push` may be called now; if not, the sink is told when it is."""
        if self.has_credit and self._connection.has_push_room:
            return True
        if not self._no_more_out:
            self._connection.tell_of_room(self)
        return False

    def push(self, data: bytes, *, now: bool) -> None:
        """Queue data, at most PUSH_MAX; only while there is room. Nothing if the stream is over."""
        if not self._no_more_out:
            assert len(data) <= min(self._credit_out, PUSH_MAX), len(data)
            self._credit_out -= len(data)
            self._connection.push_data(self.stream_id, data, now=now)

    def on_room(self) -> None:
        """The connection's: there is room again."""
        if self._sink is not None:
            self._tell(self._sink.on_room)

    async def close(self) -> None:
        """Finish our direction; what the peer still sends can be read."""
        await trio.lowlevel.checkpoint()
        self.finish()

    async def reset(self) -> None:
        """Throw the stream away, both directions."""
        self.drop()
        await trio.lowlevel.checkpoint()

    def finish(self) -> None:
        """Finish our direction, at once."""
        if not self._no_more_out:
            self._no_more_out = True
            self._say(frames.FIN)
            self._writable.unpark_all()
            if self._no_more_in:
                self._connection.forget(self)

    def drop(self) -> None:
        """Throw the stream away, at once; what was not read is lost."""
        self._buffer.clear()
        if not (self._is_reset or (self._no_more_in and self._no_more_out)):
            self._say(frames.RST)
        self.on_reset()

    @property
    def grown_bytes(self) -> int:
        """What this stream's window has taken from its connection's budget."""
        return self._window - FIRST_WINDOW_BYTES

    def propose(self, protocol: str) -> None:
        """Say what a new stream is for, with what is sent next, without waiting for the answer; a
        refusal ends it.
        """
        data = proposal(protocol)
        self._awaited = Awaited(protocol)
        self._credit_out -= len(data)
        self._connection.push_data(self.stream_id, data, now=False)

    def _without_answer(self, awaited: Awaited, data: bytes | memoryview) -> bytes | memoryview:
        try:
            rest = awaited.cut_off(data)
        except ShoalError as error:
            self._fail(str(error))
            return b""
        if not awaited.left_bytes:
            self._awaited = None
        return rest

    def on_data(self, data: bytes | memoryview) -> None:
        """Take bytes from the peer. Raises BadMessage if they are more than we allowed."""
        self._credit_in -= len(data)
        if self._credit_in < 0:
            raise BadMessage(f"{-self._credit_in} bytes over the window of stream {self.stream_id}")
        if self._no_more_in:
            return
        if self._awaited is not None:
            data = self._without_answer(self._awaited, data)
        if not data:
            return
        if self._sink is not None:
            self._tell(self._sink.on_data, data)
            if self._credit_in < ATTACHED_WINDOW_BYTES // 2 and not self._is_paced:
                self._top_up()
        else:
            self._buffer += data
            self._readable.unpark_all()

    def on_credit(self, size_bytes: int) -> None:
        """The peer takes more. Raises BadMessage beyond reason."""
        self._credit_out += size_bytes
        if self._credit_out > CREDIT_MAX_BYTES:
            raise BadMessage(f"window of {self._credit_out} bytes on stream {self.stream_id}")
        self._writable.unpark_all()

    def on_finished(self) -> None:
        """The peer sends no more."""
        if self._awaited is not None:
            return self._fail("ended before its protocol was agreed")
        self._no_more_in = True
        self._readable.unpark_all()
        self._end_sink(None)
        if self._no_more_out:
            self._connection.forget(self)
        return None

    def on_reset(self) -> None:
        """The stream is gone: wake everybody who waits for it. What came whole stays readable."""
        self.on_connection_lost()
        self._connection.forget(self)

    def on_connection_lost(self) -> None:
        """Like a reset: bytes that a finish has followed can still be read, others are dropped."""
        if not self._no_more_in:
            self._is_cut = True
            self._buffer.clear()
        self._is_reset = self._no_more_in = self._no_more_out = True
        self._readable.unpark_all()
        self._writable.unpark_all()
        self._end_sink(self._end_reason)

    def _say(self, flag: int) -> None:
        self._connection.send_control(frames.pack(frames.WINDOW_UPDATE, flag, self.stream_id, 0))

    def _tell(self, heard: Callable[[*Ts], None], *what: *Ts) -> None:
        """Call the sink: its errors end its stream, never the connection."""
        try:
            heard(*what)
        except BadMessage as error:
            self._fail(str(error))
        except Exception:  # a boundary: one stream's bug
            log.exception("sink.failed stream=%d", self.stream_id)
            self._fail("internal error")

    def _fail(self, reason: str) -> None:
        self._end_reason = reason
        self.drop()

    def _end_sink(self, reason: str | None) -> None:
        sink, self._sink = self._sink, None
        if sink is not None:
            self._tell(sink.on_end, None if reason is None else PeerUnreachable(reason))

    def _top_up(self) -> None:
        increment = ATTACHED_WINDOW_BYTES - self._credit_in
        self._credit_in += increment
        self._connection.send_control(
            frames.pack(frames.WINDOW_UPDATE, 0, self.stream_id, increment)
        )

    def _return_credit(self, size: int) -> None:
        self._read_since_update += size
        if self._no_more_in or self._read_since_update < self._window // 2:
            return
        now = trio.current_time()
        increment = self._read_since_update
        within_s = _GROW_WITHIN_ROUND_TRIPS * self._connection.rtt_s
        is_small = self._window < WINDOW_MAX_BYTES and not self._is_paced
        if is_small and now - self._last_update_at < within_s:
            growth = min(self._window, self._connection.growth_left_bytes)
            self._connection.growth_left_bytes -= growth
            self._window += growth
            increment += growth
        self._read_since_update = 0
        self._last_update_at = now
        self._credit_in += increment
        self._connection.send_control(
            frames.pack(frames.WINDOW_UPDATE, 0, self.stream_id, increment)
        )

    def set_deadline(self, ttl: int) -> None:
        """Deadlines are trio's cancel scopes."""
        raise NotImplementedError("use trio.move_on_after")

    def get_remote_address(self) -> tuple[str, int] | None:
        """Return IP address and port of the other end."""
        return self._connection.get_remote_address()

    async def __aenter__(self) -> "MuxedStream":
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self.close()
