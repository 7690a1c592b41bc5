"""Fetching blobs when something is wrong: liars, losses, full disks, limits."""

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from protocols.blobs import machine
from protocols.blobs.files import DiskError
from protocols.blobs.progress import Transfer
from protocols.blobs.service import BlobService
from protocols.blobs.space import QuotaError
from protocols.blobs.store import BlobStore
from protocols.blobs.wire import (
    CHUNK_BYTES,
    OBJECT,
    Ask,
    Cancel,
    Chunk,
    Gained,
    Get,
    Have,
    Missing,
    Object,
    Tell,
    Who,
    hash_of,
    raw_cid,
)
from tests.sim.blob_peers import Peers, claim_all, hang, in_place, lie, manifest_of
from tests.sim.net import Net
from wire.errors import BadMessage, NotFound, PeerUnreachable, UsageError
from wire.ids import PeerId
from wire.ports import Call

A, B, C, D = (PeerId(name) for name in "ABCD")
DATA = bytes(range(251)) * 25_000  # 6 chunks, no two alike
BIG = b"".join(number.to_bytes(4, "big") * (CHUNK_BYTES // 4) for number in range(60))


@pytest.fixture
def peers(nursery: trio.Nursery, tmp_path: Path) -> Peers:
    return Peers(Net(nursery), tmp_path / "peers")


async def test_a_fetch_goes_on_where_the_last_one_ended(
    autojump_clock: MockClock, peers: Peers
) -> None:
    a = peers.make(A)
    cid = await peers.make(B).put_bytes(DATA)

    async def three(call: Call[Tell, Ask]) -> None:
        await claim_all(call)
        async for ask in call:
            assert isinstance(ask.what, Get)
            for index in range(ask.what.first, ask.what.first + ask.what.count):
                data = DATA[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
                here = index < 3
                await call.send(Tell(Chunk(index, data) if here else Missing(index)))

    peers.serve(C, three)
    peers.net.rpc(C).serve(OBJECT, manifest_of(peers))
    with pytest.raises(NotFound, match=f"{cid}.*C: lacks chunk"):
        await a.fetch(cid, [C])
    before = a.counters.bytes_in
    assert before >= 3 * CHUNK_BYTES
    first = list[int]()
    await a.fetch(cid, [B], report=lambda t: first.append(t.done_bytes))
    assert first[0] == 3 * CHUNK_BYTES
    assert a.counters.bytes_in - before == len(DATA) - 3 * CHUNK_BYTES
    assert await a.read_bytes(cid) == DATA


async def test_a_liar_is_dropped_and_another_asked(autojump_clock: MockClock, peers: Peers) -> None:
    a, b = peers.make(A), peers.make(B)
    cid = await b.put_bytes(BIG)
    peers.serve(C, lie)
    seen = Transfer()

    def report(transfer: Transfer) -> None:
        nonlocal seen
        seen = transfer

    await a.fetch(cid, [C, B], report=report)
    assert await a.read_bytes(cid) == BIG
    assert "sent something else" in seen.shares[C].note
    assert seen.shares[B].got_bytes >= len(BIG)
    assert 1 <= a.counters.corrupt_chunks <= machine.WINDOW_FIRST
    assert a.counters.providers_dropped == 1


async def test_only_liars_is_no_blob(autojump_clock: MockClock, peers: Peers) -> None:
    a, b = peers.make(A), peers.make(B)
    cid = await b.put_bytes(BIG)
    peers.serve(C, lie)
    peers.net.rpc(C).serve(OBJECT, manifest_of(peers))
    with pytest.raises(NotFound, match="sent something else"):
        await a.fetch(cid, [C])
    assert not await a.has(cid)


async def test_a_lying_manifest_is_no_manifest(autojump_clock: MockClock, peers: Peers) -> None:
    a, b = peers.make(A), peers.make(B)
    cid = await b.put_bytes(DATA)

    async def lie_at_once(_: PeerId, who: Who) -> Object:
        await trio.lowlevel.checkpoint()
        return Object(b"poison" * 1000)

    peers.net.rpc(C).serve(OBJECT, lie_at_once)
    await a.fetch(cid, [C, B])
    assert await a.read_bytes(cid) == DATA
    assert a.counters.providers_dropped == 1


async def test_a_decayed_chunk_of_a_provider_comes_from_another(
    autojump_clock: MockClock, peers: Peers
) -> None:
    a, b, c = (peers.make(peer) for peer in (A, B, C))
    await b.put_bytes(DATA)
    cid = await c.put_bytes(DATA)
    with b.store.path_of(cid).open("r+b") as file:
        file.write(bytes(CHUNK_BYTES))
    await a.fetch(cid, [B, C])
    assert await a.read_bytes(cid) == DATA
    assert b.store.decayed <= 1  # never sent
    assert a.counters.corrupt_chunks == 0


async def test_a_provider_that_dies_in_the_middle_is_replaced(
    autojump_clock: MockClock, peers: Peers
) -> None:
    a, b, c = (peers.make(peer) for peer in (A, B, C))
    await b.put_bytes(BIG)
    cid = await c.put_bytes(BIG)

    def kill(transfer: Transfer) -> None:
        if transfer.done_bytes:
            peers.net.kill(B)

    await a.fetch(cid, [B, C], report=kill)
    assert await a.read_bytes(cid) == BIG


async def test_a_provider_that_hangs_costs_nothing_beside_another(
    autojump_clock: MockClock, peers: Peers
) -> None:
    a, b = peers.make(A), peers.make(B)
    cid = await b.put_bytes(BIG)
    peers.serve(C, hang)
    began = trio.current_time()
    await a.fetch(cid, [C, B])
    assert await a.read_bytes(cid) == BIG
    assert trio.current_time() - began < machine.STALL_S  # its chunks came from the other


async def test_a_provider_that_hangs_alone_is_given_up(
    autojump_clock: MockClock, peers: Peers
) -> None:
    a, b = peers.make(A), peers.make(B)
    cid = await b.put_bytes(BIG)
    peers.serve(C, hang)
    peers.net.rpc(C).serve(OBJECT, manifest_of(peers))
    began = trio.current_time()
    with pytest.raises(PeerUnreachable, match="brought nothing"):
        await a.fetch(cid, [C])
    assert machine.STALL_S <= trio.current_time() - began < machine.STALL_S + 5
    assert a.counters.providers_dropped == 1


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        (Chunk(59, BIG[-CHUNK_BYTES:]), "was not asked for"),
        (Missing(59), "was not asked for"),
        (Gained([1, 2, 3]), "news that are none"),
        (Gained([100_000]), "news that are none"),
    ],
)
async def test_what_nobody_asked_for_ends_the_conversation(
    autojump_clock: MockClock, peers: Peers, word: Chunk | Missing | Gained, reason: str
) -> None:
    a, b = peers.make(A), peers.make(B)
    cid = await b.put_bytes(BIG)

    async def flood(call: Call[Tell, Ask]) -> None:
        await claim_all(call)
        while True:
            await call.send(Tell(word))

    peers.serve(C, flood)
    peers.net.rpc(C).serve(OBJECT, manifest_of(peers))
    with pytest.raises(NotFound, match=reason):
        await a.fetch(cid, [C])
    assert a.counters.bytes_wasted == 0


async def test_a_blob_over_the_limit_is_refused_before_a_chunk_of_it_is_fetched(
    autojump_clock: MockClock, peers: Peers
) -> None:
    a, b = peers.make(A), peers.make(B)
    cid = await b.put_bytes(DATA)
    with pytest.raises(BadMessage, match=f"has {len(DATA)} B, over {len(DATA) - 1} B"):
        await a.fetch(cid, [B], limit_bytes=len(DATA) - 1)
    assert a.counters.bytes_in < 1024  # the manifest
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
    with pytest.raises(UsageError, match="not a CID"):
        await a.fetch("../../etc/passwd", [B])
    with pytest.raises(UsageError, match="No such file"):
        await a.put_file(Path("/nowhere/to/be/found"))
    with pytest.raises(UsageError, match="over 1000 B"):
        await b.read_bytes(cid, limit_bytes=1000)


async def test_a_full_disk_is_our_own_error_and_what_came_before_stays(
    autojump_clock: MockClock, peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = peers.make(A), peers.make(B)
    cid = await b.put_bytes(BIG)
    written = 0

    def full_after_ten(fd: int, data: bytes, place: int) -> None:
        nonlocal written
        written += 1
        if written > 10:
            raise OSError(28, "No space left on device")
        real(fd, data, place)

    from protocols.blobs import files

    real = files.write_at
    monkeypatch.setattr(files, "write_at", full_after_ten)
    with pytest.raises(DiskError, match="No space"):
        await a.fetch(cid, [B])
    monkeypatch.undo()
    assert await b.read_bytes(cid) == BIG  # serves on
    before = a.counters.bytes_in
    await a.fetch(cid, [B])
    assert a.counters.bytes_in - before == len(BIG) - 10 * CHUNK_BYTES
    assert await a.read_bytes(cid) == BIG


async def test_a_provider_that_lacks_everything_for_ever_ends_the_fetch(
    autojump_clock: MockClock, peers: Peers
) -> None:
    cid = await peers.make(B).put_bytes(BIG)

    async def absent(call: Call[Tell, Ask]) -> None:
        await claim_all(call)
        async for ask in call:
            assert isinstance(ask.what, Get | Cancel)
            if isinstance(ask.what, Get):
                for index in range(ask.what.first, ask.what.first + ask.what.count):
                    await call.send(Tell(Missing(index)))

    async def nothing_yet(call: Call[Tell, Ask]) -> None:
        await call.receive()
        await call.send(Tell(Have(b"\0")))
        await trio.sleep_forever()

    for peer, answer in ((C, absent), (D, nothing_yet)):
        peers.serve(peer, answer)
        peers.net.rpc(peer).serve(OBJECT, manifest_of(peers))
        with pytest.raises(NotFound):
            await peers.make(A if peer == C else PeerId("E")).fetch(cid, [peer])


async def test_a_fetch_that_is_given_up_leaves_nothing_locked(
    autojump_clock: MockClock, peers: Peers
) -> None:
    a, b = peers.make(A), peers.make(B, upload_bytes_per_s=CHUNK_BYTES)
    cid = await b.put_bytes(BIG)
    with trio.move_on_after(10):
        await a.fetch(cid, [B])
    assert 5 * CHUNK_BYTES < a.counters.bytes_in < 15 * CHUNK_BYTES
    b.counters.bytes_out = 0
    await trio.sleep(5)
    assert b.counters.bytes_out <= CHUNK_BYTES  # it stopped sending
    assert await a.remove(cid) > 0
    assert list(a.store.data.iterdir()) == []


async def test_only_what_is_asked_for_by_its_right_name_is_given(
    autojump_clock: MockClock, peers: Peers
) -> None:
    peers.make(B)
    a = peers.net.rpc(A)
    with pytest.raises(Exception, match="not here"):
        await a.call(B, OBJECT, Who(raw_cid(hash_of(b"x"))), timeout_s=5)
    with pytest.raises(Exception, match="not a CID"):
        await a.call(B, OBJECT, Who("b" + "7" * 58), timeout_s=5)


async def test_blobs_whose_table_is_lost_are_added_again(
    autojump_clock: MockClock, peers: Peers, nursery: trio.Nursery
) -> None:
    a = peers.make(A)
    cids = [await a.put_bytes(DATA), await a.put_bytes(b"small")]
    folder = a.store.folder
    a.store.index.close()
    for path in folder.glob("index.db*"):
        path.unlink()
    (folder / "data" / "garbage").write_bytes(b"?")
    again = BlobStore(folder)
    assert again.index.count() == 0
    service = BlobService(peers.net.rpc(B), again, off_loop=in_place)
    await nursery.start(service.run)
    while again.found.exists():  # noqa: ASYNC110 - a folder sets no event
        await trio.sleep(1)
    assert await service.read_bytes(cids[0]) == DATA
    assert await service.read_bytes(cids[1]) == b"small"
    assert [row.is_pinned for row in again.index.all()] == [True, True]


async def test_a_folder_that_cannot_fit_displaces_nothing(
    autojump_clock: MockClock, peers: Peers, tmp_path: Path
) -> None:
    a, b = peers.make(A, quota_bytes=4 * CHUNK_BYTES), peers.make(B)
    kept = [await a.put_bytes(bytes([n]) * 500_000) for n in range(3)]
    folder = tmp_path / "in"
    folder.mkdir()
    for n in range(3):
        (folder / str(n)).write_bytes(DATA[n : n + 1_600_000])
    cid = await b.put_file(folder)
    with pytest.raises(QuotaError):
        await a.fetch(cid, [B])
    assert [await a.has(each) for each in kept] == [True, True, True]
    (folder / "2").unlink()
    smaller = await b.put_file(folder)
    await a.fetch(smaller, [B])
    assert await a.has(smaller)
    assert not await a.has(kept[0])
