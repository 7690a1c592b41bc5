"""Pairs of replicas and a sync between them without tasks: every message goes through its codec."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec

from crdt import answers, wire
from crdt.clock import stamp
from crdt.entry import NO_LINK, REGISTER, Entry, Record, Signed, unseal
from crdt.fault import Fault, check
from crdt.holding import Holding
from crdt.namespace import Genesis, Rules
from crdt.ranges import Give, Settle, Take, TakeProofs, Turn
from crdt.reconcile import lead
from crdt.replica import Replica
from wire import codec

NOW_MS = 1_800_000_000_000
GENESIS = Genesis(1, "runs", None, "open", b"", Rules(author_entries=1_000_000))


def author_of(number: int) -> bytes:
    return number.to_bytes(32)


def unsigned(
    author: int,
    seq: int,
    hlc: int,
    *,
    key: str = "",
    prev: bytes = NO_LINK,
    value: bytes = b"\x01",
    instance: int = 0,
) -> Record:
    """An entry that looks signed and checked: what is tested here does not look at signatures."""
    entry = Entry(
        1,
        GENESIS.id,
        author_of(author),
        instance.to_bytes(8),
        seq,
        prev,
        hlc,
        REGISTER,
        key or f"key/{author}/{seq}",
        value=value,
    )
    record = unseal(Signed(codec.encode(entry), bytes(64)))
    record.is_checked = True
    return record


def history(count: int, authors: int, *, ms: int = 50, seed: int = 1) -> list[Record]:
    """Entries of many chains, in time order, one about every `ms`; each chain is linked."""
    rng = random.Random(seed)
    links: dict[int, tuple[int, bytes]] = {}
    made: list[Record] = []
    now = stamp(NOW_MS - count * ms - 60_000)
    for _ in range(count):
        now += rng.randrange(1, 2 * ms << 16)
        author = rng.randrange(authors)
        seq, prev = links.get(author, (0, NO_LINK))
        made.append(unsigned(author, seq + 1, now, prev=prev))
        links[author] = seq + 1, made[-1].link
    return made


def replica_of(records: Iterable[Record], genesis: Genesis = GENESIS) -> Replica:
    made = Replica(genesis)
    for record in records:
        made.merge(record, NOW_MS)
    return made


@dataclass
class Side:
    """A replica that refuses what it is told to, and remembers that."""

    replica: Replica
    refuses: Callable[[Record], bool] = lambda record: False
    now_ms: int = NOW_MS
    holding: Holding = field(init=False)

    def __post_init__(self) -> None:
        self.holding = Holding(self.replica)

    def take(self, entries: list[Signed]) -> None:
        for signed in entries:
            record = unseal(signed)
            record.is_checked = True
            is_fine = not self.refuses(record) and not self.replica.refusal(record, self.now_ms)
            if is_fine:
                self.replica.merge(record, self.now_ms)
        self.note_refused(entries)

    def note_refused(self, entries: list[Signed]) -> None:
        for name in map(wire.stamp_of, entries):
            if name not in self.replica.records:
                self.holding.refusals.note(name, (self.now_ms - NOW_MS) / 1000)

    def take_proofs(self, proofs: list[Fault]) -> None:
        for fault in proofs:
            self.replica.merge_fault(check(fault))

    def fit(self, records: list[Record]) -> list[Signed]:
        """Leave out what must not be sent."""
        return [record.signed for record in records]

    def answer(self, request: wire.Request) -> wire.Answer:
        if isinstance(request, wire.Push):
            self.take_proofs(request.proofs)
            self.take(request.entries)
            return wire.Taken(len(request.entries))
        holdings = {self.replica.id: self.holding}
        answer, records = answers.respond(holdings, request, self.now_ms)
        return msgspec.structs.replace(answer, entries=self.fit(records)) if records else answer


@dataclass
class Report:
    """What a session cost."""

    round_trips: int = 0
    entries_in: int = 0
    entries_out: int = 0
    overhead: int = 0
    kinds: list[str] = field(default_factory=list[str])


def sync(
    mine: Side, theirs: Side, *, nonce: bytes = b"a nonce!", is_lost: Callable[[], bool] = bool
) -> Report:
    """Lead one session; an answer that `is_lost` ends it."""
    report = Report()
    steps = lead({mine.replica.id: mine.holding}, nonce, lambda: mine.now_ms)
    answer: wire.Answer | None = None
    late: Take | None = None  # is taken one request later, as by the driver
    while True:
        try:
            effect = steps.send(answer)
        except StopIteration:
            break
        request: wire.Request | None = None
        answer = None
        if late is not None and isinstance(effect, Take | Settle):
            mine.take(late.entries)
            late = None
        match effect:
            case Take():
                late = effect
            case TakeProofs(_, proofs):
                mine.take_proofs(proofs)
            case Settle() | Turn():
                pass
            case Give(namespace, records, proofs):
                request = wire.Push(namespace, mine.fit(records), proofs)
            case _:
                request = effect
        if request is None:
            continue
        reply = _exchange(request, theirs, report)
        if is_lost():
            return report
        report.entries_in += len(wire.entries_of(reply))
        if late is not None:
            mine.take(late.entries)
            late = None
        answer = None if isinstance(effect, Give) else reply
    if late is not None:
        mine.take(late.entries)
    return report


def _exchange(request: wire.Request, theirs: Side, report: Report) -> wire.Answer:
    frame = codec.encode(request)
    reply = codec.encode(theirs.answer(wire.decode_request(frame)))
    answer = wire.decode_answer(reply)
    assert max(len(frame), len(reply)) <= wire.FRAME_MAX
    report.round_trips += 1
    report.entries_out += len(wire.entries_of(request))
    report.kinds.append(type(request).__name__)
    moved = [*wire.entries_of(request), *wire.entries_of(answer)]
    report.overhead += len(frame) + len(reply) - wire.net_size(moved)
    return answer
