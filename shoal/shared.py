"""A float32 vector in POSIX shared memory, made by this process, mode 0600.

Its name goes as soon as the daemon has mapped it; if this process is killed before, Python's
resource tracker or the daemon removes it.
"""

import secrets
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory

import numpy as np
from numpy.typing import NDArray


class SharedVector:
    """`array` is the vector; it must not be used after `close`."""

    def __init__(self, elements: int) -> None:
        self.name = f"shoal-{secrets.token_hex(8)}"
        self._memory = SharedMemory(self.name, create=True, size=4 * elements)
        self._is_named = True
        self.array: NDArray[np.float32] = np.ndarray(
            (elements,), dtype=np.float32, buffer=self._memory.buf
        )

    def unlink(self) -> None:
        """Take its name away once the daemon has mapped it: no crash can leave it behind then."""
        if self._is_named:
            self._is_named = False
            try:
                self._memory.unlink()
            except FileNotFoundError:  # the daemon was first: the tracker must not look for it
                resource_tracker.unregister(f"/{self.name}", "shared_memory")

    def close(self) -> None:
        """Unmap it, and unlink it if that was not done. Views still held keep the memory."""
        self.unlink()
        self.array = np.zeros(0, dtype=np.float32)
        try:
            self._memory.close()
        except BufferError:
            # A caller still holds a view: the map goes with it. The finalizer must not try again.
            self._memory._buf = None  # type: ignore[attr-defined]
            self._memory._mmap = None  # type: ignore[attr-defined]
