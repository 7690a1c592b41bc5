"""How much disk the blobs may take, and which of them go when there is no room.

The longest unused goes first; never what is pinned, in use, a file of a folder that stays, or
linked from elsewhere (a model's folder): deleting that would free nothing.
"""

import os
import shutil
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from protocols.blobs.files import DiskError
from protocols.blobs.index import Index
from protocols.blobs.wire import Cid
from wire.errors import Busy, NotFound, ShoalError, UsageError

BLOBS_MAX = 200_000  # in the table, 60 MB of it
RESERVE_BYTES = 1 << 30  # of the disk, never filled with blobs: others need some too
RESERVE_SHARE = 0.05  # of a disk so small that 1 GiB would be much

_BLOCK_BYTES = 512  # what st_blocks counts in, whatever the disk's own blocks are


class QuotaError(ShoalError):
    """There is no room for a blob."""

    code = "quota"
    hint = "free some with `shoal blobs rm` or `unpin`, or raise blobs.quota_gib"


class _TooLittle(Exception):
    """Takes back a collection that does not make enough room."""


@dataclass(frozen=True)
class Usage:
    """How full it is. Without a quota `quota_bytes` is 0; `free_bytes` is what may be added."""

    blobs: int
    held_bytes: int
    pinned_bytes: int
    quota_bytes: int
    free_bytes: int


class Space:
    """Makes room. `lock` is the store's: nothing is opened while something is thrown away."""

    def __init__(
        self,
        index: Index,
        data: Path,
        quota_bytes: int,
        *,
        lock: threading.RLock,
        is_busy: Callable[[Cid], bool],
    ) -> None:
        self._index, self._data, self._lock, self._is_busy = index, data, lock, is_busy
        self.quota_bytes = quota_bytes
        self._reserved_bytes = 0

    def take_stock(self) -> None:
        """After a start: remove files that no row knows, and count what a crash has left of those
        that are not whole: they are sparse, and the row says how much only after a clean close.
        """
        rows = {str(row.cid): row for row in self._index.all()}
        for left in self._data.iterdir():
            row = rows.get(left.name)
            if row is None:
                left.unlink(missing_ok=True)
            elif not row.is_whole:
                here = min(row.size_bytes, left.stat().st_blocks * _BLOCK_BYTES)
                self._index.set_state(row.cid, is_whole=False, held_bytes=here)

    @contextmanager
    def room(self, size_bytes: int) -> Generator[None]:
        """Have room for so much meanwhile, see `reserve`."""
        self.reserve(size_bytes)
        try:
            yield
        finally:
            self.free(size_bytes)

    def reserve(self, size_bytes: int) -> None:
        """Have room for so much, collecting if need be; `free` it once. Raises QuotaError or
        DiskError.
        """
        with self._lock:
            self.check_count()
            self._make(size_bytes)
            self._reserved_bytes += size_bytes

    def make(self, size_bytes: int) -> None:
        """Have room for so much now, or throw nothing away. Raises QuotaError or DiskError."""
        with self._lock:
            self._make(size_bytes)

    def free(self, size_bytes: int) -> None:
        """What was reserved is used up, or not needed."""
        with self._lock:
            self._reserved_bytes -= size_bytes

    def check_count(self) -> None:
        """Raise QuotaError if there are too many blobs."""
        if self._index.count() >= BLOBS_MAX:
            raise QuotaError(f"{BLOBS_MAX} blobs are here already")

    def collect(self, target_bytes: int = 0) -> tuple[int, int]:
        """Throw away what is idle until only so much is held; returns how many and how much."""
        with self._lock:
            before = self._index.held_bytes()
            with self._index.change():
                gone = self._drop_idle(lambda: self._index.held_bytes() <= target_bytes)
            self._unlink(gone)
            return len(gone), before - self._index.held_bytes()

    def remove(self, cid: Cid) -> int:
        """Throw a blob away; returns the bytes freed. A file that a folder has too stays for that.

        Raises NotFound, UsageError if only a folder has it, or Busy if it is in use.
        """
        with self._lock:
            row = self._index.get(cid)
            if row is None:
                raise NotFound(f"blob {cid} is not here", hint="`shoal blobs ls` lists what is")
            if folders := self._index.trees_with(cid):
                if not row.is_root:
                    hint = f"throw that away: `shoal blobs rm {folders[0]}`"
                    raise UsageError(f"{cid} is a file of folder {folders[0]}", hint=hint)
                self._index.unset_root(cid)
                return 0
            before = self._index.held_bytes()
            with self._index.change():
                gone = self._drop(cid)
            if gone is None:
                raise Busy(f"blob {cid} is being used", hint="try again when it is not")
            self._unlink(gone)
            return before - self._index.held_bytes()

    def release(self, cids: Iterable[Cid]) -> int:
        """Throw away those of these that are idle; returns the bytes freed."""
        with self._lock:
            before = self._index.held_bytes()
            gone: list[Cid] = []
            with self._index.change():
                idle = set(self._index.idle())
                for cid in idle.intersection(cids):
                    gone += self._drop(cid, is_spared=self._is_linked) or ()
            self._unlink(gone)
            return before - self._index.held_bytes()

    def usage(self) -> Usage:
        """Return how full it is."""
        held, pinned = self._index.held_bytes(), self._index.pinned_bytes()
        free = self._disk_room()
        if self.quota_bytes:
            free = min(free, self.quota_bytes - held)
        return Usage(self._index.count(), held, pinned, self.quota_bytes, max(0, free))

    # --- inside --------------------------------------------------------------------------------

    def _make(self, size_bytes: int) -> None:
        short = size_bytes + self._reserved_bytes - self._disk_room()
        held = self._index.held_bytes()
        over = held + self._reserved_bytes + size_bytes - self.quota_bytes
        is_quota = self.quota_bytes > 0 and over > short
        short = over if is_quota else short
        if short <= 0:
            return
        target = held - short
        try:
            with self._index.change():
                gone = self._drop_idle(lambda: self._index.held_bytes() <= target)
                if self._index.held_bytes() > target:
                    raise _TooLittle
        except _TooLittle:
            raise self._no_room(size_bytes, is_quota=is_quota) from None
        self._unlink(gone)

    def _no_room(self, size_bytes: int, *, is_quota: bool) -> ShoalError:
        usage = self.usage()
        needed = f"no room for {_mib(size_bytes)}"
        if is_quota:
            return QuotaError(
                f"{needed} in {_mib(self.quota_bytes)}: {_mib(usage.held_bytes)} are taken, "
                f"{_mib(usage.pinned_bytes)} pinned, {_mib(self._reserved_bytes)} are coming"
            )
        return DiskError(f"{needed}: the disk has {_mib(usage.free_bytes)} left for blobs")

    def _disk_room(self) -> int:
        disk = shutil.disk_usage(self._data)
        return disk.free - min(RESERVE_BYTES, int(disk.total * RESERVE_SHARE))

    def _drop_idle(self, is_enough: Callable[[], bool]) -> list[Cid]:
        gone: list[Cid] = []
        before = -1
        while len(gone) > before:  # what was in a folder may go once that has gone
            before = len(gone)
            for cid in self._index.idle():
                if is_enough():
                    return gone
                gone += self._drop(cid, is_spared=self._is_linked) or ()
        return gone

    def _drop(
        self, cid: Cid, *, is_spared: Callable[[Cid], bool] = lambda _: False
    ) -> list[Cid] | None:
        """Delete the rows of a blob and of the files that only it has; None if any is in use."""
        going = [cid, *self._index.only_in(cid)]
        if any(self._is_busy(each) or is_spared(each) for each in going):
            return None
        for each in going:
            self._index.delete(each)
        return going

    def _is_linked(self, cid: Cid) -> bool:
        try:
            return os.stat(self._data / cid).st_nlink > 1
        except FileNotFoundError:
            return False

    def _unlink(self, gone: list[Cid]) -> None:
        for cid in gone:
            (self._data / cid).unlink(missing_ok=True)


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.1f} MiB"
