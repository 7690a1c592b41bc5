"""Values: small records under namespaces that say who may write them and which one wins.

| name | who may write | data |
|---|---|---|
| `/pk/MULTIHASH` | anybody: the name is the hash of the data | a libp2p public key (protobuf) |
| `/shoal/head/PEER/NAME` | PEER | its newest word |
| `/shoal/multi/NAME` | everybody, one each | each author's newest word |

Two values of one author under one name are ordered by `seq`; with equal `seq` (an author's fault,
or a renewal) the smaller data wins, then the later expiry: the same one everywhere. Pure.
Format: docs/protocols/dht.md; keys and their hashes: libp2p's peer-ids specification.
"""

import functools
import hashlib
from collections.abc import Iterable
from typing import Annotated

import msgspec
from msgspec import Meta

from dht.messages import Value
from dht.records import (
    DATA_MAX,
    NAME_MAX,
    STAMP_MAX,
    VALUE_BODY_MAX,
    Name,
    PeerText,
    Stamp,
    open_body,
    seal,
)
from wire.codec import Message
from wire.errors import BadMessage, UsageError
from wire.ids import PeerId, Signer, public_key_of

VALUE_TAG = "dht/value/1"
PK = b"/pk/"
HEAD = b"/shoal/head/"
MULTI = b"/shoal/multi/"
PUBLIC_KEY_MAX = 2048  # bytes; the largest that libp2p allows, RSA of 8,192 bits, has 1,062
_INLINE_MAX = 42  # bytes: libp2p names longer keys by their SHA-256, shorter ones by themselves
_IDENTITY, _SHA256 = 0x00, b"\x12\x20"  # multihash codes; with the length of a SHA-256
_ED25519 = b"\x08\x01\x12\x20"  # libp2p's PublicKey {Type: Ed25519, Data: 32 bytes}
OPENED_MAX = 512  # values remembered as genuine: up to 10 MB of the largest


class ValueBody(Message, frozen=True):
    """An author's word under a name, until it expires."""

    name: Name
    author: PeerText
    seq: Stamp
    expires_ms: Stamp
    data: Annotated[bytes, Meta(max_length=DATA_MAX)]


_decoder = msgspec.msgpack.Decoder(ValueBody)


def head_name(peer: PeerId, name: str) -> bytes:
    """Return the name of a value that only `peer` may write."""
    return HEAD + f"{peer}/{name}".encode()


def multi_name(name: str) -> bytes:
    """Return the name under which each author may write one value."""
    return MULTI + name.encode()


def pk_name(public_key: bytes) -> bytes:
    """Return the name of a public key, given as libp2p's protobuf bytes."""
    if len(public_key) <= _INLINE_MAX:
        return PK + bytes((_IDENTITY, len(public_key))) + public_key
    return PK + _SHA256 + hashlib.sha256(public_key).digest()


def public_key_bytes(peer: PeerId) -> bytes:
    """Return the public key inside an Ed25519 peer ID as libp2p's protobuf bytes.

    Raises BadMessage if there is none.
    """
    return _ED25519 + public_key_of(peer)


def seal_head(signer: Signer, name: str, data: bytes, *, seq: int, expires_ms: int) -> Value:
    """Write a value of our own under `/shoal/head/US/NAME`. Raises UsageError if it does not fit.

    seq: larger than all before (such as the wall clock's milliseconds), also to renew it.
    """
    return _seal(signer, head_name(signer.peer, name), data, seq, expires_ms)


def seal_multi(signer: Signer, name: str, data: bytes, *, seq: int, expires_ms: int) -> Value:
    """Write our value beside those of others under `/shoal/multi/NAME`. As `seal_head`."""
    return _seal(signer, multi_name(name), data, seq, expires_ms)


def pk_value(public_key: bytes) -> Value:
    """Return the value that tells a public key (libp2p's protobuf bytes). Raises BadMessage."""
    return open_value(pk_name(public_key), public_key)


@functools.lru_cache(maxsize=OPENED_MAX)
def open_value(name: bytes, sealed: bytes) -> Value:
    """Read what came as the value of `name`: an envelope, or under `/pk` the raw data.

    Raises BadMessage for an unknown namespace, a name that does not fit, and a false value. A value
    under `/pk` expires at the end of time: who holds it forgets it after a day.
    """
    check_name(name)
    if name.startswith(PK):
        _check_public_key(name, sealed)
        return Value(name, None, 0, STAMP_MAX, sealed, sealed)
    body = open_body(sealed, VALUE_TAG, _decoder, VALUE_BODY_MAX, lambda it: it.author)
    if body.name != name:
        raise BadMessage(f"a value of {body.name!r} does not fit the name {name!r}")
    if name.startswith(HEAD) and not name.startswith(HEAD + body.author.encode() + b"/"):
        raise BadMessage(f"the name {name!r} is not {body.author}'s to write")
    return Value(name, body.author, body.seq, body.expires_ms, body.data, sealed)


def check_name(name: bytes) -> None:
    """Raise BadMessage unless values may have this name."""
    if len(name) > NAME_MAX:
        raise BadMessage(f"a name of {len(name)} B: names have at most {NAME_MAX}")
    if name.startswith(PK):
        _check_multihash(name[len(PK) :])
        return
    if not name.startswith((HEAD, MULTI)):
        raise BadMessage(
            f"unknown namespace: {name[:32]!r}; there are /pk, /shoal/head, /shoal/multi"
        )
    try:
        text = name.decode()
    except UnicodeDecodeError as error:
        raise BadMessage(f"a name that is not UTF-8: {name[:64]!r}") from error
    if not text.isprintable():  # it ends up on terminals
        raise BadMessage(f"a name with control characters: {name[:64]!r}")
    rest = text[len(HEAD if name.startswith(HEAD) else MULTI) :]
    if name.startswith(HEAD):
        peer, _, rest = rest.partition("/")
        public_key_of(PeerId(peer))
    if not rest:
        raise BadMessage(f"a name that ends too early: {text!r}")


def is_newer(value: Value, other: Value) -> bool:
    """Whether a value takes the place of another of the same author under the same name."""
    if value.seq != other.seq:
        return value.seq > other.seq
    if value.data != other.data:
        return value.data < other.data
    return value.expires_ms > other.expires_ms


def merge(values: Iterable[Value]) -> tuple[Value, ...]:
    """Return the newest value of each author under each name, in the order of names and authors.

    So one at most under `/pk/…` and `/shoal/head/…`, one per author under `/shoal/multi/…`.
    """
    newest: dict[tuple[bytes, str], Value] = {}
    for value in values:
        place = value.name, value.author or ""
        known = newest.get(place)
        if known is None or is_newer(value, known):
            newest[place] = value
    return tuple(newest[place] for place in sorted(newest))


def _seal(signer: Signer, name: bytes, data: bytes, seq: int, expires_ms: int) -> Value:
    if len(data) > DATA_MAX:
        raise UsageError(
            f"a value of {len(data)} B is over the limit of {DATA_MAX} B",
            hint="put it into a blob and its CID into the value",
        )
    try:
        check_name(name)
    except BadMessage as error:
        raise UsageError(str(error)) from error
    sealed = seal(signer, VALUE_TAG, ValueBody(name, signer.peer, seq, expires_ms, data))
    return Value(name, signer.peer, seq, expires_ms, data, sealed)


def _check_multihash(multihash: bytes) -> None:
    code, size, digest = multihash[:1], multihash[1:2], multihash[2:]
    is_inline = code == bytes((_IDENTITY,)) and 0 < len(digest) <= _INLINE_MAX
    if not (is_inline and size[0] == len(digest)) and not (
        code + size == _SHA256 and len(digest) == 32
    ):
        raise BadMessage(f"not an identity or SHA-256 multihash: {multihash[:40].hex()}")


def _check_public_key(name: bytes, key: bytes) -> None:
    """Raise BadMessage unless `key` is a libp2p public key (whatever its kind) with this name."""
    if len(key) > PUBLIC_KEY_MAX:
        raise BadMessage(f"a public key of {len(key)} B is over the limit of {PUBLIC_KEY_MAX} B")
    named = name[len(PK) + 2 :]
    digest = key if name[len(PK)] == _IDENTITY else hashlib.sha256(key).digest()
    if digest != named:
        raise BadMessage(f"a public key that does not fit its name {named.hex()[:80]}")
    if not _is_public_key(key):
        raise BadMessage(f"not a libp2p public key: {key[:40].hex()}")


def _is_public_key(key: bytes) -> bool:
    """Whether it is {1: a kind from 0 to 3, 2: the rest}: else `/pk` would hold anybody's files."""
    if len(key) < 5 or key[0] != 0x08 or key[1] > 3 or key[2] != 0x12:
        return False
    size, data = key[3], key[4:]
    if size >= 0x80:  # a varint of two bytes: up to 16 KiB
        size, data = size & 0x7F | key[4] << 7, key[5:]
    return size == len(data)
