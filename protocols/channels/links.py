"""Streams to and from every connected peer: one out for what we say, one in for what it says.

A slow peer fills its own queue and delays nobody; one that breaks the protocol loses its streams.
When a peer's stream to us ends, its machine has forgotten us: ours begins again with it.
"""

import logging
import math
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

import trio

from protocols.channels.policy import Bucket
from protocols.channels.send_queue import SendQueue
from protocols.channels.wire import FRAME_MAX, PROTOCOLS
from wire.errors import BadMessage, DeadlineExceeded, PeerUnreachable, ShoalError
from wire.frames import FrameParser
from wire.ids import PeerId
from wire.ports import PUSH_MAX, Host, Stream

OPEN_TIMEOUT_S = 10.0
STUCK_S = 30.0  # without room on our stream: a peer that reads so little is no help
GAP_S = 0.005  # between two flushes: what a burst brings meanwhile shares frames
FRAME_TIMEOUT_S = 30.0  # from the first byte of a frame to its last
UP_TIMEOUT_S = 20.0  # for our stream to a peer, once it has opened its own
RETRY_MIN_S, RETRY_MAX_S = 0.25, 60.0  # between tries to open a stream; doubles
STABLE_S = 60.0  # a link that lived so long begins with the shortest wait again
BAN_S = 300.0  # for which a dropped peer gets no stream, as its score is kept meanwhile
RESET_TIMEOUT_S = 1.0
READ_BYTES = 64 * 1024
PEER_BYTES_S, PEER_BYTES_BURST = 16e6, 64e6  # that we read from one peer; more of it waits there

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

    async def hear(self, peer: PeerId, frames: list[bytes]) -> None:
        """Whole frames came; until this returns no more are read of the peer. Raises BadMessage."""
        ...

    def heard_nonsense(self, peer: PeerId) -> None:
        """A peer broke the framing, or what `hear` expects."""
        ...


class Link:
    """Our stream to one peer: a queue, pushed to the stream as it has room. Implements `Sink`."""

    def __init__(self, stream: Stream, version: str) -> None:
        self.peer, self.version = stream.peer, version
        self.queue = SendQueue()
        self.scope = trio.CancelScope()
        self._stream = stream
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

    def on_data(self, data: bytes | memoryview) -> None:
        """Nothing comes on this stream: whoever speaks here speaks another protocol."""
        raise BadMessage(f"{len(data)} bytes on a stream that is ours alone")

    def on_room(self) -> None:
        """The stream takes more."""
        self.flush(trio.current_time())

    def on_end(self, error: PeerUnreachable | None) -> None:
        """The stream is over."""
        self.scope.cancel()


@dataclass(eq=False)
class _Visit:
    """A peer's stream to us."""

    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    budget: Bucket = field(default_factory=lambda: Bucket.full(PEER_BYTES_S, PEER_BYTES_BURST))


class Links:
    """All links of one node. `run` it."""

    def __init__(self, host: WatchedHost, hooks: Hooks) -> None:
        self._host, self._hooks = host, hooks
        self._links: dict[PeerId, Link] = {}  # whose stream is open
        self._visits: dict[PeerId, _Visit] = {}
        self._keepers: dict[PeerId, trio.CancelScope] = {}
        self._bans: dict[PeerId, float] = {}  # until when
        self._changed = trio.lowlevel.ParkingLot()
        self._dropped = self._sent = 0  # by links that are over
        self._dirty: dict[Link, None] = {}  # links with something to send
        self._bell = trio.Event()
        for protocol in PROTOCOLS:
            host.serve(protocol, self._serve)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a link to every connected peer, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._flush)
            task_status.started()
            async for event in self._host.watch():
                peer = event.peer
                if scope := self._keepers.pop(peer, None):
                    scope.cancel()
                if peer in self._host.connected():
                    scope = self._keepers[peer] = trio.CancelScope()
                    nursery.start_soon(self._keep, peer, scope)

    def send(self, peer: PeerId, control: bytes, payloads: list[bytes]) -> None:
        """Queue control (whole frames) and messages (bodies) for a peer, if it has a link."""
        link = self._links.get(peer)
        if link is None:
            return
        for body in payloads:
            link.queue.put_payload(body)
        if control and not link.queue.put_control(control):
            log.debug("channels.stuck peer=%s", peer)
            link.scope.cancel()
        self._dirty[link] = None
        self._bell.set()

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
                    stream, version = await self._open(peer)
                    await self._hold(Link(stream, version), stream)
                except ShoalError as error:
                    log.debug("channels.link_lost peer=%s %s", peer, error)
                if trio.current_time() - began > STABLE_S:
                    wait_s = RETRY_MIN_S
                await trio.sleep(wait_s)
                wait_s = min(2 * wait_s, RETRY_MAX_S)

    async def _open(self, peer: PeerId) -> tuple[Stream, str]:
        failure: ShoalError | None = None
        for version in PROTOCOLS:
            try:
                return await self._host.open(peer, version, timeout_s=OPEN_TIMEOUT_S), version
            except ShoalError as error:
                failure = error
        assert failure is not None
        raise failure

    async def _hold(self, link: Link, stream: Stream) -> None:
        """Keep a link until its stream is over, or nothing can be sent on it."""
        peer = link.peer
        self._links[peer] = link
        try:
            with link.scope:
                stream.attach(link)
                self._hooks.link_up(peer, link.version)
                self._changed.unpark_all()
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
        peer, visit = stream.peer, _Visit()
        if self._bans.get(peer, -math.inf) > trio.current_time():
            await _reset(stream)
            return
        if old := self._visits.get(peer):
            old.scope.cancel()
            self._begin_again(peer)
        self._visits[peer] = visit
        try:
            with visit.scope:
                await self._read(stream, visit)
        except BadMessage as error:
            log.debug("channels.nonsense peer=%s %s", peer, error)
            self._hooks.heard_nonsense(peer)
        finally:
            await _reset(stream)
            if self._visits.get(peer) is visit:
                del self._visits[peer]
                self._begin_again(peer)

    def _begin_again(self, peer: PeerId) -> None:
        """Forget what a peer told us, and tell it again what we told it."""
        link = self._links.get(peer)
        if link is not None and not link.scope.cancel_called:
            self._hooks.link_down(peer)
            self._hooks.link_up(peer, link.version)

    async def _read(self, stream: Stream, visit: _Visit) -> None:
        parser, deadline = FrameParser(FRAME_MAX), math.inf
        while True:
            if deadline == math.inf:  # between frames, as usual
                data = await stream.read(READ_BYTES)
            else:
                data = await _read_until(deadline, stream)
            if not data:
                return
            parser.feed(data)
            found = list(iter(parser.next_frame, None))
            if found:
                await self._wait_up(stream.peer)
                await self._hooks.hear(stream.peer, found)
            if found or deadline == math.inf:
                deadline = trio.current_time() + FRAME_TIMEOUT_S
            if parser.is_empty:
                deadline = math.inf
            wait_s = visit.budget.borrow(len(data), trio.current_time())
            if wait_s > 0:
                await trio.sleep(wait_s)

    async def _wait_up(self, peer: PeerId) -> None:
        """Wait for our own stream to a peer: before it is there the machine does not know it."""
        with trio.move_on_after(UP_TIMEOUT_S):
            while peer not in self._links:
                await self._changed.park()
            return
        raise DeadlineExceeded(f"no stream to {peer}")


async def _read_until(deadline: float, stream: Stream) -> bytes:
    with trio.move_on_at(deadline):
        return await stream.read(READ_BYTES)
    raise BadMessage(f"a frame took more than {FRAME_TIMEOUT_S:g} s")


async def _reset(stream: Stream) -> None:
    with trio.move_on_after(RESET_TIMEOUT_S) as scope:
        scope.shield = True
        await stream.reset()
