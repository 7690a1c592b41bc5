"""Streams to and from every connected peer: one out for what we say, one in for what it says.

A slow peer fills its own queue and delays nobody; one that breaks the protocol loses its streams.
When a peer's stream to us ends, its machine has forgotten us: ours begins again with it.
"""

import logging
import math
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager
from typing import Protocol

import trio

from protocols.channels.policy import Bucket
from protocols.channels.send_queue import SendQueue
from protocols.channels.wire import FRAME_MAX, PROTOCOLS, Message
from wire.errors import BadMessage, PeerUnreachable, ShoalError
from wire.frames import FrameParser
from wire.ids import PeerId
from wire.ports import PUSH_MAX, Host, Stream

OPEN_TIMEOUT_S = 10.0
PACE_S = 1.0  # that a publisher is made to wait for its own peers
STUCK_S = 30.0  # without room on our stream: a peer that reads so little is no help
GAP_S = 0.05  # between two flushes: what a burst brings meanwhile shares frames
FRAME_TIMEOUT_S = 30.0  # from the first byte of a frame to its last
RETRY_MIN_S, RETRY_MAX_S = 0.25, 60.0  # between tries to open a stream; doubles
STABLE_S = 60.0  # a link that lived so long begins with the shortest wait again
BAN_S = 300.0  # for which a dropped peer gets no stream, as its score is kept meanwhile
SWEEP_S = 5.0  # between two looks for frames that take too long
HELD_BYTES = 2 * FRAME_MAX  # of a peer that we have no stream to at the moment
PEER_BYTES_S, PEER_BYTES_BURST = 16e6, 64e6  # from one peer; its stream is reset beyond
# Of them, what is no message's data: ids, signatures, fields. Its bytes cost up to 0.2 us each to
# read; honest ones are 5,000 messages a second.
HEAD_BYTES_S, HEAD_BYTES_BURST = 1e6, 8e6
FRAME_COST = 64  # bytes that a frame counts beside its own: an empty one costs time as well
BUDGETS_MAX = 2048  # peers whose budgets are remembered, also when they begin anew

log = logging.getLogger(__name__)


class PeerEvent(Protocol):
    """A peer came or went; which of it, `connected` tells."""

    @property
    def peer(self) -> PeerId:
        """Who came or went."""
        ...


class WatchedHost(Host, Protocol):
    """The host, and who comes and goes on it (`node.host`)."""

    def watch(self) -> AsyncIterator[PeerEvent]:
        """Yield PeerUp and PeerDown, beginning with those who are here."""
        ...


class Hooks(Protocol):
    """What the service does when something happens on a link."""

    def link_up(self, peer: PeerId, version: str) -> None:
        """Our stream to a peer is open."""
        ...

    def link_down(self, peer: PeerId) -> None:
        """It is over."""
        ...

    def hear(self, peer: PeerId, frames: list[bytes]) -> int:
        """Whole frames came, one or more; returns how many bytes of data. Raises BadMessage."""
        ...

    def heard_nonsense(self, peer: PeerId) -> None:
        """A peer broke the framing, or what `hear` expects."""
        ...


class Link:
    """Our stream to one peer: a queue, pushed to the stream as it has room. Implements `Sink`."""

    def __init__(self, stream: Stream, flushed: trio.lowlevel.ParkingLot) -> None:
        self.peer, self.version = stream.peer, stream.protocol
        self.queue = SendQueue()
        self.scope = trio.CancelScope()
        self._stream, self._flushed = stream, flushed
        self._rest = memoryview(b"")  # of what was taken from the queue
        self._stuck_at = math.inf  # since when there is no room

    def flush(self, now: float) -> None:
        """Push what waits, as far as there is room; end the link if there was none for long."""
        while self._rest or self.queue:
            if not self._stream.has_room:
                self._stuck_at = min(self._stuck_at, now)
                if now - self._stuck_at > STUCK_S:
                    self.scope.cancel()
                return
            self._stuck_at = math.inf
            self._rest = self._rest or memoryview(self.queue.take())
            self._stream.push(bytes(self._rest[:PUSH_MAX]), now=False)
            self._rest = self._rest[PUSH_MAX:]
            self._flushed.unpark_all()

    def on_data(self, data: bytes | memoryview) -> None:
        """Nothing comes on this stream: whoever speaks here speaks another protocol."""
        raise BadMessage(f"{len(data)} bytes on a stream that is ours alone")

    def on_room(self) -> None:
        """The stream takes more."""
        self.flush(trio.current_time())

    def on_end(self, error: PeerUnreachable | None) -> None:
        """The stream is over; but a peer that only will not speak on it still hears us."""
        if error is not None:
            self.scope.cancel()


class Budget:
    """What one peer may send, whatever the number of its streams."""

    def __init__(self) -> None:
        self._bytes = Bucket.full(PEER_BYTES_S, PEER_BYTES_BURST)
        self._heads = Bucket.full(HEAD_BYTES_S, HEAD_BYTES_BURST)

    def spend(self, size_bytes: int, head_bytes: int, now: float) -> None:
        """Charge what came. Raises BadMessage over the limit."""
        if self._bytes.borrow(size_bytes, now) > 0 or self._heads.borrow(head_bytes, now) > 0:
            raise BadMessage(f"more than {PEER_BYTES_S:g} B/s, or {HEAD_BYTES_S:g} B/s of heads")


class Visit:
    """A peer's stream to us, cut into frames as it comes. Implements `Sink`."""

    def __init__(self, stream: Stream, links: "Links", hooks: Hooks) -> None:
        self.scope = trio.CancelScope()
        self._peer, self._links, self._hooks = stream.peer, links, hooks
        self._parser = FrameParser(FRAME_MAX)
        self._budget = links.budget_of(self._peer)
        self._held, self._held_bytes = list[bytes](), 0
        self._partial_at = math.inf  # since when a frame has been incomplete

    def on_data(self, data: bytes | memoryview) -> None:
        """Take bytes. Raises BadMessage, which resets the stream."""
        now = trio.current_time()
        self._budget.spend(len(data), 0, now)  # beyond, it begins again later
        found = list[bytes]()
        with self._blame():
            found += map(bytes, self._parser.feed(data))  # copied: a view would hold its record
        if found or self._partial_at == math.inf:
            self._partial_at = math.inf if self._parser.is_empty else now
        self._budget.spend(0, len(found) * FRAME_COST, now)
        with self._blame():
            data_bytes = self._hear(found)
        self._budget.spend(0, sum(map(len, found)) - data_bytes, now)

    def on_room(self) -> None:
        """Nothing is said on this stream."""

    def on_end(self, error: PeerUnreachable | None) -> None:
        """The stream is over."""
        self.scope.cancel()

    def release(self) -> None:
        """Our own stream is there again: go on with what came meanwhile."""
        held, self._held, self._held_bytes = self._held, [], 0
        try:
            with self._blame():
                self._hear(held)
        except BadMessage:
            self.scope.cancel()

    def is_slow(self, now: float) -> bool:
        """Whether a frame has been coming for too long."""
        return now - self._partial_at > FRAME_TIMEOUT_S

    @contextmanager
    def _blame(self) -> Generator[None]:
        """Tell the machine of bytes that are no RPC."""
        try:
            yield
        except BadMessage:
            self._hooks.heard_nonsense(self._peer)
            raise

    def _hear(self, found: list[bytes]) -> int:
        if self._links.has(self._peer):
            return self._hooks.hear(self._peer, found) if found else 0
        self._held += found  # the machine does not know the peer now
        self._held_bytes += sum(map(len, found))
        if self._held_bytes > HELD_BYTES:
            raise BadMessage(f"{self._held_bytes} B before our own stream was open")
        return 0


class Links:
    """All links of one node. `run` it."""

    def __init__(self, host: WatchedHost, hooks: Hooks) -> None:
        self._host, self._hooks = host, hooks
        self._links: dict[PeerId, Link] = {}  # whose stream is open
        self._visits: dict[PeerId, Visit] = {}
        self._keepers: dict[PeerId, trio.CancelScope] = {}
        self._bans: dict[PeerId, float] = {}  # until when
        self._budgets: dict[PeerId, Budget] = {}  # who came last is last
        self._flushed = trio.lowlevel.ParkingLot()  # who publishes a lot waits here
        self._dropped = self._sent = 0  # by links that are over
        self._dirty: dict[Link, None] = {}  # links with something to send
        self._bell = trio.Event()
        for protocol in PROTOCOLS:
            host.serve(protocol, self._serve)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a link to every connected peer, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._flush)
            nursery.start_soon(self._watch_slow)
            task_status.started()
            async for event in self._host.watch():
                peer = event.peer
                if scope := self._keepers.pop(peer, None):
                    scope.cancel()
                if peer in self._host.connected():
                    scope = self._keepers[peer] = trio.CancelScope()
                    nursery.start_soon(self._keep, peer, scope)

    def budget_of(self, peer: PeerId) -> Budget:
        """Return what a peer may still send."""
        budget = self._budgets.pop(peer) if peer in self._budgets else Budget()
        self._budgets[peer] = budget
        if len(self._budgets) > BUDGETS_MAX:
            del self._budgets[next(iter(self._budgets))]
        return budget

    def has(self, peer: PeerId) -> bool:
        """Whether our stream to a peer is open."""
        return peer in self._links

    def send(self, peer: PeerId, control: bytes, payloads: list[tuple[bytes, bytes]]) -> None:
        """Queue control (whole frames) and messages (name and body) for a peer with a link."""
        link = self._links.get(peer)
        if link is None:
            return
        for name, body in payloads:
            link.queue.put_payload(name, body)
        if control and not link.queue.put_control(control):
            log.debug("channels.stuck peer=%s", peer)
            link.scope.cancel()
        self._dirty[link] = None
        self._bell.set()
        if link.queue.has_batch:
            link.flush(trio.current_time())

    def has_it(self, peer: PeerId, messages: tuple[Message, ...]) -> None:
        """A peer sent messages: those that still wait for it need not be sent."""
        link = self._links.get(peer)
        if link is not None and link.queue:
            for message in messages:
                link.queue.forget(message.id)

    async def pace(self) -> None:
        """Wait while most queues are filling up, but not for long: what we publish must go out."""
        with trio.move_on_after(PACE_S):
            while self._is_congested():
                await self._flushed.park()

    def _is_congested(self) -> bool:
        half_full = sum(link.queue.is_half_full for link in self._links.values())
        return 2 * half_full > len(self._links)

    async def _flush(self) -> None:
        """Push what waits. In a burst what comes within `GAP_S` shares frames."""
        while True:
            await self._bell.wait()
            self._bell = trio.Event()
            dirty, self._dirty = self._dirty, dict[Link, None]()
            now = trio.current_time()
            for link in dirty:
                link.flush(now)
            await trio.sleep(GAP_S)

    def drop(self, peer: PeerId) -> None:
        """Reset a peer's streams, and let it not come back for a while."""
        now = trio.current_time()
        self._bans = {other: until for other, until in self._bans.items() if until > now}
        self._bans[peer] = now + BAN_S
        if link := self._links.get(peer):
            link.scope.cancel()
        if visit := self._visits.get(peer):
            visit.scope.cancel()

    @property
    def dropped(self) -> int:
        """Messages that were lost because a peer was too slow."""
        return self._dropped + sum(link.queue.dropped for link in self._links.values())

    @property
    def sent(self) -> int:
        """Copies of messages that were written to peers."""
        return self._sent + sum(link.queue.sent for link in self._links.values())

    async def _keep(self, peer: PeerId, scope: trio.CancelScope) -> None:
        """Hold a stream to a peer for as long as it is connected."""
        wait_s = RETRY_MIN_S
        with scope:
            while True:
                began = trio.current_time()
                await trio.sleep_until(self._bans.get(peer, 0.0))
                try:
                    stream = await self._host.open(peer, PROTOCOLS, timeout_s=OPEN_TIMEOUT_S)
                    await self._hold(Link(stream, self._flushed), stream)
                except ShoalError as error:
                    log.debug("channels.link_lost peer=%s %s", peer, error)
                if trio.current_time() - began > STABLE_S:
                    wait_s = RETRY_MIN_S
                await trio.sleep(wait_s)
                wait_s = min(2 * wait_s, RETRY_MAX_S)

    async def _hold(self, link: Link, stream: Stream) -> None:
        """Keep a link until its stream is over, or nothing can be sent on it."""
        peer = link.peer
        self._links[peer] = link
        try:
            with link.scope:
                stream.attach(link)
                self._hooks.link_up(peer, link.version)
                if visit := self._visits.get(peer):
                    visit.release()
                await trio.sleep_forever()
        finally:
            if self._links.get(peer) is link:
                del self._links[peer]
            self._dropped += link.queue.dropped
            self._sent += link.queue.sent
            self._hooks.link_down(peer)
            stream.drop()

    async def _serve(self, stream: Stream) -> None:
        """Read a peer's stream. A second one takes the place of the first."""
        peer, visit = stream.peer, Visit(stream, self, self._hooks)
        if self._bans.get(peer, -math.inf) > trio.current_time():
            stream.drop()
            return
        if old := self._visits.get(peer):
            old.scope.cancel()
            self._begin_again(peer)
        self._visits[peer] = visit
        try:
            with visit.scope:
                stream.attach(visit)
                await trio.sleep_forever()
        finally:
            stream.drop()
            if self._visits.get(peer) is visit:
                del self._visits[peer]
                self._begin_again(peer)

    def _begin_again(self, peer: PeerId) -> None:
        """Forget what a peer told us, and tell it again what we told it."""
        link = self._links.get(peer)
        if link is not None and not link.scope.cancel_called:
            self._hooks.link_down(peer)
            self._hooks.link_up(peer, link.version)

    async def _watch_slow(self) -> None:
        while True:
            await trio.sleep(SWEEP_S)
            for peer, visit in list(self._visits.items()):
                if visit.is_slow(trio.current_time()):
                    self._hooks.heard_nonsense(peer)
                    visit.scope.cancel()
