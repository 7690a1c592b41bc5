"""Names: peer IDs, and what is signed under them.

A peer ID is the base58 form of the identity multihash of an Ed25519 public key, as in libp2p's
peer-ids specification; so the ID alone is enough to check a signature.
"""

import functools
import hashlib
from typing import NewType

import base58
from nacl.bindings import crypto_sign_BYTES, crypto_sign_open
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from wire.errors import BadMessage

PeerId = NewType("PeerId", str)

# Identity multihash (0x00) of 36 bytes: protobuf {1: Ed25519 = 1, 2: 32 bytes of key}.
_PREFIX = bytes((0x00, 0x24, 0x08, 0x01, 0x12, 0x20))
_ENCODED_MAX = 64  # characters; an Ed25519 peer ID has 52, and base58 decoding is quadratic
SIGNATURE_BYTES = crypto_sign_BYTES


def peer_id_of(public_key: bytes) -> PeerId:
    """Name the holder of an Ed25519 public key (32 bytes)."""
    assert len(public_key) == 32
    return PeerId(base58.b58encode(_PREFIX + public_key).decode("ascii"))


@functools.lru_cache(maxsize=4096)
def public_key_of(peer: PeerId) -> bytes:
    """Return the 32 bytes of public key inside a peer ID. Raises BadMessage if there are none."""
    if len(peer) > _ENCODED_MAX:
        raise BadMessage(f"peer ID of {len(peer)} characters is over the limit of {_ENCODED_MAX}")
    try:
        raw = base58.b58decode(peer)
    except ValueError as error:
        raise BadMessage(f"not a peer ID: {peer[:16]!r}") from error
    if len(raw) != 38 or not raw.startswith(_PREFIX):
        raise BadMessage(f"not an Ed25519 peer ID: {peer[:16]!r}")
    return raw[len(_PREFIX) :]


def bytes_of(peer: PeerId) -> bytes:
    """Return a peer ID's own bytes, as libp2p's messages carry it. Raises BadMessage."""
    return _PREFIX + public_key_of(peer)


@functools.lru_cache(maxsize=4096)
def peer_of(raw: bytes) -> PeerId:
    """Name the peer whose ID has these bytes. Raises BadMessage if it is no Ed25519 peer ID."""
    if len(raw) != len(_PREFIX) + 32 or not raw.startswith(_PREFIX):
        raise BadMessage(f"not an Ed25519 peer ID: {raw[:8].hex()}")
    return peer_id_of(raw[len(_PREFIX) :])


class Signer:
    """The node's own key. `tag` separates domains: a signature for one never passes as another."""

    def __init__(self, seed: bytes) -> None:
        self._key = SigningKey(seed)
        self.peer: PeerId = peer_id_of(bytes(self._key.verify_key))

    def sign(self, tag: str, body: bytes) -> bytes:
        """Sign SHA-256(body) under a domain tag; 64 bytes."""
        return self._key.sign(_tagged(tag, body)).signature

    def sign_plain(self, body: bytes) -> bytes:
        """Sign bytes as they are: for libp2p's formats only, which bring a prefix of their own."""
        return self._key.sign(body).signature


def verify_plain(public_key: bytes, body: bytes, signature: bytes) -> bool:
    """Check a signature over bytes as they are, made by the holder of an Ed25519 public key."""
    if len(signature) != SIGNATURE_BYTES:
        return False
    try:
        crypto_sign_open(signature + body, public_key)
    except BadSignatureError:
        return False
    return True


def verify(peer: PeerId, tag: str, body: bytes, signature: bytes) -> bool:
    """Check that `peer` signed `body` under `tag`. A malformed ID or signature is False."""
    if len(signature) != SIGNATURE_BYTES:
        return False
    try:
        VerifyKey(public_key_of(peer)).verify(_tagged(tag, body), signature)
    except (BadSignatureError, BadMessage):
        return False
    return True


def _tagged(tag: str, body: bytes) -> bytes:
    return tag.encode() + b"\0" + hashlib.sha256(body).digest()
