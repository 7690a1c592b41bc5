"""The answering side of a sync: from one request to its answer, without memory of others.

The work for a request is bounded by one pass over the set to find what differs, and one over what
differs; what does not fit an answer is cut, and the leader asks for the rest.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from crdt.entry import Record
from crdt.fault import FAULT_MAX, Fault, Proven
from crdt.holding import Holding, in_chain_order
from crdt.timeline import PRINT_BYTES, separator, short
from crdt.wire import (
    ENTRIES_BUDGET,
    ENTRIES_MAX,
    INDEX_BUDGET,
    LISTED_MAX,
    PROOFS_MAX,
    RUNS_MAX,
    SIGNED_OVERHEAD,
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
    Range,
    Run,
    Space,
    Standing,
    Welcome,
    fitting,
    shorts_of,
)
from wire.errors import NotFound

LEAF_WORK_MAX = 4096  # entries of ours in a leaf whose short ids are made (1 µs each); if we have
# more there, the leader is told how many, with fingerprints
WORK_MAX = 8192  # short ids that are made for one request


Found = tuple[Answer, list[Record]]  # an answer, and the records that belong into it, before the
# signatures of those that stand alone were checked


def respond(
    holdings: Mapping[bytes, Holding], request: Hello | Compare | Law | Heads | Pull, now_ms: int
) -> Found:
    """Answer a request. Raises NotFound if its namespace is not replicated here."""
    if isinstance(request, Hello):
        return welcome(holdings, request, now_ms), []
    holding = holdings.get(request.namespace)
    if holding is None:
        name = request.namespace.hex()[:16]
        raise NotFound(f"the namespace {name} is not replicated here")
    match request:
        case Compare(_, nonce, asks):
            return _Comparison(holding, nonce).run(asks)
        case Law():
            return law(holding, request)
        case Heads():
            return heads(holding, request), []
        case Pull():
            return pull(holding, request)


def listing(holdings: Iterable[Holding], nonce: bytes) -> list[Space]:
    """Fingerprint namespaces, in the order of their names."""
    held = sorted(holdings, key=lambda one: one.replica.id)
    return [Space(one.replica.id[:8], one.print(nonce)) for one in held]


def every_print(spaces: list[Space], nonce: bytes) -> bytes:
    """Fingerprint a list of namespaces."""
    return short(nonce, bytes(8) + b"".join(space.prefix + space.print for space in spaces))


def welcome(holdings: Mapping[bytes, Holding], hello: Hello, now_ms: int) -> Welcome:
    """Say where we differ; namespaces that we do not know are left out."""
    nonce = hello.nonce
    if hello.every:
        spaces = listing(holdings.values(), nonce)
        is_equal = every_print(spaces, nonce) == hello.every
        return Welcome(now_ms, [], [] if is_equal else spaces[:LISTED_MAX])
    by_prefix = {one.replica.id[:8]: one for one in holdings.values()}
    differing: dict[bytes, Standing] = {}
    for space in hello.spaces:
        holding = by_prefix.get(space.prefix)
        if holding is not None and holding.print(nonce) != space.print:
            standing = Standing(space.prefix, holding.law(nonce), holding.whole(nonce))
            differing[space.prefix] = standing
    return Welcome(now_ms, list(differing.values())[:SPACES_MAX])


@dataclass
class _Comparison:
    """Works through the asks, while there is room in the answer."""

    holding: Holding
    nonce: bytes
    handled: int = 0
    cut: bytes = b""
    ranges: list[Range] = field(default_factory=list[Range])
    lacks: list[bytes] = field(default_factory=list[bytes])
    records: list[Record] = field(default_factory=list[Record])
    index: int = 0  # of the next part
    index_room: int = INDEX_BUDGET
    entry_room: int = ENTRIES_BUDGET
    work: int = WORK_MAX

    def run(self, asks: list[Ask]) -> Found:
        """Handle asks, at least one (or a part of it)."""
        for ask in asks:
            if self.index_room <= 0 or self.work <= 0 or self.entry_room <= 0:
                break
            if ask.prints:
                self._parts(ask)
            elif not self._leaf(ask):
                break
            self.handled += 1
        answer = Differences(self.handled, self.cut, self.ranges, b"".join(self.lacks))
        return answer, in_chain_order(self.records)

    def _parts(self, ask: Ask) -> None:
        ours = shorts_of(self.holding.prints(self.nonce, ask.bounds))
        theirs = shorts_of(ask.prints)
        for at, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            if mine != other:
                self._split(self.index + at, ask.bounds[at], ask.bounds[at + 1])
        self.index += len(ours)

    def _split(self, index: int, low: bytes, high: bytes) -> None:
        part = self.holding.range(self.nonce, index, low, high)
        self.index_room -= 12 + len(part.prints) + sum(len(bound) + 2 for bound in part.bounds)
        self.ranges.append(part)

    def _leaf(self, ask: Ask) -> bool:
        """Handle a leaf; False if it was cut."""
        low, high = ask.bounds
        records = self.holding.replica.records
        if not ask.ids:
            self.index += 1
            return self._supply(self.holding.replica.timeline.between(low, high, ENTRIES_MAX + 1))
        ours = self.holding.seen(low, high)
        if len(ours) > LEAF_WORK_MAX:
            self._split(self.index, low, high)
            self.index += 1
            return True
        self.index += 1
        self.work -= len(ours)
        theirs = dict.fromkeys(shorts_of(ask.ids))
        missing: list[bytes] = []
        for stamp in ours:
            name = short(self.nonce, stamp)
            if name in theirs:
                del theirs[name]
            elif stamp in records:
                missing.append(stamp)
        self.lacks += theirs
        self.index_room -= PRINT_BYTES * len(theirs)
        return self._supply(missing)

    def _supply(self, stamps: list[bytes]) -> bool:
        """Add entries while they fit; False if not all did."""
        for at, stamp in enumerate(stamps):
            record = self.holding.replica.records[stamp]
            self.entry_room -= record.size + SIGNED_OVERHEAD
            is_full = self.entry_room < 0 or len(self.records) >= ENTRIES_MAX
            if is_full and self.records:
                self.entry_room = min(self.entry_room, 0)
                if at:
                    self.cut = separator(stamps[at - 1], stamp)
                return False
            self.records.append(record)
        return True


def law(holding: Holding, request: Law) -> Found:
    """Exchange proofs of a range of chains; and grants, as far as they fit: the rest is found like
    other entries.
    """
    upto, proofs, wanted = request.high, list[Fault](), list[bytes]()
    faults = holding.replica.faults
    known = {one.chain: one for one in request.known}
    ours = {chain for chain in faults if request.low <= chain < request.high}
    for chain in sorted(ours | known.keys()):
        if _is_better(faults.get(chain), known.get(chain)):
            if len(proofs) >= PROOFS_MAX:
                upto = chain
                break
            proofs.append(faults[chain].fault)
        elif _is_worse(faults.get(chain), known.get(chain)):
            wanted.append(chain)
    lacks, records = b"", list[Record]()
    if request.grants is not None:
        lacks, records = _exchange_grants(holding, request.nonce, shorts_of(request.grants))
    return LawFound(upto, proofs, wanted, lacks), records


def _exchange_grants(
    holding: Holding, nonce: bytes, theirs: list[bytes]
) -> tuple[bytes, list[Record]]:
    rest, records = dict.fromkeys(theirs), list[Record]()
    room = ENTRIES_BUDGET - PROOFS_MAX * FAULT_MAX
    for record in holding.rules():
        name = short(nonce, record.stamp)
        if name in rest:
            del rest[name]
        elif room > record.size and len(records) < ENTRIES_MAX:
            room -= record.size + SIGNED_OVERHEAD
            records.append(record)
    if rest:
        for stamp in holding.refusals.stamps:
            rest.pop(short(nonce, stamp), None)
    return b"".join(rest), in_chain_order(records)


def _is_better(ours: Proven | None, theirs: Known | None) -> bool:
    """True if our proof for a chain is the one to keep."""
    return ours is not None and (theirs is None or _rank(ours) < (theirs.cut, theirs.digest))


def _is_worse(ours: Proven | None, theirs: Known | None) -> bool:
    """True if the other's proof for a chain is the one to keep."""
    return theirs is not None and (ours is None or (theirs.cut, theirs.digest) < _rank(ours))


def _rank(proven: Proven) -> tuple[int, bytes]:
    return proven.cut, proven.digest[:PRINT_BYTES]


def heads(holding: Holding, request: Heads) -> HeadsFound:
    """List the next chains."""
    found = holding.replica.heads(request.after, RUNS_MAX)
    return HeadsFound([Run(chain, seq) for chain, seq in found])


def pull(holding: Holding, request: Pull) -> Found:
    """Supply chains, in the order in which they were asked for."""
    handled = seq = 0
    supplied, room = list[Record](), ENTRIES_BUDGET
    for run in request.runs:
        limit = ENTRIES_MAX - len(supplied)
        records = holding.replica.chain_after(run.chain, run.seq, limit + 1)
        fit = min(limit, fitting(records, room)) if limit and room > 0 else 0
        supplied += records[:fit]
        room -= sum(record.size + SIGNED_OVERHEAD for record in records[:fit])
        if fit < len(records):
            seq = records[fit - 1].seq if fit else 0
            break
        handled += 1
    return Entries(handled, seq), supplied
