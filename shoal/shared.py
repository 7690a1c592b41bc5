"""A float32 vector in POSIX shared memory, made by this process, mode 0600.

Its name goes as soon as the daemon has mapped it, so no crash leaves it behind; if this process is
killed before, the daemon removes it. The memory lives as long as any view of it does: there is no
close that could pull it away under one. (Python's SharedMemory has one, and numpy then segfaults.)
"""

import mmap
import os
import secrets
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_FOLDER = Path("/dev/shm")  # Linux: where shm_open makes its files


class SharedVector:
    """`array` is the vector, zeros at first; `name` is what the daemon finds it by."""

    def __init__(self, elements: int) -> None:
        self.name = f"shoal-{secrets.token_hex(8)}"
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(_FOLDER / self.name, flags, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, 4 * elements)  # full now, or an error now
            memory = mmap.mmap(descriptor, 4 * elements)
        except OSError:
            self.unlink()
            raise
        finally:
            os.close(descriptor)
        self.array: NDArray[np.float32] = np.frombuffer(memory, dtype=np.float32)

    def unlink(self) -> None:
        """Take its name away. Safe to do twice, and after the daemon did."""
        (_FOLDER / self.name).unlink(missing_ok=True)
