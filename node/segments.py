"""Shared memory of a trainer, as the daemon sees it: segments that the trainer's process made.

They are mapped through /dev/shm (Linux): Python's SharedMemory would hand them to a resource
tracker of the daemon, which would unlink them under the trainer's feet.
"""

import mmap
import os
import re
import stat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wire.errors import UsageError

_FOLDER = Path("/dev/shm")
_NAME = re.compile(r"shoal-[0-9a-f]{8,32}")  # what shoal.trainer calls them; no path gets through


def map_segment(name: str, elements: int) -> NDArray[np.float32]:
    """Map a segment of exactly `elements` float32 (the kernel may round up to pages).

    Raises UsageError if it is not there, not ours alone (mode 0600), or too small.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name[:40]!r} is not the name of a trainer's shared memory")
    try:
        descriptor = os.open(_FOLDER / name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"shared memory {name}: {error.strerror}") from error
    try:
        found = os.fstat(descriptor)
        is_ours = found.st_uid == os.getuid() and stat.S_IMODE(found.st_mode) == 0o600
        if not stat.S_ISREG(found.st_mode) or not is_ours:
            raise UsageError(f"shared memory {name} is not ours alone (mode 0600)")
        if found.st_size < 4 * elements:
            raise UsageError(f"shared memory {name} has {found.st_size} B, not {4 * elements} B")
        memory = mmap.mmap(descriptor, 4 * elements)
    finally:
        os.close(descriptor)
    return np.frombuffer(memory, dtype=np.float32)  # keeps the map alive as long as the array


def unlink_segment(name: str) -> None:
    """Remove a segment that its trainer left behind. Safe if it is gone."""
    if _NAME.fullmatch(name):
        (_FOLDER / name).unlink(missing_ok=True)
