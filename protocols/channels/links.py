"""Streams to and from every connected peer: one out for what we say, one in for what it says.

A slow peer fills its own queue and delays nobody; one that breaks the protocol loses its streams.
When a peer's stream to us ends, its machine has forgotten us: ours begins again with it.

A stream moves to a better connection without a loss, which GossipSub has no word for: a second
stream, of `MOVE`, is opened there, and the peer answers with `READY`. Then ours finishes the first
one, and goes on in the second; the peer reads that when it has read the first to its end.
"""

import logging
import math

import trio

from protocols.channels.link import Budget, Hooks, Link, Visit
from protocols.channels.wire import MOVE, PROTOCOLS, READY, Message
from wire.errors import PeerUnreachable, ShoalError
from wire.ids import PeerId
from wire.ports import Stream, WatchedHost

OPEN_TIMEOUT_S = 10.0
PACE_S = 1.0  # that a publisher is made to wait for its own peers
MOVE_S = 30.0  # for a peer to read a stream to its end: behind some MiB, over a slow relay
RETRY_MIN_S, RETRY_MAX_S = 0.25, 60.0  # between tries to open a stream; doubles
STABLE_S = 60.0  # a link that lived so long begins with the shortest wait again
GAP_S = 0.05  # between two flushes: what a burst brings meanwhile shares frames
BAN_S = 300.0  # for which a dropped peer gets no stream, as its score is kept meanwhile
SWEEP_S = 5.0  # between two looks for frames that take too long
BUDGETS_MAX = 2048  # peers whose budgets are remembered, also when they begin anew

log = logging.getLogger(__name__)


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
        self.moved = 0  # times that a stream of ours went on over a better connection
        self._dirty: dict[Link, None] = {}  # links with something to send
        self._bell = trio.Event()
        self._moving = set[Link]()
        for protocol in PROTOCOLS:
            host.serve(protocol, self._serve)
        host.serve(MOVE, self._serve_moved)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep a link to every connected peer, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._flush)
            nursery.start_soon(self._watch_slow)
            task_status.started()
            async for event in self._host.watch():
                peer = event.peer
                if event.is_move:
                    if link := self._links.get(peer):
                        nursery.start_soon(self._move, link)
                    continue
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
                if stream.is_retired:
                    await self._move(link)  # it was overtaken
                await trio.sleep_forever()
        finally:
            if self._links.get(peer) is link:
                del self._links[peer]
            self._dropped += link.queue.dropped
            self._sent += link.queue.sent
            self._hooks.link_down(peer)
            link.stream.drop()

    async def _move(self, link: Link) -> None:
        """Let our stream to a peer go on over a better connection; again, if another comes."""
        if link in self._moving:
            return
        self._moving.add(link)
        try:
            while link.stream.is_retired and self._links.get(link.peer) is link:
                await self._move_once(link)
                self.moved += 1
        except (ShoalError, trio.TooSlowError) as error:
            log.debug("channels.not_moved peer=%s %s", link.peer, error)
        finally:
            self._moving.discard(link)

    async def _move_once(self, link: Link) -> None:
        """Raises what a peer does that takes no second stream: then ours stays where it is."""
        stream = await self._host.open(link.peer, MOVE, timeout_s=OPEN_TIMEOUT_S)
        try:
            with trio.fail_after(MOVE_S):
                if await stream.read(1) != READY:
                    raise PeerUnreachable(f"{link.peer} takes no second stream")
                if not await link.move(stream):
                    raise PeerUnreachable(f"{link.peer} has not heard everything")
        except BaseException:
            if link.is_moving or link.stream is stream:
                link.scope.cancel()  # nobody knows what was heard: both sides begin again
            stream.drop()
            raise

    async def _serve(self, stream: Stream) -> None:
        """Read a peer's stream. A second one takes the place of the first."""
        peer = stream.peer
        if self._bans.get(peer, -math.inf) > trio.current_time():
            stream.drop()
            return
        visit = Visit(stream, self.budget_of(peer), self._hooks, lambda: self.has(peer))
        if old := self._visits.get(peer):
            old.scope.cancel()
            self._begin_again(peer)
        self._visits[peer] = visit
        stream.attach(visit)
        await self._read(visit, stream)

    async def _serve_moved(self, stream: Stream) -> None:
        """Read in this stream what a peer says when it has finished the other."""
        visit = self._visits.get(stream.peer)
        if visit is None or visit.successor is not None:
            stream.drop()
            return
        visit.successor = stream
        try:
            await stream.write(READY)
            with trio.move_on_after(MOVE_S):
                while visit.successor is stream and not visit.scope.cancel_called:
                    await visit.turned.park()
        finally:
            if visit.successor is stream:
                visit.successor = None
        if visit.stream is stream:
            await self._read(visit, stream)
        else:
            stream.drop()

    async def _read(self, visit: Visit, stream: Stream) -> None:
        """See a visit through, until it is over or goes on in another stream."""
        peer = stream.peer
        try:
            with visit.scope:
                while visit.stream is stream:
                    await visit.turned.park()
            if visit.stream is not stream:
                await stream.finish()  # the peer knows by this that we have heard everything
        finally:
            if visit.stream is stream:
                visit.turned.unpark_all()
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
