"""The muxer: frames as the specification has them, and streams over a link in memory."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import trio
from libp2p.stream_muxer.exceptions import MuxedStreamClosed, MuxedStreamEOF, MuxedStreamReset
from libp2p.stream_muxer.yamux.yamux import Yamux
from trio.testing import MemorySendStream, MockClock, memory_stream_pair, wait_all_tasks_blocked

from node.host import yamux, yamux_stream
from node.host.yamux import MuxedConnection
from node.host.yamux_frames import (
    DATA,
    PING,
    SYN,
    WINDOW_UPDATE,
)
from node.host.yamux_stream import FIRST_WINDOW_BYTES
from tests.unit.yamux_links import (
    PEER,
    Link,
    MemoryLink,
    connected,
    frame,
    open_pair,
    read_exactly,
)


async def test_bytes_arrive_and_the_end_after_them(autojump_clock: MockClock) -> None:
    async with connected() as (a, b):
        one, other = await open_pair(a, b)
        await one.write(b"question")
        await one.close()
        assert await read_exactly(other, 8) == b"question"
        with pytest.raises(MuxedStreamEOF):
            await other.read(1)
        await other.write(b"answer")  # the other direction is open still
        await other.close()
        assert await read_exactly(one, 6) == b"answer"
        with pytest.raises(MuxedStreamEOF):
            await one.read(1)
        with pytest.raises(MuxedStreamClosed):
            await one.write(b"more")


async def test_an_answer_followed_by_a_reset_is_read_whole(autojump_clock: MockClock) -> None:
    async with connected() as (a, b):
        one, other = await open_pair(a, b)
        await one.write(b"question, unread")
        await other.write(b"answer")
        other.finish()
        other.drop()  # as a server does that returns before it has read all
        await trio.sleep(1)
        assert await read_exactly(one, 6) == b"answer"
        with pytest.raises(MuxedStreamEOF):
            await one.read(1)
        with pytest.raises(MuxedStreamReset):
            await one.write(b"more")


async def test_a_reset_in_mid_stream_is_an_error_for_both(autojump_clock: MockClock) -> None:
    async with connected() as (a, b):
        one, other = await open_pair(a, b)
        await one.write(b"half of")
        await one.reset()
        await one.reset()
        await trio.sleep(1)
        for stream in (one, other):
            with pytest.raises(MuxedStreamReset):
                await stream.read(1)
            with pytest.raises(MuxedStreamReset):
                await stream.write(b"x")


async def test_a_reader_may_pause_for_an_hour(autojump_clock: MockClock) -> None:
    # libp2p's muxer fails a stream whose window is empty for five seconds.
    async with connected() as (a, b):
        one, other = await open_pair(a, b)
        data = bytes(range(256)) * 8192
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.write, data)
            await trio.sleep(3600)
            assert await read_exactly(other, len(data)) == data


async def test_a_full_stream_does_not_hold_up_another(autojump_clock: MockClock) -> None:
    async with connected() as (a, b):
        full, _unread = await open_pair(a, b)
        one, other = await open_pair(a, b)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(full.write, bytes(10_000_000))
            await trio.sleep(10)
            await one.write(b"passes by")
            assert await read_exactly(other, 9) == b"passes by"
            nursery.cancel_scope.cancel()


async def test_a_slow_reader_holds_no_more_than_its_window(autojump_clock: MockClock) -> None:
    async with connected() as (a, b):
        one, other = await open_pair(a, b)
        with trio.move_on_after(100):
            await one.write(bytes(10_000_000))
        await trio.sleep(1)
        assert len(await other.read(1 << 30)) == FIRST_WINDOW_BYTES


async def test_a_window_grows_for_a_fast_reader_within_the_budget(
    autojump_clock: MockClock,
) -> None:
    async with connected() as (a, b):
        b.rtt_s = 1.0
        for _ in range(6):  # each stream's growth is given back at its end
            one, other = await open_pair(a, b)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one.write, bytes(8_000_000))
                await read_exactly(other, 8_000_000)
            assert 1 << 20 <= other.grown_bytes <= yamux_stream.WINDOW_MAX_BYTES
            await one.reset()
            await trio.sleep(1)
            assert b.growth_left_bytes == yamux.GROWTH_BYTES


async def test_frames_fill_noise_records_exactly(autojump_clock: MockClock) -> None:
    async with connected() as (a, b):
        one, other = await open_pair(a, b)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.write, bytes(1_000_000))
            await read_exactly(other, 1_000_000)
        written = a.secured_conn.written  # type: ignore[attr-defined]
        assert max(written) == 65519  # one more byte would make a second record


Attack = Callable[[Link], Any]


async def over_window(link: Link) -> None:
    await link.send_all(frame(WINDOW_UPDATE, SYN, 1, 0))
    for _ in range(17):
        await link.send_all(frame(DATA, 0, 1, 16384, bytes(16384)))


async def much_before_admission(link: Link) -> None:
    for stream in (1, 3):
        await link.send_all(frame(WINDOW_UPDATE, SYN, stream, 0))
        await link.send_all(frame(DATA, 0, stream, 33_000, bytes(33_000)))


async def endless_credit(link: Link) -> None:
    await link.send_all(frame(WINDOW_UPDATE, SYN, 1, 0))
    await link.send_all(frame(WINDOW_UPDATE, 0, 1, 0xFFFFFFFF))


async def our_stream_number(link: Link) -> None:
    await link.send_all(frame(WINDOW_UPDATE, SYN, 2, 0))


async def stream_twice(link: Link) -> None:
    await link.send_all(frame(WINDOW_UPDATE, SYN, 1, 0) * 2)


async def noise(link: Link) -> None:
    await link.send_all(b"\xff" * 100)


async def pings_unread(link: Link) -> None:
    with contextlib.suppress(trio.BrokenResourceError):  # that is the point
        for _ in range(40):
            await link.send_all(frame(PING, SYN, 0, 1) * 500)


@pytest.mark.parametrize(
    "attack",
    [
        over_window,
        much_before_admission,
        endless_credit,
        our_stream_number,
        stream_twice,
        noise,
        pings_unread,
    ],
)
async def test_a_peer_that_breaks_the_rules_is_disconnected(
    attack: Attack, autojump_clock: MockClock
) -> None:
    ours, theirs = memory_stream_pair()
    if attack is pings_unread:
        never_sends = MemorySendStream(send_all_hook=trio.sleep_forever)
        ours = trio.StapledStream(never_sends, ours.receive_stream)
    mux = MuxedConnection(MemoryLink(ours, False), PEER)
    if attack is not much_before_admission:
        mux.trust()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mux.start)
        await attack(theirs)
        with trio.fail_after(5):
            await mux.event_closed.wait()


async def test_a_peer_that_takes_no_bytes_is_disconnected(autojump_clock: MockClock) -> None:
    ours, theirs = memory_stream_pair()
    stuck = trio.StapledStream(
        MemorySendStream(send_all_hook=trio.sleep_forever), ours.receive_stream
    )
    mux = MuxedConnection(MemoryLink(stuck, True), PEER)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mux.start)
        stream = await mux.open_stream()
        with pytest.raises((MuxedStreamReset, MuxedStreamClosed)):
            await stream.write(bytes(10_000_000))
        assert trio.current_time() <= yamux.WRITE_STALL_S + 1
        assert "takes no bytes" in mux.ended_by
    await theirs.aclose()


async def test_many_writers_queue_no_more_than_a_few_frames(autojump_clock: MockClock) -> None:
    ours, _ = memory_stream_pair()
    stuck = trio.StapledStream(
        MemorySendStream(send_all_hook=trio.sleep_forever), ours.receive_stream
    )
    mux, queued = MuxedConnection(MemoryLink(stuck, True), PEER), list[int]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mux.start)

        async def write() -> None:
            stream = await mux.open_stream()
            await stream.write(bytes(60_000))
            queued.append(60_000)

        for _ in range(100):
            nursery.start_soon(write)
        await trio.sleep(1)
        assert sum(queued) <= yamux.QUEUE_BYTES + 65536
        nursery.cancel_scope.cancel()


async def test_closing_does_not_wait_for_a_peer_that_does_not_read(
    autojump_clock: MockClock,
) -> None:
    ours, _ = memory_stream_pair()
    stuck = trio.StapledStream(
        MemorySendStream(send_all_hook=trio.sleep_forever), ours.receive_stream
    )
    mux = MuxedConnection(MemoryLink(stuck, True), PEER)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mux.start)
        await mux.event_started.wait()
        start = trio.current_time()
        await mux.close()
        assert trio.current_time() - start <= yamux.CLOSE_S + 0.01


async def test_streams_end_with_their_connection(autojump_clock: MockClock) -> None:
    async with connected() as (a, b):
        one, other = await open_pair(a, b)
        done, done_too = await open_pair(a, b)
        await done.write(b"whole")
        await done.close()
        await trio.sleep(1)
        await a.close()
        await trio.sleep(1)
        for stream in (one, other):
            with pytest.raises(MuxedStreamReset):
                await stream.read(1)
        assert await read_exactly(done_too, 5) == b"whole"
        with pytest.raises(MuxedStreamEOF):
            await done_too.read(1)


async def test_streams_are_bounded_and_a_place_is_free_again_when_one_ends(
    autojump_clock: MockClock,
) -> None:
    async with connected() as (a, b):
        held = [await a.open_stream() for _ in range(yamux.STREAMS_OUT_MAX)]
        with trio.move_on_after(10) as waited:
            await a.open_stream()
        assert waited.cancelled_caught
        await held[0].reset()
        with trio.fail_after(1):
            await a.open_stream()
        b.streams_in_max = 3
        one, two = await open_pair(b, a)
        assert one
        assert two


@pytest.mark.parametrize("we_dial", [True, False])
async def test_it_speaks_with_libp2ps_own_muxer(we_dial: bool, nursery: trio.Nursery) -> None:
    ours, theirs = memory_stream_pair()
    mux = MuxedConnection(MemoryLink(ours, we_dial), PEER)
    mux.trust()
    reference = Yamux(MemoryLink(theirs, not we_dial), PEER, is_initiator=not we_dial)
    nursery.start_soon(mux.start)
    nursery.start_soon(reference.start)
    await reference.event_started.wait()
    data = bytes(range(256)) * 4096  # four windows
    one: Any
    other: Any
    if we_dial:
        one, other = await mux.open_stream(), await reference.accept_stream()
    else:
        one, other = await reference.open_stream(), await mux.accept_stream()
    for sender, receiver in ((one, other), (other, one)):
        async with trio.open_nursery() as both:
            both.start_soon(sender.write, data)
            received = b""
            while len(received) < len(data):
                received += await receiver.read(65536)
            assert received == data
        await sender.close()
        with pytest.raises(MuxedStreamEOF):
            await receiver.read(1)
    await mux.close()
    with trio.fail_after(2):
        await reference.event_closed.wait()


class Burst(MemoryLink):
    """A link on which several records come with one receive."""

    def __init__(self, stream: Link, bursts: list[list[bytes]]) -> None:
        super().__init__(stream, is_initiator=False)
        self._bursts = bursts

    async def receive(self) -> list[bytes]:
        await trio.lowlevel.checkpoint()
        if self._bursts:
            return self._bursts.pop(0)
        return await super().receive()


@pytest.mark.parametrize("proves", [True, False])
async def test_a_proof_counts_for_the_records_that_come_with_it(*, proves: bool) -> None:
    """trio runs the tasks of a turn in any order: each of 20 times it must come out right."""
    for _ in range(20):
        near, far = memory_stream_pair()
        opened, flood = frame(WINDOW_UPDATE, SYN, 1, 0), frame(DATA, 0, 1, 65_507, bytes(65_507))
        proof = frame(DATA, 0, 1, 50, b"proof" * 10)
        mux = MuxedConnection(Burst(near, [[opened], [proof, flood, flood]]), PEER)

        async def judge(mux: MuxedConnection = mux) -> None:
            stream = await mux.accept_stream()
            if await stream.read(50) == b"proof" * 10 and proves:
                mux.trust()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(mux.start)
            await judge()
            await wait_all_tasks_blocked()
            assert mux.is_closed is not proves
            nursery.cancel_scope.cancel()
        await far.aclose()
