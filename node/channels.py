"""Channels in the daemon: what the service needs of the host, and what the control routes show."""

import ipaddress
from collections.abc import AsyncGenerator, Callable

from node.control.api import Event
from node.host.views import PeerView
from protocols.channels.channel import ChannelView
from protocols.channels.history import AGE_MAX_S, COUNT_MAX
from protocols.channels.policy import Policy, check_user_topic
from protocols.channels.service import ChannelService
from protocols.channels.subscription import Received
from shoal import channels as shapes
from wire.ids import PeerId

READ_MAX_BYTES = 8 * 1024 * 1024  # of one message on the control socket, where it is base64
TOGETHER_BYTES = 64 * 1024  # of messages that wait, in one write: each write costs like a message


def origin_of(peers: Callable[[], list[PeerView]]) -> Callable[[PeerId], tuple[str, bool]]:
    """Return what scores by: a peer's public IP ("" if it is private), and whether we dialled."""

    def origin(peer: PeerId) -> tuple[str, bool]:
        view = next((view for view in peers() if view.peer == peer), None)
        return ("", False) if view is None else (_public_ip(view.address), view.direction == "out")

    return origin


def _public_ip(multiaddr: str) -> str:
    parts = multiaddr.split("/")
    try:
        address = ipaddress.ip_address(parts[2])
    except (IndexError, ValueError):
        return ""
    return str(address) if address.is_global else ""


class ChannelDesk:
    """What the control routes ask for: user topics only, with members' names."""

    def __init__(
        self,
        channels: ChannelService,
        name_of: Callable[[PeerId], str],
        resolve: Callable[[str], PeerId],
    ) -> None:
        self._channels, self._name_of, self._resolve = channels, name_of, resolve

    async def publish(self, topic: str, data: bytes) -> shapes.Published:
        """Publish on a user's topic."""
        check_user_topic(topic)
        found = await self._channels.publish(topic, data)
        return shapes.Published(found.seqno, found.peers, found.cid)

    def check(self, wanted: shapes.Subscribe) -> Policy:
        """Return whom a subscriber wants to hear. Raises UsageError, NotFound."""
        check_user_topic(wanted.topic)
        if not wanted.authors:
            return Policy()
        return Policy(writers=frozenset(self._resolve(name) for name in wanted.authors))

    async def messages(
        self, wanted: shapes.Subscribe, policy: Policy
    ) -> AsyncGenerator[Event | list[Event]]:
        """Yield an event "ready" once subscribed, then messages until the client goes away.

        Those that wait already are yielded together.
        """
        asks_past = wanted.last is not None or wanted.since_s is not None
        listening = self._channels.listen(
            wanted.topic,
            policy=policy,
            last=(COUNT_MAX if wanted.last is None else wanted.last) if asks_past else 0,
            age_s=AGE_MAX_S if wanted.since_s is None else wanted.since_s,
        )
        async with listening as messages:
            yield Event(None, name="ready")
            told = 0
            async for message in messages:
                found, size_bytes = [message], len(message.data)
                while size_bytes < TOGETHER_BYTES and (more := messages.take_now()) is not None:
                    found.append(more)
                    size_bytes += len(more.data)
                lost, told = messages.dropped - told, messages.dropped
                yield [
                    Event(self._message(one, 0 if one is not message else lost)) for one in found
                ]

    def _message(self, message: Received, dropped: int) -> shapes.Message:
        data, error = message.data, message.error
        if len(data) > READ_MAX_BYTES:
            data = b""
            error = f"{len(message.data)} B are too much for this socket: `shoal get {message.cid}`"
        return shapes.Message(
            topic=message.topic,
            author=message.author,
            name=self._name_of(message.author),
            seqno=message.seqno,
            data=data,
            received_ms=message.received_ms,
            dropped=dropped,
            cid=message.cid,
            error=error,
        )

    def views(self) -> list[shapes.Channel]:
        """Return every topic that is listened to here, the daemon's own too."""
        return [_shape(view, self._name_of) for view in self._channels.views()]


def _shape(view: ChannelView, name_of: Callable[[PeerId], str]) -> shapes.Channel:
    mesh = [
        shapes.MeshPeer(peer, name_of(peer), round(score, 3))
        for peer, score in sorted(view.mesh.items())
    ]
    counters = view.counters
    return shapes.Channel(
        topic=view.topic,
        readers=view.readers,
        peers=view.peers,
        mesh=mesh,
        delivered=counters.delivered,
        published=counters.published,
        invalid=counters.invalid,
        ignored=counters.ignored,
        dropped=view.dropped,
        failed=counters.failed,
        history=view.history,
        rate_s=round(view.rate_s, 3),
        bytes_s=round(view.bytes_s, 1),
    )
