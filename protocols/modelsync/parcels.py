"""Parcels: the encoded chunks of a vector or a shard, in order, as they come into being at a node.

One task, or a peer, makes a parcel longer; others wait for it to be: encoding, sending, arriving,
summing and hashing overlap. Where sizes are known beforehand all chunks lie in one piece of memory,
which bulk transfers send from and receive into.
"""

from collections.abc import Callable
from itertools import accumulate

import numpy as np
import trio

from protocols.modelsync.vectors import Codec, Vector
from wire.errors import BadMessage

Parts = list[tuple[int, int]]  # of elements: start and stop of each chunk

BULK_MIN = 256 * 1024  # bytes; below, one call is quicker than the rendezvous of a transfer


class Parcel:
    """Chunks of encoded elements; `here` says how many, from the first on, are here."""

    def __init__(
        self, codec: Codec, parts: Parts, *, memory: memoryview | None = None, room: bool = True
    ) -> None:
        """memory: where the chunks lie, or come to lie, one after the other. Without it there is
        memory of its own if sizes are known and `room` is wanted.
        """
        self.parts = parts
        self.here = 0
        self._chunks: list[memoryview] = []
        self._lot = trio.lowlevel.ParkingLot()
        self._ends: list[int] = []
        self.flat: memoryview | None = memory
        if codec.size is not None:
            self._ends = list(accumulate(codec.size(stop - start) for start, stop in parts))
            if memory is None and room:
                self.flat = bytes_of(np.empty(self.size_bytes, dtype=np.uint8))

    @property
    def count(self) -> int:
        """Chunks in all."""
        return len(self.parts)

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
        assert index == len(self._chunks), "chunks come in order"
        self._chunks.append(memoryview(data))

    def grow(self, here: int) -> None:
        """So many chunks are here; wakes who waits."""
        if here > self.here:
            self.here = here
            self._lot.unpark_all()

    def accept(self, index: int, data: bytes) -> None:
        """Take a chunk from a peer. Raises BadMessage if it is not the next, or not of its size."""
        if index != self.here or index >= self.count:
            raise BadMessage(f"chunk {index} where {self.here} of {self.count} was due")
        if self._ends and len(data) != self._ends[index] - self._start(index):
            raise BadMessage(f"chunk of {len(data)} B in a parcel of {self.size_bytes} B")
        self.write(index, data)
        self.grow(index + 1)

    async def wait(self, here: int) -> None:
        """Wait until so many chunks are here."""
        while self.here < here:
            await self._lot.park()

    # -- for bulk transfers, which count bytes -----------------------------------------------

    def arrived(self, prefix_bytes: int) -> None:
        """So many bytes from the front are here."""
        here = self.here
        while here < self.count and self._ends[here] <= prefix_bytes:
            here += 1
        self.grow(here)

    async def ready(self, known_bytes: int) -> int:
        """Wait until more than `known_bytes` may go; return how many bytes are here."""
        while not self.here or self._ends[self.here - 1] <= known_bytes:
            await self._lot.park()
        return self._ends[self.here - 1]

    def _start(self, index: int) -> int:
        return self._ends[index - 1] if index else 0


def bytes_of(array: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]") -> memoryview:
    """Return the memory of a contiguous array as bytes."""
    return memoryview(array.reshape(-1).view(np.uint8).data)


def raw_parcel(codec: Codec, parts: Parts, vector: Vector) -> Parcel:
    """Return a parcel that is whole: the memory of `vector`, whose encoding is itself.

    parts: one after the other without a gap.
    """
    start, stop = (parts[0][0], parts[-1][1]) if parts else (0, 0)
    parcel = Parcel(codec, parts, memory=bytes_of(vector[start:stop]))
    parcel.grow(len(parts))
    return parcel


def is_raw(codec: Codec) -> bool:
    """True if a vector's memory is its encoding: float32, on a little-endian machine."""
    return codec.is_exact and codec.name == "float32" and np.little_endian


