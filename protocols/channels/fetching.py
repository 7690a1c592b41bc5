"""Blobs behind references: stored when we publish one, fetched for our readers when one arrives.

A few at a time; a failure is told to the readers in the message's place, and counted.
"""

import logging
from collections import Counter

import trio

from protocols.channels import reference
from protocols.channels.reference import BLOB_MAX, Blobs, Reference
from protocols.channels.subscription import Arrival
from wire.errors import ShoalError, UsageError
from wire.ids import PeerId

AT_ONCE = 4  # fetches at a time: each may use several providers
WAITING_MAX = 64  # fetches that wait for their turn; when full, the newest fails
OF_AUTHOR_MAX = 16  # of them, those of one author
AUTHOR_AT_ONCE = 2  # its fetches at a time: blobs that nobody has are looked for to the last
TRIES_AFTER_S = (0.0, 1.0, 5.0)  # who passed the reference on may be fetching the blob itself
FETCH_TIMEOUT_S = 60.0  # for one blob with all its tries

log = logging.getLogger(__name__)


class Fetching:
    """`run` it, then `begin` fetches."""

    def __init__(self, blobs: Blobs | None) -> None:
        self._blobs = blobs
        self._limiter = trio.CapacityLimiter(AT_ONCE)
        self._nursery: trio.Nursery | None = None
        self._pending: Counter[PeerId] = Counter()  # by author
        self._places: dict[PeerId, trio.CapacityLimiter] = {}  # of authors with fetches pending
        self.failed = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the fetches until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    async def store(self, data: bytes) -> tuple[bytes, str]:
        """Store data as a blob; returns the payload that stands for it, and the CID."""
        if self._blobs is None or len(data) > BLOB_MAX:
            limit = BLOB_MAX if self._blobs is not None else "64 Ki"
            raise UsageError(
                f"{len(data)} B is over the limit of {limit} B of one message",
                hint="store it as a blob of its own and publish its CID",
            )
        cid = await self._blobs.put_bytes(data)
        return reference.pack(Reference(cid, len(data))), cid

    def begin(self, arrival: Arrival, wanted: Reference, providers: list[PeerId]) -> None:
        """Fetch a blob for a message that waits for it."""
        assert self._nursery is not None, "channels are not running"
        if self._blobs is None:
            self._fail(arrival, "this node has no blob store")
        elif wanted.size_bytes > BLOB_MAX:
            self._fail(arrival, f"blob {wanted.cid} of {wanted.size_bytes} B is over {BLOB_MAX} B")
        elif self._pending.total() >= WAITING_MAX:
            self._fail(arrival, f"blob {wanted.cid}: {WAITING_MAX} others are waited for")
        elif self._pending[arrival.message.author] >= OF_AUTHOR_MAX:
            self._fail(arrival, f"blob {wanted.cid}: {OF_AUTHOR_MAX} of its author are waited for")
        else:
            self._pending[arrival.message.author] += 1
            self._nursery.start_soon(self._fetch, self._blobs, arrival, wanted, providers)

    async def _fetch(
        self, blobs: Blobs, arrival: Arrival, wanted: Reference, providers: list[PeerId]
    ) -> None:
        author, reason = arrival.message.author, f"not within {FETCH_TIMEOUT_S:g} s"
        place = self._places.setdefault(author, trio.CapacityLimiter(AUTHOR_AT_ONCE))
        try:
            with trio.move_on_after(FETCH_TIMEOUT_S):
                for wait_s in TRIES_AFTER_S:
                    await trio.sleep(wait_s)
                    try:
                        async with place, self._limiter:
                            await blobs.fetch(wanted.cid, providers, limit_bytes=wanted.size_bytes)
                            data = await blobs.read_bytes(wanted.cid, limit_bytes=wanted.size_bytes)
                        arrival.arrive(data)
                        return
                    except ShoalError as error:
                        reason = str(error)
            self._fail(arrival, f"blob {wanted.cid}: {reason}")
        finally:
            self._pending[author] -= 1
            if not self._pending[author]:
                del self._pending[author], self._places[author]

    def _fail(self, arrival: Arrival, reason: str) -> None:
        self.failed += 1
        log.debug("channels.blob_failed topic=%s %s", arrival.message.topic, reason)
        arrival.fail(reason)
