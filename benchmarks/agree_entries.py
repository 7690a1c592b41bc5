"""Entries for benchmarks of the store: authors with chains of their own, seeded, so that two
processes make the same ones.
"""

import hashlib
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from crdt.entry import NO_LINK, REGISTER, Entry, Record, seal
from wire import codec
from wire.ids import Signer, public_key_of

AUTHORS = 20  # of a store of 100,000: half of what one author may have
STEP_MS = 30  # between two writes of the swarm: 100,000 are 50 minutes
AGE_MS = 120_000  # of the last of them: no news, which daemons spread at once, whoever brings them
VALUE_BYTES = 22  # as in the figures of Loro and Yrs that these stand beside


@dataclass
class Author:
    """One chain of one author in one namespace."""

    namespace: bytes
    signer: Signer
    instance: bytes = bytes(8)
    seq: int = 0
    prev: bytes = NO_LINK
    public: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.public = public_key_of(self.signer.peer)

    def write(self, key: str, value: object, at_ms: int, /, **more: object) -> Record:
        """Write the chain's next entry. `more` are fields of the entry."""
        self.seq += 1
        fields: dict[str, object] = {"kind": REGISTER, "value": codec.encode(value), **more}
        record = seal(self.entry(key, at_ms, **fields), self.signer)
        self.prev = record.link
        return record

    def entry(self, key: str, at_ms: int, **fields: object) -> Entry:
        """Return an entry of this author at the end of the chain; `fields` may say otherwise."""
        made: dict[str, object] = {
            "version": 1,
            "namespace": self.namespace,
            "author": self.public,
            "instance": self.instance,
            "seq": self.seq,
            "prev": self.prev,
            "hlc": at_ms << 16,
            "kind": REGISTER,
            "key": key,
            **fields,
        }
        return Entry(**made)  # type: ignore[arg-type]


def author(namespace: bytes, name: str) -> Author:
    """Return the author of that name, the same one every time."""
    seed = hashlib.sha256(f"bench {name}".encode()).digest()
    return Author(namespace, Signer(seed), instance=seed[:8])


def corpus(
    namespace: bytes, count: int, now_ms: int, *, authors: int = AUTHORS, name: str = "author"
) -> Iterator[Record]:
    """Yield live registers under keys of their own, one author after the other in time."""
    random_ = random.Random(count)
    writers = [author(namespace, f"{name} {number}") for number in range(authors)]
    for number in range(count):
        at_ms = now_ms - AGE_MS - (count - number) * STEP_MS
        value = random_.randbytes(VALUE_BYTES // 2).hex()
        yield writers[number % authors].write(f"bench/{number:06}", value, at_ms)


def by_chain(records: Iterable[Record]) -> list[Record]:
    """Sort into runs: what one signature proves."""
    return sorted(records, key=lambda record: (record.chain, record.seq))


def isolated(records: Iterable[Record]) -> list[Record]:
    """Return every second entry of each chain: no two of them prove each other."""
    return [record for record in records if record.seq % 2]


def size_of(records: Iterable[Record]) -> int:
    """Bytes of bodies and signatures."""
    return sum(record.size for record in records)
