"""Channels: publish to everybody, listen to a topic. The trio driver of `machine.GossipSub`.

A message is checked before it goes on: its form, who may write, how much its author has said, that
it is no replay, its signature; then by the topic's handler, if a part of the daemon has one. Slow
peers and slow readers lose their own messages only. Delivery is best effort with repair by
announcements; who must not miss anything syncs, as the store does.
"""

import logging
import math
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import trio

from protocols.channels import policy, reference, signing, wire
from protocols.channels.channel import (
    Channel,
    ChannelHandler,
    ChannelView,
    Counters,
    Published,
)
from protocols.channels.effects import Drop, Effect, Send, Validate, Verdict
from protocols.channels.fetching import Fetching
from protocols.channels.history import AGE_MAX_S, COUNT_MAX, Ask, History, Keep, Kept
from protocols.channels.links import Links
from protocols.channels.machine import GossipSub
from protocols.channels.params import Params
from protocols.channels.past import PastService
from protocols.channels.policy import Policy
from protocols.channels.reference import Blobs
from protocols.channels.replay import is_time
from protocols.channels.send_queue import split
from protocols.channels.subscription import QUEUE_MAX, Arrival, Received, Subscription
from protocols.channels.validation import Checked, Validation
from protocols.channels.wire import Message
from wire.errors import PeerError, ShoalError, UsageError
from wire.ids import PeerId, Signer
from wire.ports import Clock, OffLoop, Rpc, WatchedHost
from wire.threads import Threads

HANDLER_TIMEOUT_S = 30.0  # the machine forgets a message that takes longer; the store: a sync

Origin = Callable[[PeerId], tuple[str, bool]]  # a peer's public IP ("" if none); did we dial it?

log = logging.getLogger(__name__)


class ChannelService:
    """`run` it, then publish and listen."""

    def __init__(
        self,
        host: WatchedHost,
        rpc: Rpc,
        signer: Signer,
        clock: Clock,
        *,
        blobs: Blobs | None = None,
        origin: Origin = lambda _: ("", False),
        params: Params | None = None,
        off_loop: OffLoop | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """`off_loop` is for simulators: no threads there. Without `blobs`, 64 KiB is the limit."""
        self._signer, self._clock, self._origin = signer, clock, origin
        self._author = wire.author_of(signer.peer)
        self._off_loop = off_loop or Threads()
        self._machine = GossipSub(signer.peer, params or Params(), rng or random.Random())
        self._links = Links(host, self)
        self._past = PastService(rpc, clock, self._off_loop, self._history_of)
        self._fetching = Fetching(blobs)
        self._channels: dict[str, Channel] = {}
        self._validation = Validation(self._channels, self._wall_ns)
        self._nursery: trio.Nursery | None = None
        self._number = 0
        self._wake_at, self._alarm = math.inf, trio.Event()
        self._totals = Counters()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Talk with every peer until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._tick)
            await nursery.start(self._links.run)
            await nursery.start(self._fetching.run)
            task_status.started()

    # For programs.

    @asynccontextmanager
    async def listen(
        self,
        topic: str,
        *,
        policy: Policy | None = None,
        keep: Keep | None = None,
        last: int = 0,
        age_s: float = AGE_MAX_S,
        queue_max: int = QUEUE_MAX,
    ) -> AsyncGenerator[Subscription]:
        """Read a topic: up to `last` messages of the past that are at most `age_s` old, then live.

        policy: whom to hear, and how much of each. keep: what to keep for who comes later. A
        reader that has `queue_max` messages waiting loses the oldest: see `dropped`.
        """
        age_s, last = min(age_s, AGE_MAX_S), min(last, COUNT_MAX)
        reader = Subscription(topic, policy or Policy(), queue_max=queue_max, is_ready=last == 0)
        channel, scope = self._join(topic), trio.CancelScope()
        channel.attach(reader, (keep or Keep()).most(Keep(last, 0, age_s if last else 0.0)))
        try:
            if last:
                assert self._nursery is not None, "channels are not running"
                ask = Ask(topic, round(age_s * 1000), last)
                self._nursery.start_soon(self._catch_up, channel, reader, ask, scope)
            yield reader
        finally:
            scope.cancel()
            channel.detach(reader)
            self._leave(channel)

    def subscribe(self, topic: str, handler: ChannelHandler) -> None:
        """Hand every new message of a topic to a part of the daemon, with who passed it on.

        True from the handler means news: it goes on to our peers. False ends it here. A PeerError
        means that it is invalid and counts against who passed it on; another ShoalError does not.
        """
        channel = self._join(topic)
        if channel.handler is not None:
            raise UsageError(f"topic {topic} has a handler already")
        channel.handler = handler

    async def publish(self, topic: str, data: bytes) -> Published:
        """Send to everybody who is subscribed, our own readers too (but not our own handler).

        Returns once it is queued for our peers, which are given time to take a burst. Over 64 KiB
        it goes as a reference to a blob.
        Raises UsageError for a bad topic, one that is another's, or too much data.
        """
        policy.check_topic(topic)
        policy.check_writer(topic, self._signer.peer)
        payload, cid = data, ""
        if len(data) > wire.PAYLOAD_MAX or data.startswith(reference.MAGIC):
            payload, cid = await self._fetching.store(data)
        self._number = max(self._number + 1, self._wall_ns())
        message = signing.seal(self._signer, self._author, topic, payload, self._number)
        self._validation.replays.remember(self._author, self._number, self._wall_ns())
        channel = self._channels.get(topic)
        if channel is not None:
            self._deliver_own(channel, message, data, cid)
        self._totals.published += 1
        self._apply(self._machine.publish(message, trio.current_time()))
        await trio.lowlevel.checkpoint()
        await self._links.pace()
        return Published(self._number, self._machine.subscribers(topic), cid)

    def views(self) -> list[ChannelView]:
        """Return every topic that something here is subscribed to."""
        return [self._view(channel) for _, channel in sorted(self._channels.items())]

    @property
    def stats(self) -> Counters:
        """Return totals since the start, over all topics."""
        live = sum(channel.dropped for channel in self._channels.values())
        return replace(
            self._totals,
            forwarded=self._links.sent,
            copies=self._machine.copies,
            limited=self._machine.limited,
            failed=self._totals.failed + self._fetching.failed,
            dropped=self._totals.dropped + live,
            unsent=self._links.dropped,
            given=self._past.given,
            invalid=self._totals.invalid + self._past.invalid,
        )

    # For `links.Links`.

    def link_up(self, peer: PeerId, version: str) -> None:
        """Our stream to a peer is open."""
        address, outbound = self._origin(peer)
        now = trio.current_time()
        self._apply(self._machine.peer_up(peer, version, now, outbound=outbound, address=address))

    def link_down(self, peer: PeerId) -> None:
        """Our stream to a peer is over."""
        self._apply(self._machine.peer_down(peer, trio.current_time()))

    def heard_nonsense(self, peer: PeerId) -> None:
        """A peer sent bytes that are no messages."""
        self._apply(self._machine.broke_framing(peer, trio.current_time()))

    def hear(self, peer: PeerId, frames: list[bytes]) -> int:
        """Take what a peer sent; returns the bytes of data in it.

        Raises BadMessage, after what came before it is checked.
        """
        news, data_bytes = list[Validate](), 0
        try:
            for frame in frames:
                rpc = wire.decode(frame)
                data_bytes += sum([len(message.data) for message in rpc.messages])
                self._links.has_it(peer, rpc.messages)
                news += self._apply(self._machine.receive(peer, rpc, trio.current_time()))
        finally:
            self._check(news)
        return data_bytes

    # Inside: effects and time.

    def _apply(self, effects: list[Effect]) -> list[Validate]:
        """Carry out effects in order; returns what is to be checked."""
        news = list[Validate]()
        for effect in effects:
            match effect:
                case Send(peers, rpc):
                    control, bodies = split(rpc)
                    for peer in peers:
                        self._links.send(peer, control, bodies)
                case Drop(peer, reason):
                    log.info("channels.peer_dropped peer=%s reason=%s", peer, reason)
                    self._links.drop(peer)
                case Validate():
                    news.append(effect)
        if self._machine.deadline < self._wake_at:
            self._alarm.set()
        return news

    async def _tick(self) -> None:
        while True:
            self._alarm, self._wake_at = trio.Event(), self._machine.deadline
            with trio.move_on_at(self._wake_at):
                await self._alarm.wait()
            now = trio.current_time()
            if now >= self._machine.deadline:
                self._apply(self._machine.tick(now))

    # Inside: messages.

    def _check(self, news: list[Validate]) -> None:
        """Check a few messages at once, more of them in a thread. None is forgotten half way."""
        assert self._nursery is not None, "channels are not running"
        if len(news) > signing.INLINE_MAX:
            self._nursery.start_soon(self._check_many, news)
        elif news:
            self._finish(self._validation.check(news))

    async def _check_many(self, news: list[Validate]) -> None:
        self._finish(await self._validation.check_many(news, self._off_loop))

    def _finish(self, found: list[Checked]) -> None:
        """Deliver and pass on what is valid; what has a handler waits for its word."""
        assert self._nursery is not None, "channels are not running"
        for item in found:
            channel = self._channels.get(item.news.message.topic)
            if channel is None or item.author is None:
                self._count_bad(channel, item.verdict)
                self._settle(item.news, item.verdict)
            elif channel.handler is None:
                self._settle(item.news, Verdict.ACCEPT)
                self._deliver(channel, item.news.message, item.author.peer, item.news.peer)
            else:
                self._nursery.start_soon(self._ask_handler, channel, channel.handler, item)

    async def _ask_handler(self, channel: Channel, handler: ChannelHandler, item: Checked) -> None:
        verdict = Verdict.IGNORE
        try:
            with trio.move_on_after(HANDLER_TIMEOUT_S):
                is_news = await handler(item.news.peer, item.news.message.data)
                verdict = Verdict.ACCEPT if is_news else Verdict.IGNORE
        except PeerError as error:
            verdict = Verdict.REJECT
            log.debug("channels.refused topic=%s peer=%s %s", channel.topic, item.news.peer, error)
        except ShoalError as error:
            log.debug("channels.failed topic=%s %s", channel.topic, error)
        if verdict is Verdict.ACCEPT and item.author is not None:
            self._settle(item.news, verdict)
            self._deliver(channel, item.news.message, item.author.peer, item.news.peer)
        else:
            self._count_bad(channel, verdict)
            self._settle(item.news, verdict)

    def _settle(self, news: Validate, verdict: Verdict) -> None:
        again = self._apply(self._machine.validated(news.id, verdict, trio.current_time()))
        if again and self._nursery is not None:  # another copy, after a forged one
            self._nursery.start_soon(self._check_many, again)

    def _deliver(self, channel: Channel, message: Message, author: PeerId, source: PeerId) -> None:
        if message.id in channel.history:
            return  # it came with the past already
        for counters in (channel.counters, self._totals):
            counters.delivered += 1
        kept = self._kept(message, author)
        channel.deliver(kept, self._arrival(kept, self._clock.wall_ms(), [source]))

    def _kept(self, message: Message, author: PeerId) -> Kept:
        number, now_ns = signing.number_of(message), self._wall_ns()
        order_ns = number if is_time(number, now_ns) else now_ns
        return Kept(message.id, author, message, trio.current_time(), order_ns)

    def _deliver_own(self, channel: Channel, message: Message, data: bytes, cid: str) -> None:
        mine, now_ms = self._signer.peer, self._clock.wall_ms()
        received = Received(channel.topic, mine, self._number, data, now_ms, message.id, cid)
        channel.deliver(self._kept(message, mine), Arrival(received))
        channel.counters.published += 1

    def _arrival(self, kept: Kept, at_ms: int, sources: list[PeerId]) -> Arrival:
        """Make a message ready for readers; if it is a reference its blob is fetched."""
        message, author = kept.message, kept.author
        wanted = reference.unpack(message.data)  # was checked before
        received = Received(
            message.topic,
            author,
            signing.number_of(message),
            message.data if wanted is None else b"",
            at_ms,
            kept.name,
            wanted.cid if wanted else "",
        )
        if wanted is None:
            return Arrival(received)
        arrival = Arrival(received, is_here=False)
        self._fetching.begin(arrival, wanted, list(dict.fromkeys((author, *sources))))
        return arrival

    def _count_bad(self, channel: Channel | None, verdict: Verdict) -> None:
        for counters in (self._totals, channel.counters if channel else None):
            if counters is not None:
                counters.invalid += verdict is Verdict.REJECT
                counters.ignored += verdict is Verdict.IGNORE

    # Inside: topics.

    def _join(self, topic: str) -> Channel:
        policy.check_topic(topic)
        channel = self._channels.get(topic)
        if channel is None:
            self._apply(self._machine.subscribe(topic, trio.current_time()))
            channel = self._channels[topic] = Channel(topic)
        return channel

    def _leave(self, channel: Channel) -> None:
        if channel.is_idle and self._channels.get(channel.topic) is channel:
            del self._channels[channel.topic]
            self._totals.dropped += channel.counters.dropped
            self._apply(self._machine.unsubscribe(channel.topic, trio.current_time()))

    def _history_of(self, topic: str) -> History | None:
        channel = self._channels.get(topic)
        return None if channel is None or channel.handler is not None else channel.history

    async def _catch_up(
        self, channel: Channel, reader: Subscription, ask: Ask, scope: trio.CancelScope
    ) -> None:
        """Give a reader the past, as far as we or two peers of the mesh have it; then let it go."""
        machine, topic = self._machine, channel.topic
        peers = sorted(machine.mesh(topic), key=machine.score, reverse=True)
        with scope:
            try:
                await self._past.complete(channel.history, peers, ask)
            except ShoalError as error:
                for counters in (channel.counters, self._totals):
                    counters.failed += 1
                log.debug("channels.no_past topic=%s %s", topic, error)
            now, now_ms = trio.current_time(), self._clock.wall_ms()
            past = channel.history.since(now, ask.age_ms / 1000, COUNT_MAX)
            chosen = [
                self._arrival(kept, now_ms - round((now - kept.at) * 1000), peers)
                for kept in reader.choose(past, ask.last)
            ]
            reader.begin_with(chosen)

    def _view(self, channel: Channel) -> ChannelView:
        rate_s, bytes_s = channel.meter.rates(trio.current_time())
        topic = channel.topic
        return ChannelView(
            topic=topic,
            readers=len(channel.subscriptions) + (channel.handler is not None),
            peers=self._machine.subscribers(topic),
            mesh={peer: self._machine.score(peer) for peer in self._machine.mesh(topic)},
            counters=replace(channel.counters),
            dropped=channel.dropped,
            history=len(channel.history),
            rate_s=rate_s,
            bytes_s=bytes_s,
        )

    def _wall_ns(self) -> int:
        return self._clock.wall_ms() * 1_000_000
