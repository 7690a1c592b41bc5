"""One session with a peer, and one answer to another's: the ways in and out of the store."""

import secrets
import statistics
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

import msgspec
import trio

from crdt import answers, wire
from crdt.absence import NEVER_SYNCED_MS, Absence
from crdt.clock import wall_of
from crdt.entry import Record, Signed, is_signed
from crdt.fault import Fault
from crdt.holding import Holding
from crdt.intake import follows
from crdt.namespace import Rules
from crdt.ranges import Give, Settle, Take, TakeProofs, Turn
from crdt.reconcile import lead
from crdt.replica import Replica
from crdt.shown import SyncReport
from wire import codec
from wire.errors import BadMessage, Busy, NotFound, ShoalError
from wire.ids import PeerId
from wire.ports import Clock, Network, OffLoop

T = TypeVar("T")

REQUEST_S = 15.0  # for one answer; the other side may be checking 1,000 signatures and syncing disk
SESSION_S = 120.0  # for a session: a slow peer holds one of our workers no longer
TURN_S = 30.0  # to wait until another session has pulled what we lack: what it brings need not come
# twice, but one that is slow, or drags, does not keep others from bringing it
SESSION_BYTES_MAX = 64 * 1024 * 1024  # both ways
ROUND_TRIPS_MAX = 2_000  # of one session. Where it is cut, the next one goes on
PEERS_MAX = 1024  # whose clocks are remembered; when full, the oldest goes
WORK_S = (
    10.0  # seconds of our event loop that a peer may use at once: to compare 100k entries takes
)
# 20 ms, to supply them 0.5 s, on a busy machine five times that. A peer that compares without end
# would take a whole core otherwise
WORK_SHARE = 0.1  # of the time that passes is given back
PUSH_S, ENTRY_S, PROOF_S = 0.5e-3, 25e-6, 0.2e-3  # what a push costs, and each thing in it: what a
# full store holds can be pushed at once, then 4,000 entries a second, whether they are news or not
REFUSED_ALL_MAX = 16_384  # refused entries that are remembered, of all namespaces: 2 MB
CLOCKS_MIN = 3  # peers whose clocks have a median worth telling
CLOCK_S = 3600.0  # how long the clock of a peer counts


class Store(Protocol):
    """What a sync needs of the store."""

    def replicas(self) -> Mapping[bytes, Replica]:
        """Every namespace that is replicated here, by ID."""
        ...

    async def take(self, peer: PeerId, namespace: bytes, signed: list[Signed]) -> int:
        """Check, write and merge; returns how many were news. Raises BadMessage if one is not
        signed by its author or of another namespace, StoreFailed.
        """
        ...

    async def take_faults(self, namespace: bytes, faults: list[Fault]) -> None:
        """Check, write and merge. Raises BadMessage if one proves nothing, StoreFailed."""
        ...

    def on_synced(self, peer: PeerId) -> None:
        """A session with a peer has come to its end."""
        ...

    def quiet_ms(self) -> int:
        """How long ago that was last, in milliseconds; NEVER_SYNCED_MS if it never was."""
        ...

    def forget(self, namespace: bytes, records: list[Record]) -> None:
        """Let go of what was deleted elsewhere while we were away."""
        ...

    def on_bad(self, namespace: bytes, record: Record) -> None:
        """What we hold is not signed by its author, though it is in its chain: a fault."""
        ...


@dataclass
class Clocks:
    """How far the clocks of peers are from ours, in milliseconds. Each peer counts once."""

    _ahead_ms: dict[PeerId, tuple[int, float]] = field(
        default_factory=dict[PeerId, tuple[int, float]]
    )

    def note(self, peer: PeerId, ahead_ms: int, now: float) -> None:
        """Remember that a peer's clock is so far ahead of ours."""
        self._ahead_ms.pop(peer, None)
        if len(self._ahead_ms) >= PEERS_MAX:
            del self._ahead_ms[next(iter(self._ahead_ms))]
        self._ahead_ms[peer] = ahead_ms, now

    def skew_ms(self, now: float) -> int:
        """How far our clock is ahead of the median of the peers'; 0 if there are too few."""
        fresh = [ahead for ahead, since in self._ahead_ms.values() if now < since + CLOCK_S]
        return -round(statistics.median(fresh)) if len(fresh) >= CLOCKS_MIN else 0


@dataclass
class Shares:
    """How much time of the event loop our answers to each peer took lately, in seconds; it falls by
    `WORK_SHARE` of the time that passes. Peers that are back at nothing are forgotten.
    """

    _spent: dict[PeerId, tuple[float, float]] = field(
        default_factory=dict[PeerId, tuple[float, float]]
    )

    def check(self, peer: PeerId, now: float) -> None:
        """Raise Busy if a peer has used up its share."""
        if self._left(peer, now) > WORK_S:
            raise Busy(f"answers to you took more than {WORK_S} s lately")

    def charge(self, peer: PeerId, seconds: float, now: float) -> None:
        """Note what an answer took."""
        self._spent[peer] = self._left(peer, now) + seconds, now
        if len(self._spent) > PEERS_MAX:
            owing = (one for one in self._spent.items() if self._left(one[0], now) > 0)
            self._spent = dict(owing)

    def _left(self, peer: PeerId, now: float) -> float:
        spent, since = self._spent.get(peer, (0.0, now))
        return max(0.0, spent - WORK_SHARE * (now - since))


@dataclass
class Exchange:
    """Leads sessions and answers requests. Keeps what the replicas refused lately, and clocks."""

    network: Network
    store: Store
    clock: Clock
    off_loop: OffLoop
    clocks: Clocks = field(default_factory=Clocks)
    shares: Shares = field(default_factory=Shares)
    turn: trio.Lock = field(default_factory=trio.Lock)  # of the session that pulls chains
    _holdings: dict[bytes, Holding] = field(default_factory=dict[bytes, Holding])

    async def lead(self, peer: PeerId, report: SyncReport) -> bool:
        """Lead one session; False if it was cut. Raises PeerUnreachable, DeadlineExceeded,
        RemoteError, BadMessage, StoreFailed. `report` grows as it goes.
        """
        absence = Absence(self.clock.wall_ms(), self.store.quiet_ms())
        session = _Session(self, peer, report, absence)
        is_whole = False
        try:
            with trio.move_on_after(SESSION_S):
                is_whole = await session.run()
        finally:
            if session.has_turn:
                self.turn.release()
        if is_whole and absence.is_ended:
            self.store.on_synced(peer)
        return is_whole

    async def answer(self, peer: PeerId, request: wire.Request) -> wire.Answer:
        """Answer one request. Raises BadMessage, NotFound, Busy, StoreFailed."""
        holdings = self.holdings()
        self.shares.check(peer, self.clock.now())
        if isinstance(request, wire.Push):
            if request.namespace not in holdings:
                raise NotFound("the namespace is not replicated here")
            cost_s = PUSH_S + ENTRY_S * len(request.entries) + PROOF_S * len(request.proofs)
            self.shares.charge(peer, cost_s, self.clock.now())
            if request.proofs:
                await self.store.take_faults(request.namespace, request.proofs)
            entries = request.entries
            return wire.Taken(await self.take(peer, request.namespace, entries) if entries else 0)
        started = self.clock.now()
        answer, records = answers.respond(holdings, request, self.clock.wall_ms())
        now = self.clock.now()
        self.shares.charge(peer, now - started, now)
        if isinstance(request, wire.Hello):
            is_whole = not self.turn.locked()  # what we pull now, nobody else need push
            quiet_ms = self.store.quiet_ms() if is_whole else NEVER_SYNCED_MS
            return msgspec.structs.replace(answer, quiet_ms=quiet_ms)
        if not records:
            return answer
        entries = await self.fit_to_send(request.namespace, records)
        return msgspec.structs.replace(answer, entries=entries)

    def holdings(self) -> dict[bytes, Holding]:
        """Return every replica, with what it refused lately."""
        replicas, now = self.store.replicas(), self.clock.now()
        for namespace in self._holdings.keys() - replicas.keys():
            del self._holdings[namespace]
        for namespace, replica in replicas.items():
            holding = self._holdings.get(namespace)
            if holding is None or holding.replica is not replica:
                holding = self._holdings[namespace] = Holding(replica)
            holding.refusals.expire(now)
        return self._holdings

    async def take(self, peer: PeerId, namespace: bytes, entries: list[Signed]) -> int:
        """Hand entries to the store, and remember those it did not keep. One with a wrong signature
        is not remembered: the store raises BadMessage, and another peer may have the right one.
        """
        news = await self.store.take(peer, namespace, entries)
        holding = self.holdings().get(namespace)
        if holding is not None and news < len(entries):
            now = self.clock.now()
            for stamp in map(wire.stamp_of, entries):
                if stamp not in holding.replica.records:
                    holding.refusals.note(stamp, now)
            self._bound_refusals()
        return news

    def _bound_refusals(self) -> None:
        """Many namespaces must not remember as much each as one alone may."""
        every = [one.refusals for one in self._holdings.values()]
        for _ in range(sum(map(len, every)) - REFUSED_ALL_MAX):
            max(every, key=len).forget_oldest()

    async def fit_to_send(self, namespace: bytes, records: list[Record]) -> list[Signed]:
        """Leave out what the receiver would find wrong: entries whose signature nothing that goes
        with them proves, and which turn out not to have one.
        """
        while loose := unproven(records):
            await self.off_loop(partial(_check, loose))
            bad = {one.stamp for one in loose if not one.is_checked}
            for record in loose:
                if record.stamp in bad:
                    self.store.on_bad(namespace, record)
            records = [one for one in records if one.stamp not in bad]
        return [one.signed for one in records]


def unproven(records: list[Record]) -> list[Record]:
    """Return those that neither their own signature, checked, nor the next one proves."""
    if not records:
        return []
    pairs = zip(records, [*records[1:], None], strict=True)
    return [
        one
        for one, after in pairs
        if not one.is_checked and (after is None or not follows(after, one))
    ]


def _check(records: list[Record]) -> None:
    for record in records:
        is_signed(record)


@dataclass
class _Session:
    """Carries out what a leader wants (crdt/reconcile.py). What an answer brought is taken while
    the next request is under way: one of each at a time, so nothing piles up.
    """

    exchange: Exchange
    peer: PeerId
    report: SyncReport
    absence: Absence
    moved: int = 0
    pending: Take | None = None
    has_turn: bool = False

    async def run(self) -> bool:
        """Return True at the end of the session, False where it is cut."""
        exchange = self.exchange
        nonce, clock = secrets.token_bytes(8), exchange.clock
        steps = lead(exchange.holdings(), nonce, clock.wall_ms)
        answer: wire.Answer | None = None
        while True:
            try:
                effect = steps.send(answer)
            except StopIteration:
                await self._take_pending()
                return True
            answer = None
            match effect:
                case Take():
                    await self._take_pending()
                    self.pending = self._recent(effect)
                case TakeProofs(namespace, proofs):
                    await exchange.store.take_faults(namespace, proofs)
                case Settle():
                    await self._take_pending()
                case Turn():
                    await self._take_pending()
                    await self._wait_for_turn()
                case Give(namespace, records, proofs):
                    records = self._not_gone(namespace, records)
                    entries = await exchange.fit_to_send(namespace, records)
                    if not entries and not proofs:
                        continue
                    taken = await self._ask(wire.Push(namespace, entries, proofs))
                    if not isinstance(taken, wire.Taken):
                        raise BadMessage(f"{type(taken).__name__} does not answer a push")
                    self.report.entries_out += len(entries)
                case _:
                    answer = await self._ask(effect)
            if self.moved > SESSION_BYTES_MAX or self.report.round_trips >= ROUND_TRIPS_MAX:
                await self._take_pending()
                return False

    async def _wait_for_turn(self) -> None:
        if not self.has_turn:
            with trio.move_on_after(TURN_S):
                await self.exchange.turn.acquire()
                self.has_turn = True

    async def _ask(self, request: wire.Request) -> wire.Answer:
        """Send a request while what is pending is taken."""
        if self.pending is None:
            return await self._request(request)
        results: list[wire.Answer | ShoalError | None] = [None, None]

        async def run(at: int, work: Callable[[], Awaitable[wire.Answer | None]]) -> None:
            try:
                results[at] = await work()
            except ShoalError as error:  # not out of the nursery, which would wrap it in a group
                results[at] = error

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, 0, self._take_pending)
            nursery.start_soon(run, 1, partial(self._request, request))
        taken, answer = results
        for result in (taken, answer):
            if isinstance(result, ShoalError):
                raise result
        assert answer is not None
        assert not isinstance(answer, ShoalError)
        return answer

    async def _request(self, request: wire.Request) -> wire.Answer:
        exchange, clock = self.exchange, self.exchange.clock
        frame = codec.encode(request)
        sent_ms = clock.wall_ms()
        reply = await exchange.network.request(self.peer, frame, timeout_s=REQUEST_S)
        answer = wire.decode_answer(reply)
        if isinstance(answer, wire.Welcome):
            ahead_ms = answer.now_ms - (sent_ms + clock.wall_ms()) // 2
            exchange.clocks.note(self.peer, ahead_ms, clock.now())
            self.absence.theirs_ms = answer.quiet_ms
        self.moved += len(frame) + len(reply)
        self.report.round_trips += 1
        self.report.overhead_bytes += len(frame) + len(reply)
        self.report.overhead_bytes -= wire.net_size(wire.entries_of(request))
        self.report.overhead_bytes -= wire.net_size(wire.entries_of(answer))
        return answer

    def _recent(self, take: Take) -> Take:
        """Leave out what may have been deleted while the other was away."""
        until_ms = self.absence.old_until_ms(self._rules(take.namespace))
        if not until_ms:
            return take
        entries = [one for one in take.entries if wall_of(wire.glance(one).hlc) > until_ms]
        return Take(take.namespace, entries)

    def _not_gone(self, namespace: bytes, records: list[Record]) -> list[Record]:
        """Forget what was deleted while we were away; return the rest."""
        until_ms = self.absence.gone_until_ms(self._rules(namespace))
        gone = [record for record in records if record.wall_ms <= until_ms]
        if gone:
            self.exchange.store.forget(namespace, gone)
        return [record for record in records if record.wall_ms > until_ms] if gone else records

    def _rules(self, namespace: bytes) -> Rules:
        return self.exchange.holdings()[namespace].replica.genesis.rules

    async def _take_pending(self) -> None:
        if self.pending is not None:
            take, self.pending = self.pending, None
            await self.exchange.take(self.peer, take.namespace, take.entries)
            self.report.entries_in += len(take.entries)
