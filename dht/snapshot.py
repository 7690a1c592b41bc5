"""What a restart begins with (HOME/dht.msgpack): contacts of the table, our own
values, and the names that somebody told us to provide.

Contacts are hearsay by then, of any age: each comes into the table only after it answered. A
damaged file is reported and left out.
"""

import contextlib
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from dht.messages import Contact, Value, hearsay
from dht.records import ADDRESS_MAX, ADDRESSES_MAX, NAME_MAX, Address
from dht.values import open_value
from wire import codec
from wire.errors import BadMessage
from wire.ids import PeerId, public_key_of

CONTACTS_MAX = 1024  # a table has some 250 in a network of 100,000; any one that lives is enough
VALUES_MAX = 1000  # as many as others keep of one author
NAMES_MAX = 1000  # that we provide as we were told; what is on the disk is provided anyway
FILE_MAX_BYTES = 16 * 2**20  # 1,000 values of 8 KiB and 1,024 contacts of 4 KiB fit

log = logging.getLogger(__name__)


_Name = Annotated[bytes, Meta(min_length=1, max_length=NAME_MAX)]


class _Contact(codec.Message, frozen=True):
    peer: Annotated[str, Meta(max_length=64)]
    addrs: Annotated[list[Address], Meta(max_length=ADDRESSES_MAX)]


class _Value(codec.Message, frozen=True):
    name: Annotated[bytes, Meta(max_length=NAME_MAX)]
    sealed: Annotated[bytes, Meta(max_length=16_384)]


class _File(codec.Message, frozen=True):
    version: Literal[2]
    contacts: Annotated[list[_Contact], Meta(max_length=CONTACTS_MAX)]
    values: Annotated[list[_Value], Meta(max_length=VALUES_MAX)]
    names: Annotated[list[_Name], Meta(max_length=NAMES_MAX)]


_decoder = msgspec.msgpack.Decoder(_File)


@dataclass(frozen=True)
class Snapshot:
    """What is kept over a restart."""

    contacts: tuple[Contact, ...] = ()
    values: tuple[Value, ...] = ()
    names: tuple[bytes, ...] = ()


def pack(
    contacts: Sequence[Contact], values: Iterable[Value], names: Iterable[bytes] = ()
) -> bytes:
    """Return the file's bytes; the first contacts, values and names, as many as fit."""
    rows = [_Contact(one.peer, _fitting(one.addrs)) for one in contacts[:CONTACTS_MAX]]
    own = [_Value(one.name, one.sealed) for one in values][:VALUES_MAX]
    return codec.encode(_File(2, rows, own, list(names)[:NAMES_MAX]))


def unpack(data: bytes) -> Snapshot:
    """Read the file's bytes; false ones are left out. Raises BadMessage. Cost: 80 µs a value."""
    file = codec.decode(data, _decoder, FILE_MAX_BYTES)
    contacts, values = list[Contact](), list[Value]()
    for row in file.contacts:
        with contextlib.suppress(BadMessage):
            contacts.append(_contact(row))
    for kept in file.values:
        with contextlib.suppress(BadMessage):
            values.append(open_value(kept.name, kept.sealed))
    return Snapshot(tuple(contacts), tuple(values), tuple(file.names))


def read(path: Path) -> Snapshot:
    """Read the file, if there is one; what is damaged is reported and left out. Blocking."""
    try:
        with path.open("rb") as file:
            return unpack(file.read(FILE_MAX_BYTES + 1))
    except FileNotFoundError:
        return Snapshot()
    except (OSError, BadMessage) as error:
        log.warning("dht.snapshot_unreadable path=%s error=%s", path, error)
        return Snapshot()


def write(path: Path, data: bytes) -> None:
    """Put the file there at once, for our eyes only. A full disk is only reported. Blocking."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        log.warning("dht.snapshot_not_saved path=%s error=%s", path, error)
        with contextlib.suppress(OSError):  # it would keep what is left of the disk
            temporary.unlink(missing_ok=True)


def _contact(row: _Contact) -> Contact:
    peer = PeerId(row.peer)
    public_key_of(peer)  # a name that is none is no contact
    return hearsay(peer, tuple(row.addrs))


def _fitting(addrs: Iterable[str]) -> list[str]:
    return [one for one in addrs if one.startswith("/") and len(one) <= ADDRESS_MAX][:ADDRESSES_MAX]
