"""What the daemon says of blobs: the JSON of `--json`, and the bodies of requests. Fields stay.

Fields may be added; none is renamed or changes its meaning within /v1.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from urllib.parse import quote

import msgspec

from shoal.errors import ClientError

BLOB_TIMEOUT_S = 600.0  # seconds for bytes that have to be fetched, or for many files to go
READ_BYTES = 8 * 1024 * 1024  # that the daemon gives in one answer


class _Reply(msgspec.Struct, frozen=True):
    """Common options of replies: immutable; unknown fields of newer daemons are ignored."""


class AddBlob(_Reply, frozen=True):
    """Add the file or folder at an absolute path of the daemon's machine.

    `mode`: copy; reference (no second copy: the file must stay as it is); take (the file may
    become the blob's own, the caller gives it away).
    """

    path: str
    mode: str = "copy"
    name: str = ""
    pin: bool = True


class GetBlob(_Reply, frozen=True):
    """Fetch a blob, and write it to an absolute path if there is one.

    `peers` (names or peer IDs) are asked first; others that have it are found.
    """

    path: str = ""
    peers: list[str] = []
    pin: bool = False


class Blob(_Reply, frozen=True):
    """A blob here. `kind`: file or folder. `path` is where a reference leads, else ""."""

    cid: str
    name: str
    kind: str
    size_bytes: int
    held_bytes: int
    whole: bool
    pinned: bool
    path: str
    added_ms: int
    used_ms: int


class BlobFile(_Reply, frozen=True):
    """A file in a folder."""

    path: str
    cid: str
    size_bytes: int
    executable: bool


class BlobDetail(_Reply, frozen=True):
    """A blob, and of a folder the files."""

    blob: Blob
    files: list[BlobFile]


class BlobList(_Reply, frozen=True):
    """The blobs that were added or fetched by themselves, newest first, and how full it is.

    `free_bytes` is what may be added before anything has to go. `quota_bytes` 0 is none.
    """

    blobs: list[Blob]
    held_bytes: int
    pinned_bytes: int
    quota_bytes: int
    free_bytes: int


class Provider(_Reply, frozen=True):
    """What a peer has brought. `note` says why it was given up."""

    peer: str
    got_bytes: int
    active: bool
    note: str = ""


class BlobProgress(_Reply, frozen=True):
    """An event while something is done to blobs.

    `state`: adding, fetching, writing, verifying, done. `size_bytes` 0 is not known yet; `rate` is
    in bytes per second, over the last seconds; `blob` comes with the last event, and so does
    `decayed`: what was found to be wrong, and is here no more.
    """

    state: str
    done_bytes: int
    size_bytes: int
    rate: float = 0.0
    eta_s: float | None = None
    providers: list[Provider] = []
    blob: Blob | None = None
    decayed: list[Blob] = []


class PinBlob(_Reply, frozen=True):
    """Pin a blob, so that it is never collected, or let it go."""

    pinned: bool = True


class Collected(_Reply, frozen=True):
    """What was thrown away."""

    blobs: int
    freed_bytes: int


def add_body(path: str | os.PathLike[str], mode: str, name: str, *, pin: bool) -> AddBlob:
    """Return the request that adds a path, as seen from the caller's folder."""
    return AddBlob(os.path.abspath(path), mode, name, pin)


def get_body(path: str | os.PathLike[str] | None, peers: Sequence[str], *, pin: bool) -> GetBlob:
    """Return the request that fetches a blob to a path, as seen from the caller's folder."""
    return GetBlob("" if path is None else os.path.abspath(path), list(peers), pin)


def blob_path(cid: str) -> str:
    """Return the route of a blob; what is no CID is quoted, and the daemon says so."""
    return f"/v1/blobs/{quote(cid, safe='')}"


def get_path(cid: str) -> str:
    """Return the route that fetches a blob."""
    return f"{blob_path(cid)}/get"


def last_blob(events: Iterable[BlobProgress]) -> Blob:
    """Return the blob that the last event tells of."""
    *_, last = [None, *events]
    if last is None or last.blob is None:
        raise ClientError("the daemon ended the conversation early", hint="see `shoal logs`")
    return last.blob


def blob_pieces(
    cid: str, start: int, stop: int | None, peers: Sequence[str]
) -> Iterator[tuple[str, int]]:
    """Yield the requests that read a range, each with the bytes it is to bring.

    One that brings fewer is the last: the end of the file.
    """
    tail = f"&peers={quote(','.join(peers))}" if peers else ""
    while stop is None or start < stop:
        end = start + READ_BYTES if stop is None else min(start + READ_BYTES, stop)
        yield f"{blob_path(cid)}/data?start={start}&stop={end}{tail}", end - start
        start = end
