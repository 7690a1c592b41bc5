"""Signed records: where a peer is, and who has what. Nobody can move or advertise another peer.

`seal_…` writes one, `open_…` reads one that came and raises BadMessage for whatever is not genuine:
too large, of another shape, not in canonical form, not signed by whom it names. What depends on the
time is not judged here but by `why_not`, whose reasons travel in answers. `sealed` is the envelope
[body, signature] in MessagePack, as it travels and is handed on. Values: `dht.values`. Pure.
Format: docs/protocols/dht.md.
"""

import functools
from collections.abc import Callable
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from dht.key import key_of_peer
from dht.messages import Contact, Provision, Value
from wire import codec
from wire.codec import Message
from wire.errors import BadMessage, UsageError
from wire.ids import SIGNATURE_BYTES, PeerId, Signer, verify

ADDRESSES_MAX = 16
ADDRESS_MAX = 256  # characters of one multiaddr; the longest real one, through a relay, has ~180
NAME_MAX = 256  # bytes; a CID's multihash has 34, the rest is room for what values are called
DATA_MAX = 8192  # bytes of a value: the DHT points at things, it does not hold them
PEER_BODY_MAX = 2048  # bytes; so an answer with 20 contacts stays below 48 KiB
PROVISION_BODY_MAX = 512  # bytes: the longest name and 70 more
VALUE_BODY_MAX = DATA_MAX + 512  # bytes: likewise
ENVELOPE_BYTES = SIGNATURE_BYTES + 8  # what a signature and the heads of both fields add at most
PEER_TAG = "dht/peer/1"
PROVIDER_TAG = "dht/provider/1"
FUTURE_MAX_MS = 30_000  # clocks differ
LIFE_MAX_MS = 24 * 3600 * 1000  # of every record; owners republish at half of it
STAMP_MAX = 2**53
OPENED_MAX = 4096  # records remembered as genuine: answers name the same peers again and again

# Why a record is not kept: few and fixed, so that refusals can be counted by reason.
EXPIRED = "expired"
FUTURE = "from the future"
LASTING = "lives too long"

PeerText = Annotated[PeerId, Meta(pattern=r"^12D3KooW[1-9A-HJ-NP-Za-km-z]{44}\Z")]
Address = Annotated[str, Meta(max_length=ADDRESS_MAX, pattern=r"^/[!-~]+\Z")]
Name = Annotated[bytes, Meta(min_length=1, max_length=NAME_MAX)]
Stamp = Annotated[int, Meta(ge=0, le=STAMP_MAX)]

B = TypeVar("B", bound=Message)


class Signed(Message, frozen=True):
    """A record as it travels."""

    body: Annotated[bytes, Meta(max_length=VALUE_BODY_MAX)]
    signature: Annotated[bytes, Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)]


class PeerBody(Message, frozen=True):
    """A peer's own word about where it can be dialled. The larger `seq` is the newer."""

    peer: PeerText
    addrs: Annotated[tuple[Address, ...], Meta(max_length=ADDRESSES_MAX)]
    seq: Stamp
    issued_ms: Stamp


class ProvisionBody(Message, frozen=True):
    """A peer's own word that it has what `name` names, until it expires."""

    name: Name
    peer: PeerText
    expires_ms: Stamp


_signed_decoder = msgspec.msgpack.Decoder(Signed)
_peer_decoder = msgspec.msgpack.Decoder(PeerBody)
_provision_decoder = msgspec.msgpack.Decoder(ProvisionBody)


def seal_peer(signer: Signer, addrs: list[str], *, seq: int, now_ms: int) -> Contact:
    """Write our own peer record; addresses that are too long or too many are left out."""
    fit = [one for one in dict.fromkeys(addrs) if one.startswith("/") and len(one) <= ADDRESS_MAX]
    body = PeerBody(signer.peer, tuple(fit[:ADDRESSES_MAX]), seq, now_ms)
    while len(codec.encode(body)) > PEER_BODY_MAX:
        body = PeerBody(signer.peer, body.addrs[:-1], seq, now_ms)
    sealed = seal(signer, PEER_TAG, body)
    return Contact(signer.peer, key_of_peer(signer.peer), body.addrs, seq, now_ms, sealed)


@functools.lru_cache(maxsize=OPENED_MAX)
def open_peer(sealed: bytes) -> Contact:
    """Read a peer record. Raises BadMessage. Cost: 80 µs, nearly all of it the signature."""
    body = open_body(sealed, PEER_TAG, _peer_decoder, PEER_BODY_MAX, lambda it: it.peer)
    return Contact(body.peer, key_of_peer(body.peer), body.addrs, body.seq, body.issued_ms, sealed)


def seal_provision(signer: Signer, name: bytes, *, expires_ms: int) -> Provision:
    """Write our own provider record. Raises UsageError for an empty or too long name."""
    if not 0 < len(name) <= NAME_MAX:
        raise UsageError(f"a name of {len(name)} B: names have 1 to {NAME_MAX}")
    sealed = seal(signer, PROVIDER_TAG, ProvisionBody(name, signer.peer, expires_ms))
    return Provision(name, signer.peer, expires_ms, sealed)


@functools.lru_cache(maxsize=OPENED_MAX)
def open_provision(sealed: bytes) -> Provision:
    """Read a provider record. Raises BadMessage."""
    body = open_body(
        sealed, PROVIDER_TAG, _provision_decoder, PROVISION_BODY_MAX, lambda it: it.peer
    )
    return Provision(body.name, body.peer, body.expires_ms, sealed)


def why_not(record: Contact | Provision | Value, now_ms: int) -> str:
    """Tell why a record must not be believed now: "" if there is no reason.

    Hearsay has no time that could be wrong, and a value under `/pk` is true for ever.
    """
    if isinstance(record, Contact):
        if not record.sealed:
            return ""
        if record.issued_ms > now_ms + FUTURE_MAX_MS:
            return FUTURE
        return EXPIRED if record.issued_ms + LIFE_MAX_MS <= now_ms else ""
    if isinstance(record, Value) and record.author is None:
        return ""
    if record.expires_ms <= now_ms:
        return EXPIRED
    return LASTING if record.expires_ms > now_ms + LIFE_MAX_MS + FUTURE_MAX_MS else ""


def seal(signer: Signer, tag: str, body: Message) -> bytes:
    """Sign a body under its domain tag and return the envelope."""
    encoded = codec.encode(body)
    return codec.encode(Signed(encoded, signer.sign(tag, encoded)))


def open_body(
    sealed: bytes,
    tag: str,
    decoder: msgspec.msgpack.Decoder[B],
    body_max: int,
    author: Callable[[B], PeerId],
) -> B:
    """Return what an envelope holds, if its author signed it. Raises BadMessage."""
    envelope = codec.decode(sealed, _signed_decoder, body_max + ENVELOPE_BYTES)
    body = codec.decode(envelope.body, decoder, body_max)
    if codec.encode(body) != envelope.body or codec.encode(envelope) != sealed:
        raise BadMessage("a record that is not in canonical form")
    if not verify(author(body), tag, envelope.body, envelope.signature):
        raise BadMessage(f"a record that {author(body)} did not sign")
    return body
