"""Parcels: the encoded chunks of a vector or a shard, in order, as they come into being at a node.

One task, or a peer, makes a parcel longer; others wait for it to be: encoding, sending, arriving,
summing and hashing overlap. Where sizes are known beforehand all chunks lie in one piece of memory,
which bulk transfers send from and receive into.
"""

import sys
from collections.abc import Callable
from itertools import accumulate

import numpy as np
import trio

from protocols.modelsync.memory import Memory
from protocols.modelsync.vectors import Codec, Vector
from wire.errors import BadMessage

Parts = list[tuple[int, int]]  # of elements: start and stop of each chunk

BULK_MIN = 256 * 1024  # bytes; below, one call is quicker than the rendezvous of a transfer


class Parcel:
    """Chunks of encoded elements; `here` says how many, from the first on, are here."""

    def __init__(self, codec: Codec, parts: Parts, *, head_bytes: int = 0) -> None:
        """head_bytes: of a chunk before all others, which is none of the codec's; 0: none."""
        self.parts = parts
        self.here = 0
        self.grown_at = trio.current_time()
        self.on_grow: Callable[[], None] | None = None
        self.flat: memoryview | None = None
        self._head_bytes = head_bytes
        self._chunks: list[memoryview] = []
        self._waiting: list[tuple[int, trio.Event]] = []
        self._ends: list[int] = []
        self._is_closed = False
        if codec.size is not None:
            sizes = [codec.size(stop - start) for start, stop in parts]
            self._ends = list(accumulate([head_bytes, *sizes] if head_bytes else sizes))

    @property
    def count(self) -> int:
        """Chunks in all."""
        return len(self.parts) + (1 if self._head_bytes else 0)

    @property
    def size_bytes(self) -> int:
        """Bytes in all, if that is known; else 0."""
        return self._ends[-1] if self._ends else 0

    @property
    def is_large(self) -> bool:
        """True if it goes by bulk where there is bulk: alike at both ends, from its shape alone."""
        return self.size_bytes > BULK_MIN

    @property
    def is_whole(self) -> bool:
        """True when every chunk is here."""
        return self.here == self.count

    def lie_in(self, memory: memoryview) -> None:
        """Let its chunks lie there, one after the other. Without it each lies for itself."""
        assert len(memory) == self.size_bytes
        self.flat = memory

    def chunk(self, index: int) -> memoryview:
        """Return a chunk that is here."""
        if self.flat is None:
            return self._chunks[index]
        return self.flat[self._start(index) : self._ends[index]]

    def chunks(self) -> list[memoryview]:
        """Return all that are here."""
        return [self.chunk(index) for index in range(self.here)]

    def write(self, index: int, data: bytes | memoryview) -> None:
        """Put the next chunk in its place, in any thread; `grow` tells of it."""
        if self.flat is not None:
            self.flat[self._start(index) : self._ends[index]] = data
            return
        assert index <= len(self._chunks), "chunks come in order"
        self._chunks[index : index + 1] = [memoryview(data)]

    def grow(self, here: int) -> None:
        """So many chunks are here; wakes who waits for them."""
        if here <= self.here:
            return
        self.here, self.grown_at = here, trio.current_time()
        for need, event in self._waiting:
            if need <= here:
                event.set()
        self._waiting = [waiter for waiter in self._waiting if waiter[0] > here]
        if self.on_grow is not None:
            self.on_grow()

    def accept(self, index: int, data: bytes) -> None:
        """Take a chunk from a peer. Raises BadMessage if it is not the next, or not of its size."""
        if self._is_closed or index != self.here or index >= self.count:
            raise BadMessage(f"chunk {index} where {self.here} of {self.count} was due")
        if self._ends and len(data) != self._ends[index] - self._start(index):
            raise BadMessage(f"chunk of {len(data)} B in a parcel of {self.size_bytes} B")
        self.write(index, data)
        self.grow(index + 1)

    def close(self) -> None:
        """Nothing may come any more: its memory goes to somebody else."""
        self._is_closed = True

    async def wait(self, here: int) -> None:
        """Wait until so many chunks are here."""
        if self.here < here:
            event = trio.Event()
            self._waiting.append((here, event))
            await event.wait()

    # -- for bulk transfers, which count bytes -----------------------------------------------

    def arrived(self, prefix_bytes: int) -> None:
        """So many bytes from the front are here."""
        here = self.here
        while here < self.count and self._ends[here] <= prefix_bytes:
            here += 1
        self.grow(here)

    async def ready(self, known_bytes: int) -> int:
        """Wait until more than `known_bytes` may go; return how many bytes are here."""
        known = next(i for i, end in enumerate(self._ends) if end > known_bytes)
        await self.wait(known + 1)
        return self._ends[self.here - 1]

    def _start(self, index: int) -> int:
        return self._ends[index - 1] if index else 0


def lay_out(parcels: list[Parcel], memory: Memory) -> memoryview | None:
    """Let parcels lie in memory one after the other; return it. None if sizes are not known."""
    total = sum(parcel.size_bytes for parcel in parcels)
    if not total:
        return None
    whole, at = memory.take(total), 0
    for parcel in parcels:
        parcel.lie_in(whole[at : at + parcel.size_bytes])
        at += parcel.size_bytes
    return whole


def bytes_of(vector: Vector) -> memoryview:
    """Return the memory of a contiguous vector as bytes."""
    return memoryview(vector.reshape(-1).view(np.uint8).data)


def floats_of(data: memoryview) -> Vector:
    """Return a raw chunk as what it is: `bytes_of`, the other way round."""
    return np.frombuffer(data, dtype=np.float32)


def raw_parcel(codec: Codec, parts: Parts, vector: Vector) -> Parcel:
    """Return a parcel that is whole: the memory of `vector`, whose encoding is itself.

    parts: one after the other without a gap.
    """
    parcel = Parcel(codec, parts)
    if parts:
        parcel.lie_in(bytes_of(vector[parts[0][0] : parts[-1][1]]))
    parcel.grow(len(parts))
    return parcel


def is_raw(codec: Codec) -> bool:
    """True if a vector's memory is its encoding: float32, on a little-endian machine."""
    return codec.name == "float32" and sys.byteorder == "little"
