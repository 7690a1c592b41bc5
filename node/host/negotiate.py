"""multistream-select 1.0 on one stream: which protocol it carries. Source: multiformats/multistream

Where the choice is known (in a closed swarm, whose nodes are all ours) a dialler does not wait for
the answer: it sends its `proposal` with what comes next, and checks the answer when it comes.

Ours because libp2p 0.8.1's takes two round trips to open a stream and reads byte by byte through
four locks (3 ms of CPU a stream); this one takes one round trip.
"""

import contextlib
from collections.abc import Awaitable, Callable
from typing import Protocol

from libp2p.stream_muxer.exceptions import MuxedStreamError

from wire.errors import BadMessage, PeerUnreachable

HELLO = "/multistream/1.0.0"
REFUSED = "na"
MESSAGE_MAX = 256  # bytes; the longest protocol name in use is under 60
ROUNDS_MAX = 16  # proposals before we hang up; clients know what they want


class ByteStream(Protocol):
    """What negotiation needs of a stream."""

    async def read(self, n: int | None = None) -> bytes:
        """Return between 1 and `n` bytes."""
        ...

    async def write(self, data: bytes) -> None:
        """Send all of `data`."""
        ...


async def select(stream: ByteStream, protocols: list[str]) -> str | None:
    """Propose protocols in order; return the first the peer accepts, None if it refuses all.

    Raises BadMessage, and what the stream raises.
    """
    await stream.write(_pack(HELLO) + _pack(protocols[0]))
    if await _read(stream) != HELLO:
        raise BadMessage("peer does not speak multistream")
    for index, protocol in enumerate(protocols):
        if index:
            await stream.write(_pack(protocol))
        answer = await _read(stream)
        if answer == protocol:
            return protocol
        if answer != REFUSED:
            raise BadMessage(f"peer answers {answer[:32]!r} to {protocol}")
    return None


async def accept(stream: ByteStream, offers: Callable[[str], Awaitable[bool]]) -> str | None:
    """Answer proposals until we offer one, and return it; None if none of many was.

    Raises BadMessage, and what the stream raises.
    """
    await _answer(stream, HELLO)
    if await _read(stream) != HELLO:
        raise BadMessage("peer does not speak multistream")
    for _ in range(ROUNDS_MAX):
        protocol = await _read(stream)
        if await offers(protocol):
            await _answer(stream, protocol)
            return protocol
        await _answer(stream, REFUSED)
    return None


def proposal(protocol: str) -> bytes:
    """Return what a dialler that proposes one protocol says, and a listener that takes it."""
    return _pack(HELLO) + _pack(protocol)


class Awaited:
    """The answer to a proposal whose sender did not wait for it."""

    def __init__(self, protocol: str) -> None:
        self._protocol = protocol
        self._left = proposal(protocol)
        self._seen = b""

    @property
    def left_bytes(self) -> int:
        """How much of it is still to come."""
        return len(self._left)

    def cut_off(self, data: bytes | memoryview) -> bytes | memoryview:
        """Return what comes behind it. Raises BadMessage if it is another, PeerUnreachable if the
        peer does not speak the protocol.
        """
        start, rest = bytes(data[: len(self._left)]), data[len(self._left) :]
        if not self._left.startswith(start):
            said = self._seen + start
            if (_pack(HELLO) + _pack(REFUSED)).startswith(said):
                raise PeerUnreachable(f"the peer does not speak {self._protocol}")
            raise BadMessage(f"peer answers {said[:32]!r} to {self._protocol}")
        self._seen += start
        self._left = self._left[len(start) :]
        return rest


async def _answer(stream: ByteStream, text: str) -> None:
    # Who said all, finished and went may be gone already, and what it said counts all the same.
    with contextlib.suppress(MuxedStreamError):
        await stream.write(_pack(text))


def _pack(text: str) -> bytes:
    body = text.encode() + b"\n"
    length = len(body)
    assert length <= MESSAGE_MAX, text
    head = bytes((length,)) if length < 0x80 else bytes((length & 0x7F | 0x80, length >> 7))
    return head + body


async def _read(stream: ByteStream) -> str:
    length = (await _read_exactly(stream, 1))[0]
    if length >= 0x80:
        length = length & 0x7F | (await _read_exactly(stream, 1))[0] << 7
    if not 0 < length <= MESSAGE_MAX:
        raise BadMessage(f"negotiation message of {length} B is over {MESSAGE_MAX} B")
    body = await _read_exactly(stream, length)
    try:
        return body.decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise BadMessage("negotiation message is not text") from error


async def _read_exactly(stream: ByteStream, size: int) -> bytes:
    data = await stream.read(size)
    while len(data) < size:
        more = await stream.read(size - len(data))
        if not more:
            raise BadMessage("negotiation cut short")
        data += more
    return data
