"""Memory of exchanges, kept from round to round: fresh pages would cost a tenth of a round."""

import numpy as np

KEPT = 3  # what comes, what goes and the means of one round; the next one needs as much


class Memory:
    """Gives out memory and takes it back. One for each lane, as its rounds are alike."""

    def __init__(self) -> None:
        self._free: list[memoryview] = []

    def take(self, size_bytes: int) -> memoryview:
        """Return so many bytes; they hold anything."""
        fitting = [m for m in self._free if size_bytes <= len(m) <= 2 * size_bytes]
        if not fitting:
            return memoryview(np.empty(size_bytes, dtype=np.uint8).data)
        memory = min(fitting, key=len)
        self._free = [kept for kept in self._free if kept is not memory]
        return memory[:size_bytes]

    def give_back(self, memory: memoryview) -> None:
        """Nobody uses it any more; what was taken may be given back once."""
        self._free = [*self._free, memoryview(memory.obj)][-KEPT:]
