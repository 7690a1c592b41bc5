"""Attached streams: what is pushed arrives in order, room comes back, and the end comes once."""

import contextlib
import time
from collections.abc import AsyncGenerator

import pytest
import trio
from trio.testing import MemorySendStream, MockClock, memory_stream_pair

from node.host.yamux import FRAMES_PER_TURN, TURN_S, MuxedConnection
from node.host.yamux_frames import (
    ACK,
    BODY_MAX,
    DATA,
    FIN,
    PING,
    RST,
    SYN,
    WINDOW_UPDATE,
)
from node.host.yamux_stream import ATTACHED_WINDOW_BYTES, FIRST_WINDOW_BYTES, MuxedStream
from tests.unit.yamux_links import (
    PEER,
    Link,
    MemoryLink,
    connected,
    frame,
    open_pair,
    read_exactly,
)
from wire.errors import BadMessage, PeerUnreachable
from wire.ports import PUSH_MAX


class Notes:
    """A sink that writes down what it is told, and may fail at it."""

    def __init__(self, fails_with: Exception | None = None) -> None:
        self.data = b""
        self.rooms = 0
        self.ends: list[PeerUnreachable | None] = []
        self.fails_with = fails_with

    def on_data(self, data: bytes | memoryview) -> None:
        assert self.ends == []
        self.data += data
        if self.fails_with is not None:
            raise self.fails_with

    def on_room(self) -> None:
        assert self.ends == []
        self.rooms += 1

    def on_end(self, error: PeerUnreachable | None) -> None:
        self.ends.append(error)


async def attached(
    a: MuxedConnection, b: MuxedConnection, at_b: Notes
) -> tuple[MuxedStream, MuxedStream]:
    one, other = await open_pair(a, b)
    one.attach(Notes())
    other.attach(at_b)
    await trio.sleep(1)
    return one, other


def written(mux: MuxedConnection) -> list[int]:
    assert isinstance(mux.secured_conn, MemoryLink)
    return mux.secured_conn.written


async def test_pushes_arrive_in_order_with_the_end_behind_them(autojump_clock: MockClock) -> None:
    async with connected() as (a, b):
        notes = Notes()
        one, other = await attached(a, b, notes)
        for number in range(100):
            one.push(b"%02d" % number, now=number % 3 == 0)
        one.finish()
        await trio.sleep(1)
        assert notes.data == b"".join(b"%02d" % number for number in range(100))
        assert notes.ends == [None]
        other.push(b"answer", now=False)  # our direction is open still
        other.finish()
        await trio.sleep(1)
        assert notes.ends == [None]
        one.push(b"too late, and no error", now=True)
        assert not one.has_room


async def test_what_is_pushed_in_one_turn_leaves_in_one_record(autojump_clock: MockClock) -> None:
    async with connected() as (a, b):
        one, _ = await attached(a, b, Notes())
        before = len(written(a))
        for _ in range(50):
            one.push(bytes(10), now=False)
        await trio.sleep(1)
        assert written(a)[before:] == [50 * 22]


async def test_answers_to_one_receive_leave_in_one_record_even_if_pushed_now(
    autojump_clock: MockClock,
) -> None:
    class Echo(Notes):
        def on_data(self, data: bytes | memoryview) -> None:
            stream.push(bytes(data), now=True)

    async with connected() as (a, b):
        one, stream = await attached(a, b, Echo())
        before = len(written(b))
        for _ in range(50):
            one.push(bytes(10), now=False)
        await trio.sleep(1)
        assert written(b)[before:] == [50 * 22]


async def test_what_was_buffered_before_is_handed_over_at_once(autojump_clock: MockClock) -> None:
    async with connected() as (a, b):
        one, other = await open_pair(a, b)
        await one.write(b"early")
        await one.close()
        await trio.sleep(1)
        notes = Notes()
        other.attach(notes)
        assert notes.data == b"early"
        assert notes.ends == [None]


async def test_megabytes_pass_an_attached_stream_without_a_reader(
    autojump_clock: MockClock,
) -> None:
    async with connected() as (a, b):
        notes, rooms = Notes(), trio.lowlevel.ParkingLot()
        one, _ = await attached(a, b, notes)

        class Sender(Notes):
            def on_room(self) -> None:
                rooms.unpark()

        one.attach(Sender())
        chunk, total = bytes(PUSH_MAX), 3 * ATTACHED_WINDOW_BYTES
        pushed = 0
        with trio.fail_after(10):
            while pushed < total:
                if not one.has_room:
                    await rooms.park()
                one.push(chunk, now=False)
                pushed += len(chunk)
                assert a.has_push_room or not one.has_room
            await trio.sleep(1)
        assert len(notes.data) == pushed
        assert notes.ends == []


async def test_without_credit_there_is_no_room_until_the_reader_reads(
    autojump_clock: MockClock,
) -> None:
    async with connected() as (a, b):
        one, other = await open_pair(a, b)  # the other end is an ordinary reader
        sender = Notes()
        one.attach(sender)
        await trio.sleep(1)
        pushed = 0
        while one.has_room:
            one.push(bytes(PUSH_MAX), now=True)
            pushed += PUSH_MAX
            await trio.sleep(1)
        assert FIRST_WINDOW_BYTES - PUSH_MAX < pushed <= FIRST_WINDOW_BYTES
        by_the_way, _ = await open_pair(a, b)  # others come and go meanwhile
        await by_the_way.write(b"hello")
        await by_the_way.reset()
        await trio.sleep(3600)
        assert sender.rooms == 0
        assert await read_exactly(other, pushed) == bytes(pushed)
        await trio.sleep(1)
        assert sender.rooms == 1
        assert one.has_room


async def test_a_full_queue_is_no_room_and_both_pushers_and_writers_get_on(
    autojump_clock: MockClock,
) -> None:
    ours, theirs = memory_stream_pair()
    gate = trio.Event()
    slow = trio.StapledStream(MemorySendStream(send_all_hook=gate.wait), ours.receive_stream)
    mux = MuxedConnection(MemoryLink(slow, True), PEER)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mux.start)
        streams = [await mux.open_stream() for _ in range(3)]
        order: list[int] = []

        class Greedy(Notes):
            def __init__(self, number: int) -> None:
                super().__init__()
                self.number = number

            def on_room(self) -> None:
                order.append(self.number)
                while streams[self.number].has_room:
                    streams[self.number].push(bytes(PUSH_MAX), now=False)

        for number in (0, 1):
            streams[number].attach(Greedy(number))
            streams[number].on_credit(1 << 30)
        for number in (0, 1):
            assert streams[number].has_room is (number == 0)
            while streams[number].has_room:
                streams[number].push(bytes(PUSH_MAX), now=True)
        streams[2].on_credit(1 << 30)
        is_written = trio.Event()

        async def write() -> None:
            await streams[2].write(bytes(1_000_000))
            is_written.set()

        nursery.start_soon(write)
        await trio.sleep(1)
        assert not any(stream.has_room for stream in streams)
        gate.set()
        with trio.fail_after(1):
            await is_written.wait()
            while len(order) < 100:  # endless: each time there is room, one fills it
                await trio.lowlevel.checkpoint()
        assert {order.count(0) - order.count(1)} <= {-1, 0, 1}
        nursery.cancel_scope.cancel()
    await theirs.aclose()


@pytest.mark.parametrize("error", [BadMessage("nonsense"), ZeroDivisionError()])
async def test_a_sink_that_raises_loses_its_stream_only(
    error: Exception, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected() as (a, b):
        bad, good = Notes(error), Notes()
        one, other = await attached(a, b, bad)
        two, _ = await attached(a, b, good)
        far = Notes()
        one.attach(far)
        one.push(b"x", now=True)
        one.push(b"y", now=True)
        two.push(b"z", now=True)
        await trio.sleep(1)
        assert bad.data == b"x"
        assert [str(end) for end in bad.ends] == [
            "nonsense" if isinstance(error, BadMessage) else "internal error"
        ]
        assert ("ZeroDivisionError" in caplog.text) is isinstance(error, ZeroDivisionError)
        assert len(far.ends) == 1
        assert not one.has_room
        assert not other.has_room
        assert good.data == b"z"
        assert good.ends == []
        assert not a.is_closed


async def test_the_end_comes_once_whoever_ends_it(autojump_clock: MockClock) -> None:
    async with connected() as (a, b):
        notes = Notes()
        one, other = await attached(a, b, notes)
        one.drop()
        await trio.sleep(1)
        assert len(notes.ends) == 1
        assert isinstance(notes.ends[0], PeerUnreachable)
        other.drop()
        dropped_here, lost = Notes(), Notes()
        await attached(a, b, lost)
        _, other = await attached(a, b, dropped_here)
        other.drop()
        await a.close()
        await trio.sleep(1)
        assert [len(sink.ends) for sink in (notes, dropped_here, lost)] == [1, 1, 1]
        assert None not in (notes.ends + dropped_here.ends + lost.ends)


@contextlib.asynccontextmanager
async def attached_to_bare_link(notes: Notes) -> AsyncGenerator[tuple[MuxedConnection, Link]]:
    ours, theirs = memory_stream_pair()
    mux = MuxedConnection(MemoryLink(ours, False), PEER)
    mux.trust()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mux.start)
        await theirs.send_all(frame(WINDOW_UPDATE, SYN, 1, 0))
        (await mux.accept_stream()).attach(notes)
        yield mux, theirs
        nursery.cancel_scope.cancel()


async def test_a_push_cut_into_pieces_by_the_peer_arrives_whole(autojump_clock: MockClock) -> None:
    notes = Notes()
    async with attached_to_bare_link(notes) as (_, link):
        for byte in frame(DATA, FIN, 1, 5, b"hello"):
            await link.send_all(bytes([byte]))
            await trio.sleep(1)
        assert notes.data == b"hello"
        assert notes.ends == [None]


async def test_a_flood_of_tiny_frames_does_not_hold_the_loop(autojump_clock: MockClock) -> None:
    class Count(Notes):
        frames = 0

        def on_data(self, data: bytes | memoryview) -> None:
            self.frames += 1

    count = Count()
    async with attached_to_bare_link(count) as (_, link):
        flood = (frame(DATA, 0, 1, 1, b"x") + frame(PING, ACK, 0, 7)) * 20_000
        await link.send_all(flood)
        at_once, seen = 0, 0
        while count.frames < 20_000:
            await trio.lowlevel.checkpoint()
            at_once, seen = max(at_once, count.frames - seen), count.frames
        assert 0 < at_once <= FRAMES_PER_TURN


async def test_data_after_the_end_is_not_for_the_sink(autojump_clock: MockClock) -> None:
    notes = Notes()
    async with attached_to_bare_link(notes) as (mux, link):
        await link.send_all(frame(DATA, FIN, 1, 3, b"bye") + frame(DATA, 0, 1, 5, b"ghost"))
        await link.send_all(frame(WINDOW_UPDATE, RST, 1, 0))
        await trio.sleep(1)
        assert notes.data == b"bye"
        assert notes.ends == [None]
        assert not mux.is_closed


async def test_more_than_the_large_window_ends_the_connection(autojump_clock: MockClock) -> None:
    notes = Notes()
    async with attached_to_bare_link(notes) as (mux, link):
        announced = ATTACHED_WINDOW_BYTES + 1  # in one receive no window can be returned
        await link.send_all(frame(DATA, 0, 1, announced, bytes(announced)))
        await trio.sleep(1)
        assert notes.data == b""
        assert mux.is_closed
        assert len(notes.ends) == 1


def test_a_push_fits_a_record() -> None:
    assert PUSH_MAX <= BODY_MAX


async def test_a_sink_that_takes_long_over_each_record_does_not_hold_the_loop() -> None:
    records, turns = 10, list[int]()

    class Burst(MemoryLink):
        """Brings all at once, as a socket's buffer does."""

        async def receive(self) -> list[bytes]:
            if not self._left:
                self._left = b"opened"
                return [frame(WINDOW_UPDATE, SYN, 1, 0)]
            await is_attached.wait()
            if sink.data:
                await trio.sleep_forever()
            return [frame(DATA, 0, 1, 100, bytes(100))] * records

    class Slow(Notes):
        def on_data(self, data: bytes | memoryview) -> None:
            super().on_data(data)
            turns.append(turn)
            time.sleep(2 * TURN_S)  # of work: it is the loop's own time that counts here

    turn, (ours, _) = 0, memory_stream_pair()
    mux = MuxedConnection(Burst(ours, False), PEER)
    mux.trust()
    sink, is_attached = Slow(), trio.Event()

    async def attach() -> None:
        (await mux.accept_stream()).attach(sink)
        is_attached.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(attach)
        nursery.start_soon(mux.start)
        while len(sink.data) < 100 * records:
            turn += 1
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert len(set(turns)) > records // 2
