"""Entries, a clock and writers on real files, for the tests of the store's disk."""

from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import trio
from trio.testing import wait_all_tasks_blocked

from crdt.batch import Batch, News
from crdt.change import Room, always
from crdt.clock import stamp
from crdt.entry import NO_LINK, REGISTER, Entry, Record, chain_of, is_signed, seal, unseal
from crdt.namespace import Genesis, open_genesis
from crdt.own import Build, Draft
from crdt.replica import Replica
from crdt.storage import Kept, Storage
from crdt.writer import Writer
from wire import codec
from wire.errors import ShoalError
from wire.ids import Signer, public_key_of

T = TypeVar("T")
EPOCH_MS = 1_800_000_000_000
SPACE = open_genesis("kv", b"test")
US, THEM = Signer(b"u" * 32), Signer(b"t" * 32)


class WallClock:
    """Trio's time, and a wall clock that goes with it."""

    def __init__(self) -> None:
        self.skew_ms = 0

    def now(self) -> float:
        return trio.current_time()

    def wall_ms(self) -> int:
        return EPOCH_MS + round(trio.current_time() * 1000) + self.skew_ms


class Gate:
    """Blocking work on the loop, as a mock clock would jump while a thread works; it can be made
    to wait, or to fail.
    """

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.count = 0
        self._open = trio.Event()
        self._open.set()

    async def __call__(self, work: Callable[[], T], /) -> T:
        await trio.lowlevel.checkpoint()
        await self._open.wait()
        self.count += 1
        if self.error is not None:
            raise self.error
        return work()

    @contextmanager
    def shut(self) -> Generator[None]:
        """While the block runs, all work waits."""
        self._open = trio.Event()
        yield
        self._open.set()


@dataclass
class Author:
    """Somebody else, who writes a chain."""

    signer: Signer = THEM
    space: Genesis = SPACE
    instance: bytes = b"instance"
    wall_ms: int = EPOCH_MS - 60_000
    seq: int = 0
    link: bytes = NO_LINK

    @property
    def chain(self) -> bytes:
        return chain_of(public_key_of(self.signer.peer), self.instance)

    def write(self, key: str, value: object = 1, *, kind: int = REGISTER) -> Record:
        self.seq, self.wall_ms = self.seq + 1, self.wall_ms + 1
        entry = Entry(
            1,
            self.space.id,
            public_key_of(self.signer.peer),
            self.instance,
            self.seq,
            self.link,
            stamp(self.wall_ms),
            kind,
            key,
            value=codec.encode(value),
        )
        record = seal(entry, self.signer)
        self.link = record.link
        return record


def put(value: object) -> Build:
    draft = Draft(REGISTER, value=codec.encode(value))
    return lambda held, chain: draft


def rows_of(path: Path | str) -> list[Record]:
    """All entries of a file, also of one that is open."""
    storage = Storage(path)
    try:
        records, _, _ = storage.read(0, 1_000_000)
    finally:
        storage.close()
    return records


@dataclass
class Opened:
    """A writer at work, and what it told."""

    writer: Writer
    replica: Replica
    clock: WallClock
    gate: Gate
    kept: Kept
    news: list[News]
    refused: list[tuple[str, str]]
    task: trio.CancelScope = field(default_factory=trio.CancelScope)

    async def put(self, key: str, value: object = 1) -> Record:
        record = await self.writer.write(self.replica.id, key, put(value))
        assert record is not None
        return record


@asynccontextmanager
async def opened(
    path: Path | str,
    *,
    signer: Signer = US,
    on_news: Callable[[News], None] = lambda news: None,
    room: Room = always,
    has_proofs: bool = True,
) -> AsyncGenerator[Opened]:
    replica, clock = Replica(SPACE, room=room), WallClock()
    gate = Gate()
    told, refused = list[News](), list[tuple[str, str]]()

    def tell(news: News) -> None:
        told.append(news)
        on_news(news)

    def refuse(record: Record, reason: str) -> None:
        refused.append((record.key, reason))

    writer = Writer(path, {replica.id: replica}, clock, signer, gate, tell, on_refused=refuse)
    async with writer.open() as kept, trio.open_nursery() as nursery:
        await writer.load(has_proofs=has_proofs)
        nursery.start_soon(writer.run)
        yield Opened(writer, replica, clock, gate, kept, told, refused, nursery.cancel_scope)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def one_commit(store: Opened) -> AsyncGenerator[trio.Nursery]:
    """What is started in the block goes into one commit."""
    async with trio.open_nursery() as nursery:
        with store.gate.shut():
            nursery.start_soon(store.writer.submit, Batch())
            await wait_all_tasks_blocked()  # until the writer waits for the disk
            yield nursery
            await wait_all_tasks_blocked()


Outcome = Record | ShoalError | None


async def together(store: Opened, *writes: tuple[str, Build]) -> list[Outcome]:
    """Make writes that go into one commit, in this order; returns what became of each."""
    outcomes: dict[int, Outcome] = {}

    async def one(index: int, key: str, build: Build) -> None:
        try:
            outcomes[index] = await store.writer.write(SPACE.id, key, build)
        except ShoalError as error:
            outcomes[index] = error

    async with one_commit(store) as nursery:
        for index, (key, build) in enumerate(writes):
            nursery.start_soon(one, index, key, build)
            await wait_all_tasks_blocked()
    return [outcomes[index] for index in range(len(writes))]


def records_of(outcomes: Sequence[Outcome]) -> list[Record]:
    return [one for one in outcomes if isinstance(one, Record)]


def assert_one_chain(records: Sequence[Record]) -> None:
    """Records are a chain from its beginning: numbered, linked, later and later, signed."""
    records = sorted(records, key=lambda one: one.seq)
    assert [one.seq for one in records] == list(range(1, len(records) + 1))
    assert [one.entry.prev for one in records] == [NO_LINK, *(one.link for one in records[:-1])]
    assert all(a.hlc < b.hlc for a, b in pairwise(records))
    assert len({(one.chain, one.author) for one in records}) == 1
    for record in records:
        assert unseal(record.signed).stamp == record.stamp
        record.is_checked = False
        assert is_signed(record)
