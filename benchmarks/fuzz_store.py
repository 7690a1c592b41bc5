"""The store's messages for `benchmarks.fuzz`: every type that a peer's bytes are decoded to, and
entries that decode, are signed again and merged, for what a fold makes of nonsense.
"""

from typing import Any

import msgspec
from msgspec import inspect

from benchmarks.agree_entries import Author, author
from benchmarks.agree_villain_sync import REQUESTS
from benchmarks.fuzz_messages import Target, examples
from crdt import wire
from crdt.entry import (
    ADD,
    COUNTER,
    GRANT,
    LEASE,
    MULTI,
    NO_LINK,
    REMOVE,
    REVOKE,
    VALUE_MAX,
    BlobRef,
    Counted,
    Dot,
    Record,
    Signed,
    counted_decoder,
    seal,
    unseal,
)
from crdt.fault import FAULT_MAX, Fault, check, fault_decoder
from crdt.intake import proven
from crdt.live import News
from crdt.namespace import (
    GENESIS_MAX,
    Genesis,
    Grant,
    Revoke,
    genesis_decoder,
    grant_decoder,
    open_genesis,
    revoke_decoder,
)
from crdt.proof import prove, verify
from crdt.replica import Replica
from crdt.wire import FRAME_MAX
from wire import codec
from wire.errors import BadMessage

NOW_MS = 1_800_000_000_000
MERGES_MAX = 2_000  # entries in one replica, then a new one: growth is measured
FRAMES_MAX = 4  # of those that a villain says: long ones, and slow to mutate
NEWS = msgspec.msgpack.Decoder(News)
_GENESIS = open_genesis("fuzz")


def _decoded(decoder: "msgspec.msgpack.Decoder[Any]", limit: int, *good: object) -> Target:
    frames = [codec.encode(one) for one in good]
    return Target(frames, lambda frame: codec.decode(frame, decoder, limit))


def _all_kinds(writer: Author) -> list[Record]:
    """One entry of each kind, and some that look like nothing else."""
    public, dots = writer.public, (Dot(bytes(16), 1), Dot(bytes(15) + b"x", 7))
    blob = BlobRef("b" + "a" * 58, 1 << 20)
    more: list[dict[str, Any]] = [
        {},
        {"value": None},
        {"value": None, "blob": blob},
        {"kind": ADD, "element": codec.encode("x")},
        {"kind": REMOVE, "element": codec.encode("x"), "seen": dots, "value": None},
        {"kind": COUNTER, "value": codec.encode(Counted(9, 3, 2, 1))},
        {"kind": MULTI, "seen": dots},
        {"kind": LEASE, "expires_ms": NOW_MS + 60_000},
        {"kind": GRANT, "key": "grant", "value": codec.encode(Grant(public, "a/", 0, 1, 2, 1))},
        {"kind": REVOKE, "key": "revoke", "value": codec.encode(Revoke(bytes(32), dots))},
        {"grant": bytes(32)},
    ]
    made = list[Record]()
    for number, fields in enumerate(more):
        key = fields.pop("key", f"key/{number}")
        made.append(writer.write(key, number, NOW_MS + number, **fields))
    return made


def store_entry() -> Target:
    """Bodies of entries."""
    good = [record.signed.body for record in _all_kinds(author(_GENESIS.id, "fuzz"))]
    return Target(good, lambda frame: unseal(Signed(frame, bytes(64))))


def store_merge() -> Target:
    """Bodies whose authors have signed them, whatever they say, into a replica that is read."""
    good = [record.signed.body for record in _all_kinds(author(_GENESIS.id, "fuzz"))]
    replicas = [Replica(_GENESIS)]

    def take(frame: bytes) -> None:
        record = unseal(Signed(frame, bytes(64)))
        record.is_checked = True
        if len(replicas[0].records) > MERGES_MAX:
            replicas[0] = Replica(_GENESIS)
        replica = replicas[0]
        if record.entry.namespace != replica.id or replica.refusal(record, NOW_MS):
            return
        if replica.is_news(record):
            replica.merge(record, NOW_MS)
        replica.view(record.key, NOW_MS)

    return Target(good, take)


def store_values() -> Target:
    """What entries of some kinds hold: counters, grants, revocations, beginnings of namespaces."""
    owner = author(bytes(32), "owner").public
    decoders: list[tuple[Any, int, object]] = [
        (counted_decoder, VALUE_MAX, Counted(9, 3)),
        (grant_decoder, VALUE_MAX, Grant(owner, "a/", 2, 1, 2, 3)),
        (revoke_decoder, VALUE_MAX, Revoke(NO_LINK, (Dot(bytes(16), 1),))),
        (genesis_decoder, GENESIS_MAX, Genesis(1, "club", owner, "list")),
    ]

    def take(frame: bytes) -> None:
        decoder, limit, _ = decoders[(frame[0] if frame else 0) % len(decoders)]
        codec.decode(frame[1:], decoder, limit)

    good = [bytes([number]) + codec.encode(one) for number, (_, _, one) in enumerate(decoders)]
    return Target(good, take)


def store_requests() -> Target:
    """What leads a sync."""
    made = [codec.encode(one) for one in examples(inspect.type_info(wire.Request))]
    for make in REQUESTS.values():
        made += make(_GENESIS.id)[:FRAMES_MAX]
    return Target([frame for frame in made if _is_taken(frame)], wire.decode_request)


def store_answers() -> Target:
    """What answers it."""
    good = [codec.encode(one) for one in examples(inspect.type_info(wire.Answer))]
    return Target(good, wire.decode_answer)


def store_faults() -> Target:
    """Proofs of forks, of clocks and counters that fall."""
    writer = author(_GENESIS.id, "liar")
    first = writer.write("a", 1, NOW_MS)
    other = seal(msgspec.structs.replace(first.entry, key="b"), writer.signer)
    back = writer.write("c", 1, NOW_MS - 1000)
    good = [Fault(first.signed, other.signed), Fault(first.signed, back.signed)]
    return Target(
        [codec.encode(one) for one in good],
        lambda frame: check(codec.decode(frame, fault_decoder, FAULT_MAX)),
    )


def store_news() -> Target:
    """What comes by the channel."""
    entries = [record.signed for record in _all_kinds(author(_GENESIS.id, "fuzz"))]
    frame = codec.encode(News(entries[:3]))
    return Target([frame], lambda one: proven(codec.decode(one, NEWS, FRAME_MAX).entries))


def store_proof() -> Target:
    """Documents for third parties: of a key that is there, and of one that is not."""
    replica, writer = Replica(_GENESIS), author(_GENESIS.id, "fuzz")
    for record in _all_kinds(writer):
        replica.merge(record, NOW_MS)
    good = [prove(replica, key, writer.signer, NOW_MS) for key in ("key/0", "key/3", "none")]
    return Target(good, lambda frame: verify(_GENESIS.id, frame))


def _is_taken(frame: bytes) -> bool:
    try:
        wire.decode_request(frame)
    except BadMessage:
        return False
    return True


TARGETS = (
    *(store_entry, store_merge, store_values),
    *(store_requests, store_answers, store_faults, store_news, store_proof),
)
