"""Whole swarms of replicas without tasks: what is written spreads over lossy links, through
partitions and restarts, by channel and by sync; in the end all must hold and show the same.

Real: entries and their signatures, intake, replicas, reconciliation, codecs. Stand-ins: the disk
(what a replica holds survives its restart), time, and the network. Many: tests/soak/crdt_swarms.py.
"""

import random
from dataclasses import dataclass, field

from crdt.entry import GRANT, Record, Signed, is_signed
from crdt.exchange import unproven
from crdt.fault import check
from crdt.intake import LATER, Deferred, proven
from crdt.replica import Replica
from tests.sim.crdt_pairs import NOW_MS, Side, sync
from tests.soak.crdt_histories import History, draw, shown

SYNC_MS = 30_000  # between rounds in which everybody syncs with two others
ROUNDS_MAX = 40  # after the last partition has healed: 20 minutes, twice what a refusal is kept
CHANNEL_LOSS = 0.3
ANSWER_LOSS = 0.1


class Member(Side):
    """A replica with what surrounds it in a node: intake, deferred entries, a clock of its own."""

    def __init__(self, replica: Replica, skew_ms: int) -> None:
        super().__init__(replica)
        self.skew_ms = skew_ms
        self.deferred = Deferred()

    def take(self, entries: list[Signed]) -> None:
        self.merge(proven(entries))
        self.note_refused(entries)

    def fit(self, records: list[Record]) -> list[Signed]:
        while loose := unproven(records):
            bad = {one.stamp for one in loose if not is_signed(one)}
            for record in loose:
                if record.stamp in bad:
                    self.replica.drop(record)
            records = [one for one in records if one.stamp not in bad]
        return [one.signed for one in records]

    def pass_time(self, now_ms: int) -> None:
        """Let what is due happen."""
        self.now_ms = now_ms + self.skew_ms
        self.replica.pop_due(self.now_ms)
        self.holding.refusals.expire((self.now_ms - NOW_MS) / 1000)
        self.merge(self.deferred.due(self.now_ms, lambda _: self.replica.rules.max_skew_ms))

    def restart(self, rng: random.Random) -> None:
        """Begin again with what is on the disk, in another order."""
        old, self.replica = self.replica, Replica(self.replica.genesis)
        for proof in old.faults.values():
            self.replica.merge_fault(check(proof.fault))
        records = list(old.records.values())
        rng.shuffle(records)
        for record in records:
            self.replica.merge(record, self.now_ms)
        self.__post_init__()
        self.deferred = Deferred()

    def merge(self, records: list[Record]) -> None:
        while records:
            has_grant = False
            for record in records:
                reason = self.replica.refusal(record, self.now_ms)
                if reason in LATER:
                    self.deferred.hold(record, reason, self.now_ms)
                elif not reason and self.replica.is_news(record):
                    change = self.replica.merge(record, self.now_ms)
                    has_grant |= change.is_added and record.kind >= GRANT
            records = self.deferred.granted(self.replica.id) if has_grant else []


@dataclass
class Swarm:
    """Members, who hears whom, and the time."""

    rng: random.Random
    history: History
    members: list[Member]
    now_ms: int = NOW_MS + 20_000
    group: list[int] = field(default_factory=list[int])  # by member; those of one group hear others
    sessions: int = 0

    def hears(self, one: int, other: int) -> bool:
        return one != other and self.group[one] == self.group[other]

    def partition(self, groups: int) -> None:
        self.group = [self.rng.randrange(groups) for _ in self.members]

    def write(self, record: Record) -> None:
        """Some member has it first, the others hear of it, or do not."""
        home = self.rng.randrange(len(self.members))
        for at, member in enumerate(self.members):
            is_heard = self.hears(home, at) and self.rng.random() > CHANNEL_LOSS
            if at == home:
                member.merge([record])
            elif is_heard and is_signed(record):
                member.take([record.signed])

    def sync_some(self, count: int, loss: float) -> None:
        """Let some members lead a sync with one that they hear."""
        for leader in self.rng.choices(range(len(self.members)), k=count):
            others = [at for at in range(len(self.members)) if self.hears(leader, at)]
            if others:
                self.sync(leader, self.rng.choice(others), loss)

    def sync(self, leader: int, other: int, loss: float = 0.0) -> None:
        self.sessions += 1
        lost = self.rng.random
        mine, theirs = self.members[leader], self.members[other]
        sync(mine, theirs, nonce=self.rng.randbytes(8), is_lost=lambda: lost() < loss)

    def pass_time(self, ms: int) -> None:
        self.now_ms += ms
        for member in self.members:
            member.pass_time(self.now_ms)

    def is_equal(self) -> bool:
        return len({member.replica.fingerprint() for member in self.members}) == 1

    def round(self) -> None:
        """Half a minute: everybody leads a sync with two others."""
        self.pass_time(SYNC_MS)
        for leader in self.rng.sample(range(len(self.members)), len(self.members)):
            others = [at for at in range(len(self.members)) if self.hears(leader, at)]
            for other in self.rng.sample(others, min(2, len(others))):
                self.sync(leader, other)


def found(seed: int, *, size: int | None = None) -> Swarm:
    """Found the swarm of a number, with a history that is still to be written."""
    rng = random.Random(seed)
    history = draw(seed, is_young=seed % 2 == 0, is_honest=seed % 4 == 1, listed=seed % 3 == 0)
    members = [
        Member(Replica(history.genesis), rng.randrange(-8_000, 8_000))
        for _ in range(size or rng.randint(3, 30))
    ]
    return Swarm(rng, history, members, group=[0] * len(members))


def live(seed: int) -> str:
    """Let a swarm live through its history; returns what is wrong at the end, or ""."""
    swarm = found(seed)
    rng = swarm.rng
    for record in swarm.history.records:
        swarm.pass_time(rng.randrange(4_000))
        swarm.write(record)
        match rng.randrange(8):
            case 0 | 1 | 2:
                swarm.sync_some(len(swarm.members) // 2, ANSWER_LOSS)
            case 3:
                swarm.partition(rng.randint(1, 3))
            case 4:
                rng.choice(swarm.members).restart(rng)
            case _:
                pass
    swarm.partition(1)
    for _ in range(ROUNDS_MAX):
        swarm.round()
        if swarm.is_equal():
            break
    else:
        return "different for ever"
    then_ms = swarm.now_ms + 1000
    states = [shown(member.replica, then_ms) for member in swarm.members]
    return "" if all(state == states[0] for state in states) else "one set, but two states"
