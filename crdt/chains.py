"""Who wrote what: the retained records of a namespace by chain, the head of each, and how much
each author has. No rule of merging is here, only what is needed to find a contradiction quickly.
"""

import heapq
from bisect import bisect_right
from collections.abc import Iterator
from itertools import islice

from crdt.entry import GRANT, Record
from crdt.fault import is_suspect, prev_of
from crdt.timeline import Timeline

EMPTY_CHAINS_MAX = 4096  # chains without a retained entry whose heads are remembered: 3 MB; whoever
# starts a chain per entry pushes out the oldest, and costs others a longer sync, nothing else
TWINS_MAX = 64  # of one number that are asked whether they name an entry: who forks is found anyway
_LAST = b"\xff" * 17  # above every name of a chain
SLACK = 1000  # dead items that an index may carry, besides as many as there are live ones


class _Chain:
    """Retained records by seq; `twins` are more of one seq, by stamp. `order` is made when
    needed, and may name some that are gone."""

    __slots__ = ("held", "is_doubted", "order", "top", "twins")

    def __init__(self, top: Record) -> None:
        self.held: dict[int, Record] = {}
        self.twins: dict[int, dict[bytes, Record]] | None = None
        self.order: list[int] | None = None
        self.top = top
        self.is_doubted = False


class Chains:
    """All chains of a namespace."""

    def __init__(self) -> None:
        self._chains: dict[bytes, _Chain] = {}
        self._names = Timeline()  # of them, in order
        self._of_author: dict[bytes, dict[bytes, None]] = {}  # chains with something retained
        self._empty: dict[bytes, int] = {}  # chains with nothing retained, and until when

    def add(self, record: Record) -> None:
        """Note a record that is retained now."""
        chain = self._chains.get(record.chain)
        if chain is None:
            chain = self._chains[record.chain] = _Chain(record)
            self._names.add(record.chain)
        elif record.seq > chain.top.seq:
            chain.top = record
        if not chain.held and not chain.twins:
            self._empty.pop(record.chain, None)
            self._of_author.setdefault(record.author, {})[record.chain] = None
        if record.seq in chain.held:
            if chain.twins is None:
                chain.twins = {}
            chain.twins.setdefault(record.seq, {})[record.stamp] = record
            return
        chain.held[record.seq] = record
        if chain.order is not None:
            if chain.order and chain.order[-1] >= record.seq:
                chain.order = None
            else:
                chain.order.append(record.seq)

    def remove(self, record: Record, forget_ms: int) -> None:
        """Forget a record; the head of a chain that is empty now stays until `forget_ms`."""
        chain = self._chains[record.chain]
        twins = chain.twins.get(record.seq) if chain.twins else None
        if chain.held.get(record.seq) is record:
            if twins:
                _, chain.held[record.seq] = twins.popitem()
            else:
                del chain.held[record.seq]
        elif twins:
            del twins[record.stamp]
        if chain.twins and twins is not None and not twins:
            del chain.twins[record.seq]
        if not chain.held:
            self._note_empty(record, forget_ms)

    def rivals(self, record: Record, cut: int) -> list[Record]:
        """Return records that contradict a new one of their chain and would cut it below `cut`;
        only the same number, the neighbours and the head are looked at. Of a chain in which a
        signature is wrong, all neighbours: one may be the proof.
        """
        chain = self._chains.get(record.chain)
        if chain is None or record.seq > cut:
            return []
        seq, held = record.seq, chain.held
        before, after, top = held.get(seq - 1), held.get(seq + 1), chain.top
        if chain.is_doubted:
            return [one for one in (before, after, held.get(seq)) if one is not None]
        if (
            before is not None and before is top and not is_suspect(before, record)
        ):  # as nearly always
            return []
        near = (held.get(seq), before, after, top)
        return [one for one in near if one is not None and is_suspect(one, record)]

    def doubt(self, name: bytes) -> None:
        """Note that a signature of a chain is wrong, but is not proven to be its author's fault."""
        chain = self._chains.get(name)
        if chain is not None:
            chain.is_doubted = True

    def follower(self, record: Record) -> Record | None:
        """Return a retained record that names this one as its predecessor."""
        chain = self._chains.get(record.chain)
        if chain is None:
            return None
        after = record.seq + 1
        twins = chain.twins.get(after, {}) if chain.twins else {}
        for other in (chain.held.get(after), *islice(twins.values(), TWINS_MAX)):
            if other is not None and prev_of(other) == record.link:
                return other
        return None

    def seen(self, name: bytes) -> int:
        """Return the highest seq of a chain that was seen, 0 of none."""
        chain = self._chains.get(name)
        return chain.top.seq if chain is not None else 0

    def heads(self, after: bytes, limit: int) -> list[tuple[bytes, int]]:
        """Return the next chains in order of their names, with the highest seq that was seen."""
        names = self._names.between(after + b"\0", _LAST, limit)
        return [(name, self.seen(name)) for name in names]

    def after(self, name: bytes, seq: int, limit: int) -> list[Record]:
        """Return up to `limit` retained records of a chain with larger seq, in order of seq."""
        chain = self._chains.get(name)
        if chain is None or seq >= chain.top.seq:
            return []
        if chain.order is None or len(chain.order) > 2 * len(chain.held) + SLACK:
            chain.order = sorted(chain.held)  # nearly sorted already: 2 ms of 100,000
        found: list[Record] = []
        for index in range(bisect_right(chain.order, seq), len(chain.order)):
            if len(found) >= limit:
                break
            record = chain.held.get(chain.order[index])
            if record is not None:
                found.append(record)
                found.extend((chain.twins or {}).get(record.seq, {}).values())
        return found[:limit]

    def between(self, name: bytes, low: int, high: int) -> list[Record]:
        """Return the retained records of a chain with low <= seq < high, in any order."""
        chain = self._chains.get(name)
        if chain is None:
            return []
        is_narrow = high - low < len(chain.held)
        seqs = range(low, high) if is_narrow else list(chain.held)
        found: list[Record] = []
        for seq in seqs:
            if low <= seq < high and seq in chain.held:
                found.append(chain.held[seq])
                found.extend((chain.twins or {}).get(seq, {}).values())
        return found

    def of_author(self, author: bytes) -> Iterator[Record]:
        """Yield all retained records of an author."""
        for name in self._of_author.get(author, ()):
            chain = self._chains[name]
            yield from chain.held.values()
            for twins in (chain.twins or {}).values():
                yield from twins.values()

    def authors(self) -> int:
        """Count the authors with something retained."""
        return len(self._of_author)

    def forget(self, now_ms: int) -> None:
        """Forget the heads of chains that have been empty for long."""
        while self._empty and next(iter(self._empty.values())) <= now_ms:
            self._drop_oldest_empty()

    def _note_empty(self, record: Record, forget_ms: int) -> None:
        names = self._of_author[record.author]
        del names[record.chain]
        if not names:
            del self._of_author[record.author]
        self._empty[record.chain] = forget_ms
        if len(self._empty) > EMPTY_CHAINS_MAX:
            self._drop_oldest_empty()

    def _drop_oldest_empty(self) -> None:
        name = next(iter(self._empty))
        del self._empty[name], self._chains[name]
        self._names.remove(name)


class Quota:
    """How much each author has, and of those with much, what is oldest. Grants and revocations
    have a quota of their own: an owner's data shall not push out what it granted.
    """

    def __init__(self, limit: int, *, is_for_rules: bool) -> None:
        self.limit = limit
        self._is_for_rules = is_for_rules
        self.held: dict[bytes, int] = {}  # entries of each author
        self._oldest: dict[bytes, list[bytes]] = {}  # heaps of stamps, of those near the limit

    def add(self, record: Record) -> None:
        """Count a record."""
        self.held[record.author] = self.held.get(record.author, 0) + 1
        if self._oldest and record.author in self._oldest:
            heapq.heappush(self._oldest[record.author], record.stamp)

    def remove(self, record: Record) -> None:
        """Count a record no more."""
        left = self.held[record.author] - 1
        if left:
            self.held[record.author] = left
        else:
            del self.held[record.author]
        if left <= self.limit // 2:
            self._oldest.pop(record.author, None)

    def oldest(self, author: bytes, records: dict[bytes, Record], chains: Chains) -> bytes:
        """Return the smallest stamp of an author. Cost: once linear, then a step of a heap."""
        heap = self._oldest.get(author)
        if heap is None or len(heap) > 2 * self.held[author] + SLACK:
            heap = [
                record.stamp
                for record in chains.of_author(author)
                if (record.kind >= GRANT) == self._is_for_rules
            ]
            heapq.heapify(heap)
            self._oldest[author] = heap
        while heap[0] not in records:
            heapq.heappop(heap)
        return heap[0]

    def is_over(self, author: bytes) -> bool:
        """True if an author has too much."""
        return self.held[author] > self.limit
