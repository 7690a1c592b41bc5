"""Wire messages of channels: the RPC of libp2p pubsub, as `/meshsub/1.1.0` and `/1.2.0` speak it.

Protobuf, read by a small reader of our own: it enforces every bound as it goes (a frame of empty
submessages costs nothing), and keeps the bytes of each message, so that forwarding one does not
encode it again. On a stream each RPC has a varint length in front: `wire.frames`, `FRAME_MAX`.
Source: github.com/libp2p/specs/pubsub, README and gossipsub v1.1, v1.2.
"""

import functools
from collections.abc import Iterator, Sized

import base58
import msgspec

from wire.errors import BadMessage
from wire.ids import PeerId

PROTOCOLS = ("/meshsub/1.2.0", "/meshsub/1.1.0")  # as we offer them, best first
MOVE = "/shoal/meshsub/move/1"  # a stream that another one goes on in: see `links`
READY = b"\x01"  # what is said against the stream's direction: the peer waits for the other's end

PAYLOAD_MAX = 64 * 1024  # bytes of a message's data; what is bigger goes by blob reference
FRAME_MAX = 256 * 1024  # bytes; 5,000 ids of 46 B, or three of the largest messages
TOPIC_MAX = 256  # bytes of a topic's name; ours are below 64, other networks use 100
ID_MAX = 128  # bytes of a message id; ours have 46, and a hash has 20 to 64
AUTHOR_MAX = 128  # bytes of a peer ID; an Ed25519 one has 38
SEQNO_MAX = 64  # bytes; libp2p's have 8
SIGNATURE_MAX = 1024  # bytes; Ed25519: 64, RSA-4096: 512
KEY_MAX = 2048  # bytes; only of keys that are not in the peer ID (RSA)

# Entries of one RPC. Each is read in full by somebody, so each has a bound.
MESSAGES_MAX = 256  # batches of small messages; 1 KB each fill a frame
SUBSCRIPTIONS_MAX = 1024  # a node tells all its topics at once, when it connects
IDS_MAX = 5000  # of all IHAVE, or of all IWANT; go-libp2p's MaxIHaveLength
CONTROLS_MAX = 256  # control messages of one kind: IHAVE, GRAFT and PRUNE come one a topic
DONT_WANT_MAX = 1000  # ids of all IDONTWANT; go-libp2p sends up to 10, rust-libp2p one a message

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # protobuf's wire types; groups are refused
_KNOWN_BYTES = 4096  # of messages that are remembered as they were read; 1,024 of them, 8 MB
_BACKOFF_MAX_S = 1 << 31  # more would be a mistake of the sender's; the machine cuts it further


class Message(msgspec.Struct, frozen=True, gc=False):
    """One published message. Make one with `message`; `raw` is its protobuf form, as it came."""

    author: bytes  # the peer ID's bytes; protobuf's name is "from"
    seqno: bytes
    topic: str
    data: bytes
    signature: bytes
    key: bytes
    raw: bytes

    @property
    def id(self) -> bytes:
        """The default id of signed messages: author and sequence number."""
        return self.author + self.seqno


class Subscription(msgspec.Struct, frozen=True, gc=False):
    """The sender subscribes to a topic, or leaves it."""

    topic: str
    subscribes: bool


class IHave(msgspec.Struct, frozen=True):
    """The sender has these messages, and gives them to who asks."""

    topic: str
    ids: tuple[bytes, ...]


class Prune(msgspec.Struct, frozen=True, gc=False):
    """The sender takes the receiver out of its mesh; no GRAFT for `backoff_s` seconds, 0: untold.

    Its peer exchange is neither sent nor read: a swarm has a member list of its own.
    """

    topic: str
    backoff_s: int


class Rpc(msgspec.Struct, frozen=True, omit_defaults=True):
    """All that one peer says to another at once. IWANT and IDONTWANT are lists of message ids."""

    subscriptions: tuple[Subscription, ...] = ()
    messages: tuple[Message, ...] = ()
    ihave: tuple[IHave, ...] = ()
    iwant: tuple[bytes, ...] = ()
    graft: tuple[str, ...] = ()
    prune: tuple[Prune, ...] = ()
    idontwant: tuple[bytes, ...] = ()


def message(
    *,
    author: bytes,
    seqno: bytes,
    topic: str,
    data: bytes,
    signature: bytes = b"",
    key: bytes = b"",
) -> Message:
    """Make a message and its encoded form."""
    raw = _signed_fields(author, seqno, topic, data)
    if signature:
        raw += _field(0x2A, signature)
    if key:
        raw += _field(0x32, key)
    return Message(author, seqno, topic, data, signature, key, raw)


def signed_bytes(message: Message) -> bytes:
    """Return what its signature covers: the prefix, and the message without signature and key."""
    return b"libp2p-pubsub:" + _signed_fields(
        message.author, message.seqno, message.topic, message.data
    )


def encode(rpc: Rpc) -> bytes:
    """Encode an RPC, without the length in front (`wire.frames.pack` adds it)."""
    parts: list[bytes] = []
    for subscription in rpc.subscriptions:
        body = b"\x08\x01" if subscription.subscribes else b"\x08\x00"
        parts.append(_field(0x0A, body + _field(0x12, subscription.topic.encode())))
    for item in rpc.messages:
        parts.append(_head(0x12, len(item.raw)))
        parts.append(item.raw)
    if rpc.ihave or rpc.iwant or rpc.graft or rpc.prune or rpc.idontwant:
        parts.append(_field(0x1A, _control(rpc)))
    return b"".join(parts)


def decode(frame: bytes) -> Rpc:
    """Parse one RPC. Raises BadMessage for everything a hostile peer can send; nothing else."""
    if len(frame) > FRAME_MAX:
        raise BadMessage(f"frame of {len(frame)} B is over the limit of {FRAME_MAX} B")
    subscriptions: list[Subscription] = []
    messages: list[Message] = []
    control = _Control()
    for number, start, end in _fields(frame, 0, len(frame)):
        if number == 2:
            _room(messages, MESSAGES_MAX, "messages")
            messages.append(_message(frame, start, end))
        elif number == 1:
            _room(subscriptions, SUBSCRIPTIONS_MAX, "subscriptions")
            subscriptions.append(_subscription(frame, start, end))
        elif number == 3:
            control.read(frame, start, end)
    return Rpc(
        tuple(subscriptions),
        tuple(messages),
        tuple(control.ihave),
        tuple(control.iwant),
        tuple(control.graft),
        tuple(control.prune),
        tuple(control.idontwant),
    )


class _Control:
    """The control part as it is read; a second one in the same RPC adds to the first."""

    def __init__(self) -> None:
        self.ihave: list[IHave] = []
        self.iwant: list[bytes] = []
        self.graft: list[str] = []
        self.prune: list[Prune] = []
        self.idontwant: list[bytes] = []
        self._announced = 0

    def read(self, frame: bytes, start: int, end: int) -> None:
        for number, first, last in _fields(frame, start, end):
            if number == 1:
                _room(self.ihave, CONTROLS_MAX, "IHAVE")
                self.ihave.append(self._ihave(frame, first, last))
            elif number == 2:
                _ids(frame, first, last, self.iwant, IDS_MAX)
            elif number == 3:
                _room(self.graft, CONTROLS_MAX, "GRAFT")
                self.graft.append(_only_topic(frame, first, last))
            elif number == 4:
                _room(self.prune, CONTROLS_MAX, "PRUNE")
                self.prune.append(_prune(frame, first, last))
            elif number == 5:
                _ids(frame, first, last, self.idontwant, DONT_WANT_MAX)

    def _ihave(self, frame: bytes, start: int, end: int) -> IHave:
        topic, ids = "", list[bytes]()
        for number, first, last in _fields(frame, start, end):
            if number == 1:
                topic = _text(frame, first, last)
            elif number == 2:
                self._announced += 1
                if self._announced > IDS_MAX:
                    raise BadMessage(f"more than {IDS_MAX} message ids in one RPC")
                ids.append(_bytes(frame, first, last, ID_MAX))
        return IHave(topic, tuple(ids))


def _message(frame: bytes, start: int, end: int) -> Message:
    if start < 0:
        raise BadMessage("an integer where a message belongs")
    raw = frame[start:end]
    return _known_message(raw) if len(raw) <= _KNOWN_BYTES else _read_message(raw)


@functools.lru_cache(maxsize=1024)
def _known_message(raw: bytes) -> Message:
    """Read a message once: the mesh brings each five times, in the same bytes."""
    return _read_message(raw)


def _read_message(raw: bytes) -> Message:
    author = data = seqno = signature = key = b""
    topic: str | None = None
    for number, first, last in _fields(raw, 0, len(raw)):
        if number == 1:
            author = _bytes(raw, first, last, AUTHOR_MAX)
        elif number == 2:
            data = _bytes(raw, first, last, PAYLOAD_MAX)
        elif number == 3:
            seqno = _bytes(raw, first, last, SEQNO_MAX)
        elif number == 4:
            if topic is not None:
                raise BadMessage("a message has two topics")  # libp2p before 2020
            topic = _text(raw, first, last)
        elif number == 5:
            signature = _bytes(raw, first, last, SIGNATURE_MAX)
        elif number == 6:
            key = _bytes(raw, first, last, KEY_MAX)
    if topic is None:
        raise BadMessage("a message has no topic")
    return Message(author, seqno, topic, data, signature, key, raw)


def _subscription(frame: bytes, start: int, end: int) -> Subscription:
    topic, subscribes = "", False
    for number, first, last in _fields(frame, start, end):
        if number == 1:
            subscribes = _integer(first, last) != 0
        elif number == 2:
            topic = _text(frame, first, last)
    return Subscription(topic, subscribes)


def _prune(frame: bytes, start: int, end: int) -> Prune:
    topic, backoff_s = "", 0
    for number, first, last in _fields(frame, start, end):
        if number == 1:
            topic = _text(frame, first, last)
        elif number == 3:
            backoff_s = min(_integer(first, last), _BACKOFF_MAX_S)
    return Prune(topic, backoff_s)


def _only_topic(frame: bytes, start: int, end: int) -> str:
    topic = ""
    for number, first, last in _fields(frame, start, end):
        if number == 1:
            topic = _text(frame, first, last)
    return topic


def _ids(frame: bytes, start: int, end: int, ids: list[bytes], limit: int) -> None:
    for number, first, last in _fields(frame, start, end):
        if number == 1:
            _room(ids, limit, "message ids")
            ids.append(_bytes(frame, first, last, ID_MAX))


def _room(items: Sized, limit: int, name: str) -> None:
    if len(items) >= limit:
        raise BadMessage(f"more than {limit} {name} in one RPC")


def _bytes(frame: bytes, first: int, last: int, limit: int) -> bytes:
    if first < 0:
        raise BadMessage("a number where bytes belong")
    if last - first > limit:
        raise BadMessage(f"field of {last - first} B is over the limit of {limit} B")
    return frame[first:last]


def _text(frame: bytes, first: int, last: int) -> str:
    try:
        return _bytes(frame, first, last, TOPIC_MAX).decode()
    except UnicodeDecodeError as error:
        raise BadMessage("a topic is not text") from error


def _integer(first: int, last: int) -> int:
    if first >= 0:
        raise BadMessage("bytes where a number belongs")
    return last


def _fields(frame: bytes, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield (field number, first, last) of bytes, and (field number, -1, value) of integers.

    Fixed-width numbers, which no field of ours has, are passed over. A position of -1 is that of
    an integer: whoever sent it put it where a message belongs.
    """
    if position < 0:
        raise BadMessage("an integer where a message belongs")
    while position < end:
        tag = frame[position]
        position += 1
        if tag >= 0x80:
            tag, position = _varint(frame, position - 1, end)
        kind = tag & 7
        if tag < 8:
            raise BadMessage("field number 0")
        if kind == _BYTES:
            if position >= end:
                raise BadMessage("a field is cut short")
            size = frame[position]
            position += 1
            if size >= 0x80:
                size, position = _varint(frame, position - 1, end)
            if size > end - position:
                raise BadMessage("a field is cut short")
            yield tag >> 3, position, position + size
            position += size
        elif kind == _VARINT:
            value, position = _varint(frame, position, end)
            yield tag >> 3, -1, value
        elif kind in (_FIXED32, _FIXED64):
            position += 4 if kind == _FIXED32 else 8
            if position > end:
                raise BadMessage("a field is cut short")
        else:
            raise BadMessage(f"wire type {kind}")


def _varint(frame: bytes, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end:
        byte = frame[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift >= 70:  # ten bytes are 64 bits
            raise BadMessage("a varint has more than ten bytes")
    raise BadMessage("a varint is cut short")


def author_of(peer: PeerId) -> bytes:
    """Return a peer ID's bytes, as messages carry them. Raises BadMessage if it is none."""
    try:
        author = base58.b58decode(peer) if len(peer) <= AUTHOR_MAX else b""
    except ValueError:
        author = b""
    if not author:
        raise BadMessage(f"not a peer ID: {peer[:16]!r}")
    return author


def _signed_fields(author: bytes, seqno: bytes, topic: str, data: bytes) -> bytes:
    return b"".join(
        (
            _field(0x0A, author),
            _field(0x12, data),
            _field(0x1A, seqno),
            _field(0x22, topic.encode()),
        )
    )


def _control(rpc: Rpc) -> bytes:
    parts: list[bytes] = []
    for item in rpc.ihave:
        ids = [_field(0x12, name) for name in item.ids]
        parts.append(_field(0x0A, _field(0x0A, item.topic.encode()) + b"".join(ids)))
    if rpc.iwant:
        parts.append(_field(0x12, b"".join([_field(0x0A, name) for name in rpc.iwant])))
    parts += [_field(0x1A, _field(0x0A, topic.encode())) for topic in rpc.graft]
    for prune in rpc.prune:
        backoff = _head(0x18, prune.backoff_s) if prune.backoff_s else b""
        parts.append(_field(0x22, _field(0x0A, prune.topic.encode()) + backoff))
    if rpc.idontwant:
        parts.append(_field(0x2A, b"".join([_field(0x0A, name) for name in rpc.idontwant])))
    return b"".join(parts)


def _field(tag: int, body: bytes) -> bytes:
    return _head(tag, len(body)) + body


def _head(tag: int, number: int) -> bytes:
    """Return a tag of one byte and a varint."""
    head = bytearray((tag,))
    while number >= 0x80:
        head.append(number & 0x7F | 0x80)
        number >>= 7
    head.append(number)
    return bytes(head)
