"""Lanes and transfers of peers that do not play by the rules: nothing opens, nothing is spoilt."""

import contextlib
import secrets
import socket
from collections.abc import AsyncGenerator

import pytest
import trio

from protocols.bulk.records import (
    RECORD_MAX,
    SEALED_HEADER_BYTES,
    LaneKeys,
    Sealer,
    derive,
)
from protocols.bulk.wire import (
    DIAL,
    HELLO_BYTES,
    HELLO_MAGIC,
    LANE,
    PIECE_MAX,
    PROOF_BYTES,
    TRANSFER,
    Accept,
    Data,
    DialMe,
    Got,
    LaneOffer,
    Offer,
    ToReceiver,
    ToSender,
    hello,
    pack_header,
)
from protocols.rpc.service import RpcService
from tests.daemon.bulk_hosts import MB, Peer, lane_threads, move, pair
from tests.daemon.hosts import PATIENCE_S, eventually, make_host
from tests.daemon.test_bulk_transfers import Outcome
from wire.errors import RemoteError, ShoalError
from wire.ids import PeerId
from wire.ports import Call


class Villain:
    """A member of the swarm that speaks bulk by hand."""

    def __init__(self) -> None:
        self.host = make_host()
        self.rpc = RpcService(self.host)

    async def offer(self, victim: Peer) -> tuple[bytes, LaneKeys]:
        """Agree on a lane, in good order."""
        lane, secret = secrets.token_bytes(16), secrets.token_bytes(32)
        taken = await self.rpc.call(victim.id, LANE, LaneOffer(lane, secret), timeout_s=5)
        keys = derive(
            lane,
            dialler=self.host.peer,
            listener=victim.id,
            dialler_secret=secret,
            listener_secret=taken.secret,
        )
        return lane, keys

    async def lane(self, victim: Peer) -> tuple[trio.SocketStream, Sealer]:
        """Dial a lane, in good order."""
        lane, keys = await self.offer(victim)
        stream = await dial(victim, hello(lane, keys.dialler_proof))
        assert await stream.receive_some(PROOF_BYTES) == keys.listener_proof
        return stream, Sealer(keys.to_listener)


async def dial(victim: Peer, first: bytes) -> trio.SocketStream:
    port = int(victim.host.addresses()[0].split("/")[4])
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    await stream.send_all(first)
    return stream


async def is_hung_up_on(stream: trio.SocketStream) -> bool:
    with trio.fail_after(PATIENCE_S), contextlib.suppress(trio.BrokenResourceError):
        data = await stream.receive_some(1000)
        await stream.aclose()
        return data == b""
    await stream.aclose()
    return True


@contextlib.asynccontextmanager
async def attacked() -> AsyncGenerator[tuple[Villain, Peer]]:
    villain, victim = Villain(), Peer(stall_s=0.5)
    async with trio.open_nursery() as nursery:
        await nursery.start(victim.run)
        await nursery.start(villain.host.run)
        await villain.host.connect(victim.host.addresses()[0])
        yield villain, victim
        nursery.cancel_scope.cancel()


def record(sealer: Sealer, transfer: int, offset: int, body: bytes) -> bytes:
    return bytes(sealer.seal(transfer, offset, body, memoryview(bytearray(RECORD_MAX))))


async def receive(
    got: Outcome, villain: Villain, victim: Peer, place: bytearray, key: bytes = b"key"
) -> None:
    """What `Outcome.receive` does, from a villain."""
    try:
        got.value = await victim.bulk.receive_into(villain.host.peer, key, place)
    except ShoalError as error:
        got.error = error
    got.over.set()


@pytest.mark.parametrize(
    "first",
    [
        HELLO_MAGIC[:1] + secrets.token_bytes(500),
        HELLO_MAGIC + secrets.token_bytes(HELLO_BYTES - len(HELLO_MAGIC)),
        hello(bytes(16), bytes(32)) * 100,
    ],
    ids=["long", "magic", "hellos"],
)
async def test_strangers_bytes_are_no_lane_and_are_counted(first: bytes) -> None:
    async with attacked() as (_, victim):
        assert await is_hung_up_on(await dial(victim, first))
        await eventually(lambda: victim.bulk.counters.hellos_refused == 1)
        assert victim.bulk.counters.lanes_made == 0


async def test_half_a_hello_holds_a_strangers_place_and_not_for_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("node.host.lanes.HELLO_S", 0.3)
    async with attacked() as (_, victim):
        before = victim.host.counters().connections
        stream = await dial(victim, HELLO_MAGIC)
        await eventually(lambda: victim.host.counters().connections == before + 1)
        assert await is_hung_up_on(stream)
        await eventually(lambda: victim.host.counters().connections == before)


async def test_a_hello_opens_one_lane_once_and_only_with_its_proof() -> None:
    async with attacked() as (villain, victim):
        lane, keys = await villain.offer(victim)
        for wrong in (bytes(32), keys.listener_proof):
            assert await is_hung_up_on(await dial(victim, hello(lane, wrong)))
        good = hello(lane, keys.dialler_proof)  # the wrong ones have not used it up
        stream = await dial(victim, good)
        assert await stream.receive_some(PROOF_BYTES) == keys.listener_proof
        assert await is_hung_up_on(await dial(victim, good))
        assert victim.bulk.counters.hellos_refused == 3
        assert victim.bulk.counters.lanes == 1
        await stream.aclose()
        await eventually(lambda: victim.bulk.counters.lanes == 0 and not lane_threads())


async def test_an_offer_that_is_not_dialled_in_time_is_void(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("protocols.bulk.pool.EXPECT_S", -1.0)
    async with attacked() as (villain, victim):
        lane, keys = await villain.offer(victim)
        assert await is_hung_up_on(await dial(victim, hello(lane, keys.dialler_proof)))


async def test_a_peer_has_only_so_many_offers_open_and_lanes() -> None:
    async with attacked() as (villain, victim):
        for _ in range(8):
            await villain.offer(victim)
        with pytest.raises(RemoteError) as caught:
            await villain.offer(victim)
        assert caught.value.code == "busy"


async def test_offers_that_all_come_true_are_not_more_lanes_than_there_may_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with attacked() as (villain, victim):
        held = [await villain.lane(victim) for _ in range(4)]
        await eventually(lambda: victim.bulk.counters.lanes == 4)
        offers = [await villain.offer(victim) for _ in range(4)]
        with pytest.raises(RemoteError, match="lanes"):
            await villain.offer(victim)
        monkeypatch.setattr("protocols.bulk.pool.LANES_MAX", 2)  # others have taken them
        streams = [await dial(victim, hello(lane, keys.dialler_proof)) for lane, keys in offers]
        for stream in streams[2:]:
            assert len(await stream.receive_some(PROOF_BYTES)) == PROOF_BYTES
            assert await is_hung_up_on(stream)
        assert victim.bulk.counters.lanes == len(held) + 2
        for stream in [*(stream for stream, _ in held), *streams[:2]]:
            await stream.aclose()


async def test_bytes_that_were_not_sealed_next_end_the_lane() -> None:
    async with attacked() as (villain, victim):
        for attack in ("garbage", "again", "tampered", "length"):
            stream, sealer = await villain.lane(victim)
            good = record(sealer, 1, 0, b"of no transfer: thrown away")
            await stream.send_all(good)
            if attack == "garbage":
                await stream.send_all(secrets.token_bytes(1000))
            elif attack == "again":
                await stream.send_all(good)
            elif attack == "tampered":
                bad = bytearray(record(sealer, 1, 0, b"x" * 100))
                bad[-1] ^= 1
                await stream.send_all(bad)
            else:
                await stream.send_all(sealed_header(sealer, pack_header(1, 0, PIECE_MAX + 1)))
            assert await is_hung_up_on(stream)
        await eventually(lambda: victim.bulk.counters.lanes == 0)
        assert victim.bulk.counters.lane_faults == 4


def sealed_header(sealer: Sealer, header: bytes) -> bytes:
    """A header that an honest sealer would not seal."""
    nonce = sealer._nonce()  # pyright: ignore[reportPrivateUsage]
    return sealer._aead.encrypt(nonce, header, None)  # pyright: ignore[reportPrivateUsage]


async def test_a_cut_in_the_middle_of_a_record_is_no_piece() -> None:
    async with attacked() as (villain, victim):
        got, place = Outcome(), bytearray(1000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive, got, villain, victim, place)
            async with agreed(villain, victim, size_bytes=1000):
                stream, sealer = await villain.lane(victim)
                whole = record(sealer, 1, 0, b"x" * 1000)
                await stream.send_all(whole[: SEALED_HEADER_BYTES + 999])
                await stream.aclose()
                await got.over.wait()
        assert got.error is not None
        assert got.error.code == "stalled"
        assert place == bytes(1000)


@contextlib.asynccontextmanager
async def agreed(
    villain: Villain, victim: Peer, *, size_bytes: int
) -> AsyncGenerator[Call[ToReceiver, ToSender]]:
    """Have a transfer accepted; what the victim says of its end is not listened to."""
    with contextlib.suppress(ShoalError):
        async with villain.rpc.stream(victim.id, TRANSFER, timeout_s=5) as call:
            await call.send(ToReceiver(Offer(1, b"key", size_bytes, 16 * 1024)))
            assert (await call.receive()).body == Accept()
            yield call


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 999), (16384, 1), (40_000, 7232), (1 << 40, 16384), (2**63, 16384)]
)
async def test_what_is_no_piece_of_the_transfer_never_touches_the_buffer(
    offset: int, length: int
) -> None:
    async with attacked() as (villain, victim):
        got, place = Outcome(), bytearray(40_000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive, got, villain, victim, place)
            async with agreed(villain, victim, size_bytes=len(place)) as call:
                stream, sealer = await villain.lane(victim)
                await stream.send_all(record(sealer, 1, offset, b"x" * length))
                assert await is_hung_up_on(stream)
                if offset < 1 << 40:
                    await call.send(ToReceiver(Data(offset, b"x" * length)))
                await got.over.wait()
        assert got.error is not None
        assert got.error.code in ("bad_message", "stalled")
        assert place == bytes(40_000)


async def test_a_sender_that_sends_nothing_and_a_receiver_that_lies_are_found_out() -> None:
    async with attacked() as (villain, victim):
        got = Outcome()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive, got, villain, victim, bytearray(1000))
            async with agreed(villain, victim, size_bytes=1000):
                await got.over.wait()
        assert got.error is not None
        assert got.error.code == "stalled"

        answers = [ToSender(Got([(0, 1)])), ToSender(Accept())]

        async def lie(call: Call[ToSender, ToReceiver]) -> None:
            await call.send(ToSender(Accept()))
            await call.send(answers.pop())
            await trio.sleep_forever()

        villain.rpc.serve_stream(TRANSFER, lie)
        for _ in range(2):
            with pytest.raises(ShoalError) as caught:
                await victim.bulk.send(villain.host.peer, b"key", bytes(MB))
            assert caught.value.code in ("bad_message", "stalled")


async def test_a_sender_that_takes_no_reports_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("protocols.rpc.machine.WINDOW_BYTES", 20_000)
    monkeypatch.setattr("protocols.rpc.machine.WIDE_BYTES", 0)
    monkeypatch.setattr("protocols.bulk.arrivals.REPORT_S", 0.001)
    size_bytes = 16 * 1024
    async with attacked() as (villain, victim):
        got, place = Outcome(), bytearray(400 * size_bytes)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive, got, villain, victim, place)
            async with agreed(villain, victim, size_bytes=len(place)) as call:
                with trio.fail_after(PATIENCE_S):
                    for index in range(300):  # a report each: more than a call takes unread
                        await call.send(ToReceiver(Data(index * size_bytes, bytes(size_bytes))))
                        await trio.sleep(0.003)
                    await got.over.wait()
        assert got.error is not None
        assert "took no report" in str(got.error)


async def test_a_number_used_twice_does_not_end_the_transfer_that_has_it() -> None:
    async with attacked() as (villain, victim):
        got, other, place = Outcome(), Outcome(), bytearray(1000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive, got, villain, victim, place)
            async with agreed(villain, victim, size_bytes=len(place)) as call:
                with pytest.raises(ShoalError):  # noqa: PT012
                    async with villain.rpc.stream(victim.id, TRANSFER, timeout_s=5) as again:
                        nursery.start_soon(receive, other, villain, victim, bytearray(9), b"other")
                        await again.send(ToReceiver(Offer(1, b"other", 9, 16 * 1024)))
                        await again.receive()
                await call.send(ToReceiver(Data(0, b"x" * 1000)))
                await got.over.wait()
        assert got.error is None
        assert place == b"x" * 1000


async def test_an_honest_transfer_beside_a_flood_of_false_hellos() -> None:
    data, is_over = secrets.token_bytes(8 * MB), trio.Event()
    async with pair() as (a, b):
        async with trio.open_nursery() as nursery:

            async def flood() -> None:
                while not is_over.is_set():
                    stream = await dial(b, hello(secrets.token_bytes(16), bytes(32)))
                    assert await is_hung_up_on(stream)

            for _ in range(5):
                nursery.start_soon(flood)
            await eventually(lambda: b.bulk.counters.hellos_refused > 20)
            assert await move(a, b, data) == data
            is_over.set()
        assert a.bulk.counters.fallbacks == 0


async def test_who_answers_without_the_listeners_proof_is_no_lane() -> None:
    async with pair() as (a, b):
        real = a.host.lanes.dial

        async def misled(
            peer: PeerId, first: bytes, answer_bytes: int
        ) -> tuple[socket.socket, bytes]:
            sock, answer = await real(peer, first, answer_bytes)
            return sock, bytes(len(answer))

        a.host.lanes.dial = misled  # type: ignore[method-assign]
        assert await move(a, b, bytes(MB)) == bytes(MB)  # through the call
        assert a.bulk.counters.lanes_made == 0
        assert a.bulk.counters.fallbacks == 1


async def test_a_peer_cannot_make_us_dial_where_we_have_not_dialled_before() -> None:
    async with pair() as (a, b):
        answer = await a.rpc.call(b.id, DIAL, DialMe(4), timeout_s=5)  # a dialled b, not b a
        assert answer.lanes == 0
        answer = await b.rpc.call(a.id, DIAL, DialMe(4), timeout_s=5)
        assert answer.lanes == 4
