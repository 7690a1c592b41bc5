"""Messages of `/libp2p/dcutr`: two peers agree on when to connect to which addresses.

    initiator -> CONNECT(its candidates)
    responder -> CONNECT(its candidates)
    initiator -> SYNC

Each is a protobuf with its length as a varint in front. Source: libp2p/specs, relay/DCUtR.
"""

from collections import deque
from dataclasses import dataclass
from typing import Protocol

from google.protobuf.message import DecodeError
from libp2p.relay.circuit_v2.pb.dcutr_pb2 import HolePunch

from node.host.addresses import Address
from node.reach.fields import decode_place, encode_place
from wire.errors import BadMessage, PeerUnreachable
from wire.frames import FrameParser, pack

DCUTR = "/libp2p/dcutr"
MESSAGE_MAX = 4096  # bytes, as the specification says
CANDIDATES_MAX = 32  # a node's interfaces, what it was seen as, and 16 guesses of a port


class _Stream(Protocol):
    async def read(self, max_bytes: int) -> bytes: ...


@dataclass(frozen=True)
class Connect:
    """Where the sender may be connected to, best first: IP addresses, no relay addresses."""

    candidates: tuple[Address, ...]


@dataclass(frozen=True)
class Sync:
    """Connect when you read this."""


Message = Connect | Sync


def encode(message: Message) -> bytes:
    """Return the message with its length in front. Of many candidates, the first are sent."""
    if isinstance(message, Sync):
        return pack(HolePunch(type=HolePunch.SYNC).SerializeToString())
    places = [encode_place(address) for address in message.candidates[:CANDIDATES_MAX]]
    return pack(HolePunch(type=HolePunch.CONNECT, ObsAddrs=places).SerializeToString())


def decode(body: bytes) -> Message:
    """Parse a message without its length. Raises BadMessage.

    Addresses that are not TCP on an IP address are left out: other implementations tell all theirs.
    """
    if len(body) > MESSAGE_MAX:
        raise BadMessage(f"DCUtR message of {len(body)} B is over {MESSAGE_MAX} B")
    try:
        found = HolePunch.FromString(body)
    except DecodeError as error:
        raise BadMessage("not a DCUtR message") from error
    if not found.HasField("type"):
        raise BadMessage("DCUtR message without a type")
    if found.type == HolePunch.SYNC:
        return Sync()
    places = ((data, decode_place(data)) for data in found.ObsAddrs)
    # Not a place with anything behind it: that may be a relay and a circuit.
    known = dict.fromkeys(at for data, at in places if at is not None and encode_place(at) == data)
    return Connect(tuple(known)[:CANDIDATES_MAX])


class Inbox:
    """Reads the messages of one stream."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream
        self._frames = FrameParser(MESSAGE_MAX)
        self._ready = deque[memoryview]()  # of one read, so at most MESSAGE_MAX bytes

    async def next(self) -> Message:
        """Return the next message. Raises BadMessage, and what the stream raises."""
        while not self._ready:
            data = await self._stream.read(MESSAGE_MAX)
            if not data:
                raise PeerUnreachable("DCUtR: the stream ended early")
            self._ready += self._frames.feed(data)
        return decode(bytes(self._ready.popleft()))
