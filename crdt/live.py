"""The live path: what is new goes out at once on the namespace's channel, and comes in by it.

What gets lost here (a full queue, a node that was away) is found by the next sync.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Annotated, Protocol

import msgspec
import trio
from msgspec import Meta

from crdt.entry import BODY_MAX, Record, Signed
from crdt.replica import Replica
from wire import codec
from wire.codec import CONTROL_FRAME_MAX, Message
from wire.errors import ShoalError
from wire.ids import PeerId

TOPIC = "shoal/crdt"  # of all built-in namespaces together: the swarm's own state
TOPICS_MAX = 128  # that a store listens to, half of what a node may have: whoever lists namespaces
# must not leave the programs here without channels
OUTBOX_MAX = 64  # batches of news waiting for the channel; when full, news wait for the next sync
PUBLISH_S = 10.0  # for one message on the channel
NEWS_MAX_AGE_MS = 60_000  # older entries that a sync brings are not news to the others
NEWS_BYTES = 56 * 1024  # of entries in one message: it fits a control frame with its envelopes
NEWS_MAX = 512  # entries in one message, however small
SIGNED_OVERHEAD = 8  # bytes around body and signature

log = logging.getLogger(__name__)
ChannelHandler = Callable[[PeerId, bytes], Awaitable[bool]]
assert BODY_MAX + 64 + SIGNED_OVERHEAD < NEWS_BYTES


class Channel(Protocol):
    """Gossip, as the store needs it: `protocols.channels` provides it, node/ passes it in."""

    def subscribe(self, topic: str, handler: ChannelHandler, /) -> object:
        """Hand each message of a topic to `handler`, once; True: news, goes on to our peers."""
        ...

    def publish(self, topic: str, data: bytes, /) -> Awaitable[object]:
        """Send to everybody who is subscribed, up to 64 KiB."""
        ...


class News(Message, frozen=True):
    """Entries of one topic's namespaces; those of a chain in its order."""

    entries: Annotated[list[Signed], Meta(min_length=1, max_length=NEWS_MAX)]


_decoder = msgspec.msgpack.Decoder(News)


def topic_of(replica: Replica) -> str:
    """Return the topic of a namespace."""
    return TOPIC if replica.genesis.owner is None else f"{TOPIC}/{replica.id.hex()[:32]}"


class Live:
    """Publishes news of this node, and what syncs brought, if it is young."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._outbox, self._outgoing = trio.open_memory_channel[tuple[str, list[Record]]](
            OUTBOX_MAX
        )
        self._topics = 0  # that we listen to
        self.dropped = 0  # entries that did not go out

    def listen(self, topic: str, take: Callable[[PeerId, list[Signed]], Awaitable[bool]]) -> None:
        """Hand the news of a topic to `take`, which says whether they were any here.

        Nothing else goes on: an old entry in ever new messages ends here. Of too many topics the
        later ones are not listened to: syncs bring what is new there.
        """
        if self._topics >= TOPICS_MAX:
            return

        async def hear(peer: PeerId, data: bytes) -> bool:
            return await take(peer, codec.decode(data, _decoder, CONTROL_FRAME_MAX).entries)

        try:
            self._channel.subscribe(topic, hear)
        except ShoalError as error:  # programs of this machine have taken the channel's topics
            log.warning("store.not_listening topic=%s %s", topic, error)
        else:
            self._topics += 1

    def offer(self, topic: str, records: list[Record], now_ms: int) -> None:
        """Queue news for a topic; never waits."""
        young = [record for record in records if record.wall_ms > now_ms - NEWS_MAX_AGE_MS]
        if not young:
            return
        try:
            self._outbox.send_nowait((topic, young))
        except trio.WouldBlock:
            self.dropped += len(young)

    async def run(self) -> None:
        """Publish until cancelled."""
        async for topic, records in self._outgoing:
            for entries in _frames(records):
                with trio.move_on_after(PUBLISH_S) as scope:
                    try:
                        await self._channel.publish(topic, codec.encode(News(entries)))
                    except ShoalError:
                        self.dropped += len(entries)
                if scope.cancelled_caught:
                    self.dropped += len(entries)


def _frames(records: list[Record]) -> list[list[Signed]]:
    """Cut entries into messages, those of a chain together: they share a signature check."""
    frames: list[list[Signed]] = []
    room = 0
    for record in sorted(records, key=lambda one: (one.chain, one.seq)):
        need = record.size + SIGNED_OVERHEAD
        if not frames or need > room or len(frames[-1]) >= NEWS_MAX:
            frames.append([])
            room = NEWS_BYTES
        frames[-1].append(record.signed)
        room -= need
    return frames
