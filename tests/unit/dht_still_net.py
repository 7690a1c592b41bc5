"""Where nobody comes or goes: servers with perfect tables, in memory, on a virtual clock.

Perfect: in each bucket 20 by chance of those who belong there. What operations cost and find is
measured against it; how tables come about is not its matter.
"""

import heapq
import itertools
import math
import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable

import base58

from dht.key import KEY_BITS, Key, key_of
from dht.messages import (
    AddProviders,
    Answer,
    Contact,
    FindNode,
    GetProviders,
    GetValue,
    Moment,
    Nodes,
    Pong,
    Providers,
    Provision,
    PutValue,
    Request,
    Stored,
    Value,
    Values,
)
from dht.operation import Operation
from dht.values import merge
from wire.ids import PeerId

K = 20
DELAY_S = (0.02, 0.12)  # there and back
EPOCH_MS = 1_700_000_000_000
REFUSED_S = 0.05  # until a dead machine's router says so
ALIVE, REFUSING, HANGING, HOSTILE = "alive", "refusing", "hanging", "hostile"


class Member:
    """One server: its table is made when it is first asked."""

    def __init__(self, contact: Contact) -> None:
        self.contact = contact
        self.kind = ALIVE
        self.values = dict[bytes, tuple[Value, ...]]()
        self.provisions = dict[bytes, dict[PeerId, Provision]]()
        self.table: list[Contact] | None = None


class StillNet:
    """n servers with seeded keys; `asked` counts the requests by their kind."""

    def __init__(self, n: int, seed: int = 0, *, groups: int = 0) -> None:
        """groups: how many /24s the addresses are in; 0 for private ones."""
        self.rng = random.Random(seed)
        self.asked = Counter[str]()
        self.to = Counter[PeerId]()
        self.members = dict[PeerId, Member]()
        self._named = dict[bytes, Key]()  # keys of servers, by the bytes of their IDs
        for number in range(n):
            key = Key(self.rng.getrandbits(KEY_BITS))
            group = self.rng.randrange(groups) if groups else 0
            host = f"20.{group >> 8}.{group & 255}" if groups else f"10.0.{number >> 8 & 255}"
            self.add(key, f"/ip4/{host}.{number & 255}/tcp/1")
        self.sort()

    def add(self, key: Key, address: str, kind: str = ALIVE) -> Contact:
        """Add a server with a key of our choice; call `sort` afterwards, and before asking."""
        name = b"peer %d" % len(self.members)
        self._named[name] = key
        peer = PeerId(base58.b58encode(name).decode())
        contact = Contact(peer, key, (address,), 1, EPOCH_MS, b"-")
        self.members[peer] = Member(contact)
        self.members[peer].kind = kind
        return contact

    def kill(self, share: float, *, hanging: float = 0.5) -> None:
        """Let a share of all die without anybody noticing; of them a share that hang."""
        for member in self.rng.sample(list(self.members.values()), int(share * len(self.members))):
            member.kind = HANGING if self.rng.random() < hanging else REFUSING

    def bribe(self, share: float) -> None:
        """Let a share of all be hostile: they hold nothing, and name each other only."""
        for member in self.rng.sample(list(self.members.values()), int(share * len(self.members))):
            member.kind = HOSTILE
        self.sort()

    def nearest(self, key: Key, count: int = K, kind: str = ALIVE) -> list[Contact]:
        """Return the truth: the nearest of a kind (honest and alive)."""
        contacts = (one.contact for one in self.members.values() if one.kind == kind)
        return heapq.nsmallest(count, contacts, key=lambda one: one.key ^ key)

    def table(self, member: Member) -> list[Contact]:
        """Return whom a server knows."""
        if member.table is None:
            member.table = self._perfect(member.contact.key, random.Random(member.contact.peer))
        return member.table

    def seeds(self, of: Contact, key: Key) -> list[Contact]:
        """Return whom a server knows nearest to a key."""
        known = self.table(self.members[of.peer])
        return sorted(known, key=lambda contact: contact.key ^ key)[:K]

    def run(self, operation: Operation, began_s: float = 0.0) -> float:
        """Run an operation to its end; return how long it took."""
        now_s, order = began_s, itertools.count()
        events = list[tuple[float, int, Callable[[Moment], None]]]()
        while True:
            moment = Moment(now_s, EPOCH_MS + int(now_s * 1000))
            for wanted in operation.next_asks(moment):
                took_s, answer = self._ask(wanted.contact, wanted.request)
                event = _event(operation, wanted.tag, answer)
                heapq.heappush(events, (now_s + min(took_s, wanted.timeout_s), next(order), event))
            if operation.is_done:
                return now_s - began_s
            wake_s = operation.wake_at
            assert events or wake_s < math.inf, "it waits for nothing"
            if not events or wake_s < events[0][0]:
                assert wake_s >= now_s
                now_s = wake_s
                continue
            now_s, _, event = heapq.heappop(events)
            event(Moment(now_s, EPOCH_MS + int(now_s * 1000)))

    def _ask(self, contact: Contact, request: Request) -> tuple[float, Answer | str]:
        self.asked[type(request).__name__] += 1
        self.to[contact.peer] += 1
        member = self.members.get(contact.peer)
        if member is None or member.kind == REFUSING:
            return REFUSED_S, "unreachable"
        if member.kind == HANGING:
            return math.inf, "timeout"
        return self.rng.uniform(*DELAY_S), self._answer(member, request)

    def _answer(self, member: Member, request: Request) -> Answer:
        match request:
            case FindNode(name):
                return Nodes(self._closer(member, self._named.get(name) or key_of(name)))
            case GetValue(name):
                return Values(self._held(member, name), self._closer(member, key_of(name)))
            case GetProviders(name):
                provisions = tuple(member.provisions.get(name, {}).values())
                return Providers(provisions, self._closer(member, key_of(name)))
            case PutValue(value):
                held = member.values.get(value.name, ())
                member.values[value.name] = merge((*held, value))
                return Stored(1)
            case AddProviders(provisions):
                for provision in provisions:
                    of_name = member.provisions.setdefault(provision.name, {})
                    of_name[provision.peer] = provision
                return Stored(len(provisions))
            case _:
                return Pong()

    def _held(self, member: Member, name: bytes) -> tuple[Value, ...]:
        return () if member.kind == HOSTILE else member.values.get(name, ())

    def _closer(self, member: Member, key: Key) -> tuple[Contact, ...]:
        if member.kind == HOSTILE:
            return tuple(_nearest_of(self._hostile, self._hostile_keys, key))
        return tuple(sorted(self.table(member), key=lambda one: one.key ^ key)[:K])

    def sort(self) -> None:
        """Know who is where; call after `add`."""
        everybody = sorted((one.contact for one in self.members.values()), key=lambda one: one.key)
        self._sorted, self._keys = everybody, [one.key for one in everybody]
        self._hostile = [one for one in everybody if self.members[one.peer].kind == HOSTILE]
        self._hostile_keys = [one.key for one in self._hostile]

    def _perfect(self, own: Key, rng: random.Random) -> list[Contact]:
        table = list[Contact]()
        for bits in range(KEY_BITS):
            low, high = _block(self._keys, own, bits)
            if high - low <= 1:
                break
            sibling = Key(own ^ (1 << (KEY_BITS - bits - 1)))
            low, high = _block(self._keys, sibling, bits + 1)
            places: Iterable[int] = range(low, high)
            if high - low > K:
                places = rng.sample(range(low, high), K)
            table.extend(self._sorted[place] for place in places)
        return table


def _block(keys: list[Key], key: Key, bits: int) -> tuple[int, int]:
    """Return where those are who share the first bits with a key."""
    free = KEY_BITS - bits
    first = key >> free << free
    return bisect_left(keys, first), bisect_left(keys, first + (1 << free))


def _nearest_of(contacts: list[Contact], keys: list[Key], key: Key) -> list[Contact]:
    for bits in range(KEY_BITS, -1, -1):
        low, high = _block(keys, key, bits)
        if high - low >= K or bits == 0:
            return sorted(contacts[low:high], key=lambda one: one.key ^ key)[:K]
    return []


def _event(operation: Operation, tag: int, answer: Answer | str) -> Callable[[Moment], None]:
    if isinstance(answer, str):
        why = answer
        return lambda moment: operation.failed(tag, why, moment)
    said = answer
    return lambda moment: operation.answered(tag, said, moment)
