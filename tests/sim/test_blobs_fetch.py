"""Blobs between simulated peers: several providers, liars, losses, resuming."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import trio
from trio.testing import MockClock

from protocols.blobs import service
from protocols.blobs.service import BlobService
from protocols.blobs.store import BlobStore, DiskError
from protocols.blobs.wire import CHUNK_BYTES, GET, Absent, Answer, Found, Get, hash_of
from tests.sim.net import Net
from wire.errors import BadMessage, NotFound, PeerUnreachable, UsageError
from wire.ids import PeerId
from wire.ports import Call

T = TypeVar("T")
A, B, C, D = (PeerId(name) for name in "ABCD")
DATA = bytes(range(251)) * 25_000  # 6 chunks, no two alike


async def in_place(work: Callable[[], T], /) -> T:
    await trio.lowlevel.checkpoint()
    return work()


class Peers:
    def __init__(self, net: Net, folder: Path) -> None:
        self.net, self.folder = net, folder

    def store(self, peer: PeerId) -> BlobStore:
        return BlobStore(self.folder / peer)

    def make(self, peer: PeerId) -> BlobService:
        return BlobService(self.net.rpc(peer), self.store(peer), off_loop=in_place)


@pytest.fixture
def peers(nursery: trio.Nursery, tmp_path: Path) -> Peers:
    return Peers(Net(nursery), tmp_path)


async def test_a_blob_comes_whole_with_progress(
    autojump_clock: MockClock, peers: Peers, tmp_path: Path
) -> None:
    a, b = peers.make(A), peers.make(B)
    (tmp_path / "in").write_bytes(DATA)
    cid = await b.put_file(tmp_path / "in")
    assert cid == await b.put_bytes(DATA)
    assert (await b.has(cid), await a.has(cid)) == (True, False)
    seen = list[tuple[int, int]]()
    await a.fetch(cid, [B], progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == [min(n * CHUNK_BYTES, len(DATA)) for n in range(len(seen))]
    assert seen[-1] == (len(DATA), len(DATA))
    assert await a.read_bytes(cid) == DATA
    await a.export(cid, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == DATA
    assert a.bytes_in == b.bytes_out > len(DATA)


@pytest.mark.parametrize("data", [b"", b"fish", bytes(3 * CHUNK_BYTES)])
async def test_small_and_repetitive_blobs_come_too(
    autojump_clock: MockClock, peers: Peers, data: bytes
) -> None:
    a, b = peers.make(A), peers.make(B)
    cid = await b.put_bytes(data)
    seen = list[int]()
    await a.fetch(cid, [B], progress=lambda done, _: seen.append(done))
    assert await a.read_bytes(cid) == data
    assert seen[-1] == len(data)


async def test_several_providers_share_the_work(autojump_clock: MockClock, peers: Peers) -> None:
    a, providers = peers.make(A), [peers.make(peer) for peer in (B, C)]
    for provider in providers:
        cid = await provider.put_bytes(DATA)
    await a.fetch(cid, [A, B, B, C])
    assert await a.has(cid)
    assert all(provider.bytes_out >= CHUNK_BYTES for provider in providers)
    assert sum(provider.bytes_out for provider in providers) == a.bytes_in


async def test_a_whole_blob_is_not_asked_for(autojump_clock: MockClock, peers: Peers) -> None:
    a = peers.make(A)
    cid = await a.put_bytes(DATA)
    await a.fetch(cid, [])
    await a.fetch(cid, [B])


async def test_a_fetch_goes_on_where_the_last_one_ended(
    autojump_clock: MockClock, peers: Peers
) -> None:
    a, b = peers.make(A), peers.make(B)
    cid = await b.put_bytes(DATA)
    chunk = hash_of(DATA[2 * CHUNK_BYTES : 3 * CHUNK_BYTES])
    lost = peers.store(B).path_of(chunk)
    content = lost.read_bytes()
    lost.unlink()
    with pytest.raises(NotFound, match=f"{cid}.*B: lacks {chunk.hex()}"):
        await a.fetch(cid, [B])
    before = a.bytes_in
    assert before >= len(DATA) - CHUNK_BYTES
    lost.write_bytes(content)
    first = list[int]()
    await a.fetch(cid, [B], progress=lambda done, _: first.append(done))
    assert a.bytes_in - before == CHUNK_BYTES
    assert first == [len(DATA) - CHUNK_BYTES, len(DATA)]
    assert await a.read_bytes(cid) == DATA


async def test_each_provider_may_lack_what_another_has(
    autojump_clock: MockClock, peers: Peers
) -> None:
    a, b, c = (peers.make(peer) for peer in (A, B, C))
    await b.put_bytes(DATA)
    cid = await c.put_bytes(DATA)
    pieces = [DATA[at : at + CHUNK_BYTES] for at in range(0, len(DATA), CHUNK_BYTES)]
    for index, piece in enumerate(pieces):
        peers.store(B if index % 2 else C).path_of(hash_of(piece)).unlink()
    await a.fetch(cid, [B, C])
    assert await a.read_bytes(cid) == DATA


async def test_a_liar_is_dropped_and_another_asked(autojump_clock: MockClock, peers: Peers) -> None:
    a, b = peers.make(A), peers.make(B)
    cid = await b.put_bytes(DATA)
    questions = list[bytes]()

    async def lie(call: Call[Answer, Get]) -> None:
        async for get in call:
            questions.append(get.hash)
            await call.send(Answer(Found(b"poison")))

    peers.net.rpc(C).serve_stream(GET, lie)
    with pytest.raises(NotFound, match="sent something else"):
        await a.fetch(cid, [C])
    await a.fetch(cid, [C, B])
    assert await a.read_bytes(cid) == DATA
    assert peers.store(A).get(hash_of(b"poison")) is None
    assert len(questions) <= 1 + service.PROVIDERS_MAX


async def test_a_decayed_chunk_of_a_provider_comes_from_another(
    autojump_clock: MockClock, peers: Peers
) -> None:
    a, b, c = (peers.make(peer) for peer in (A, B, C))
    await b.put_bytes(DATA)
    cid = await c.put_bytes(DATA)
    peers.store(B).path_of(hash_of(DATA[:CHUNK_BYTES])).write_bytes(bytes(CHUNK_BYTES))
    await a.fetch(cid, [B, C])
    assert await a.read_bytes(cid) == DATA


async def test_a_provider_that_dies_in_the_middle_is_replaced(
    autojump_clock: MockClock, peers: Peers
) -> None:
    a, b, c = (peers.make(peer) for peer in (A, B, C))
    await b.put_bytes(DATA)
    cid = await c.put_bytes(DATA)

    def kill(done: int, _: int) -> None:
        if done:
            peers.net.kill(B)

    await a.fetch(cid, [B, C], progress=kill)
    assert await a.read_bytes(cid) == DATA


async def test_a_provider_that_hangs_is_replaced_after_its_time(
    autojump_clock: MockClock, peers: Peers
) -> None:
    a, b = peers.make(A), peers.make(B)
    cid = await b.put_bytes(DATA)

    async def hang(call: Call[Answer, Get]) -> None:
        await trio.sleep_forever()

    peers.net.rpc(C).serve_stream(GET, hang)
    began = trio.current_time()
    await a.fetch(cid, [C, B])
    took_s = trio.current_time() - began
    assert await a.read_bytes(cid) == DATA
    assert service.CHUNK_TIMEOUT_S <= took_s < 2.5 * service.CHUNK_TIMEOUT_S


async def test_a_blob_over_the_limit_is_refused_before_a_chunk_of_it_is_fetched(
    autojump_clock: MockClock, peers: Peers
) -> None:
    a, b = peers.make(A), peers.make(B)
    cid = await b.put_bytes(DATA)
    with pytest.raises(BadMessage, match=f"has {len(DATA)} B, over {len(DATA) - 1} B"):
        await a.fetch(cid, [B], limit_bytes=len(DATA) - 1)
    assert a.bytes_in < 1024  # the manifest
    await a.fetch(cid, [B], limit_bytes=len(DATA))
    assert await a.read_bytes(cid) == DATA


async def test_errors_name_the_blob_and_say_whose_fault(
    autojump_clock: MockClock, peers: Peers
) -> None:
    a, b = peers.make(A), peers.make(B)
    cid = await b.put_bytes(DATA)
    with pytest.raises(PeerUnreachable, match=cid):
        await a.fetch(cid, [C, D])
    peers.make(C)
    with pytest.raises(NotFound, match=cid):
        await a.fetch(cid, [C, D])
    with pytest.raises(NotFound, match=cid):
        await a.fetch(cid, [])
    with pytest.raises(NotFound, match="is not a blob"):
        await a.fetch(hash_of(DATA[:CHUNK_BYTES]).hex(), [B])
    with pytest.raises(UsageError, match="not a CID"):
        await a.fetch("../../etc/passwd", [B])
    with pytest.raises(UsageError, match="No such file"):
        await a.put_file(Path("/nowhere/to/be/found"))
    with pytest.raises(UsageError, match="over 1000 B"):
        await b.read_bytes(cid, limit_bytes=1000)


async def test_a_full_disk_is_our_own_error(
    autojump_clock: MockClock, peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = peers.make(A), peers.make(B)
    cid = await b.put_bytes(DATA)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiskError, match="No space"):
        await a.fetch(cid, [B])


async def test_a_provider_that_answers_absent_for_ever_ends_the_fetch(
    autojump_clock: MockClock, peers: Peers
) -> None:
    async def absent(call: Call[Answer, Get]) -> None:
        async for _ in call:
            await call.send(Answer(Absent()))

    peers.net.rpc(B).serve_stream(GET, absent)
    with pytest.raises(NotFound):
        await peers.make(A).fetch("ab" * 32, [B])
