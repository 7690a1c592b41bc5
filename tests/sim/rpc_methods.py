"""Methods and handlers that the tests of calls share."""

from typing import Any

import trio

from wire.codec import Message
from wire.ids import PeerId
from wire.ports import Method, StreamServer, WatchedHost

A, B, C = PeerId("A"), PeerId("B"), PeerId("C")
LATENCY_S = 0.01


class Ask(Message, frozen=True, tag="ask"):
    number: int


class Reply(Message, frozen=True, tag="reply"):
    number: int


class Blob(Message, frozen=True):
    data: bytes


DOUBLE = Method("test.double", Ask, Reply)
COUNT = Method("test.count", Ask, Reply)
BULK = Method("test.bulk", Blob, Blob, frame_max=1 << 20)


async def double(peer: PeerId, ask: Ask) -> Reply:
    assert peer == A
    return Reply(2 * ask.number)


async def three(peer: PeerId, ask: Ask) -> Reply:
    return Reply(3)


class SecondLine:
    """A host for another caller of the same peer, which opens a line of its own."""

    def __init__(self, host: WatchedHost) -> None:
        self.peer, self.connected, self.open = host.peer, host.connected, host.open
        self.watch = host.watch

    def serve(self, protocol: str, server: StreamServer) -> None:
        """Answer nothing: the first caller does."""


class Sleeper:
    """A handler that works for ever and says when it was cancelled."""

    def __init__(self) -> None:
        self.started, self.cancelled_at = trio.Event(), 0.0

    async def __call__(self, *_: Any) -> Any:
        self.started.set()
        try:
            await trio.sleep_forever()
        finally:
            self.cancelled_at = trio.current_time()
