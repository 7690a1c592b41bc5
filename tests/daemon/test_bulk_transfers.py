"""Bulk transfers between real hosts on loopback: right, fair, and over when they should be."""

import secrets
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import trio

from protocols.bulk.places import part_of
from protocols.bulk.wire import SizeMismatch, Stalled, TransferEnded
from tests.daemon.bulk_hosts import MB, Peer, lane_threads, move, pair
from tests.daemon.hosts import eventually
from wire.errors import DeadlineExceeded, PeerUnreachable, ShoalError, UsageError

DATA = secrets.token_bytes(4 * MB) * 16  # 64 MB


class Outcome:
    """What became of one side of a transfer."""

    def __init__(self) -> None:
        self.value: int | None = None
        self.error: ShoalError | None = None
        self.moving = trio.Event()
        self.over = trio.Event()
        self.scope = trio.CancelScope()

    def progress(self, done: int, size: int) -> None:
        if 0 < done < size:
            self.moving.set()

    async def send(
        self, sender: Peer, receiver: Peer, data: bytes | Path, **options: float
    ) -> None:
        with self.scope:
            try:
                self.value = await sender.bulk.send(
                    receiver.id,
                    b"key",
                    data,
                    progress=self.progress,
                    **options,
                )
            except ShoalError as error:
                self.error = error
        self.over.set()

    async def receive(
        self, sender: Peer, receiver: Peer, place: bytearray, **options: float
    ) -> None:
        with self.scope:
            try:
                self.value = await receiver.bulk.receive_into(
                    sender.id, b"key", place, progress=self.progress, **options
                )
            except ShoalError as error:
                self.error = error
        self.over.set()


async def test_64_mb_arrive_over_lanes_whoever_has_dialled() -> None:
    async with pair() as (a, b):
        assert await move(a, b, DATA) == DATA
        assert await move(b, a, DATA[::-1]) == DATA[::-1]
        assert a.bulk.counters.fallbacks == b.bulk.counters.fallbacks == 0
        assert a.bulk.counters.lanes == b.bulk.counters.lanes in (2, 4)  # 4 on a slow machine
        assert a.bulk.counters.lanes_made <= 4  # they were kept, for both directions
        assert a.bulk.counters.bytes_out == b.bulk.counters.bytes_in == len(DATA)
        assert (a.bulk.counters.sent, b.bulk.counters.received) == (1, 1)


async def test_the_first_lanes_may_be_asked_for_by_the_side_that_did_not_dial() -> None:
    async with pair() as (a, b):
        assert await move(b, a, DATA[: 8 * MB]) == DATA[: 8 * MB]
        assert b.bulk.counters.fallbacks == 0
        assert b.bulk.counters.lanes == 1


async def test_both_directions_and_many_transfers_at_once() -> None:
    parts = [secrets.token_bytes(3 * MB + n) for n in range(6)]
    arrived = dict[int, bytes]()

    async def one(sender: Peer, receiver: Peer, n: int) -> None:
        arrived[n] = await move(sender, receiver, parts[n], key=bytes([n]))

    async with pair() as (a, b):
        async with trio.open_nursery() as nursery:
            for n in range(6):
                nursery.start_soon(one, *((a, b) if n % 2 else (b, a)), n)
        assert [arrived[n] for n in range(6)] == parts


async def test_three_transfers_at_once_share_fairly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocols.bulk.arrivals.REPORT_S", 0.005)  # or what is seen is old
    async with pair() as (a, b):
        await move(a, b, DATA[: 8 * MB])  # lanes are there
        done, first = dict[int, int](), list[dict[int, int]]()

        def progress(n: int, done_bytes: int, size_bytes: int) -> None:
            done[n] = done_bytes
            if done_bytes == size_bytes:
                first.append(dict(done))

        async with trio.open_nursery() as nursery:
            for n in range(3):
                key, place = bytes([n]), bytearray(len(DATA))
                nursery.start_soon(b.bulk.receive_into, a.id, key, place)
            for n in range(3):
                nursery.start_soon(
                    partial(a.bulk.send, progress=partial(progress, n)), b.id, bytes([n]), DATA
                )
        assert min(first[0].values()) > 0.6 * len(DATA)  # when the first one was through


async def test_a_numpy_array_a_byte_and_nothing() -> None:
    async with pair() as (a, b):
        array, place = (
            np.arange(1 << 18, dtype=np.float32).reshape(512, -1),
            np.zeros((512, 512), "f4"),
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.bulk.receive_into, a.id, b"array", place)
            assert await a.bulk.send(b.id, b"array", array) == array.nbytes
        assert (array == place).all()
        assert await move(a, b, b"x") == b"x"
        assert await move(a, b, b"") == b""
        with pytest.raises(UsageError, match="contiguous"):
            await a.bulk.send(b.id, b"array", array[:, ::2])
        with pytest.raises(UsageError, match="read-only"):
            await a.bulk.receive_into(b.id, b"k", b"fixed")


async def test_small_things_make_no_lane_and_use_one_that_is_there() -> None:
    async with pair() as (a, b):
        await move(a, b, b"x" * 1000)
        assert (a.bulk.counters.lanes_made, a.bulk.counters.fallbacks) == (0, 1)
        await move(a, b, DATA[: 2 * MB])
        await move(a, b, b"x" * 1000)
        assert (a.bulk.counters.lanes_made, a.bulk.counters.fallbacks) == (1, 1)


async def test_files_go_from_and_to_ranges(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(DATA[: 20 * MB])
    async with pair() as (a, b):
        for is_relayed in (False, True):
            if is_relayed:
                await cut_off(a, b)
            target.write_bytes(b"head")
            async with trio.open_nursery() as nursery:

                async def receive() -> None:
                    size = await b.bulk.receive_file(
                        a.id, b"file", target, offset=4, size_bytes=10 * MB
                    )
                    assert size == 10 * MB

                nursery.start_soon(receive)
                await a.bulk.send(b.id, b"file", part_of(source, 3 * MB, 10 * MB))
            assert target.read_bytes() == b"head" + DATA[3 * MB : 13 * MB]
        assert a.bulk.counters.fallbacks == 1
        with pytest.raises(UsageError, match="No such file"):
            await a.bulk.send(b.id, b"file", tmp_path / "absent")


async def cut_off(*peers: Peer) -> None:
    """Leave nothing but the libp2p connection."""
    for peer in peers:
        peer.no_lanes()
        for lane in peer.lanes():
            lane.close()
    await eventually(lambda: not any(peer.lanes() for peer in peers))


async def test_without_lanes_the_call_carries_it() -> None:
    async with pair() as (a, b):
        await cut_off(a, b)
        assert await move(a, b, DATA[: 16 * MB]) == DATA[: 16 * MB]
        assert (a.bulk.counters.fallbacks, a.bulk.counters.lanes_made) == (1, 0)


async def test_a_lane_lost_in_mid_transfer_costs_nothing_but_time() -> None:
    async with pair() as (a, b):
        sent, place = Outcome(), bytearray(len(DATA))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Outcome().receive, a, b, place)
            nursery.start_soon(partial(sent.send, rate_mb_s=100), a, b, DATA)
            for _ in range(3):
                await eventually(lambda: sent.over.is_set() or (a.lanes() and sent.moving.is_set()))
                for lane in a.lanes():
                    lane.close()
                sent.moving = trio.Event()
        assert sent.value == len(DATA)
        assert place == DATA
        assert a.bulk.counters.lanes_made > 2


async def test_all_lanes_lost_for_good_leave_the_rest_to_the_call() -> None:
    async with pair() as (a, b):
        sent, place = Outcome(), bytearray(len(DATA))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Outcome().receive, a, b, place)
            nursery.start_soon(partial(sent.send, rate_mb_s=200), a, b, DATA)
            await sent.moving.wait()
            await cut_off(a, b)
        assert place == DATA
        assert (a.bulk.counters.fallbacks, a.bulk.counters.failed) == (1, 0)


@pytest.mark.parametrize("room", [9, 11, 0])
async def test_another_size_is_refused_on_both_sides_before_a_byte_flows(room: int) -> None:
    async with pair() as (a, b):
        sent, got, place = Outcome(), Outcome(), bytearray(room)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(got.receive, a, b, place)
            nursery.start_soon(sent.send, a, b, b"0123456789")
        assert isinstance(sent.error, SizeMismatch)
        assert isinstance(got.error, SizeMismatch)
        assert place == bytes(room)
        place.append(0)  # given back: nobody holds it any more


async def test_who_comes_alone_to_the_rendezvous_leaves_in_time() -> None:
    async with pair() as (a, b):
        sent, got = Outcome(), Outcome()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(sent.send, wait_s=0.2), a, b, b"x")
            nursery.start_soon(partial(got.receive, wait_s=0.2), a, a, bytearray(1))
        assert isinstance(sent.error, DeadlineExceeded)
        assert isinstance(got.error, DeadlineExceeded)
        await eventually(lambda: b.rpc.counters.active_in == 0)


async def test_a_sender_that_gives_up_frees_the_receiver_and_the_other_way_round() -> None:
    async with pair() as (a, b):
        for who in ("sender", "receiver"):
            sent, got, place = Outcome(), Outcome(), bytearray(len(DATA))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(got.receive, a, b, place)
                nursery.start_soon(partial(sent.send, rate_mb_s=100), a, b, DATA)
                await sent.moving.wait()
                (sent if who == "sender" else got).scope.cancel()
                with trio.fail_after(3):
                    await got.over.wait()
                    place.append(0)  # nobody holds the buffer any more
                    await sent.over.wait()
            assert isinstance((got if who == "sender" else sent).error, TransferEnded)
        assert await move(a, b, DATA) == DATA  # the lanes have lived through it
        assert a.bulk.counters.lane_faults == b.bulk.counters.lane_faults == 0


async def test_a_file_that_becomes_shorter_fails_on_both_sides(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(DATA)
    async with pair() as (a, b):
        sent, got, place = Outcome(), Outcome(), bytearray(len(DATA))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(got.receive, a, b, place)
            nursery.start_soon(partial(sent.send, rate_mb_s=50), a, b, source)
            await sent.moving.wait()
            source.write_bytes(b"short")
        assert isinstance(sent.error, UsageError)
        assert isinstance(got.error, TransferEnded)


async def test_a_connection_that_ends_takes_transfers_and_lanes_with_it() -> None:
    async with pair() as (a, b):
        sent, got, place = Outcome(), Outcome(), bytearray(len(DATA))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(got.receive, a, b, place)
            nursery.start_soon(partial(sent.send, rate_mb_s=50), a, b, DATA)
            await sent.moving.wait()
            await a.host.disconnect(b.id)
        assert isinstance(sent.error, PeerUnreachable | TransferEnded)
        assert isinstance(got.error, PeerUnreachable | TransferEnded)
        await eventually(lambda: not a.lanes() and not b.lanes())
        await eventually(lambda: not lane_threads())


async def test_a_daemon_stops_in_mid_transfer_and_leaves_no_thread() -> None:
    sent, got, place = Outcome(), Outcome(), bytearray(len(DATA))
    async with trio.open_nursery() as nursery:
        async with pair() as (a, b):
            nursery.start_soon(got.receive, a, b, place)
            nursery.start_soon(partial(sent.send, rate_mb_s=50), a, b, DATA)
            await sent.moving.wait()
            assert lane_threads()
            start = trio.current_time()
        assert trio.current_time() - start < 5
        assert not lane_threads()
        place.append(0)
        nursery.cancel_scope.cancel()


async def test_lanes_that_nobody_uses_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocols.bulk.pool.IDLE_S", 0.2)
    monkeypatch.setattr("protocols.bulk.pool.SWEEP_S", 0.05)
    async with pair() as (a, b):
        await move(a, b, DATA[: 2 * MB])
        # The sender's thread counts what the socket took, perhaps after the other has it.
        await eventually(lambda: a.bulk.pool.wire_bytes()[1] == b.bulk.pool.wire_bytes()[0])
        wire_out = a.bulk.pool.wire_bytes()[1]
        assert 2 * MB < wire_out < 1.01 * 2 * MB
        await eventually(lambda: not a.lanes() and not b.lanes() and not lane_threads())
        assert a.bulk.pool.wire_bytes()[1] == wire_out
        assert await move(a, b, DATA[: 2 * MB]) == DATA[: 2 * MB]


async def test_a_stalled_transfer_fails_on_both_sides() -> None:
    async with pair(stall_s=0.4) as (a, b):
        sent, got, place = Outcome(), Outcome(), bytearray(len(DATA))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(got.receive, a, b, place)
            nursery.start_soon(partial(sent.send, rate_mb_s=0.02), a, b, DATA)  # 2 pieces a second
            await got.moving.wait()
            # As if everything on the way was lost: pieces go, and nobody hears of them.
            a.bulk.pool.desk(b.id).take = lambda lane, is_over: None  # type: ignore[method-assign]
            await cut_off(a, b)
            a.bulk.pool.desk(b.id).take_for_call = lambda *args: 1e9  # type: ignore[method-assign]
        assert isinstance(sent.error, Stalled)
        assert isinstance(got.error, Stalled | TransferEnded)
