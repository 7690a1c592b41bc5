"""Yamux as a libp2p muxer, our own: libp2p 0.8.1's breaks under load.

One turn of the reader is one receive: it hands every frame on without a wait, and what was queued
meanwhile leaves in one system call at its end. Anything else that is queued leaves with the writer
task, except what is pushed "now" and fits the socket. Both write whole records through one buffer,
so that no cancellation can tear one.

What libp2p's muxer does, and this one does not:
- a caller cancelled in `write` tears a Noise record in half and kills the connection (here only one
  task writes to the socket; a cancelled caller loses its own frame or not, whole);
- its reader waits for the write lock to acknowledge a stream, so that two peers sending to each
  other in bulk can stop for ever (here the reader never waits);
- a stream whose reader pauses for 5 s fails; a closing waits for a peer that does not read, and
  then 200 ms; senders poll every 10 ms;
- a peer that ignores its window fills our memory (here it is disconnected).
"""

import contextlib
from collections import deque
from typing import Final, Literal, cast

import trio
from libp2p.abc import IMuxedConn, ISecureConn
from libp2p.connection_types import ConnectionType
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable
from multiaddr import Multiaddr

from node.host import yamux_frames as frames
from node.host.channel import ENDS, Channel
from node.host.yamux_stream import MuxedStream
from wire.errors import BadMessage

QUEUE_BYTES = 2 * 65536  # of writers, waiting for the socket; more only adds delay for others
PUSHED_BYTES = 4 * 65536  # of attached streams, counted apart so that neither starves the other
CONTROL_FRAMES_MAX = 4096  # unsent answers to what a peer makes us say, 50 KB; then it is abuse
GROWTH_BYTES = 12 * 1024 * 1024  # all windows together, beyond the 256 KiB that each begins with
STREAMS_IN_MAX = 256  # at once, per connection, as go-libp2p allows a peer
STREAMS_UNTRUSTED_MAX = 8  # before admission: identify, ping, admission, and a relay's few
BYTES_UNTRUSTED_MAX = 64 * 1024  # before admission, from one that dialled us, all streams together
STREAMS_OUT_MAX = 192  # fewer, since the other end counts a stream as open for longer than we do
FRAMES_PER_TURN = 512  # read, 1 to 2 ms; a flood of tiny ones must not hold the loop
TURN_S = 0.002  # and what sinks do with them: a record of tiny messages can take 50 ms
BATCH_RECORDS = 4  # per system call
WRITE_STALL_S = 15.0  # for one record: a link slower than 4 KiB/s is of no use to anybody
CLOSE_S = 0.25  # to say goodbye; a peer that does not read is left without

Body = bytes | memoryview
_Kind = Literal[0, 1, 2]  # of a queued frame
_CONTROL: Final = 0
_WRITTEN: Final = 1
_PUSHED: Final = 2


class MuxedConnection(IMuxedConn):
    """Streams over one secured connection. `start()` runs it until it ends."""

    def __init__(self, conn: Channel, peer_id: ID) -> None:
        self.secured_conn = conn
        self.peer_id = peer_id
        self.event_started = trio.Event()
        self.event_closed = trio.Event()
        self.streams_in_max = STREAMS_UNTRUSTED_MAX
        # Whom we dialled may speak before we have read its welcome; it is our choice anyway.
        self._untrusted_bytes_left = None if conn.is_initiator else BYTES_UNTRUSTED_MAX
        self.growth_left_bytes = GROWTH_BYTES
        self.rtt_s = 0.001  # what the keep-alive measures; decides how windows grow
        self.ended_by = ""  # why the connection is over, for the log
        self.room = trio.lowlevel.ParkingLot()  # writers wait here for the queue to drain
        self.streams: dict[int, MuxedStream] = {}  # not over yet, of both ends
        self._inbound = 0
        self._next_stream = 1 if conn.is_initiator else 2
        self._outbound = trio.Semaphore(STREAMS_OUT_MAX)
        self._frames: deque[tuple[_Kind, bytes, Body]] = deque()
        self._queued_bytes = [0, 0, 0]  # by _Kind, until the socket has them
        self._sealed_bytes = [0, 0, 0]  # the part of it that is encrypted
        self._is_blocked = False  # the socket is full; only the writer task goes on
        self._is_reading = False  # the reader's turn, which ends with a flush
        self._without_room: dict[MuxedStream, None] = {}  # attached, in the order they asked
        self._work = trio.lowlevel.ParkingLot()
        self._drained = trio.lowlevel.ParkingLot()
        self._scope = trio.CancelScope()
        self._accepted_send, self._accepted = trio.open_memory_channel[MuxedStream](STREAMS_IN_MAX)

    async def start(self) -> None:
        """Move frames until either side ends the connection; then release everything."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write_frames)
                    self.event_started.set()
                    await self._read_frames()
                    nursery.cancel_scope.cancel()
        finally:
            await self._release()

    async def close(self) -> None:
        """Say goodbye and end the connection; takes at most CLOSE_S, whatever the peer does."""
        if self.event_started.is_set() and not self.is_closed:
            with trio.move_on_after(CLOSE_S, shield=True):
                self.send_control(frames.pack(frames.GO_AWAY, 0, 0, frames.NORMAL))
                while any(self._queued_bytes) and not self.is_closed:
                    await self._drained.park()
        self.abort("closed here")
        await self._release()

    def abort(self, reason: str) -> None:
        """End the connection now, without a word."""
        self.ended_by = self.ended_by or reason
        self._scope.cancel()

    def trust(self) -> None:
        """The peer is admitted: give it what members get."""
        self.streams_in_max = STREAMS_IN_MAX
        self._untrusted_bytes_left = None

    async def open_stream(self) -> MuxedStream:
        """Open a stream; waits while too many are open. Raises MuxedConnUnavailable."""
        await self._outbound.acquire()
        if self.is_closed:
            self._outbound.release()
            raise MuxedConnUnavailable("connection closed")
        stream = MuxedStream(self._next_stream, self)
        self._next_stream += 2
        self.streams[stream.stream_id] = stream
        self.send_control(frames.pack(frames.WINDOW_UPDATE, frames.SYN, stream.stream_id, 0))
        return stream

    async def accept_stream(self) -> MuxedStream:
        """Return the next stream the peer opens. Raises MuxedConnUnavailable at the end."""
        try:
            return await self._accepted.receive()
        except trio.EndOfChannel:
            raise MuxedConnUnavailable("connection closed") from None

    def forget(self, stream: MuxedStream) -> None:
        """Both directions of a stream are over: give its place free."""
        if self.streams.pop(stream.stream_id, None) is not None:
            self._without_room.pop(stream, None)
            self.growth_left_bytes += stream.grown_bytes
            if self._is_ours(stream.stream_id):
                self._outbound.release()
            else:
                self._inbound -= 1

    @property
    def has_room(self) -> bool:
        """True if a writer may queue another data frame now."""
        return self._queued_bytes[_WRITTEN] < QUEUE_BYTES

    @property
    def has_push_room(self) -> bool:
        """True if an attached stream may queue another data frame now."""
        return self._queued_bytes[_PUSHED] < PUSHED_BYTES

    def tell_of_room(self, stream: MuxedStream) -> None:
        """Call the stream's `on_room` when it can push again."""
        self._without_room[stream] = None

    def send_data(self, stream_id: int, body: Body) -> None:
        """Queue a writer's data frame, written if the socket takes it; only while there is room."""
        self._queue_data(_WRITTEN, stream_id, body, now=True)

    def push_data(self, stream_id: int, body: Body, *, now: bool) -> None:
        """Queue a data frame of an attached stream; only while there is room."""
        self._queue_data(_PUSHED, stream_id, body, now=now)

    def _queue_data(self, kind: _Kind, stream_id: int, body: Body, *, now: bool) -> None:
        header = frames.pack(frames.DATA, 0, stream_id, len(body))
        if now and not (self._is_reading or self._is_blocked or self.is_closed):
            self._enqueue(kind, header, body)
            self._flush()
            if self._is_blocked or self._without_room or self.room:
                self._work.unpark()
        else:
            self._queue(kind, header, body)

    def send_control(self, frame: bytes) -> None:
        """Queue a frame without a body; never waits, so that the reader can call it."""
        if self._queued_bytes[_CONTROL] >= CONTROL_FRAMES_MAX * frames.HEADER.size:
            self._flush()
        if self._queued_bytes[_CONTROL] >= CONTROL_FRAMES_MAX * frames.HEADER.size:
            self.abort("peer asks more than it reads")
        else:
            self._queue(_CONTROL, frame)

    def _queue(self, kind: _Kind, header: bytes, body: Body = b"") -> None:
        if not self.is_closed:
            self._enqueue(kind, header, body)
            if not self._is_reading:
                self._work.unpark()

    def _enqueue(self, kind: _Kind, header: bytes, body: Body) -> None:
        self._frames.append((kind, header, body))
        self._queued_bytes[kind] += len(header) + len(body)

    def _flush(self) -> None:
        """Write queued frames until the socket is full."""
        try:
            while self._frames and not self._is_blocked:
                for _ in range(BATCH_RECORDS):
                    self._seal_record()
                    if not self._frames:
                        break
                self._is_blocked = not self.secured_conn.send()
                if not self._is_blocked:
                    self._count_sent()
        except ENDS as error:
            self._frames.clear()
            self.abort(f"write failed: {error!r}")

    def _seal_record(self) -> None:
        """Put as many frames as fit into one record."""
        size, batch = 0, list[Body]()
        while self._frames:
            kind, header, body = self._frames[0]
            size += (frame_bytes := len(header) + len(body))
            if size > frames.RECORD_BYTES:
                break
            self._frames.popleft()
            self._sealed_bytes[kind] += frame_bytes
            batch += (header, body)
        self.secured_conn.seal(batch)

    def _count_sent(self) -> None:
        for kind in (_CONTROL, _WRITTEN, _PUSHED):
            self._queued_bytes[kind] -= self._sealed_bytes[kind]
            self._sealed_bytes[kind] = 0

    async def _write_frames(self) -> None:
        while True:
            if self._is_blocked:
                await self._write_blocked()
            elif self._frames:
                await trio.lowlevel.checkpoint()
            else:
                await self._work.park()
            self._flush()
            self._offer_room()

    async def _write_blocked(self) -> None:
        """Get one record further, or end the connection."""
        conn, error = self.secured_conn, ""
        with trio.move_on_after(WRITE_STALL_S) as patience:
            goal = max(0, conn.unsent_bytes - frames.RECORD_BYTES)
            try:
                while conn.unsent_bytes > goal:
                    await conn.wait_writable()
                    self._is_blocked = not conn.send()
            except ENDS as caught:
                error = f"write failed: {caught!r}"
        if patience.cancelled_caught:
            error = f"peer takes no bytes for {WRITE_STALL_S:.0f} s"
        if error:
            self.abort(error)
            await trio.sleep_forever()  # until that arrives
        if not self._is_blocked:
            self._count_sent()

    def _offer_room(self) -> None:
        """Wake those who wait for the queue to drain."""
        if not (self.room or self._without_room or self._drained):
            return
        if self.has_room:
            self.room.unpark_all()
        for stream in list(self._without_room):
            if not self.has_push_room:
                break
            if stream.has_credit:
                del self._without_room[stream]
                stream.on_room()
        if not any(self._queued_bytes):
            self._drained.unpark_all()

    async def _read_frames(self) -> None:
        reader = frames.FrameReader()
        try:
            while True:
                records = await self.secured_conn.receive()
                self._is_reading, in_turn, until = True, 0, trio.current_time() + TURN_S
                for record in records:
                    if trio.current_time() > until or self._untrusted_bytes_left is not None:
                        in_turn, until = 0, await self._let_others()
                    for event in reader.feed(record):
                        self._apply(event)
                        in_turn += 1
                        if in_turn == FRAMES_PER_TURN:
                            in_turn, until = 0, await self._let_others()
                self._end_of_turn()
        except BadMessage as error:
            self.send_control(frames.pack(frames.GO_AWAY, 0, 0, frames.PROTOCOL_ERROR))
            self._flush()
            self.abort(f"peer broke yamux: {error}")
        except ENDS as error:  # the peer's goodbye among them
            self.abort(f"read ended: {error!r}")
        finally:
            self._is_reading = False

    async def _let_others(self) -> float:  # returns when our next turn ends
        self._end_of_turn()
        await trio.lowlevel.checkpoint()
        if self._untrusted_bytes_left is not None:
            # A proof counts for what comes behind it: who reads it is awake by now, and done then.
            await trio.lowlevel.checkpoint()
        self._is_reading = True
        return trio.current_time() + TURN_S

    def _end_of_turn(self) -> None:
        self._is_reading = False
        self._flush()
        self._offer_room()
        if self._frames or self._is_blocked:
            self._work.unpark()

    def _apply(self, event: frames.Event) -> None:
        match event:
            case frames.Opened(stream_id):
                self._accept(stream_id)
            case frames.Data(stream_id, data):
                if self._untrusted_bytes_left is not None:
                    self._untrusted_bytes_left -= len(data)
                    if self._untrusted_bytes_left < 0:
                        raise BadMessage(f"over {BYTES_UNTRUSTED_MAX} bytes before admission")
                if stream := self.streams.get(stream_id):
                    stream.on_data(data)
            case frames.Credit(stream_id, size_bytes) if stream := self.streams.get(stream_id):
                stream.on_credit(size_bytes)
            case frames.Finished(stream_id) if stream := self.streams.get(stream_id):
                stream.on_finished()
            case frames.Reset(stream_id) if stream := self.streams.get(stream_id):
                stream.on_reset()
            case frames.GoneAway(code):
                raise ConnectionClosedError(f"peer went away, code {code}", transport="yamux")
            case frames.Pinged(value):
                self.send_control(frames.pack(frames.PING, frames.ACK, 0, value))
            case _:  # nothing, or of a stream that is over
                return

    def _accept(self, stream_id: int) -> None:
        if self._is_ours(stream_id) or stream_id in self.streams:
            raise BadMessage(f"peer opens stream {stream_id}, which is not its to open")
        if self._inbound < self.streams_in_max:
            stream = MuxedStream(stream_id, self)
            with contextlib.suppress(trio.WouldBlock):  # opened and reset faster than served
                self._accepted_send.send_nowait(stream)
                self._inbound += 1
                self.streams[stream_id] = stream
        flag = frames.ACK if stream_id in self.streams else frames.RST
        self.send_control(frames.pack(frames.WINDOW_UPDATE, flag, stream_id, 0))

    def _is_ours(self, stream_id: int) -> bool:
        return stream_id % 2 == (1 if self.secured_conn.is_initiator else 0)

    async def _release(self) -> None:
        if not self.is_closed:
            self.event_closed.set()
            self._frames.clear()
            self._without_room.clear()
            for stream in list(self.streams.values()):
                stream.on_connection_lost()
            self._accepted_send.close()
            self.room.unpark_all()
            self._drained.unpark_all()
        with trio.CancelScope(shield=True), contextlib.suppress(Exception):
            await self.secured_conn.close()

    @property
    def is_closed(self) -> bool:
        """True once no stream can work any more."""
        return self.event_closed.is_set()

    @property
    def is_established(self) -> bool:
        """True while streams can be opened."""
        return self.event_started.is_set() and not self.is_closed

    @property
    def is_initiator(self) -> bool:
        """True if we dialled."""
        return self.secured_conn.is_initiator

    def get_transport_addresses(self) -> list[Multiaddr]:
        """Return the address of the other end."""
        return cast(ISecureConn, self.secured_conn).get_transport_addresses()

    def get_connection_type(self) -> ConnectionType:
        """Return whether it is direct or relayed."""
        return cast(ISecureConn, self.secured_conn).get_connection_type()

    def get_remote_address(self) -> tuple[str, int] | None:
        """Return IP address and port of the other end."""
        return self.secured_conn.get_remote_address()
