"""What people type for a key of the DHT, and what they are shown for one. Pure.

A key is a CID, or a name that begins with `/`: so a mistyped CID is never taken for a name.
"""

from collections.abc import Callable

import base58

from dht.records import NAME_MAX
from dht.values import HEAD, MULTI, PK, check_name, head_name, multi_name, public_key_bytes
from protocols.blobs.wire import parse_cid
from wire.errors import BadMessage, NotFound, UsageError
from wire.ids import PeerId

_HEAD, _MULTI, _PK = HEAD.decode(), MULTI.decode(), PK.decode()
_GET_HINT = "there are /shoal/head/PEER/NAME, /shoal/multi/NAME and /pk/ID"
_PUT_HINT = "there are /shoal/head/NAME and /shoal/multi/NAME"

Resolve = Callable[[str], PeerId]  # a member's name, a peer ID or a part of one; raises ShoalError


def key_named(text: str) -> bytes:
    """Read the key of something that is provided. Raises UsageError."""
    if not text.startswith("/"):
        try:
            return parse_cid(text).encode()
        except UsageError as error:
            raise UsageError(
                f"{text[:80]!r} is no CID, and no name of your own, which begins with /",
                hint="`shoal add FILE` prints a CID; a name is such as /fleet/gpu",
            ) from error
    name = text.encode()
    if len(name) > NAME_MAX or not text.isprintable():
        raise UsageError(
            f"{text[:80]!r} is no name", hint=f"printable text of up to {NAME_MAX} bytes"
        )
    return name


def target_named(text: str, resolve: Resolve) -> PeerId | bytes:
    """Read what a lookup is about: a peer, or a key. Raises UsageError."""
    if text.startswith("/"):
        return key_named(text)
    try:
        return resolve(text)
    except NotFound:
        pass
    try:
        return parse_cid(text).encode()
    except UsageError:
        raise UsageError(
            f"{text[:80]!r} is no member, peer ID or CID",
            hint="`shoal members` lists names and IDs; other keys begin with /",
        ) from None


def value_named(text: str, own: PeerId, resolve: Resolve) -> bytes:
    """Read the name of a value to get. Under /shoal/head, a NAME alone is our own.

    Raises UsageError, NotFound.
    """
    if text.startswith(_HEAD):
        peer, slash, rest = text.removeprefix(_HEAD).partition("/")
        if not slash:
            name = head_name(own, peer)
        else:
            name = head_name(PeerId(peer) if _is_peer(peer) else resolve(peer), rest)
    elif text.startswith(_PK):
        try:
            name = PK + base58.b58decode(text.removeprefix(_PK))
        except ValueError as error:
            raise UsageError(f"{text[:80]!r} has no peer ID behind /pk/", hint=_GET_HINT) from error
    elif text.startswith(_MULTI):
        name = multi_name(text.removeprefix(_MULTI))
    else:
        raise UsageError(f"{text[:80]!r} is in no namespace of values", hint=_GET_HINT)
    return _checked(name, _GET_HINT)


def own_named(text: str, own: PeerId) -> tuple[bool, str, bytes]:
    """Read the name of a value of ours: whether it is a head, its NAME, and all of it.

    Raises UsageError.
    """
    if text.startswith(_MULTI):
        name = text.removeprefix(_MULTI)
        return False, name, _checked(multi_name(name), _PUT_HINT)
    if not text.startswith(_HEAD):
        raise UsageError(f"{text[:80]!r} is in no namespace that can be put", hint=_PUT_HINT)
    name = text.removeprefix(f"{_HEAD}{own}/").removeprefix(_HEAD)
    owner = name.partition("/")[0]
    if _is_peer(owner):
        raise UsageError(f"only {owner} itself may put {text[:120]}", hint=_PUT_HINT)
    return True, name, _checked(head_name(own, name), _PUT_HINT)


def shown(name: bytes) -> str:
    """Return a name as people read it: text, a peer ID under /pk, else 0x and hex digits."""
    if name.startswith(PK):
        return _PK + base58.b58encode(name.removeprefix(PK)).decode()
    try:
        text = name.decode()
    except UnicodeDecodeError:
        return f"0x{name.hex()}"
    return text if text.isprintable() else f"0x{name.hex()}"


def _checked(name: bytes, hint: str) -> bytes:
    try:
        check_name(name)
    except BadMessage as error:
        raise UsageError(str(error), hint=hint) from error
    return name


def _is_peer(text: str) -> bool:
    try:
        public_key_bytes(PeerId(text))
    except BadMessage:
        return False
    return True
