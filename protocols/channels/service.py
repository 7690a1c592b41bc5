"""Channels: publish to everybody, subscribe to a topic. The trio driver of `machine.Flood`.

Each peer has a queue and a task of its own, so a slow peer loses messages (its oldest) and delays
nobody. Delivery is best effort: who must not miss anything repairs by other means, as the store
does by its syncs.
"""

import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec
import trio

from protocols.channels.machine import TOPICS_MAX, Flood, SendQueue
from protocols.channels.wire import PAYLOAD_MAX, PUSH, Gossip, Push, Taken, Topic
from wire.errors import ShoalError, UsageError
from wire.ids import PeerId
from wire.ports import Rpc

PUSH_TIMEOUT_S = 10.0  # for one batch: sent, checked and answered
IDLE_S = 60.0  # after which the task of a peer without messages ends

ChannelHandler = Callable[[PeerId, bytes], Awaitable[bool]]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChannelStats:
    """Totals since the start."""

    published: int
    delivered: int  # handed to a subscriber
    repeated: int  # arrived again: the price of flooding
    stale: int  # no news to its subscriber, and not passed on
    invalid: int  # an error to its subscriber, and not passed on
    unwanted: int  # of a topic that nobody here subscribes to
    sent: int  # messages that a peer took
    dropped: int  # from full queues
    failed: int  # lost with a push that failed


class _Line:
    """One peer's queue, and the bell that wakes its task."""

    def __init__(self) -> None:
        self.queue = SendQueue()
        self.bell = trio.Event()


class ChannelService:
    """`run` it, then publish. `peers` lists who is connected now."""

    def __init__(self, rpc: Rpc, peers: Callable[[], list[PeerId]]) -> None:
        self._rpc, self._peers = rpc, peers
        self._flood = Flood(rpc.peer)
        self._handlers: dict[str, ChannelHandler] = {}
        self._lines: dict[PeerId, _Line] = {}  # of peers with something to send, or lately so
        self._nursery: trio.Nursery | None = None
        self._number = random.getrandbits(62)  # a restart must not repeat the numbers before it
        self._published = self._delivered = self._repeated = self._stale = self._invalid = 0
        self._unwanted = self._sent = self._dropped = self._failed = 0
        rpc.serve(PUSH, self._take)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def subscribe(self, topic: str, handler: ChannelHandler) -> None:
        """Hand every new message of a topic to `handler`, with the peer that passed it on.

        True from the handler means news: it goes on to our peers. False ends it here, for nothing
        signs a message: what changes nothing could be sent for ever. A ShoalError: it is invalid.
        """
        _check(topic)
        if topic in self._handlers or len(self._handlers) >= TOPICS_MAX:
            raise UsageError(f"topic {topic} is subscribed already, or {TOPICS_MAX} others are")
        self._handlers[topic] = handler

    async def publish(self, topic: str, data: bytes) -> None:
        """Send to every connected peer, and through them to all; not to our own subscriber.

        Returns once it is queued. Raises UsageError over 64 KiB.
        """
        _check(topic)
        if len(data) > PAYLOAD_MAX:
            raise UsageError(f"{len(data)} B is over the limit of {PAYLOAD_MAX} B of a channel")
        self._number = (self._number + 1) % (1 << 63)
        message = Gossip(topic, self._rpc.peer, self._number, data)
        self._flood.publish(message, trio.current_time())
        self._published += 1
        self._spread(message, None)
        await trio.lowlevel.checkpoint()

    @property
    def stats(self) -> ChannelStats:
        """What came to what."""
        return ChannelStats(
            self._published,
            self._delivered,
            self._repeated,
            self._stale,
            self._invalid,
            self._unwanted,
            self._sent,
            self._dropped + sum(line.queue.dropped for line in self._lines.values()),
            self._failed,
        )

    async def _take(self, source: PeerId, push: Push) -> Taken:
        """Take a batch from a peer; answered when all of it is checked, so that it paces itself."""
        fresh = 0
        for message in push.messages:
            handler = self._handlers.get(message.topic)
            if handler is None:
                self._unwanted += 1  # we cannot tell whether it is valid, so it ends here
            elif not self._flood.is_news(message, trio.current_time()):
                self._repeated += 1
            else:
                fresh += 1
                self._delivered += 1
                if await self._is_to_go_on(handler, source, message):
                    self._spread(message, source)
        return Taken(fresh)

    async def _is_to_go_on(self, handler: ChannelHandler, source: PeerId, message: Gossip) -> bool:
        try:
            is_news = await handler(source, message.data)
        except ShoalError as error:
            self._invalid += 1
            log.debug("channel.refused topic=%s peer=%s %s", message.topic, source, error)
            return False
        self._stale += not is_news
        return is_news

    def _spread(self, message: Gossip, source: PeerId | None) -> None:
        assert self._nursery is not None, "channels are not running"
        for peer in self._flood.targets(message, source, self._peers()):
            line = self._lines.get(peer)
            if line is None:
                line = self._lines[peer] = _Line()
                self._nursery.start_soon(self._serve_line, peer, line)
            line.queue.put(message)
            line.bell.set()

    async def _serve_line(self, peer: PeerId, line: _Line) -> None:
        """Send a peer what waits for it, until nothing has for a while or the peer is gone."""
        try:
            while True:
                if not line.queue:
                    line.bell = trio.Event()
                    with trio.move_on_after(IDLE_S):
                        await line.bell.wait()
                    if not line.queue:
                        return
                batch = line.queue.take_batch()
                try:
                    await self._rpc.call(peer, PUSH, Push(batch), timeout_s=PUSH_TIMEOUT_S)
                    self._sent += len(batch)
                except ShoalError as error:
                    self._failed += len(batch)
                    log.debug("channel.push_failed peer=%s %s", peer, error)
                    if peer not in self._peers():
                        self._failed += len(line.queue)
                        return
        finally:
            self._dropped += line.queue.dropped
            del self._lines[peer]


def _check(topic: str) -> None:
    try:
        msgspec.convert(topic, Topic)
    except msgspec.ValidationError as error:
        raise UsageError(f"not a topic: {topic[:80]!r}") from error
