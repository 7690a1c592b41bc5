"""Messages of `crdt.sync`: MessagePack arrays, tagged.

The leader of a sync sends requests, the other answers and keeps nothing in between: a request
brings the session's nonce and names its namespace. Ranges are of stamps (crdt/timeline.py).
"""

import hashlib
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Annotated

import msgspec
from msgspec import Meta, field

from crdt.entry import BODY_MAX, ChainId, Hash, InstanceId, Record, Seq, Signed, Stamp, chain_of
from crdt.fault import Fault
from crdt.timeline import PRINT_BYTES, STAMP_BYTES
from wire import codec
from wire.codec import CONTROL_FRAME_MAX, Message
from wire.errors import BadMessage

FRAME_MAX = 256 * 1024  # bytes of a message that carries entries: a thousand, to be checked at once
ENTRIES_BUDGET = 192 * 1024  # bytes of entries that are put into one message
INDEX_BUDGET = 40 * 1024  # bytes of ranges and short ids that are put into one message
ENTRIES_MAX = 1024  # in one message: 50 ms of signatures where no chain amortises them
SIGNED_OVERHEAD = 8  # bytes around body and signature
PROOFS_MAX = 16  # in one message, of up to 8.4 kB
SPACES_MAX = 16  # namespaces that a Hello compares one by one: 19 bytes each, 400 in all
LISTED_MAX = 1024  # namespaces that a Welcome lists
PARTS_MAX = 64  # of a range: the first cut of a whole timeline
ASKS_MAX = 512  # in one message
LEAF_IDS_MAX = 256  # short ids of one leaf
RANGES_MAX = ASKS_MAX * PARTS_MAX  # in one message; INDEX_BUDGET is reached long before
LACKS_MAX = ASKS_MAX * LEAF_IDS_MAX
KNOWN_MAX = 512  # proofs named in one message: 32 bytes each
GRANTS_MAX = 2048  # grants and revocations named in one message: 8 bytes each
RUNS_MAX = 512  # chains asked for, or named, in one message

Nonce = Annotated[bytes, Meta(min_length=8, max_length=8)]
Short = Annotated[bytes, Meta(min_length=PRINT_BYTES, max_length=PRINT_BYTES)]
Prefix = Annotated[bytes, Meta(min_length=8, max_length=8)]  # of a namespace's ID
Bound = Annotated[bytes, Meta(max_length=STAMP_BYTES)]
Count = Annotated[int, Meta(ge=0, le=2**40)]
Prints = Annotated[bytes, Meta(max_length=PRINT_BYTES * PARTS_MAX)]  # fingerprints, joined
LeafIds = Annotated[bytes, Meta(max_length=PRINT_BYTES * LEAF_IDS_MAX)]
Cursor = Annotated[bytes, Meta(max_length=17)]  # a chain, or a bound between chains
EntryList = Annotated[list[Signed], Meta(max_length=ENTRIES_MAX)]
ProofList = Annotated[list[Fault], Meta(max_length=PROOFS_MAX)]


class Space(Message, frozen=True):
    """A namespace, and the fingerprint of all it holds, salted."""

    prefix: Prefix
    print: Short


class Ask(Message, frozen=True):
    """A range. With `prints`, those of the parts between its `bounds`: where do we differ? Without,
    the `ids` of what the leader has there, or does not want: what else is there?
    """

    bounds: Annotated[list[Bound], Meta(min_length=2, max_length=PARTS_MAX + 1)]
    prints: Prints = b""
    ids: LeafIds = b""


class Range(Message, frozen=True):
    """The part with this index, over all asks that were handled, differs. I have `count` there, and
    if those are many, these are the fingerprints of its parts between the inner `bounds`.
    """

    index: Annotated[int, Meta(ge=0, le=ASKS_MAX * PARTS_MAX)]
    count: Count
    bounds: Annotated[list[Bound], Meta(max_length=PARTS_MAX - 1)] = field(
        default_factory=list[Bound]
    )
    prints: Prints = b""


class Standing(Message, frozen=True):
    """A namespace that differs: what I have, cut finer the newer it is. `law` is the salted
    fingerprint of proofs, grants and revocations.
    """

    prefix: Prefix
    law: Short
    whole: Range


class Known(Message, frozen=True):
    """A proof that I have, as (chain, cut, start of its hash): the smaller one stays."""

    chain: ChainId
    cut: Seq
    digest: Short


class Run(Message, frozen=True):
    """A chain, and how far somebody has it."""

    chain: ChainId
    seq: Stamp


class Hello(Message, frozen=True, tag="hello"):
    """What I hold; or, of more namespaces than SPACES_MAX, only the fingerprint of the list."""

    nonce: Nonce
    now_ms: Stamp
    spaces: Annotated[list[Space], Meta(max_length=SPACES_MAX)] = field(default_factory=list[Space])
    every: Annotated[bytes, Meta(max_length=PRINT_BYTES)] = b""


class Welcome(Message, frozen=True, tag="welcome"):
    """Where we differ of what you named; or my list, if the fingerprint of yours is another.
    `quiet_ms`: how long ago I have finished a sync (crdt/absence.py); NEVER_SYNCED_MS also while I
    pull whole chains from somebody.
    """

    now_ms: Stamp
    differing: Annotated[list[Standing], Meta(max_length=SPACES_MAX)] = field(
        default_factory=list[Standing]
    )
    spaces: Annotated[list[Space], Meta(max_length=LISTED_MAX)] = field(default_factory=list[Space])
    quiet_ms: Stamp = 0


class Compare(Message, frozen=True, tag="compare"):
    """Ranges, disjoint, the newest first."""

    namespace: Hash
    nonce: Nonce
    asks: Annotated[list[Ask], Meta(min_length=1, max_length=ASKS_MAX)]


class Differences(Message, frozen=True, tag="differences"):
    """Answers the first `handled` asks, and of the next one what is below `cut` if that is not
    empty. `lacks` are the short ids, joined, of what you have and I do not.
    """

    handled: Annotated[int, Meta(ge=0, le=ASKS_MAX)]
    cut: Bound = b""
    ranges: Annotated[list[Range], Meta(max_length=RANGES_MAX)] = field(default_factory=list[Range])
    lacks: Annotated[bytes, Meta(max_length=PRINT_BYTES * LACKS_MAX)] = b""
    entries: EntryList = field(default_factory=list[Signed])


class Law(Message, frozen=True, tag="law"):
    """The proofs that I have of the chains in [low, high), and the short ids of my grants and
    revocations, if this is the first of a session: what else have you?
    """

    namespace: Hash
    nonce: Nonce
    low: Cursor
    high: Cursor
    known: Annotated[list[Known], Meta(max_length=KNOWN_MAX)]
    grants: Annotated[bytes, Meta(max_length=PRINT_BYTES * GRANTS_MAX)] | None = None


class LawFound(Message, frozen=True, tag="law_found"):
    """Proofs that you lack of the chains below `upto`, the chains of those that I lack, and grants
    both ways.
    """

    upto: Cursor
    proofs: ProofList = field(default_factory=list[Fault])
    wanted: Annotated[list[ChainId], Meta(max_length=KNOWN_MAX)] = field(
        default_factory=list[ChainId]
    )
    lacks: Annotated[bytes, Meta(max_length=PRINT_BYTES * GRANTS_MAX)] = b""
    entries: EntryList = field(default_factory=list[Signed])


class Heads(Message, frozen=True, tag="heads"):
    """Which chains do you know, after this one, in order of their names?"""

    namespace: Hash
    after: Cursor


class HeadsFound(Message, frozen=True, tag="heads_found"):
    """These, with their latest seq; none at the end."""

    heads: Annotated[list[Run], Meta(max_length=RUNS_MAX)]


class Pull(Message, frozen=True, tag="pull"):
    """Send what these chains have after these seqs."""

    namespace: Hash
    runs: Annotated[list[Run], Meta(min_length=1, max_length=RUNS_MAX)]


class Entries(Message, frozen=True, tag="entries"):
    """All of the first `handled` runs, then what fits of the next. The last one that was looked at
    of that is `seq`, as some may not be fit to be sent.
    """

    handled: Annotated[int, Meta(ge=0, le=RUNS_MAX)]
    seq: Stamp
    entries: EntryList = field(default_factory=list[Signed])


class Push(Message, frozen=True, tag="push"):
    """These are for you."""

    namespace: Hash
    entries: EntryList
    proofs: ProofList = field(default_factory=list[Fault])


class Taken(Message, frozen=True, tag="taken"):
    """They are on my disk; so many of them were news."""

    news: Annotated[int, Meta(ge=0, le=ENTRIES_MAX)]


Request = Hello | Compare | Law | Heads | Pull | Push
Answer = Welcome | Differences | LawFound | HeadsFound | Entries | Taken
_request_decoder: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_answer_decoder: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


def decode_request(frame: bytes) -> Request:
    """Parse a request. Raises BadMessage, also for what is out of order."""
    request = codec.decode(frame, _request_decoder, FRAME_MAX)
    if not isinstance(request, Push) and len(frame) > CONTROL_FRAME_MAX:
        raise BadMessage(f"a request of {len(frame)} B without entries")
    match request:
        case Compare(_, _, asks):
            _check_asks(asks)
        case Law():
            chains = [known.chain for known in request.known]
            _check_ascending([request.low, *chains, request.high], strictly=False)
            _check_ascending(chains, strictly=True)
            _check_whole(request.grants or b"")
        case Pull(_, runs):
            _check_ascending([run.chain for run in runs], strictly=True)
        case _:
            pass
    return request


def decode_answer(frame: bytes) -> Answer:
    """Parse an answer. Raises BadMessage; whether it fits its request is the session's question."""
    return codec.decode(frame, _answer_decoder, FRAME_MAX)


def shorts_of(joined: bytes) -> list[bytes]:
    """Take joined short ids or fingerprints apart. Raises BadMessage."""
    _check_whole(joined)
    return [joined[at : at + PRINT_BYTES] for at in range(0, len(joined), PRINT_BYTES)]


def check_parts(bounds: Sequence[bytes], prints: bytes) -> None:
    """Raise BadMessage unless the bounds ascend and there is one fingerprint between each two."""
    _check_ascending(bounds, strictly=True)
    if len(prints) != PRINT_BYTES * (len(bounds) - 1):
        raise BadMessage(f"{len(prints)} B of fingerprints for {len(bounds)} bounds")


def _check_asks(asks: list[Ask]) -> None:
    """Disjoint ranges, the newest first: so one message asks for one pass over the set."""
    above: bytes | None = None
    for ask in asks:
        if ask.prints or len(ask.bounds) > 2:
            check_parts(ask.bounds, ask.prints)
            if ask.ids:
                raise BadMessage("an ask with both fingerprints and ids")
        _check_ascending(ask.bounds, strictly=True)
        _check_whole(ask.ids)
        if above is not None and ask.bounds[-1] > above:
            raise BadMessage("ranges overlap, or are out of order")
        above = ask.bounds[0]


def _check_ascending(names: Sequence[bytes], *, strictly: bool) -> None:
    for before, after in pairwise(names):
        if before > after or (strictly and before == after):
            raise BadMessage("names or bounds out of order")


def _check_whole(joined: bytes) -> None:
    if len(joined) % PRINT_BYTES:
        raise BadMessage(f"{len(joined)} B of short ids of {PRINT_BYTES} B each")


class Glance(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The start of an entry: enough to see whether it was asked for. The rest is checked later."""

    version: int
    namespace: Hash
    author: Hash
    instance: InstanceId
    seq: Seq
    prev: Hash
    hlc: Stamp
    kind: int

    @property
    def chain(self) -> bytes:
        """The chain it says it is of."""
        return chain_of(self.author, self.instance)


_glance_decoder = msgspec.msgpack.Decoder(Glance)


def glance(signed: Signed) -> Glance:
    """Read the start of an entry (0.5 µs). Raises BadMessage."""
    return codec.decode(signed.body, _glance_decoder, BODY_MAX)


def stamp_of(signed: Signed) -> bytes:
    """Return the stamp of an entry that arrived. Raises BadMessage."""
    return glance(signed).hlc.to_bytes(8) + hashlib.sha256(signed.body).digest()


def size_of(signed: Signed) -> int:
    """Bytes that an entry takes in a message, at most."""
    return len(signed.body) + len(signed.signature) + SIGNED_OVERHEAD


def net_size(entries: Iterable[Signed]) -> int:
    """Bytes of entries proper."""
    return sum(len(signed.body) + len(signed.signature) for signed in entries)


def entries_of(message: Request | Answer) -> list[Signed]:
    """Return the entries that a message carries."""
    match message:
        case Push() | Differences() | LawFound() | Entries():
            return message.entries
        case _:
            return []


def fitting(records: Sequence[Record], budget: int = ENTRIES_BUDGET) -> int:
    """How many of the records, from the first, fit one message."""
    for index, record in enumerate(records[:ENTRIES_MAX]):
        budget -= record.size + SIGNED_OVERHEAD
        if budget < 0:
            return index
    return min(len(records), ENTRIES_MAX)
