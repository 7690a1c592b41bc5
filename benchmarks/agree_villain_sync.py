"""Attacks on the syncs of a store: requests that no honest leader makes, and answers that no honest
peer gives to one who leads.
"""

import itertools
import os
import random
from collections.abc import Callable

from benchmarks.fuzz_messages import mutate
from crdt.timeline import END, PRINT_BYTES, START
from crdt.wire import (
    ASKS_MAX,
    GRANTS_MAX,
    KNOWN_MAX,
    LEAF_IDS_MAX,
    PARTS_MAX,
    RUNS_MAX,
    SPACES_MAX,
    Answer,
    Ask,
    Compare,
    Differences,
    Entries,
    Heads,
    HeadsFound,
    Hello,
    Known,
    Law,
    LawFound,
    Pull,
    Push,
    Range,
    Run,
    Space,
    Standing,
    Taken,
    Welcome,
    decode_request,
)
from wire import codec
from wire.ids import PeerId

NESTED_BYTES = 60_000
GARBAGE = 200  # mutated frames in one go
MANY = 1 << 39  # entries that a liar says it has
NONCE = bytes(8)


def _bounds(count: int) -> list[bytes]:
    """Return ascending bounds all over time."""
    return [START, *(number.to_bytes(2) for number in range(1, count)), END]


def _print(count: int) -> bytes:
    return os.urandom(PRINT_BYTES * count)


def overlapping(namespace: bytes) -> list[bytes]:
    """Ranges that overlap, that are out of order, and that have too few fingerprints."""
    whole = Ask([START, END], _print(1))
    backwards = Ask([END, START], _print(1))
    short = Ask(_bounds(3), _print(2))
    asks = [[whole] * ASKS_MAX, [backwards], [short]]
    return [codec.encode(Compare(namespace, NONCE, one)) for one in asks]


def endless(namespace: bytes) -> list[bytes]:
    """Fingerprints that are never right: everything differs, in as many parts as may be asked."""
    parts = Compare(namespace, NONCE, [Ask(_bounds(PARTS_MAX), _print(PARTS_MAX))])
    cuts = _bounds(ASKS_MAX)
    ranges = [Ask([low, high], _print(1)) for low, high in itertools.pairwise(cuts)]
    many = Compare(namespace, NONCE, ranges[::-1])
    ids = Compare(namespace, NONCE, [Ask([START, END], b"", _print(LEAF_IDS_MAX))])
    leaves = [Ask(ask.bounds, b"", _print(10)) for ask in ranges[::-1]]
    return [codec.encode(one) for one in (parts, many, ids, Compare(namespace, NONCE, leaves))]


def wants(namespace: bytes) -> list[bytes]:
    """All chains from their first entries on, and chains that nobody has; the whole set."""
    runs = sorted((Run(os.urandom(16), 0) for _ in range(RUNS_MAX)), key=lambda run: run.chain)
    everything = Compare(namespace, NONCE, [Ask([START, END])])
    return [
        codec.encode(Pull(namespace, runs)),
        codec.encode(Heads(namespace, b"")),
        *([codec.encode(everything)] * 4),
    ]


def lawless(namespace: bytes) -> list[bytes]:
    """Proofs, grants and namespaces that nobody has."""
    chains = sorted(os.urandom(16) for _ in range(KNOWN_MAX))
    known = [Known(chain, 1, _print(1)) for chain in chains]
    law = Law(namespace, NONCE, b"", b"\xff" * 17, known, _print(GRANTS_MAX))
    spaces = [Space(os.urandom(8), _print(1)) for _ in range(SPACES_MAX)]
    hello = Hello(NONCE, (1 << 62), spaces)
    return [codec.encode(law), codec.encode(hello), codec.encode(Hello(NONCE, 0, [], _print(1)))]


def garbage(namespace: bytes) -> list[bytes]:
    """Nested arrays, sizes that are not there, and what mutation makes of good requests."""
    random_ = random.Random(os.urandom(8))
    good = [endless(namespace)[0], *wants(namespace), *lawless(namespace)]
    bombs = [
        b"\x91" * NESTED_BYTES,
        b"\x81\xa1a" * (NESTED_BYTES // 3),
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        codec.encode(Heads(namespace, b"")) + bytes(200_000),
    ]
    return bombs + [mutate(random_, random_.choice(good)) for _ in range(GARBAGE)]


LIES = ("law", "heads", "pull", "ranges")


class Liar:
    """Answers syncs that others lead. About one thing there is always more, never an end; of the
    rest it has nothing.
    """

    def __init__(self, about: str, namespace: bytes) -> None:
        self.asked, self._about, self._prefix = 0, about, namespace[:8]

    async def answer(self, _peer: PeerId, message: bytes) -> bytes:
        """Lie."""
        self.asked += 1
        return codec.encode(self._lie(message))

    def _lie(self, message: bytes) -> Answer:
        about = self._about
        match decode_request(message):
            case Hello(now_ms=now_ms, spaces=spaces):
                cut = Range(0, MANY, _bounds(PARTS_MAX)[1:-1], _print(PARTS_MAX))
                if not spaces:
                    return Welcome(now_ms, [], [Space(self._prefix, _print(1))])
                return Welcome(now_ms, [Standing(one.prefix, _print(1), cut) for one in spaces])
            case Compare(asks=asks):
                count = sum(max(1, len(ask.bounds) - 1) for ask in asks) * (about == "ranges")
                return Differences(len(asks), b"", [Range(at, MANY) for at in range(count)])
            case Law(high=high):
                is_lie = about == "law"
                return LawFound(high, [], [], _print(4)) if is_lie else LawFound(high)
            case Heads(after=after):
                first = int.from_bytes(after[:8].ljust(8, b"\0")) + 1
                heads = [Run((first + at).to_bytes(8) + bytes(8), MANY) for at in range(RUNS_MAX)]
                return HeadsFound(heads if about in ("heads", "pull") else [])
            case Pull(runs=runs):
                return Entries(0, runs[0].seq + 1) if about == "pull" else Entries(len(runs), 0)
            case Push():
                return Taken(0)


REQUESTS: dict[str, Callable[[bytes], list[bytes]]] = {
    "overlapping": overlapping,
    "endless": endless,
    "wants": wants,
    "lawless": lawless,
    "garbage": garbage,
}
