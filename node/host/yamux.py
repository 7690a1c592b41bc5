"""Yamux as a libp2p muxer, our own: libp2p 0.8.1's breaks under load.

What its muxer does, and this one does not:
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

import trio
from libp2p.abc import IMuxedConn, ISecureConn
from libp2p.connection_types import ConnectionType
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable
from multiaddr import Multiaddr

from node.host import yamux_frames as frames
from node.host.yamux_stream import MuxedStream
from wire.errors import BadMessage

QUEUE_BYTES = 2 * 65536  # frames waiting for the socket; more only adds delay for others
CONTROL_FRAMES_MAX = 4096  # unsent answers to what a peer makes us say, 50 KB; then it is abuse
GROWTH_BYTES = 12 * 1024 * 1024  # all windows together, beyond the 256 KiB that each begins with
STREAMS_IN_MAX = 256  # at once, per connection, as go-libp2p allows a peer
STREAMS_UNTRUSTED_MAX = 8  # before admission: identify, ping, admission, and a relay's few
BYTES_UNTRUSTED_MAX = 64 * 1024  # before admission, from one that dialled us, all streams together
STREAMS_OUT_MAX = 192  # fewer, since the other end counts a stream as open for longer than we do
WRITE_STALL_S = 15.0  # for one record: a link slower than 4 KiB/s is of no use to anybody
CLOSE_S = 0.25  # to say goodbye; a peer that does not read is left without


class MuxedConnection(IMuxedConn):
    """Streams over one secured connection. `start()` runs it until it ends."""

    def __init__(self, conn: ISecureConn, peer_id: ID) -> None:
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
        self._streams: dict[int, MuxedStream] = {}
        self._inbound = 0
        self._next_stream = 1 if conn.is_initiator else 2
        self._outbound = trio.Semaphore(STREAMS_OUT_MAX)
        self._frames: deque[bytes] = deque()
        self._queued_bytes = 0
        self._work = trio.lowlevel.ParkingLot()
        self._drained = trio.lowlevel.ParkingLot()
        self._scope = trio.CancelScope()
        # Never full: no more streams than this are open at once.
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
                while self._queued_bytes and not self.is_closed:
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
        self._streams[stream.stream_id] = stream
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
        if self._streams.pop(stream.stream_id, None) is not None:
            self.growth_left_bytes += stream.grown_bytes
            if self._is_ours(stream.stream_id):
                self._outbound.release()
            else:
                self._inbound -= 1

    @property
    def has_room(self) -> bool:
        """True if another data frame may be queued now."""
        return self._queued_bytes < QUEUE_BYTES

    def send_data(self, stream_id: int, body: bytes | memoryview) -> None:
        """Queue a data frame; only while there is room."""
        self._queue(b"".join((frames.pack(frames.DATA, 0, stream_id, len(body)), body)))

    def send_control(self, frame: bytes) -> None:
        """Queue a frame without a body; never waits, so that the reader can call it."""
        if len(self._frames) >= CONTROL_FRAMES_MAX:
            self.abort("peer asks more than it reads")
        else:
            self._queue(frame)

    def _queue(self, frame: bytes) -> None:
        if not self.is_closed:
            self._frames.append(frame)
            self._queued_bytes += len(frame)
            self._work.unpark()

    async def _write_frames(self) -> None:
        while True:
            while not self._frames:
                await self._work.park()
            size, batch = 0, list[bytes]()
            while self._frames and size + len(self._frames[0]) <= frames.RECORD_BYTES:
                batch.append(self._frames.popleft())
                size += len(batch[-1])
            with trio.move_on_after(WRITE_STALL_S) as patience:
                try:
                    await self.secured_conn.write(b"".join(batch))
                except Exception as error:  # the socket's, Noise's or libp2p's: all mean the end
                    return self.abort(f"write failed: {error!r}")
            if patience.cancelled_caught:
                return self.abort(f"peer takes no bytes for {WRITE_STALL_S:.0f} s")
            self._queued_bytes -= size
            self.room.unpark_all()
            if not self._queued_bytes:
                self._drained.unpark_all()

    async def _read_frames(self) -> None:
        reader = frames.FrameReader()
        while True:
            try:
                # None: one Noise record as it is, without libp2p's reassembly.
                for event in reader.feed(await self.secured_conn.read(None)):
                    if isinstance(event, frames.GoneAway):
                        return self.abort(f"peer went away, code {event.code}")
                    self._apply(event)
            except BadMessage as error:
                self.send_control(frames.pack(frames.GO_AWAY, 0, 0, frames.PROTOCOL_ERROR))
                await trio.lowlevel.checkpoint()
                return self.abort(f"peer broke yamux: {error}")
            except Exception as error:  # the socket's, Noise's or libp2p's: all mean the end
                return self.abort(f"read ended: {error!r}")

    def _apply(self, event: frames.Event) -> None:
        match event:
            case frames.Opened(stream_id):
                self._accept(stream_id)
            case frames.Data(stream_id, data):
                if self._untrusted_bytes_left is not None:
                    self._untrusted_bytes_left -= len(data)
                    if self._untrusted_bytes_left < 0:
                        raise BadMessage(f"over {BYTES_UNTRUSTED_MAX} bytes before admission")
                if stream := self._streams.get(stream_id):
                    stream.on_data(data)
            case frames.Credit(stream_id, size_bytes):
                if stream := self._streams.get(stream_id):
                    stream.on_credit(size_bytes)
            case frames.Finished(stream_id):
                if stream := self._streams.get(stream_id):
                    stream.on_finished()
            case frames.Reset(stream_id):
                if stream := self._streams.get(stream_id):
                    stream.on_reset()
            case frames.Pinged(value):
                self.send_control(frames.pack(frames.PING, frames.ACK, 0, value))
            case _:
                raise AssertionError(event)

    def _accept(self, stream_id: int) -> None:
        if self._is_ours(stream_id) or stream_id in self._streams:
            raise BadMessage(f"peer opens stream {stream_id}, which is not its to open")
        if self._inbound >= self.streams_in_max:
            self.send_control(frames.pack(frames.WINDOW_UPDATE, frames.RST, stream_id, 0))
            return
        stream = MuxedStream(stream_id, self)
        try:
            self._accepted_send.send_nowait(stream)
        except trio.WouldBlock:  # opened and reset faster than they are served
            self.send_control(frames.pack(frames.WINDOW_UPDATE, frames.RST, stream_id, 0))
            return
        self._inbound += 1
        self._streams[stream_id] = stream
        self.send_control(frames.pack(frames.WINDOW_UPDATE, frames.ACK, stream_id, 0))

    def _is_ours(self, stream_id: int) -> bool:
        return stream_id % 2 == (1 if self.secured_conn.is_initiator else 0)

    async def _release(self) -> None:
        if not self.is_closed:
            self.event_closed.set()
            self._frames.clear()
            for stream in list(self._streams.values()):
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
        return self.secured_conn.get_transport_addresses()

    def get_connection_type(self) -> ConnectionType:
        """Return whether it is direct or relayed."""
        return self.secured_conn.get_connection_type()

    def get_remote_address(self) -> tuple[str, int] | None:
        """Return IP address and port of the other end."""
        return self.secured_conn.get_remote_address()
