"""A member that speaks the channels' protocol by hand, and what it may say."""

from collections.abc import Iterator

import trio

from protocols.channels import signing, wire
from protocols.channels.wire import FRAME_MAX, PROTOCOLS, Message, Rpc, Subscription
from tests.sim.channel_swarm import TOPIC, Node, Swarm
from tests.sim.replicas import SimClock, signer
from wire import frames
from wire.errors import PeerUnreachable, ShoalError
from wire.ids import PeerId, Signer
from wire.ports import Stream

EVIL = signer(666)


def numbers() -> Iterator[int]:
    """Numbers as honest nodes draw them."""
    while True:
        yield SimClock().wall_ms() * 1_000_000 + len(_drawn)
        _drawn.append(0)


_drawn = list[int]()
_numbers = numbers()


def sealed(
    author: Signer, data: bytes, *, number: int | None = None, topic: str = TOPIC
) -> Message:
    number = next(_numbers) if number is None else number
    return signing.seal(author, wire.author_of(author.peer), topic, data, number)


def forged(author: PeerId, data: bytes) -> Message:
    """A message in another's name, with a signature of our own."""
    good = sealed(EVIL, data)
    return wire.message(
        author=wire.author_of(author),
        seqno=good.seqno,
        topic=TOPIC,
        data=data,
        signature=good.signature,
    )


class Enemy:
    """A peer that speaks the protocol by hand."""

    def __init__(self, swarm: Swarm, *, listens: bool = True) -> None:
        self.host = swarm.net.host(EVIL.peer)
        self.streams: dict[PeerId, Stream] = {}
        self.told = list[Subscription]()  # what others said they listen to
        if listens:
            self.listen()

    def listen(self) -> None:
        for protocol in PROTOCOLS:
            self.host.serve(protocol, self._listen)

    async def _listen(self, stream: Stream) -> None:
        parser = frames.FrameParser(FRAME_MAX)
        try:
            while data := await stream.read(65536):
                for frame in parser.feed(data):
                    self.told += wire.decode(bytes(frame)).subscriptions
        except PeerUnreachable:
            return

    async def say(self, node: Node, *messages: Message) -> None:
        await self.write(node, frames.pack(wire.encode(Rpc(messages=messages))))

    async def write(self, node: Node, data: bytes) -> None:
        """Write to a node, opening a stream if the last one was reset."""
        stream = self.streams.get(node.peer)
        if stream is None:
            stream = await self.host.open(node.peer, PROTOCOLS[0], timeout_s=5)
            self.streams[node.peer] = stream
            hello = Rpc(subscriptions=(Subscription(TOPIC, True),))
            await stream.write(frames.pack(wire.encode(hello)))
        try:
            await stream.write(data)
        except PeerUnreachable:
            del self.streams[node.peer]

    async def is_shut_out(self, node: Node) -> bool:
        """Whether a node resets what we open."""
        try:
            stream = await self.host.open(node.peer, PROTOCOLS[0], timeout_s=5)
            await trio.sleep(1)
            await stream.write(b"\x00")
        except ShoalError:
            return True
        return False
