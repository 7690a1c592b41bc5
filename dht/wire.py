"""Bytes to `dht.messages` and back: `/ipfs/kad/1.0.0`, with fields of our own.

The only place that sees protobuf. What comes from a peer is bounded, typed, and its signatures are
checked: no false record gets past it (those found genuine are remembered where they are opened).
In lists, a false record is dropped and the others stay; what a message is about must be right.
Source: docs/protocols/dht.md; libp2p/specs, kad-dht/README.md.
"""

import functools
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

from google.protobuf.message import DecodeError

from dht import kad_pb2 as pb
from dht.messages import (
    PROVISIONS_MAX,
    AddProviders,
    Answer,
    Contact,
    FindNode,
    GetProviders,
    GetValue,
    Nodes,
    Ping,
    Pong,
    Providers,
    Provision,
    PutValue,
    Request,
    Stored,
    Value,
    Values,
    hearsay,
)
from dht.records import ADDRESSES_MAX, LIFE_MAX_MS, NAME_MAX, open_peer, open_provision, why_not
from dht.values import open_value
from wire import frames, multiaddrs
from wire.errors import BadMessage
from wire.ids import PeerId, bytes_of, peer_of

R = TypeVar("R")

MESSAGE_MAX = 128 * 1024  # bytes; 64 KiB of values, and 20 contacts with what they claim
CLOSER_MAX = 32  # contacts of an answer that are read; we send up to 21, others 20
PROVIDERS_MAX = 64  # of an answer; as many as a name may have
PROVIDER_BYTES = 400  # of one in the form of others, six addresses: contacts have room beside 64
AUTHORS_MAX = 64  # values of one name
REFUSAL_MAX = 200  # characters; it is shown to people

_PUT_VALUE, _GET_VALUE, _ADD_PROVIDER, _GET_PROVIDERS, _FIND_NODE, _PING = range(6)
_TYPES: dict[type[Request], int] = {
    PutValue: _PUT_VALUE,
    GetValue: _GET_VALUE,
    AddProviders: _ADD_PROVIDER,
    GetProviders: _GET_PROVIDERS,
    FindNode: _FIND_NODE,
    Ping: _PING,
}
_CLOSER_TAG, _PROVIDERS_TAG = b"\x42", b"\x4a"  # fields 8 and 9, bytes


class BadRecord(BadMessage):
    """The message is one, but what it wants to be kept is false: the sender may be told why."""


# --- requests ------------------------------------------------------------------------------------


def encode_request(request: Request, sender: Contact | None) -> bytes:
    """Write a request; `sender` is our own record, None while we are a client."""
    message = pb.Message(type=_TYPES[type(request)], sender=sender.sealed if sender else b"")
    match request:
        case Ping():
            pass
        case FindNode(name) | GetProviders(name) | GetValue(name):
            message.key = name
        case PutValue(value):
            message.key = value.name
            _set_record(message, value)
        case AddProviders(provisions):
            _set_provisions(message, provisions, sender)
    return message.SerializeToString()


def _set_provisions(
    message: pb.Message, provisions: tuple[Provision, ...], sender: Contact | None
) -> None:
    """Signed ones as ours; the first in the form of others, too, who know one in a message, and
    where the other providers are.
    """
    assert provisions
    first = provisions[0]
    message.key = first.name
    message.provisions.extend([each.sealed for each in provisions if each.sealed])
    known = {sender.peer: sender.addrs} if sender else {}
    places = {first.peer: first.addrs or known.get(first.peer, ())}
    for each in provisions:
        if each.addrs and len(places) < PROVIDERS_MAX:
            places.setdefault(each.peer, each.addrs)
    message.providerPeers.extend([_provider(*each) for each in places.items()])


class Draft:
    """A request that was bounded, but whose records were not opened yet."""

    def __init__(self, frame: bytes | memoryview) -> None:
        """Raises BadMessage."""
        self.message = _parse(frame)
        if self.message.type not in _TYPES.values():
            raise BadMessage(f"message type {self.message.type}")

    @property
    def signatures(self) -> int:
        """How many signatures `open` checks, beside the sender's."""
        return len(self.message.provisions) + (self.message.type == _PUT_VALUE)

    def open(self, peer: PeerId, wall_ms: int) -> tuple[Request, Contact | None]:
        """Return the request that a peer sent, and its own record if it sent one.

        Safe in a thread. Raises BadRecord, or BadMessage.
        """
        message = self.message
        sender = _sender(message, peer)
        if message.type == _PING:
            return Ping(), sender
        name = _name(message)
        if message.type == _FIND_NODE:
            return FindNode(name), sender
        if message.type == _GET_PROVIDERS:
            return GetProviders(name), sender
        if message.type == _GET_VALUE:
            return GetValue(name), sender
        if message.type == _PUT_VALUE:
            return PutValue(_genuine(open_value, name, message.record.value)), sender
        return AddProviders(_offered(message, name, wall_ms)), sender

    def refuse(self, why: str, sender: Contact | None) -> bytes:
        """Write the answer to it if it is not opened, or cannot be."""
        message = pb.Message(
            type=self.message.type,
            sender=sender.sealed if sender else b"",
            refusal=why[:REFUSAL_MAX].encode(),
        )
        return message.SerializeToString()


def decode_request(
    frame: bytes | memoryview, peer: PeerId, wall_ms: int
) -> tuple[Request, Contact | None]:
    """Read a request that `peer` sent, and its own record. Raises BadMessage; nothing else."""
    return Draft(frame).open(peer, wall_ms)


def _offered(message: pb.Message, name: bytes, wall_ms: int) -> tuple[Provision, ...]:
    """Read what is to be stored: signed records, or one in the form of others."""
    if message.provisions:
        addrs = _addrs_by_peer(message)
        return tuple(
            _with_addrs(_genuine(open_provision, sealed), addrs) for sealed in message.provisions
        )
    unsigned = _unsigned(message, name, wall_ms)
    if not unsigned:
        raise BadRecord("no provider is named")
    return unsigned


# --- answers -------------------------------------------------------------------------------------


def encode_answer(request: Request, answer: Answer, sender: Contact | None) -> bytes:
    """Write the answer to a request. The last contacts are left out if they do not fit."""
    message = pb.Message(type=_TYPES[type(request)], sender=sender.sealed if sender else b"")
    match answer:
        case Pong():
            return message.SerializeToString()
        case Stored(kept, refusal):  # a refusal may be the answer to every request
            message.refusal = refusal[:REFUSAL_MAX].encode()
            if isinstance(request, PutValue | AddProviders):
                message.kept = kept
            if isinstance(request, PutValue) and kept:  # others look for it
                message.key = request.value.name
                _set_record(message, request.value)
            return message.SerializeToString()
        case Nodes(closer):
            return _with_contacts(message, {}, closer)
        case Providers(provisions, closer):
            message.provisions.extend([each.sealed for each in provisions if each.sealed])
            known = {each.peer: each.addrs for each in (*closer, *([sender] if sender else []))}
            providers = {each.peer: known.get(each.peer) or each.addrs for each in provisions}
            return _with_contacts(message, providers, closer)
        case Values(found, closer):
            if found:
                _set_record(message, found[0])
                message.values.extend([each.sealed for each in found[1:]])
            return _with_contacts(message, {}, closer)


def decode_answer(
    frame: bytes | memoryview, request: Request, peer: PeerId, wall_ms: int, *, is_public: bool
) -> tuple[Answer, Contact | None]:
    """Read what `peer` answered to a request, and its own record. Safe in a thread.

    is_public: what is not signed is believed. Raises BadMessage; nothing else.
    """
    message = _parse(frame)
    if message.type != _TYPES[type(request)]:
        raise BadMessage(f"an answer of type {message.type} to a {type(request).__name__}")
    sender = _sender(message, peer)
    if message.refusal and not isinstance(request, PutValue | AddProviders):
        return Stored(0, _text(message.refusal)), sender
    match request:
        case Ping():
            return Pong(), sender
        case FindNode():
            return Nodes(_closer(message, wall_ms, is_public=is_public)), sender
        case GetProviders(name):
            found = _providers(message, name, wall_ms, is_public=is_public)
            return Providers(found, _closer(message, wall_ms, is_public=is_public)), sender
        case GetValue(name):
            closer = _closer(message, wall_ms, is_public=is_public)
            return Values(_values(message, name), closer), sender
        case PutValue(value):
            is_echoed = message.record.value == value.sealed
            return _stored(message, 1, by_default=int(is_echoed)), sender
        case AddProviders(provisions):
            return _stored(message, len(provisions), by_default=0), sender


def _stored(message: pb.Message, most: int, *, by_default: int) -> Stored:
    """by_default: what was kept by who does not tell, as others do not."""
    kept = message.kept if message.HasField("kept") else by_default
    if kept > most:
        raise BadMessage(f"{kept} records kept of {most}")
    if kept < most and not message.refusal:
        return Stored(kept, "the peer does not say why")
    return Stored(kept, _text(message.refusal))


def _text(refusal: bytes) -> str:
    """Return what people may be shown."""
    text = refusal[: 4 * REFUSAL_MAX].decode(errors="replace")[:REFUSAL_MAX]
    return "".join(each if each.isprintable() else "?" for each in text)


def _values(message: pb.Message, name: bytes) -> tuple[Value, ...]:
    if len(message.values) >= AUTHORS_MAX:
        raise BadMessage(f"more than {AUTHORS_MAX} values")
    sealed = [message.record.value] if message.record.value else []
    found = list[Value]()
    for each in (*sealed, *message.values):
        try:
            found.append(open_value(name, each))
        except BadMessage:
            continue
    return tuple(found)


def _providers(
    message: pb.Message, name: bytes, wall_ms: int, *, is_public: bool
) -> tuple[Provision, ...]:
    addrs, found = _addrs_by_peer(message), dict[PeerId, Provision]()
    for sealed in message.provisions[:PROVIDERS_MAX]:
        try:
            provision = open_provision(sealed)
        except BadMessage:
            continue
        if provision.name == name:
            found[provision.peer] = _with_addrs(provision, addrs)
    if is_public:
        for provision in _unsigned(message, name, wall_ms):
            found.setdefault(provision.peer, provision)
    return tuple(found.values())[:PROVIDERS_MAX]


def _closer(message: pb.Message, wall_ms: int, *, is_public: bool) -> tuple[Contact, ...]:
    """Read contacts; only a public DHT believes what others say of where a peer is."""
    found = list[Contact]()
    for each in message.closerPeers[:CLOSER_MAX]:
        try:
            peer = peer_of(each.id)
            contact = open_peer(each.sealed) if each.sealed else hearsay(peer, _addrs(each))
        except BadMessage:
            continue
        is_told = is_public or contact.sealed
        if contact.peer == peer and is_told and not why_not(contact, wall_ms):
            found.append(contact)
    return tuple(found)


# --- both ----------------------------------------------------------------------------------------


def _parse(frame: bytes | memoryview) -> pb.Message:
    if len(frame) > MESSAGE_MAX:
        raise BadMessage(f"a message of {len(frame)} B is over the limit of {MESSAGE_MAX} B")
    try:
        message = pb.Message.FromString(bytes(frame))
    except DecodeError as error:
        raise BadMessage("not a message of the DHT") from error
    if len(message.provisions) > PROVISIONS_MAX:
        raise BadMessage(f"{len(message.provisions)} provider records, over {PROVISIONS_MAX}")
    return message


def _name(message: pb.Message) -> bytes:
    if not 0 < len(message.key) <= NAME_MAX:
        raise BadMessage(f"a name of {len(message.key)} B; 1 to {NAME_MAX} are allowed")
    return message.key


def _sender(message: pb.Message, peer: PeerId) -> Contact | None:
    """The peer's own record. Another's is passed over: some send back what they do not know."""
    if not message.sender:
        return None
    sender = open_peer(message.sender)
    return sender if sender.peer == peer else None


def _genuine(opened: Callable[..., R], *what: bytes) -> R:
    """Open what is to be kept. Raises BadRecord."""
    try:
        return opened(*what)
    except BadMessage as error:
        raise BadRecord(str(error)) from error


def _unsigned(message: pb.Message, name: bytes, wall_ms: int) -> tuple[Provision, ...]:
    """Read provider records as others write them: what is said of peers."""
    return tuple(
        Provision(name, peer, wall_ms + LIFE_MAX_MS, addrs=addrs)
        for peer, addrs in _addrs_by_peer(message).items()
    )


def _addrs_by_peer(message: pb.Message) -> dict[PeerId, tuple[str, ...]]:
    found = dict[PeerId, tuple[str, ...]]()
    for each in message.providerPeers[:PROVIDERS_MAX]:
        try:
            found.setdefault(peer_of(each.id), _addrs(each))
        except BadMessage:
            continue  # a peer with another kind of key: nothing that we can talk to
    return found


def _with_addrs(provision: Provision, addrs: dict[PeerId, tuple[str, ...]]) -> Provision:
    found = addrs.get(provision.peer, ())
    return replace(provision, addrs=found) if found else provision


def _addrs(peer: pb.Peer) -> tuple[str, ...]:
    """Return those that can be dialled, as text."""
    found = [multiaddrs.unpack(packed) for packed in peer.addrs[:ADDRESSES_MAX]]
    return tuple(text for text in found if text)


def _set_record(message: pb.Message, value: Value) -> None:
    message.record.key, message.record.value = value.name, value.sealed


def _peer_of_others(peer: PeerId, addrs: Iterable[str], sealed: bytes = b"") -> pb.Peer:
    """Write a peer; that it is itself is left out of its addresses."""
    packed = [multiaddrs.pack(each.removesuffix(f"/p2p/{peer}")) for each in addrs]
    return pb.Peer(id=bytes_of(peer), addrs=[each for each in packed if each], sealed=sealed)


def _provider(peer: PeerId, addrs: Iterable[str]) -> pb.Peer:
    """Write a provider, with as many of its addresses as have room: others said them."""
    one = _peer_of_others(peer, addrs)
    while one.ByteSize() > PROVIDER_BYTES:
        del one.addrs[-1]
    return one


@functools.lru_cache(maxsize=4096)
def _packed_contact(contact: Contact) -> bytes:
    """Write one of closerPeers. Contacts are equal if they are the same object."""
    peer = _peer_of_others(contact.peer, contact.addrs, contact.sealed)
    return _CLOSER_TAG + frames.pack(peer.SerializeToString())


def _with_contacts(
    message: pb.Message, providers: dict[PeerId, tuple[str, ...]], closer: Iterable[Contact]
) -> bytes:
    """Add providers in the form of others, and contacts, as long as there is room."""
    parts = [message.SerializeToString()]
    room = MESSAGE_MAX - len(parts[0])
    for peer, addrs in providers.items():
        parts.append(_PROVIDERS_TAG + frames.pack(_provider(peer, addrs).SerializeToString()))
        room -= len(parts[-1])
    for contact in closer:
        packed = _packed_contact(contact)
        room -= len(packed)
        if room < 0:
            break
        parts.append(packed)
    return b"".join(parts)
