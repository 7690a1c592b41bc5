"""Our own word on one span, in the store: renewed while we stand to it, and taken back."""

from collections.abc import Callable

import structlog
import trio

from protocols.sharding.manifest import printable
from protocols.sharding.records import (
    DELAYS_MAX,
    LEASE_S,
    NAMESPACE,
    NOTE_MAX,
    StageRecord,
    stage_key,
    to_value,
)
from protocols.sharding.spans import Usage
from wire.errors import ShoalError
from wire.ids import PeerId
from wire.ports import Clock, Store

RENEW_S = 5.0  # seconds between two looks at what is measured; it is told if it has changed, or
QUIET_MAX = 2  # after so many looks in any case: a lease lives for three times that
FAREWELL_S = 1.0  # seconds to take a lease back

Delays = Callable[[], list[tuple[PeerId, float]]]  # round trips to other hosts, in seconds

_log = structlog.get_logger("models")


class Lease:
    """One span's lease. `state` is what was said last."""

    def __init__(
        self, store: Store, clock: Clock, me: PeerId, name: str, model: str, span: tuple[int, int]
    ) -> None:
        self._store, self._clock = store, clock
        self._key = stage_key(name, me, span[0])
        self._fixed = (model, *span)
        self._since_ms = clock.wall_ms()
        self._told: StageRecord | None = None
        self.state, self.note = "", ""
        self.done_bytes = self.total_bytes = 0
        self.usage: Callable[[], Usage | None] = lambda: None
        self.delays: Delays = list

    def record(self) -> StageRecord:
        """Return what we would say now."""
        usage = self.usage() if self.state in ("ready", "draining") else None
        usage = usage or Usage(0, 0, 0.0, 0, 0)
        model, start, end = self._fixed
        return StageRecord(
            model=model,
            start=start,
            end=end,
            state=self.state,
            claimed_ms=self._since_ms,
            note=self.note,
            done_bytes=self.done_bytes,
            total_bytes=self.total_bytes,
            decode_us=usage.decode_us,
            prefill_us=usage.prefill_us,
            free_tokens=usage.free_tokens,
            sessions=usage.sessions,
            load=min(1000, max(0, round(1000 * usage.busy))),
            delays=[(peer, round(1e6 * delay_s)) for peer, delay_s in self.delays()[:DELAYS_MAX]],
        )

    async def say(self, state: str, note: str = "") -> None:
        """Tell the swarm a new state at once."""
        self.state, self.note = state, printable(note)[:NOTE_MAX]
        await self._put(self.record())

    async def renew(self) -> None:
        """Tell it again and again, so that the lease lives, and what has changed."""
        quiet = 0
        while True:
            await trio.sleep(RENEW_S)
            record = self.record()
            quiet = quiet + 1 if self._told is not None and _is_like(record, self._told) else 0
            if quiet == 0 or quiet >= QUIET_MAX:
                quiet = 0
                await self._put(record)

    async def withdraw(self) -> None:
        """Take it back."""
        with trio.move_on_after(FAREWELL_S) as farewell:
            farewell.shield = True
            try:
                await self._store.delete(NAMESPACE, self._key)
            except ShoalError as error:  # it dies by itself
                _log.debug("lease.not_withdrawn", key=self._key, error=str(error))

    async def _put(self, record: StageRecord) -> None:
        try:
            await self._store.put(NAMESPACE, self._key, to_value(record), ttl_s=LEASE_S)
            self._told = record
        except ShoalError as error:  # the disk is full: the next renewal may work
            _log.warning("lease.not_written", key=self._key, error=str(error))


def _is_like(one: StageRecord, other: StageRecord) -> bool:
    """Whether nothing changed that others decide by."""
    return (
        (one.state, one.sessions, one.done_bytes) == (other.state, other.sessions, other.done_bytes)
        and abs(one.load - other.load) < 100
        and abs(one.free_tokens - other.free_tokens) * 10 <= max(one.free_tokens, 1)
        and abs(one.decode_us - other.decode_us) * 5 <= max(one.decode_us, 1)
    )
