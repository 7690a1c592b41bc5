"""Blobs between simulated peers: found, shared out among providers, in parts, in folders."""

import sqlite3
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from protocols.blobs.progress import Transfer
from protocols.blobs.wire import (
    CHUNK_BYTES,
)
from tests.sim.blob_peers import Peers
from tests.sim.net import Net
from wire.errors import NotFound
from wire.ids import PeerId

A, B, C, D = (PeerId(name) for name in "ABCD")
DATA = bytes(range(251)) * 25_000  # 6 chunks, no two alike
BIG = b"".join(number.to_bytes(4, "big") * (CHUNK_BYTES // 4) for number in range(60))


@pytest.fixture
def peers(nursery: trio.Nursery, tmp_path: Path) -> Peers:
    return Peers(Net(nursery), tmp_path / "peers")


async def test_a_blob_comes_whole_with_progress(
    autojump_clock: MockClock, peers: Peers, tmp_path: Path
) -> None:
    a, b = peers.make(A), peers.make(B)
    (tmp_path / "in").write_bytes(DATA)
    cid = await b.put_file(tmp_path / "in")
    assert cid == await b.put_bytes(DATA)
    assert (await b.has(cid), await a.has(cid)) == (True, False)
    seen = list[tuple[int, int]]()
    await a.fetch(cid, [B], report=lambda t: seen.append((t.done_bytes, t.size_bytes)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len({done for done, _ in seen}) == 7
    assert seen[-1] == (len(DATA), len(DATA))
    assert await a.read_bytes(cid) == DATA
    await a.export(cid, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == DATA
    assert a.counters.bytes_in == b.counters.bytes_out > len(DATA)


@pytest.mark.parametrize("data", [b"", b"fish", bytes(CHUNK_BYTES), bytes(3 * CHUNK_BYTES)])
async def test_small_and_repetitive_blobs_come_too(
    autojump_clock: MockClock, peers: Peers, data: bytes
) -> None:
    a, b = peers.make(A), peers.make(B)
    cid = await b.put_bytes(data)
    last = Transfer()

    def report(transfer: Transfer) -> None:
        nonlocal last
        last = transfer

    await a.fetch(cid, [B], report=report)
    assert await a.read_bytes(cid) == data
    assert last.done_bytes == last.size_bytes == len(data)


async def test_several_providers_share_the_work(autojump_clock: MockClock, peers: Peers) -> None:
    a, providers = peers.make(A), [peers.make(peer) for peer in (B, C)]
    for provider in providers:
        cid = await provider.put_bytes(BIG)
    await a.fetch(cid, [A, B, B, C])
    assert await a.read_bytes(cid) == BIG
    assert all(p.counters.bytes_out >= 20 * CHUNK_BYTES for p in providers)
    assert a.counters.bytes_wasted <= 4 * CHUNK_BYTES


async def test_a_whole_blob_is_not_asked_for(autojump_clock: MockClock, peers: Peers) -> None:
    a = peers.make(A)
    cid = await a.put_bytes(DATA)
    await a.fetch(cid, [])
    await a.fetch(cid, [B])


async def test_a_late_provider_is_found_and_used(autojump_clock: MockClock, peers: Peers) -> None:
    a = peers.make(A, meets=True)
    b = peers.make(B, upload_bytes_per_s=CHUNK_BYTES)
    cid = await b.put_bytes(BIG)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.fetch, cid)
        await trio.sleep(5)
        c = peers.make(C, upload_bytes_per_s=10 * CHUNK_BYTES)
        await c.put_bytes(BIG)
    assert await a.read_bytes(cid) == BIG
    assert trio.current_time() - began < 22
    assert c.counters.bytes_out > 30 * CHUNK_BYTES


async def test_members_and_the_directory_say_who_has_it(
    autojump_clock: MockClock, peers: Peers
) -> None:
    a, b = peers.make(A, meets=True), peers.make(B)
    peers.make(C)
    cid = await b.put_bytes(DATA)
    began = trio.current_time()
    await a.fetch(cid)
    assert trio.current_time() - began < 1
    d = peers.make(D, listed=True)
    with pytest.raises(NotFound, match="nobody"):
        await d.fetch(cid)
    peers.board[cid.encode()] = [B]
    await d.fetch(cid)
    assert await d.read_bytes(cid) == DATA


async def test_what_is_here_is_announced_and_what_has_gone_is_withdrawn(
    autojump_clock: MockClock, peers: Peers, nursery: trio.Nursery
) -> None:
    b = peers.make(B, listed=True)
    cids = [await b.put_bytes(bytes([number])) for number in range(5)]
    await nursery.start(b.run)
    await trio.sleep(1)
    assert set(peers.board) == {cid.encode() for cid in cids}
    await b.remove(cids[0])
    await trio.sleep(1)
    assert peers.board[cids[0].encode()] == []
    assert peers.board[cids[1].encode()] == [B]


async def test_two_that_fetch_at_once_help_each_other(
    autojump_clock: MockClock, peers: Peers
) -> None:
    a, b = peers.make(A, meets=True), peers.make(B, meets=True)
    c = peers.make(C, upload_bytes_per_s=2 * CHUNK_BYTES)
    cid = await c.put_bytes(BIG)
    async with trio.open_nursery() as nursery:
        for fetcher in (a, b):
            nursery.start_soon(fetcher.fetch, cid)
    assert await a.read_bytes(cid) == await b.read_bytes(cid) == BIG
    assert c.counters.bytes_out < 90 * CHUNK_BYTES  # 120 if they did not
    assert a.counters.bytes_out > 10 * CHUNK_BYTES < b.counters.bytes_out


async def test_a_range_fetches_only_its_chunks_and_the_rest_comes_later(
    autojump_clock: MockClock, peers: Peers
) -> None:
    a, b = peers.make(A), peers.make(B)
    cid = await b.put_bytes(BIG)
    start, stop = 3 * CHUNK_BYTES - 5, 4 * CHUNK_BYTES + 5
    assert await a.read_range(cid, start, stop, [B]) == BIG[start:stop]
    assert 3 * CHUNK_BYTES <= a.counters.bytes_in < 3 * CHUNK_BYTES + 10_000
    assert await a.read_range(cid, start, stop) == BIG[start:stop]  # asks nobody
    assert await a.read_range(cid, 10**12, 10**12 + 5, [B]) == b""
    assert not await a.has(cid)
    await a.fetch(cid, [B])
    assert a.counters.bytes_in < len(BIG) + 10_000
    assert await a.read_bytes(cid) == BIG


async def test_a_folder_comes_with_all_its_files(
    autojump_clock: MockClock, peers: Peers, tmp_path: Path
) -> None:
    a, b = peers.make(A), peers.make(B)
    root = tmp_path / "in"
    (root / "deep" / "er").mkdir(parents=True)
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / "deep" / "er" / "big").write_bytes(DATA)
    (root / "same").write_bytes(DATA)
    (root / "empty").touch()
    for number in range(40):
        (root / f"small{number}").write_bytes(bytes([number]) * 100)
    row = await b.add(root, name="in")
    seen = Transfer()

    def report(transfer: Transfer) -> None:
        nonlocal seen
        seen = transfer

    await a.fetch(row.cid, [B], report=report)
    assert seen.files == 44
    assert seen.done_bytes == seen.size_bytes == 2 * len(DATA) + 4010
    assert await a.has(row.cid)
    await a.export(row.cid, tmp_path / "out")
    for path in sorted(root.rglob("*")):
        copy = tmp_path / "out" / path.relative_to(root)
        assert copy.is_dir() if path.is_dir() else copy.read_bytes() == path.read_bytes()
        assert path.is_dir() or (copy.stat().st_mode & 0o100) == (path.stat().st_mode & 0o100)
    assert (await a.add(tmp_path / "out")).cid == row.cid


@pytest.mark.parametrize(("count", "share"), [(1, 0.95), (3, 0.9)])
async def test_every_provider_is_kept_busy(
    autojump_clock: MockClock, peers: Peers, count: int, share: float
) -> None:
    """Each gives 20 MB/s; what is lost is the start and the end."""
    peers.net.latency_s = 0.002  # with its windows of 256 KiB the net is no bottleneck
    cid = ""
    providers = [PeerId(name) for name in "BCD"[:count]]
    for provider in providers:
        cid = await peers.make(provider, upload_bytes_per_s=20e6).put_bytes(BIG * count)
    a = peers.make(A)
    began = trio.current_time()
    await a.fetch(cid, providers)
    rate = len(BIG) * count / (trio.current_time() - began)
    assert rate >= share * 20e6 * count


async def test_a_table_that_fails_does_not_end_the_service(
    autojump_clock: MockClock, peers: Peers, nursery: trio.Nursery
) -> None:
    a = peers.make(A, listed=True)
    cid = await a.put_bytes(b"still here")
    broken = sqlite3.connect(a.store.folder / "index.db", isolation_level=None)
    broken.execute("ALTER TABLE blobs RENAME TO gone")
    await nursery.start(a.run)
    await trio.sleep(100)
    assert not peers.board
    broken.execute("ALTER TABLE gone RENAME TO blobs")
    broken.close()
    await trio.sleep(100)
    assert list(peers.board) == [cid.encode()]
