"""A float32 vector in POSIX shared memory, made by this process, mode 0600, unlinked at its end.

Python's resource tracker unlinks it if this process is killed; the daemon does so too.
"""

import secrets
from multiprocessing.shared_memory import SharedMemory

import numpy as np
from numpy.typing import NDArray


class SharedVector:
    """`array` is the vector; it must not be used after `close`."""

    def __init__(self, elements: int) -> None:
        self.name = f"shoal-{secrets.token_hex(8)}"
        self._memory = SharedMemory(self.name, create=True, size=4 * elements)
        self.array: NDArray[np.float32] = np.ndarray(
            (elements,), dtype=np.float32, buffer=self._memory.buf
        )

    def close(self) -> None:
        """Unmap and unlink it. Views that are still held keep the memory mapped, not named."""
        self.array = np.zeros(0, dtype=np.float32)
        try:
            self._memory.unlink()
        except FileNotFoundError:
            return  # the daemon was first
        finally:
            self._unmap()

    def _unmap(self) -> None:
        try:
            self._memory.close()
        except BufferError:
            # A caller still holds a view. Drop our handle without the close of its finalizer.
            self._memory._buf = None  # type: ignore[attr-defined]
            self._memory._mmap = None  # type: ignore[attr-defined]
