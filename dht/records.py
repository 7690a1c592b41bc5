"""Signed records: where a peer is, and who has what. Nobody can move or advertise another peer.

Records are checked when they come in, so what is stored or handed on is always genuine, in
canonical bytes, and not expired.
"""

import hashlib
from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

from dht.key import KEY_BYTES
from wire import codec
from wire.codec import Message
from wire.errors import BadMessage
from wire.ids import PeerId, Signer, verify

ADDRESSES_MAX = 16
ADDRESS_MAX = 256  # characters of one multiaddr; the longest real one, through a relay, has ~180
BODY_MAX = 2048  # bytes; 20 contacts of that size fit one control frame
PEER_TAG = "dht/peer/1"
PROVIDER_TAG = "dht/provider/1"
FUTURE_MAX_MS = 30_000  # clocks differ
PEER_RECORD_MS = 24 * 3600 * 1000  # a peer's addresses are believed for a day
PROVIDER_MAX_MS = 24 * 3600 * 1000  # the longest a provider record may live
STAMP_MAX = 2**53

PeerText = Annotated[PeerId, Meta(pattern=r"^12D3KooW[1-9A-HJ-NP-Za-km-z]{44}\Z")]
Address = Annotated[str, Meta(max_length=ADDRESS_MAX, pattern=r"^/[!-~]+\Z")]
KeyBytes = Annotated[bytes, Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
Stamp = Annotated[int, Meta(ge=0, le=STAMP_MAX)]


class Signed(Message, frozen=True):
    """A record as it travels."""

    body: Annotated[bytes, Meta(max_length=BODY_MAX)]
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]


class PeerRecord(Message, frozen=True, tag="peer"):
    """A peer's own word about where it can be dialled. The larger `seq` is the newer."""

    peer: PeerText
    addrs: Annotated[list[Address], Meta(max_length=ADDRESSES_MAX)]
    seq: Stamp
    issued_ms: Stamp


class ProviderRecord(Message, frozen=True, tag="provider"):
    """A peer's own word that it has what `key` names, until it expires."""

    key: KeyBytes
    peer: PeerText
    expires_ms: Stamp


_peer_decoder = msgspec.msgpack.Decoder(PeerRecord)
_provider_decoder = msgspec.msgpack.Decoder(ProviderRecord)


@dataclass(frozen=True)
class Contact:
    """A peer with its checked record."""

    peer: PeerId
    addrs: tuple[str, ...]
    seq: int
    issued_ms: int
    signed: Signed

    def is_fresh(self, now_ms: int) -> bool:
        """True while its addresses may be handed on."""
        return self.issued_ms + PEER_RECORD_MS > now_ms


def sign_peer(signer: Signer, addrs: list[str], *, seq: int, now_ms: int) -> Signed:
    """Write our own peer record; addresses that are too long or too many are left out."""
    fit = [one for one in dict.fromkeys(addrs) if one.startswith("/") and len(one) <= ADDRESS_MAX]
    fit = fit[:ADDRESSES_MAX]
    body = codec.encode(PeerRecord(signer.peer, fit, seq, now_ms))
    while len(body) > BODY_MAX:
        fit = fit[:-1]
        body = codec.encode(PeerRecord(signer.peer, fit, seq, now_ms))
    return Signed(body, signer.sign(PEER_TAG, body))


def open_peer(signed: Signed, now_ms: int) -> Contact:
    """Check a peer record. Raises BadMessage for a false, expired or future one."""
    record = codec.decode(signed.body, _peer_decoder, BODY_MAX)
    _check(record.peer, PEER_TAG, signed, codec.encode(record))
    contact = Contact(record.peer, tuple(record.addrs), record.seq, record.issued_ms, signed)
    if record.issued_ms > now_ms + FUTURE_MAX_MS:
        raise BadMessage(f"the record of {record.peer} is from the future")
    if not contact.is_fresh(now_ms):
        raise BadMessage(f"the record of {record.peer} is older than a day")
    return contact


def sign_provider(signer: Signer, key: bytes, *, expires_ms: int) -> Signed:
    """Write our own provider record for a key of 32 bytes."""
    body = codec.encode(ProviderRecord(key, signer.peer, expires_ms))
    return Signed(body, signer.sign(PROVIDER_TAG, body))


def open_provider(signed: Signed, now_ms: int) -> ProviderRecord:
    """Check a provider record. Raises BadMessage for a false, expired or too lasting one."""
    record = codec.decode(signed.body, _provider_decoder, BODY_MAX)
    _check(record.peer, PROVIDER_TAG, signed, codec.encode(record))
    if not now_ms < record.expires_ms <= now_ms + PROVIDER_MAX_MS + FUTURE_MAX_MS:
        raise BadMessage(f"a provider record that expires at {record.expires_ms}, now {now_ms}")
    return record


def content_key(name: bytes) -> bytes:
    """Return the 32 bytes under which content of this name is provided."""
    return hashlib.sha256(name).digest()


def _check(peer: PeerId, tag: str, signed: Signed, canonical: bytes) -> None:
    if canonical != signed.body:
        raise BadMessage("a record that is not in canonical form")
    if not verify(peer, tag, signed.body, signed.signature):
        raise BadMessage(f"a record that {peer} did not sign")
