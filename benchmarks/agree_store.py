"""Real stores of one process, on real files, with nobody or each other to talk to; also a child
that answers orders: `python -m benchmarks.agree_store`.
"""

import math
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from benchmarks.agree_entries import author, by_chain, corpus, isolated, size_of
from benchmarks.orders import Answer, say
from benchmarks.trio_orders import obey
from crdt import wire
from crdt.entry import Record, Signed
from crdt.live import TOPIC, ChannelHandler, News
from crdt.proof import verify
from crdt.service import StoreService
from wire import codec
from wire.clock import SystemClock
from wire.errors import PeerUnreachable
from wire.ids import PeerId, Signer, public_key_of, verify_plain

T = TypeVar("T")
NAMESPACE = "kv"
IN_FLIGHT = 4  # pushes of one peer that a store answers at a time
STRANGER = Signer(bytes(31) + b"s").peer
KEYS = 1000  # of the churn


@dataclass
class Direct:
    """The `Network` of one store among those in `answers`: a call, and its bytes counted."""

    peer: PeerId
    answers: dict[PeerId, Callable[[PeerId, bytes], Awaitable[bytes]]] = field(
        default_factory=dict[PeerId, Callable[[PeerId, bytes], Awaitable[bytes]]]
    )

    async def request(self, peer: PeerId, message: bytes, *, timeout_s: float) -> bytes:
        """Ask a peer."""
        await trio.lowlevel.checkpoint()
        if peer not in self.answers:
            raise PeerUnreachable(peer)
        with trio.fail_after(timeout_s):
            return await self.answers[peer](self.peer, message)


class Quiet:
    """A channel on which nothing is heard but what `hear` is given."""

    def __init__(self) -> None:
        self._handlers = dict[str, ChannelHandler]()

    def subscribe(self, topic: str, handler: ChannelHandler, /) -> object:
        """Remember who listens."""
        self._handlers[topic] = handler
        return topic

    async def hear(self, record: Record) -> bool:
        """Bring news of a built-in namespace, as a peer does; True if it was any."""
        return await self._handlers[TOPIC](STRANGER, codec.encode(News([record.signed])))

    async def publish(self, topic: str, data: bytes, /) -> object:
        """Lose it."""
        await trio.lowlevel.checkpoint()
        return topic


@asynccontextmanager
async def opened(
    path: Path,
    name: str = "us",
    network: Direct | None = None,
    channel: Quiet | None = None,
) -> AsyncGenerator[StoreService]:
    """Run a store on a file; all in `network` can ask it."""
    signer = Signer(name.encode().rjust(32, b"-"))
    mine = Direct(signer.peer, network.answers if network else {})
    store = StoreService(
        mine,
        channel or Quiet(),
        SystemClock(),
        signer,
        path,
        peers=lambda: [peer for peer in mine.answers if peer != signer.peer],
        sync_interval_s=math.inf,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        mine.answers[signer.peer] = store.answer
        yield store
        nursery.cancel_scope.cancel()


def push_frame(namespace: bytes, entries: list[Signed]) -> bytes:
    """Return the message that brings entries, whatever they are."""
    return codec.encode(wire.Push(namespace, entries))


def frames(records: list[Record]) -> list[bytes]:
    """Pack entries of one namespace into as few messages as they fit."""
    rest, made = records, list[bytes]()
    while rest:
        fit = wire.fitting(rest)
        made.append(push_frame(rest[0].namespace, [record.signed for record in rest[:fit]]))
        rest = rest[fit:]
    return made


async def push(store: StoreService, messages: Iterable[bytes]) -> None:
    """Have the messages of a peer answered, several at a time, as a sync does."""
    left = iter(messages)

    async def one() -> None:
        for message in left:
            await store.answer(STRANGER, message)

    async with trio.open_nursery() as nursery:
        for _ in range(IN_FLIGHT):
            nursery.start_soon(one)


async def write(store: StoreService, writers: int, keys: list[str]) -> float:
    """Put a value at each key, so many writers at a time; returns the seconds."""
    left = iter(keys)

    async def one() -> None:
        for key in left:
            await store.put(NAMESPACE, key, "x" * 20)

    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(writers):
            nursery.start_soon(one)
    return time.perf_counter() - began


def size_on_disk(path: Path) -> int:
    """Bytes of a store's file and of what lies beside it (log, index of the log)."""
    return sum(one.stat().st_size for one in path.parent.glob(path.name + "*"))


def rss_mb() -> float:
    """Resident memory of this process in MB."""
    fields = Path("/proc/self/status").read_text().split("VmRSS:")[1].split()
    return int(fields[0]) * 1024 / 1e6


class Node:
    """The orders, a method each."""

    async def fill(self, path: str, count: int) -> Answer:
        """Make a file with so many live entries of many authors."""
        async with opened(Path(path)) as store:
            records = by_chain(_corpus(store, count))
            await push(store, frames(records))
            held = store.namespace(NAMESPACE).entries
        return {"entries": held, "bytes": size_of(records)}

    async def open(self, path: str) -> Answer:
        """Open a file, and close it again; how long it took and what this process then weighs."""
        began = time.perf_counter()
        async with opened(Path(path)) as store:
            seconds = time.perf_counter() - began
            return {
                "seconds": seconds,
                "rss_mb": rss_mb(),
                "entries": store.namespace(NAMESPACE).entries,
            }

    async def local(self, path: str, writers: int, count: int) -> Answer:
        """Write keys, in rounds that overwrite each other."""
        async with opened(Path(path)) as store:
            await write(store, writers, [f"warm/{number}" for number in range(writers)])
            keys = [f"bench/{number % KEYS:06}" for number in range(count)]
            seconds = await write(store, writers, keys)
        return {"per_s": count / seconds, "seconds": seconds, "bytes": size_on_disk(Path(path))}

    async def alone(self, path: str, count: int) -> Answer:
        """Write one after the other; the time of each in ms."""
        times = list[float]()
        async with opened(Path(path)) as store:
            for number in range(count):
                began = time.perf_counter()
                await store.put(NAMESPACE, f"bench/{number:06}", "x" * 20)
                times.append((time.perf_counter() - began) * 1e3)
        return {"ms": times}

    async def apply(self, path: str, count: int, runs: bool) -> Answer:
        """Take what a peer pushes: one signature for a run, or every entry by its own.

        On one core, threads included.
        """
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        async with opened(Path(path)) as store:
            made = _corpus(store, count if runs else 2 * count)
            messages = frames(by_chain(made) if runs else isolated(made))
            began = time.perf_counter()
            await push(store, messages)
            seconds = time.perf_counter() - began
            held = store.namespace(NAMESPACE).entries
        if held != count:
            raise RuntimeError(f"{held} of {count} entries were taken")
        return {"per_s": count / seconds}

    async def replicate(self, folder: str, count: int, writers: int) -> Answer:
        """Writes of one store, each to another one by itself; both have it on the disk then."""
        first, second, sizes, numbers = Quiet(), Quiet(), list[int](), iter(range(count))
        async with (
            opened(Path(folder) / "a.db", "a", channel=first) as ours,
            opened(Path(folder) / "b.db", "b", channel=second) as theirs,
        ):

            async def one(name: str) -> None:
                chain = author(ours.namespace(NAMESPACE).id, name)
                for number in numbers:
                    record = chain.write(f"bench/{number:06}", "x" * 22, SystemClock().wall_ms())
                    assert await first.hear(record)
                    assert await second.hear(record)
                    sizes.append(record.size)

            began = time.perf_counter()
            async with trio.open_nursery() as nursery:
                for number in range(writers):
                    nursery.start_soon(one, str(number))
            seconds = time.perf_counter() - began
            assert theirs.root(NAMESPACE) == ours.root(NAMESPACE)
        return {"per_s": count / seconds, "bytes": sum(sizes) / count}

    async def cold(self, folder: str, count: int) -> Answer:
        """Everything to an empty store by a sync."""
        links = Direct(STRANGER)
        async with opened(Path(folder) / "a.db", "a", links) as ours:
            peer = next(iter(links.answers))
            made = by_chain(_corpus(ours, count))
            await push(ours, frames(made))
            async with opened(Path(folder) / "b.db", "b", links) as theirs:
                began = time.perf_counter()
                report = await theirs.sync_with(peer)
                seconds = time.perf_counter() - began
                if theirs.root(NAMESPACE) != ours.root(NAMESPACE):
                    raise RuntimeError("a sync that left something behind")
        moved = report.overhead_bytes + size_of(made)
        return {"per_s": count / seconds, "bytes": moved / count}

    async def prove(self, path: str, count: int) -> Answer:
        """Prove keys that are in a file, and keys that are not; sizes, and times in ms."""
        times: dict[str, list[float]] = {"root": [], "prove": [], "verify": []}
        sizes: dict[str, list[int]] = {"there": [], "absent": []}
        async with opened(Path(path)) as store:
            _timed(times["root"], lambda: store.root(NAMESPACE))
            for number in range(count):
                for case, key in (("there", f"bench/{number:06}"), ("absent", f"no/{number}")):
                    began = time.perf_counter()
                    document = await store.prove(NAMESPACE, key)
                    times["prove"].append((time.perf_counter() - began) * 1e3)
                    check = partial(verify, store.namespace(NAMESPACE).id, document)
                    assert _timed(times["verify"], check).is_present == (case == "there")
                    sizes[case].append(len(document))
        return {"bytes": sizes, "ms": times}

    async def verify(self, count: int) -> Answer:
        """Check plain signatures of as many bytes, on one core."""
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        signer = Signer(bytes(32))
        public, bodies = public_key_of(signer.peer), [os.urandom(45) for _ in range(count)]
        signed = [(body, signer.sign_plain(body)) for body in bodies]
        began = time.perf_counter()
        assert all(verify_plain(public, body, signature) for body, signature in signed)
        return {"per_s": count / (time.perf_counter() - began)}


def _timed(times: list[float], work: Callable[[], T]) -> T:
    began = time.perf_counter()
    result = work()
    times.append((time.perf_counter() - began) * 1e3)
    return result


def _corpus(store: StoreService, count: int) -> list[Record]:
    now_ms = SystemClock().wall_ms()
    return list(corpus(store.namespace(NAMESPACE).id, count, now_ms))


async def main() -> None:
    """Obey until the input ends."""
    say({})
    await obey(Node())


if __name__ == "__main__":
    trio.run(main)
