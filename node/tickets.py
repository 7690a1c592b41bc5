"""Tickets: one string that lets a machine join a swarm, and the file that remembers it.

`shoal1` + base32 (lower case, no padding) of MessagePack [name, key, addresses] + 4 bytes of its
SHA-256. The same text is HOME/swarm.key (mode 0600): whoever has it is a member.
"""

import base64
import hashlib
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NewType

import msgspec
from msgspec import Meta

from node.host.addresses import ADDRESS_MAX, parse_address
from node.identity import read_private, write_private
from wire.codec import Message, decode, encode
from wire.errors import BadMessage, UsageError

SwarmKey = NewType("SwarmKey", bytes)

KEY_BYTES = 32  # of HMAC-SHA256: as strong as its output
TICKET_MAX = 4096  # characters; 8 addresses with DNS names still fit, a QR code does not
BOOTSTRAP_MAX = 8  # addresses; one living node is enough to find the rest
_PREFIX = "shoal1"
_CHECKSUM_BYTES = 4  # one mistyped ticket in 4 billion passes
_ASK_AGAIN = "copy the whole line that `shoal ticket` prints on a member"

# What people paste by mistake, by how it begins.
_FOREIGN = (
    ("tskey-", "a Tailscale key"),
    ("/", "an address, not a ticket"),
    ("12D3KooW", "a peer ID, not a ticket"),
    ("endpoint", "an iroh ticket"),
    ("node", "an iroh ticket"),
    ("blob", "an iroh ticket"),
    ("doc", "an iroh ticket"),
    ("magnet:", "a magnet link"),
    ("http", "a web address"),
)

_Name = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]+\Z")]
_Key = Annotated[bytes, Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
_Bootstrap = Annotated[list[Annotated[str, Meta(max_length=ADDRESS_MAX)]], Meta(max_length=8)]


class _Body(Message, frozen=True):
    name: _Name
    key: _Key | None
    bootstrap: _Bootstrap


_decoder = msgspec.msgpack.Decoder(_Body)


@dataclass(frozen=True)
class Ticket:
    """A swarm and where to find it. `key` is None in an open swarm, which lets anybody in."""

    swarm_name: str
    key: SwarmKey | None = field(repr=False)
    bootstrap: tuple[str, ...] = ()  # multiaddrs that end in /p2p/PEER

    def text(self) -> str:
        """Return the string to hand to a friend. Not `__str__`: it must never land in a log."""
        body = encode(_Body(self.swarm_name, self.key, list(self.bootstrap)))
        return _PREFIX + _base32(body + _checksum(body))


def parse_ticket(text: str) -> Ticket:
    """Read a ticket; blanks and line breaks in it are dropped. Raises UsageError, one line."""
    if len(text) > 2 * TICKET_MAX:
        raise UsageError(f"ticket too long: {len(text)} characters, at most {TICKET_MAX}")
    packed = "".join(text.split())
    if len(packed) > TICKET_MAX:
        raise UsageError(f"ticket too long: {len(packed)} characters, at most {TICKET_MAX}")
    _refuse_foreign(packed)
    return _read_body(_unpack(packed.removeprefix(_PREFIX)))


def fresh_swarm(name: str, *, is_open: bool = False) -> Ticket:
    """Make a new swarm, with a key of its own unless it is open. Raises UsageError (bad name)."""
    key = None if is_open else SwarmKey(secrets.token_bytes(KEY_BYTES))
    return parse_ticket(Ticket(name, key).text())  # so that one place checks a name


def save_swarm(path: Path, ticket: Ticket) -> None:
    """Remember the swarm (and its bootstrap addresses, for a later start without a ticket)."""
    write_private(path, f"{ticket.text()}\n".encode(), replace=True)


def load_swarm(path: Path) -> Ticket | None:
    """Read HOME/swarm.key; None if there is none yet. Raises UsageError if it is damaged."""
    data = read_private(path, 2 * TICKET_MAX + 1)
    if data is None:
        return None
    try:
        return parse_ticket(data.decode("utf-8", "replace"))
    except UsageError as error:
        raise UsageError(
            f"{path}: {error}", hint="restore it, or move it away and join with a ticket"
        ) from error


def swarm_tag(key: SwarmKey | None) -> str:
    """Name a swarm in public without telling its key (mDNS): 16 hex digits; "open" without key."""
    if key is None:
        return "open"
    return hashlib.sha256(b"shoal/swarm-tag/1\0" + key).hexdigest()[:16]


def _refuse_foreign(packed: str) -> None:
    if not packed:
        raise UsageError("empty ticket", hint=_ASK_AGAIN)
    version = re.match(r"shoal([0-9])", packed)
    if version and version[1] != "1":
        raise UsageError(
            f"ticket of version {version[1]}; this program reads version 1",
            hint="update shoal here, or ask for a ticket from a node of this version",
        )
    if packed.startswith(_PREFIX):
        return
    for start, what in _FOREIGN:
        if packed.startswith(start):
            raise UsageError(f"not a shoal ticket: this is {what}", hint=_ASK_AGAIN)
    raise UsageError(
        f"not a shoal ticket: it begins with {packed[:8]!r}, not {_PREFIX!r}", hint=_ASK_AGAIN
    )


def _unpack(encoded: str) -> bytes:
    try:
        data = base64.b32decode(encoded.upper() + "=" * (-len(encoded) % 8))
    except ValueError:
        data = b""
    body, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    # Encoded again it must be the same text: base32 ignores the last bits, and case here.
    if _base32(data) != encoded or checksum != _checksum(body):
        raise UsageError("ticket damaged: truncated or mistyped", hint=_ASK_AGAIN)
    return body


def _read_body(body: bytes) -> Ticket:
    try:
        found = decode(body, _decoder, TICKET_MAX)
        for address in found.bootstrap:
            if parse_address(address).peer is None:
                raise BadMessage(f"address without /p2p/PEER: {address[:64]!r}")
    except BadMessage as error:
        raise UsageError(f"ticket makes no sense: {error}", hint=_ASK_AGAIN) from error
    key = None if found.key is None else SwarmKey(found.key)
    return Ticket(found.name, key, tuple(found.bootstrap))


def _base32(data: bytes) -> str:
    return base64.b32encode(data).decode("ascii").rstrip("=").lower()


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(_PREFIX.encode() + body).digest()[:_CHECKSUM_BYTES]
