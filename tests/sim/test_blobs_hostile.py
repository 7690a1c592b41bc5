"""Members that ask for blobs as none of ours would: they cost little and get nothing."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from protocols.blobs import give
from protocols.blobs.service import BlobService
from protocols.blobs.wire import (
    CHUNK_BYTES,
    GET,
    WHO,
    Ask,
    Cancel,
    Get,
    Have,
    Tell,
    Want,
    Who,
)
from tests.sim.blob_peers import Peers
from tests.sim.net import Net
from tests.sim.test_blobs_fetch import BIG
from wire import codec
from wire.errors import BadMessage, PeerUnreachable, RemoteError
from wire.ids import PeerId
from wire.ports import Call

A, B = PeerId("A"), PeerId("B")
Conversation = Callable[[Call[Ask, Tell], str], Awaitable[None]]


@pytest.fixture
def peers(nursery: trio.Nursery, tmp_path: Path) -> Peers:
    return Peers(Net(nursery), tmp_path / "peers")


@pytest.fixture
async def giver(peers: Peers) -> tuple[BlobService, str]:
    service = peers.make(B)
    return service, await service.put_bytes(BIG)


async def drain(call: Call[Ask, Tell]) -> None:
    while True:
        await call.receive()


async def too_many(call: Call[Ask, Tell], cid: str) -> None:
    await call.send(Ask(Want(cid)))
    for first in (0, 16, 32, 44, 0, 16):  # over QUEUE_MAX before the first can be read
        await call.send(Ask(Get(first, 16)))


async def beyond_the_end(call: Call[Ask, Tell], cid: str) -> None:
    await call.send(Ask(Want(cid)))
    await call.send(Ask(Get(59, 2)))


async def want_twice(call: Call[Ask, Tell], cid: str) -> None:
    await call.send(Ask(Want(cid)))
    await call.send(Ask(Want(cid)))


async def get_first(call: Call[Ask, Tell], cid: str) -> None:
    await call.send(Ask(Get(0, 1)))


async def false_name(call: Call[Ask, Tell], cid: str) -> None:
    await call.send(Ask(Want("b" + "7" * 58)))


@pytest.mark.parametrize(
    "talk",
    [too_many, beyond_the_end, want_twice, get_first, false_name],
    ids=lambda each: each.__name__,
)
async def test_who_breaks_the_rules_is_told_and_cut_off(
    autojump_clock: MockClock, peers: Peers, giver: tuple[BlobService, str], talk: Conversation
) -> None:
    async with peers.net.rpc(A).stream(B, GET, timeout_s=5) as call:
        await talk(call, giver[1])
        with pytest.raises((RemoteError, PeerUnreachable)) as caught:
            await drain(call)
    # Cut off in the middle of a chunk, there is no word after it.
    assert caught.value.code in ("bad_message", "unreachable")
    assert giver[0].store._open == {}


async def test_who_asks_and_does_not_read_holds_little_and_not_for_long(
    autojump_clock: MockClock, peers: Peers, giver: tuple[BlobService, str]
) -> None:
    service, cid = giver

    async def ask_only() -> None:
        async with peers.net.rpc(A).stream(B, GET, timeout_s=5) as call:
            await call.send(Ask(Want(cid)))
            for first in range(0, 48, 16):
                await call.send(Ask(Get(first, 16)))
            await trio.sleep(10 * give.SEND_WAIT_S)

    async with trio.open_nursery() as nursery:
        for _ in range(16):
            nursery.start_soon(ask_only)
        await trio.sleep(5)
        assert 0 < service._giving._chunks[A] <= give.CHUNKS_OF_PEER
        other = peers.make(PeerId("C"))
        await other.fetch(cid, [B])  # others are served meanwhile
        await trio.sleep(6 * give.SEND_WAIT_S)
        assert service._giving._chunks[A] == 0
        assert service.store._open == {}
        nursery.cancel_scope.cancel()


async def test_silence_ends_a_stream(
    autojump_clock: MockClock, peers: Peers, giver: tuple[BlobService, str]
) -> None:
    service, cid = giver
    async with peers.net.rpc(A).stream(B, GET, timeout_s=5) as call:
        with pytest.raises(RemoteError, match="no question"):
            await call.receive()
    async with peers.net.rpc(A).stream(B, GET, timeout_s=5) as call:
        await call.send(Ask(Want(cid)))
        assert (await call.receive()).what == Have(b"")
        assert len(service.store._open) == 1
        with pytest.raises(trio.EndOfChannel):
            await call.receive()
    assert service.store._open == {}


async def test_what_is_cancelled_is_not_sent(
    autojump_clock: MockClock, peers: Peers, giver: tuple[BlobService, str]
) -> None:
    service, cid = giver
    service._giving.pace._bytes_per_s = CHUNK_BYTES
    async with peers.net.rpc(A).stream(B, GET, timeout_s=5) as call:
        await call.send(Ask(Want(cid)))
        await call.send(Ask(Get(0, 16)))
        for index in range(8, 16):
            await call.send(Ask(Cancel(index)))
        await call.receive()
        got = [(await call.receive()).what for _ in range(8)]
        assert [getattr(each, "index", None) for each in got] == list(range(8))
        with trio.move_on_after(30):
            raise AssertionError(await call.receive())


async def test_a_folder_or_nothing_has_no_chunks(
    autojump_clock: MockClock, peers: Peers, giver: tuple[BlobService, str], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    row = await giver[0].add(tmp_path / "in")
    assert (await peers.net.rpc(A).call(B, WHO, Who(row.cid), timeout_s=5)).chunks == 1
    async with peers.net.rpc(A).stream(B, GET, timeout_s=5) as call:
        await call.send(Ask(Want(row.cid)))
        with pytest.raises(RemoteError, match="is a folder"):
            await call.receive()


@pytest.mark.parametrize("type_", [Ask, Tell, Who])
@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_message_or_bad(type_: type[Ask | Tell | Who], data: bytes) -> None:
    decoder = msgspec.msgpack.Decoder(type_)
    try:
        message = codec.decode(data, decoder, GET.frame_max)
    except BadMessage:
        return
    assert codec.decode(codec.encode(message), decoder, GET.frame_max) == message
