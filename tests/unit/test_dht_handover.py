"""Handing over: records follow the close set, each once per change of it."""

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from dht.handover import CAME_MAX, MISSED_S, Handover
from dht.holding import Holding
from dht.key import KEY_BITS, Key, key_of
from dht.messages import Contact, Moment, Provision, Value
from dht.table import Came, Gone, K, Table
from wire.ids import PeerId

HOME = "/ip4/127.0.0.1/tcp/1"  # loopback: no limits by address
WHOLE = (1 << KEY_BITS) - 1
DAY_MS = 24 * 3600 * 1000
NAME = b"a blob"
KEY = key_of(NAME)


def at(now_s: float) -> Moment:
    return Moment(now_s, 1_800_000_000_000 + int(now_s * 1000))


def beside(distance: int, peer: str = "") -> Contact:
    """A server at this distance from the record's key."""
    return Contact(PeerId(peer or f"at {distance:x}"), Key(KEY ^ distance), (HOME,))


def provision(peer: str = "owner", name: bytes = NAME, sealed: bytes = b"signed") -> Provision:
    return Provision(name, PeerId(peer), at(0).wall_ms + DAY_MS, sealed)


class Member:
    """A server without a network: its table, what it holds, and what it hands over."""

    def __init__(self, me: Contact) -> None:
        self.me = me
        self.table = Table(me.key)
        self.holding = Holding(me.peer.encode()[:64].ljust(16))
        self.handover = Handover(self.holding, self.table, me.key)

    def meets(self, contact: Contact, now_s: float) -> bool:
        self.table.answered(contact, HOME, now_s)
        changes = self.table.changes()
        return bool(changes) and self.handover.saw(changes, at(now_s))

    def loses(self, contact: Contact, now_s: float) -> bool:
        self.table.failed(contact.peer, now_s)
        self.table.failed(contact.peer, now_s)
        return self.handover.saw(self.table.changes(), at(now_s))

    def holds(self, record: Provision | Value, now_s: float) -> str:
        if isinstance(record, Value):
            return self.holding.add_value(record, PeerId("sender"), at(now_s))
        return self.holding.add_provision(record, PeerId("sender"), at(now_s), is_public=True)

    def settle(self, now_s: float, region: int = 0) -> dict[str, list[str]]:
        """Who gets whose records after the changes so far."""
        parcels = self.handover.after_changes(region, at(now_s))
        return {to.peer: [str(getattr(it, "peer", "")) for it in sent] for to, sent in parcels}


def member(distance: int, others: list[int], now_s: float = 0.0) -> Member:
    """A server that has known some others, at these distances from the record, for a while."""
    made = Member(beside(distance))
    for other in others:
        made.meets(beside(other), now_s)
    made.settle(now_s)
    return made


FAR = [number << 240 for number in range(4, 44)]  # twice k, nearest first, in several buckets


def test_the_nearest_holder_sends_to_a_newcomer_of_the_close_set() -> None:
    nearest, second = member(2 << 240, FAR), member(3 << 240, [2 << 240, *FAR])
    for holder in (nearest, second):
        assert holder.holds(provision(), 1.0) == ""
        assert holder.meets(beside(1 << 240, "newcomer"), 2.0)
    assert nearest.settle(7.0) == {"newcomer": ["owner"]}
    assert second.settle(7.0) == {}
    assert nearest.settle(8.0) == {}  # once


def test_a_newcomer_beyond_the_k_nearest_gets_it_only_within_the_region() -> None:
    for region, sent in ((0, {}), (FAR[38], {"newcomer": ["owner"]})):
        nearest = member(1, FAR)
        nearest.holds(provision(), 1.0)
        nearest.meets(beside(FAR[30] + 1, "newcomer"), 2.0)
        assert nearest.settle(7.0, region) == sent


def test_two_newcomers_at_once_both_get_it_though_one_is_nearer_than_we() -> None:
    nearest = member(2 << 240, FAR)
    nearest.holds(provision(), 1.0)
    nearest.meets(beside(1 << 240, "near"), 2.0)
    nearest.meets(beside(3 << 240, "nearby"), 2.0)
    assert nearest.settle(7.0) == {"near": ["owner"], "nearby": ["owner"]}


def test_what_came_after_the_newcomer_is_not_sent_to_it() -> None:
    nearest = member(2 << 240, FAR)
    nearest.meets(beside(1 << 240, "newcomer"), 1.0)
    nearest.holds(provision(), 2.0)
    assert nearest.settle(7.0) == {}


def test_only_what_its_author_signed_is_handed_over() -> None:
    nearest = member(2 << 240, FAR)
    owner = Provision(NAME, PeerId("sender"), 0)
    assert nearest.holds(owner, 1.0) == ""
    key = Value(NAME, None, 0, 2**53, b"a public key", b"a public key")
    assert nearest.holds(key, 1.0) == ""
    nearest.meets(beside(3 << 240, "newcomer"), 2.0)
    assert nearest.settle(7.0) == {}
    head = Value(NAME, PeerId("author"), 1, at(0).wall_ms + DAY_MS, b"head", b"signed")
    assert nearest.holds(head, 7.0) == ""
    nearest.meets(beside((3 << 240) + 1, "another"), 8.0)
    assert nearest.handover.after_changes(0, at(13.0))[0][1] == (head,)


def test_who_takes_the_place_of_one_that_left_gets_it() -> None:
    holders = FAR[:19]
    nearest = member(1, FAR)  # with us k: FAR[18] is the last of them
    nearest.holds(provision(), 1.0)
    assert nearest.loses(beside(holders[5]), 2.0)
    assert nearest.settle(7.0) == {beside(FAR[19]).peer: ["owner"]}
    nearest.loses(beside(holders[6]), 8.0)
    nearest.loses(beside(holders[7]), 8.0)
    assert set(nearest.settle(13.0)) == {beside(it).peer for it in FAR[20:22]}
    nearest.loses(beside(FAR[30]), 14.0)  # was none of the k nearest
    assert nearest.settle(19.0) == {}


def test_within_the_region_all_hold_it_already() -> None:
    nearest = member(1, FAR)
    nearest.holds(provision(), 1.0)
    nearest.loses(beside(FAR[5]), 2.0)
    assert nearest.settle(7.0, region=FAR[25]) == {}


def test_where_fewer_than_k_are_left_nobody_takes_a_place() -> None:
    nearest = member(1, FAR[:10])
    nearest.holds(provision(), 1.0)
    nearest.loses(beside(FAR[5]), 2.0)
    assert nearest.settle(7.0) == {}


def test_only_the_nearest_that_remains_replaces_one_that_left() -> None:
    second = member(2, [1, *FAR])
    second.holds(provision(), 1.0)
    second.loses(beside(FAR[5]), 2.0)
    assert second.settle(7.0) == {}


def test_newcomers_that_a_dead_holder_did_not_serve_are_served_by_the_next() -> None:
    second = member(2, [1, *FAR])
    second.holds(provision(), 1.0)
    second.meets(beside(3, "missed"), 10.0)
    assert second.settle(15.0) == {}  # the nearest's duty
    second.meets(beside(4, "missed too"), 20.0)
    assert second.settle(25.0) == {}
    second.loses(beside(1), 10.0 + MISSED_S + 1)
    sent = second.settle(10.0 + MISSED_S + 2)
    assert sent == {"missed too": ["owner"], beside(FAR[16]).peer: ["owner"]}


def test_a_newcomer_that_was_missed_is_served_though_it_is_the_nearest_now() -> None:
    second, third = member(2, [1, 3, *FAR]), member(3, [1, 2, *FAR])
    for holder in (second, third):
        holder.holds(provision(), 1.0)
        holder.meets(beside(0, "missed"), 10.0)
        assert holder.settle(15.0) == {}
        holder.loses(beside(1), 20.0)
    assert second.settle(25.0, FAR[25]) == {"missed": ["owner"]}
    assert third.settle(25.0, FAR[25]) == {}


def test_hourly_the_second_nearest_makes_up_for_the_nearest() -> None:
    nearest, second, third = (
        member(own, [it for it in (1, 2, 3) if it != own] + FAR, -7200.0) for own in (1, 2, 3)
    )
    for holder in (nearest, second, third):
        holder.holds(provision(), 1.0)
        holder.meets(beside(4, "newcomer"), 60.0)
        holder.meets(beside(FAR[35] + 1, "far"), 60.0)
        holder.settle(65.0)
    later = at(3600.0)
    assert [to.peer for to, _ in second.handover.hourly(0, later)] == ["newcomer"]
    assert nearest.handover.hourly(0, later) == third.handover.hourly(0, later) == []
    assert second.handover.hourly(0, at(3700.0)) == []  # it came more than an hour ago


def test_who_leaves_hands_its_place_on() -> None:
    nearest, tenth, outside = member(1, FAR), member(FAR[9] + 1, FAR), member(FAR[30] + 1, FAR)
    for holder in (nearest, tenth, outside):
        holder.holds(provision(), 1.0)
    for holder in (nearest, tenth):
        sent = holder.handover.on_leaving(0, at(2.0))
        assert [to.peer for to, _ in sent] == [beside(FAR[19]).peer]
        assert holder.handover.on_leaving(FAR[19], at(2.0)) == []  # within the region
    assert outside.handover.on_leaving(0, at(2.0)) == []


def test_who_leaves_serves_newcomers_first() -> None:
    nearest = member(1, FAR)
    nearest.holds(provision(), 1.0)
    nearest.meets(beside(2, "next"), 2.0)
    assert [to.peer for to, _ in nearest.handover.on_leaving(WHOLE, at(2.1))] == ["next"]
    assert [to.peer for to, _ in nearest.handover.on_leaving(WHOLE, at(2.2))] == ["next"]
    second = member(2, [1, *FAR])
    second.holds(provision(), 1.0)
    second.meets(beside(3, "third"), 2.0)
    assert second.handover.on_leaving(WHOLE, at(2.1)) == []
    nearest.meets(beside(FAR[3] + 1, "another"), 3.0)
    sent = nearest.handover.on_leaving(WHOLE, at(3.1))
    assert {to.peer for to, _ in sent} == {"next", "another"}


def test_alone_there_is_nobody_to_hand_anything_to() -> None:
    alone = member(1, [])
    alone.holds(provision(), 1.0)
    assert alone.handover.on_leaving(WHOLE, at(2.0)) == alone.handover.hourly(WHOLE, at(2.0)) == []
    alone.meets(beside(9, "first"), 3.0)
    assert alone.settle(8.0) == {"first": ["owner"]}


def test_who_came_and_went_at_once_gets_nothing_and_memory_is_bounded() -> None:
    nearest = member(1, FAR)
    nearest.holds(provision(), 1.0)
    nearest.handover.saw([Came(beside(2)), Gone(beside(2))], at(2))
    assert beside(2).peer not in nearest.settle(7.0)
    nearest.handover.saw([Gone(beside(FAR[5])), Came(beside(FAR[5]))], at(8))
    assert nearest.settle(13.0) == {beside(FAR[5]).peer: ["owner"]}
    for number in range(CAME_MAX + 100):
        nearest.handover.saw([Came(beside(number + 10))], at(8))
        nearest.handover.saw([Gone(beside((number << 20) + 10))], at(8))
    sizes = [len(getattr(nearest.handover, it)) for it in ("_came", "_new", "_gone")]
    assert max(sizes) <= CAME_MAX
    nearest.settle(9.0)


# --- a swarm -------------------------------------------------------------------------------------

NEAR, OTHERS = 50, 20  # how many of its nearest, and of the rest, a server knows
SETTLE_S = 5.0
LOOK_S = 600.0  # between two looks of a server at who of those it knows is alive


@dataclass
class Swarm:
    """Servers that come, go without a word, and learn of it late; records that only they keep."""

    rng: random.Random
    region: int
    members: dict[PeerId, Member] = field(default_factory=dict[PeerId, Member])
    now_s: float = 0.0
    sent: int = 0  # records
    parcels: int = 0
    kept_anew: int = 0
    changes: int = 0  # of close sets, of all records
    hourly_sent: int = 0
    names: list[bytes] = field(default_factory=list[bytes])
    _events: list[tuple[float, int, Callable[[], None]]] = field(
        default_factory=list[tuple[float, int, Callable[[], None]]]
    )
    _numbers: int = 0
    _waiting: set[PeerId] = field(default_factory=set[PeerId])

    def later(self, after_s: float, act: Callable[[], None]) -> None:
        self._numbers += 1
        heapq.heappush(self._events, (self.now_s + after_s, self._numbers, act))

    def run(self, until_s: float) -> None:
        while self._events and self._events[0][0] <= until_s:
            self.now_s, _, act = heapq.heappop(self._events)
            act()
        self.now_s = until_s

    def nearest(self, key: Key, count: int) -> list[Member]:
        return heapq.nsmallest(count, self.members.values(), key=lambda it: it.me.key ^ key)

    def join(self, session_s: float) -> None:
        self._numbers += 1
        newcomer = Member(
            Contact(PeerId(f"server {self._numbers}"), Key(self.rng.getrandbits(KEY_BITS)), (HOME,))
        )
        rest = [*self.members.values()]
        self._meet(newcomer, self.rng.sample(rest, min(OTHERS, len(rest))))
        self._meet(newcomer, self.nearest(newcomer.me.key, NEAR))
        self.members[newcomer.me.peer] = newcomer
        self._count(newcomer)
        self.later(session_s, lambda: self._leave(newcomer))
        self.later(self.rng.uniform(0, LOOK_S), lambda: self._look(newcomer))
        self.later(self.rng.uniform(0, 3600.0), lambda: self._hourly(newcomer))

    def store(self, name: bytes) -> None:
        self.names.append(name)
        key = key_of(name)
        close = {it.me.peer: it for it in self.nearest(key, K)}
        close |= {it.me.peer: it for it in self.members.values() if it.me.key ^ key <= self.region}
        for holder in close.values():
            assert holder.holds(provision(name=name), self.now_s) == ""

    def share_held(self, name: bytes) -> float:
        """Which share of the 20 nearest has it."""
        nearest = self.nearest(key_of(name), K)
        return sum(bool(it.holding.provisions(name, at(self.now_s).wall_ms)) for it in nearest) / K

    def _meet(self, one: Member, others: list[Member]) -> None:
        for other in others:
            if other is not one:
                self._changed(one, one.meets(other.me, self.now_s))
                self._changed(other, other.meets(one.me, self.now_s))

    def _changed(self, who: Member, is_due: bool) -> None:
        if is_due and who.me.peer not in self._waiting:
            self._waiting.add(who.me.peer)
            self.later(SETTLE_S, lambda: self._hand_over(who))

    def _hand_over(self, who: Member) -> None:
        self._waiting.discard(who.me.peer)
        if who.me.peer in self.members:
            sent = self.sent
            self._send(who.handover.after_changes(self.region, at(self.now_s)))
            self.sent, self.parcels = self.sent, self.parcels + (self.sent > sent)

    def _send(self, parcels: list[tuple[Contact, tuple[Provision | Value, ...]]]) -> None:
        for to, records in parcels:
            self.sent += len(records)
            receiver = self.members.get(to.peer)
            for record in records if receiver is not None else ():
                assert receiver is not None
                before = len(receiver.holding)
                receiver.holds(record, self.now_s)
                self.kept_anew += len(receiver.holding) - before

    def _leave(self, who: Member) -> None:
        self._count(who)
        del self.members[who.me.peer]

    def _look(self, who: Member) -> None:
        if who.me.peer not in self.members:
            return
        for entry in who.table.entries():
            if entry.contact.peer not in self.members:
                self._changed(who, who.loses(entry.contact, self.now_s))
        self._meet(who, self.nearest(who.me.key, NEAR))
        self.later(LOOK_S, lambda: self._look(who))

    def _hourly(self, who: Member) -> None:
        if who.me.peer in self.members:
            sent = self.sent
            self._send(who.handover.hourly(self.region, at(self.now_s)))
            self.hourly_sent, self.sent = self.hourly_sent + self.sent - sent, sent
            self.later(3600.0, lambda: self._hourly(who))

    def _count(self, who: Member) -> None:
        self.changes += sum(key_of(name) ^ who.me.key <= self.region for name in self.names)


def churn(servers: int, minutes: int, seed: int, records: int = 100) -> Swarm:
    """Half of the servers stay for less than half an hour; as many come as go."""
    rng = random.Random(seed)
    swarm = Swarm(rng, int(WHOLE * K * 1.25 / servers))
    mean_s = 1800.0 / math.log(2)
    for _ in range(servers):
        swarm.join(300.0 + rng.expovariate(1 / mean_s))
    swarm.run(290.0)
    assert swarm.sent == 0
    for number in range(records):
        swarm.store(b"record %d" % number)
    swarm.run(300.0)
    for _ in range(round(servers * minutes * 60 / mean_s)):
        swarm.later(rng.uniform(0, minutes * 60), lambda: swarm.join(rng.expovariate(1 / mean_s)))
    swarm.run(300.0 + minutes * 60)
    return swarm


def test_in_a_swarm_under_churn_records_stay_and_travel_once_per_change() -> None:
    swarm = churn(servers=200, minutes=30, seed=1)
    held = [swarm.share_held(name) for name in swarm.names]
    assert sum(held) / len(held) > 0.9  # half of those who held them at first are gone
    assert min(held) > 0.5
    assert swarm.changes > 20 * len(swarm.names)
    assert 0.4 < (swarm.sent + swarm.hourly_sent) / swarm.changes < 1.3
    assert swarm.kept_anew > 0.7 * swarm.sent  # few are sent in vain
