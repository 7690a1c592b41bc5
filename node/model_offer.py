"""What this node offers to models, and what the others say that they do: memory and speed."""

import os
import time
from collections.abc import Mapping

import numpy as np
import trio

from node.config import ServeOptions
from protocols.sharding.placement import Host
from wire.ids import PeerId

GIB = 1 << 30
MEMORY_MAX_GIB = 1 << 20  # what another says is not trusted to make sense
SPEED_MAX = 1e6
SPEED_BYTES = 1 << 24  # that are read, and written: more than most caches hold; milliseconds
SPEED_TIMES = 8  # the best one counts


class Offering:
    """Our own offer. A span's weights take from the room, its sessions from the cache's share."""

    def __init__(self, options: ServeOptions) -> None:
        self.is_on = options.offer
        self.memory_bytes = _resolved_bytes(options.memory_gib)
        self._cache_share = options.cache_share
        self.speed = 0.0  # GB/s; 0 before it was measured

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Measure our speed, once; then there is nothing to do."""
        self.speed = await trio.to_thread.run_sync(measured_speed)
        task_status.started()

    @property
    def room_bytes(self) -> int:
        """For weights of all models together."""
        return self.without_cache(self.memory_bytes)

    @property
    def cache_bytes(self) -> int:
        """For the caches of all sessions together."""
        return self.memory_bytes - self.room_bytes

    def without_cache(self, memory_bytes: int) -> int:
        """Return what of some memory is for weights."""
        return int(memory_bytes * (1 - self._cache_share))

    def told(self) -> dict[str, object]:
        """Return what our membership says."""
        memory_bytes, room_bytes = self.memory_bytes, self.room_bytes
        if not self.is_on:
            memory_bytes = room_bytes = 0
        return {
            "serve": room_bytes > 0,
            "memory_gib": round(memory_bytes / GIB, 3),
            "room_gib": round(room_bytes / GIB, 6),
            "speed": round(self.speed, 2),
        }


def offer_of(peer: PeerId, offers: Mapping[str, object]) -> Host:
    """Return what a member says that it offers; no room if that is nothing, or makes no sense."""
    room_gib = _number(offers.get("room_gib"), MEMORY_MAX_GIB) if offers.get("serve") else 0.0
    return Host(peer, int(room_gib * GIB), _number(offers.get("speed"), SPEED_MAX))


def measured_speed() -> float:
    """Return in GB/s how fast one thread goes through memory: what decoding is bound by.

    In time of the processor, so that others who compute meanwhile make little difference.
    """
    left = np.ones(SPEED_BYTES // 4, np.float32)
    out = np.empty_like(left)
    best_s = 1.0
    for _ in range(SPEED_TIMES):
        began = time.thread_time()
        np.multiply(left, left, out=out)
        best_s = min(best_s, time.thread_time() - began)
    return 2 * SPEED_BYTES / max(best_s, 1e-6) / 1e9


def _number(value: object, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
        return 0.0
    return float(value)


def _resolved_bytes(memory_gib: float) -> int:
    """Return the offered memory in bytes; 0 means half of what is free now."""
    if memory_gib > 0:
        return int(memory_gib * GIB)
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
