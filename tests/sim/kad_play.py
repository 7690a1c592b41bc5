"""Plays a scenario in a world of DHT nodes and counts what came of it.

Figures, of honest nodes only: `found` (% of looks whose first result is the nearest live server),
`nearest_20` (% of the true k-closest among the results), `correct` (% of gets with the newest
record), `hops` (requests in a row that led to the nearest's own answer), `messages` (requests of
one look), `timeouts_p95` (how long a look took, in time-outs of one request), `seconds`.
"""

import statistics
from dataclasses import dataclass, field

from dht.diversity import diverse
from dht.key import Key, key_of
from dht.messages import Contact, Moment, Trace, Value
from dht.node import Node
from dht.operation import QUERY_S, Operation
from dht.values import head_name, multi_name
from tests.sim.kad import DAY_MS, SEALED, K, Member, Start, State, Then, World
from tests.sim.kad_hostile import Conspiracy
from tests.sim.kad_ring import Ring
from tests.sim.scenario import Scenario

AUTHORS = 5  # of a name under /shoal/multi
SETTLE_S = 10.0  # after the last store: what is handed over has arrived
GIVE_UP_S = 600.0  # looks end after 30 s; a simulation that does not end is a bug
SEEDS = 3  # members that a newcomer knows


@dataclass
class Outcome:
    """What came of all looks and stores."""

    figures: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    failures: list[str] = field(default_factory=list[str])  # what went wrong, to look into
    events: int = 0

    def note(self, **figures: float) -> None:
        """Add one sample of each."""
        for name, value in figures.items():
            self.figures.setdefault(name, []).append(value)

    def summary(self) -> dict[str, float]:
        """Return all figures: shares in %, means, and quantiles of what has a tail."""
        found: dict[str, float] = {}
        for name, values in self.figures.items():
            if name in SHARES:
                found[name] = 100 * statistics.fmean(values)
                found[f"{name}_n"] = len(values)
                continue
            found[name] = statistics.fmean(values)
            if len(values) > 1:
                ordered = sorted(values)
                for share in (50, 95, 99):
                    at = min(len(ordered) - 1, len(ordered) * share // 100)
                    found[f"{name}_p{share}"] = ordered[at]
        return found


SHARES = ("found", "nearest_20", "correct", "stored")


@dataclass
class Record:
    """Something that was stored."""

    name: bytes
    owner: Member
    newest: dict[str, int] = field(default_factory=dict[str, int])  # author -> seq; of providers 0
    is_stored: bool = False

    @property
    def key(self) -> Key:
        """Where it belongs."""
        return key_of(self.name)


class Play:
    """One trial."""

    def __init__(self, scenario: Scenario, seed: int, outcome: Outcome) -> None:
        self.scenario, self.seed, self.outcome = scenario, seed, outcome
        self.world = World(scenario, seed)
        self.conspiracy = Conspiracy(self.world)
        self.busy = 0
        self.records: list[Record] = []

    def run(self) -> None:
        """Play it all."""
        world, scenario = self.world, self.scenario
        world.populate(scenario.swarm.nodes)
        self._turn_hostile()
        if not world.is_steady:
            self._join_all()
        self.work()
        self.outcome.events += world.heap.events
        self.outcome.note(timed_out=world.timeouts / max(1, world.asked))

    def work(self) -> None:
        """Store, then kill and part, then look."""
        if self.scenario.work.kind != "find":
            self._store_all()
        self._kill()
        self._part()
        self._look_all()

    @property
    def _has_enemies(self) -> bool:
        return self.scenario.hostile.share > 0.0 or self.scenario.sybils.count > 0

    # --- who is there -----------------------------------------------------------------------------

    def _turn_hostile(self) -> None:
        world, options = self.world, self.scenario.hostile
        servers = list(world.ring)
        for member in world.rng.sample(servers, round(options.share * len(servers))):
            self.conspiracy.win(member, world.rng.choice(options.behaviours))

    def _kill(self) -> None:
        world, options = self.world, self.scenario.dead
        for member in world.rng.sample(world.members, round(options.share * len(world.members))):
            hangs = world.rng.random() < options.hanging
            member.state = State.HANGS if hangs else State.REFUSES

    def _join_all(self) -> None:
        """Everybody comes by bootstrapping, one after the other."""
        world, gap_s = self.world, self.scenario.swarm.join_gap_s
        members, world.ring = list(world.members), Ring[Member]()
        for number, member in enumerate(members):
            world.heap.at(number * gap_s, self.join, member)
        world.heap.run(len(members) * gap_s)
        self._wait()
        world.heap.run(world.heap.now_s + SETTLE_S)

    def join(self, member: Member) -> None:
        """Let one come in who knows a few others."""
        world = self.world
        seeds = [
            world.ring[world.rng.randrange(len(world.ring))].contact
            for _ in range(min(SEEDS, len(world.ring)))
        ]
        member.is_new, member.is_joined = True, False

        def done(_: Operation) -> None:
            member.is_joined = True

        if member.stranger is None:
            self.begin(member, lambda node, now: node.bootstrap(seeds, now), done)
        if member.is_server:
            world.ring.add(member)

    def _part(self) -> None:
        """Cut the network in two for a time."""
        heap, options = self.world.heap, self.scenario.partition
        if options.share:
            heap.run(heap.now_s + options.from_s)
            self.world.links.part(options.share)
            heap.run(heap.now_s + options.for_s)
            self.world.links.part(0.0)
            heap.run(heap.now_s + options.after_s)

    def _somebody(self) -> Member:
        """Return a live honest member by chance: who looks, or stores."""
        members, rng = self.world.members, self.world.rng
        while True:
            member = rng.choice(members)
            if member.state is State.ALIVE and member.stranger is None and member.is_joined:
                return member

    # --- storing ----------------------------------------------------------------------------------

    def _store_all(self) -> None:
        heap, work = self.world.heap, self.scenario.work
        if work.kind == "many":
            self._provide_many()
            return
        for number in range(work.records):
            heap.after(number * work.gap_s, self.store_one, number)
        heap.run(heap.now_s + work.records * work.gap_s)
        self._wait()
        heap.run(heap.now_s + SETTLE_S)

    def _provide_many(self) -> None:
        owner = self._somebody()
        names = [f"{self.seed}-{number}".encode() for number in range(self.scenario.work.records)]
        self.records = [Record(name, owner, {owner.peer: 0}) for name in names]

        def done(operation: Operation) -> None:
            self.outcome.note(store_messages=self.world.asked - before)

        before = self.world.asked
        self.begin(owner, lambda node, now: node.provide_many(names, now), done)
        self._wait()

    def store_one(self, number: int) -> None:
        """Somebody stores a record of its own (of `multi`, others beside it)."""
        owner = self._somebody()
        kind, text = self.scenario.work.kind, f"{self.seed}-{number}"
        name = {"head": head_name(owner.peer, text), "multi": multi_name(text)}.get(kind)
        record = Record(name or text.encode(), owner)
        self.records.append(record)
        if self.scenario.sybils.before_put:
            self._surround(record)
        if kind == "providers":
            self._provide(record)
            return
        authors = (
            [owner, *(self._somebody() for _ in range(AUTHORS - 1))] if kind == "multi" else [owner]
        )
        for author in authors:
            self._put(author, record, 1)

    def _provide(self, record: Record) -> None:
        def done(operation: Operation) -> None:
            record.newest[record.owner.peer] = 0
            self._stored(operation, record)

        self.begin(record.owner, lambda node, now: node.provide(record.name, now), done)

    def _put(self, author: Member, record: Record, seq: int) -> None:
        """Write one value; of two the hostile ones remember the first, and replay it."""
        moment = self.world.moment
        data = f"{author.peer} {seq}".encode()
        value = Value(record.name, author.peer, seq, moment.wall_ms + DAY_MS - 1, data, SEALED)
        again = seq == 1 and self._has_enemies
        if again:
            self.conspiracy.spoil(value)

        def done(operation: Operation) -> None:
            record.newest[author.peer] = seq
            self._stored(operation, record)
            if again:
                self._put(author, record, 2)

        self.begin(author, lambda node, now: node.put(value, now), done)

    def _stored(self, operation: Operation, record: Record) -> None:
        record.is_stored = True
        self.outcome.note(store_messages=len(operation.trace.hops))

    def _surround(self, record: Record) -> None:
        sybils = self.scenario.sybils
        if sybils.count:
            made = self.conspiracy.grind(record.key, sybils)
            if not sybils.before_put:
                self.conspiracy.knock(made)

    # --- looking ----------------------------------------------------------------------------------

    def _look_all(self) -> None:
        world, work = self.world, self.scenario.work
        if not self.scenario.sybils.before_put:
            for record in self.records:
                self._surround(record)
        truth = world.live()
        for number in range(work.looks):
            if work.kind == "find":
                world.heap.after(number * work.gap_s, self._find, truth)
            else:
                record = self.records[number * len(self.records) // work.looks % len(self.records)]
                world.heap.after(number * work.gap_s, self.get, record)
        world.heap.run(world.heap.now_s + work.looks * work.gap_s)
        self._wait()

    def _find(self, truth: Ring[Member]) -> None:
        name, member = self.world.rng.randbytes(32), self._somebody()
        key, began_s = key_of(name), self.world.heap.now_s
        wanted = [one.contact for one in truth.nearest(key, 3 * K) if one is not member]
        nearest = {one.peer for one in diverse(wanted, K)}

        def done(operation: Operation) -> None:
            result: list[Contact] = operation.result
            peers = [one.peer for one in result]
            is_found = bool(peers) and peers[0] == wanted[0].peer
            self.outcome.note(
                found=is_found, nearest_20=len(nearest.intersection(peers)) / len(nearest)
            )
            self._note_look(operation.trace, began_s, wanted[0].peer)
            if not is_found:
                self.outcome.failures.append(f"seed {self.seed}: {member.peer} finds {name.hex()}")

        paths = self.scenario.work.paths
        self.begin(member, lambda node, now: node.find_closest(name, now, paths=paths), done)

    def get(self, record: Record) -> None:
        """Somebody gets a record."""
        member, began_s = self._somebody(), self.world.heap.now_s
        kind, paths = self.scenario.work.kind, self.scenario.work.paths
        wanted = dict(record.newest)  # what is written meanwhile need not be seen

        def done(operation: Operation) -> None:
            found = self._found(operation)
            is_correct = all(found.get(who, -1) >= seq for who, seq in wanted.items())
            self.outcome.note(correct=is_correct)
            self._note_look(operation.trace, began_s, "")
            if not is_correct:
                self.outcome.failures.append(
                    f"seed {self.seed}: {member.peer} gets {record.name!r}"
                )

        def start(node: Node, now: Moment) -> int:
            look = node.get if kind in ("head", "multi") else node.providers
            return look(record.name, now, paths=paths)

        self.begin(member, start, done)

    def _found(self, operation: Operation) -> dict[str, int]:
        """Return whose records a look found, and how new they are."""
        result = operation.result
        if self.scenario.work.kind in ("providers", "many"):
            return {one.peer: 0 for one in result}
        return {one.author: one.seq for one in result}

    def _note_look(self, trace: Trace, began_s: float, peer: str) -> None:
        took_s = self.world.heap.now_s - began_s
        hops = [hop.depth for hop in trace.hops if hop.peer == peer and hop.outcome == "answered"]
        if hops:
            self.outcome.note(hops=hops[0] + 1)
        self.outcome.note(messages=len(trace.hops), seconds=took_s, timeouts=took_s / QUERY_S)

    # --- time -------------------------------------------------------------------------------------

    def begin(self, member: Member, start: Start, then: Then) -> None:
        """Begin an operation that the play waits for."""
        self.busy += 1

        def done(operation: Operation) -> None:
            self.busy -= 1
            then(operation)

        self.world.begin(member, start, done)

    def _wait(self) -> None:
        """Until all operations have ended."""
        heap = self.world.heap
        heap.run(heap.now_s + GIVE_UP_S, unless=lambda: self.busy == 0)
        assert self.busy == 0, f"{self.busy} operations did not end"
