"""Operations that look for something: the nearest, a peer, providers, a value.

Each is a lookup that knows what it is looking for, and when it has enough.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dht.candidates import groups_of, take_place
from dht.key import Key, key_of, name_of_peer
from dht.lookup import Lookup, Query
from dht.messages import (
    Answer,
    Contact,
    FindNode,
    GetProviders,
    GetValue,
    Moment,
    Nodes,
    Providers,
    Provision,
    PutValue,
    Trace,
    Value,
    Values,
)
from dht.operation import Wanted
from dht.records import why_not
from dht.values import PK, merge
from wire.ids import PeerId

AGREE = 5  # of the nearest, of as many networks: 20 % liars are all of the first five once in 3,000
SPARE = 1  # asked beyond those who must agree: one of them may be slow, or lack it
PROVIDERS_MAX = 256  # that are returned: 20 honest holders show the same 64 at most
HEARD_MAX = 8192  # of which these are chosen; 5 MB. Each liar shows 64 of its own
VALUES_MAX = 1024  # 64 authors of `/shoal/multi` at each of the close set; 8 MB
REPAIRS_MAX = 32  # values sent to holders that lacked them, after one get
FIRST_REPAIR_TAG = 1 << 20  # beyond the tags of every lookup

_Held = frozenset[int]  # marks of values: what a peer showed is not kept, it may be 128 KiB


@dataclass(frozen=True, slots=True)
class Start:
    """Where an operation begins: us, and whom we know at what moment.

    region: the distance within which a record's holders are; 0: not known. salt: a random number.
    """

    own: PeerId
    seeds: Sequence[Contact]
    moment: Moment
    region: int = 0
    salt: int = 0


class Looking:
    """An operation that is one lookup so far. `result` is what it is looking for."""

    def __init__(
        self, target: Key, request: Query, start: Start, *, paths: int = 1, is_read: bool = False
    ) -> None:
        """is_read: over one path it may end before it has seen all of the region."""
        self.lookup = Lookup(
            target,
            start.own,
            request,
            start.seeds,
            start.moment,
            paths=paths,
            region=0 if is_read and paths == 1 else start.region,
            near=start.region if is_read else 0,
            look=self.saw,
            salt=start.salt,
        )
        self._now_ms = start.moment.wall_ms

    def saw(self, contact: Contact, answer: Answer) -> bool:
        """Take from an answer what is looked for; True if it is enough."""
        return False

    def next_asks(self, moment: Moment) -> list[Wanted]:
        """As in `Operation`. What comes with `is_done` is sent, and its answers are not awaited."""
        return self.lookup.next_asks(moment)

    def answered(self, tag: int, answer: Answer, moment: Moment) -> None:
        """A request was answered."""
        self._now_ms = moment.wall_ms
        self.lookup.answered(tag, answer, moment)

    def failed(self, tag: int, why: str, moment: Moment) -> None:
        """A request was not answered."""
        self.lookup.failed(tag, why, moment)

    @property
    def wake_at(self) -> float:
        """When `next_asks` may have more to send although nothing has come."""
        return self.lookup.wake_at

    @property
    def is_done(self) -> bool:
        """True when nothing more comes of it."""
        return self.lookup.is_done

    @property
    def trace(self) -> Trace:
        """Return every request so far, in order."""
        return self.lookup.trace


class FindClosest(Looking):
    """The live servers nearest to the key of a name, nearest first: k, and with a region its rest.

    So for a peer's ID (its bytes), too; `result` is `list[Contact]`.
    """

    def __init__(self, name: bytes, start: Start, *, paths: int = 1) -> None:
        super().__init__(key_of(name), FindNode(name), start, paths=paths)

    @property
    def result(self) -> list[Contact]:
        """The nearest who answered, nearest first."""
        return self.lookup.close_set()


class FindPeer(Looking):
    """Where a peer is: `result` is its newest contact, or None. Ends when the peer has answered.

    A client is in no table; of it tell only those that are connected to it.
    """

    def __init__(self, peer: PeerId, start: Start) -> None:
        self.peer = peer
        self._found: Contact | None = None
        name = name_of_peer(peer)
        super().__init__(key_of(name), FindNode(name), start)
        self._hear_of(start.seeds)

    def saw(self, contact: Contact, answer: Answer) -> bool:
        """Keep the newest contact of the peer; enough when it speaks itself."""
        if isinstance(answer, Nodes):
            self._hear_of(answer.closer)
        return contact.peer == self.peer

    @property
    def result(self) -> Contact | None:
        """The newest that was heard of it: its own signed word, else hearsay, else None."""
        return self._found

    def _hear_of(self, contacts: Iterable[Contact]) -> None:
        for contact in contacts:
            is_it = contact.peer == self.peer and contact.addrs
            if is_it and (self._found is None or contact.is_newer_than(self._found)):
                self._found = contact


class FindProviders(Looking):
    """Who has what a name names: `result` is a tuple of provider records, one of each provider.

    Ends early, over one path, when 5 of the nearest in a row, no two of an address group, knew some
    and none that is new.
    """

    def __init__(
        self, name: bytes, start: Start, *, paths: int = 1, held: Iterable[Provision] = ()
    ) -> None:
        """`held`: what we hold ourselves, and nobody has to tell us."""
        self._name, self._may_end = name, paths == 1
        self._found = {provision.peer: provision for provision in held}
        self._told = Counter(self._found.keys())  # how many told of a provider
        self._in_row, self._row = 0, dict[str, int]()  # and their groups
        super().__init__(key_of(name), GetProviders(name), start, paths=paths, is_read=True)

    def saw(self, contact: Contact, answer: Answer) -> bool:
        """Collect provider records that are of this name and have not expired."""
        if not isinstance(answer, Providers):
            return False
        told = {one.peer for one in answer.provisions if self._is_valid(one)}
        is_new = False
        for provision in answer.provisions:
            is_new = (provision.peer in told and self._keep(provision)) or is_new
        self._told.update(told.intersection(self._found))
        if is_new:
            self._in_row, self._row = 0, dict[str, int]()
            take_place(groups_of(contact), self._row, 1)
        elif told and self.lookup.is_near(contact):
            self._in_row += take_place(groups_of(contact), self._row, 1)
        return self._may_end and bool(self._found) and self._in_row >= AGREE - 1

    def next_asks(self, moment: Moment) -> list[Wanted]:
        """As in `Operation`."""
        missing = max(AGREE - self._in_row - bool(self._found), 0)
        return self.lookup.next_asks(moment, enough=missing + SPARE if self._may_end else 0)

    @property
    def result(self) -> tuple[Provision, ...]:
        """What was found; those of whom most told come first, since a liar's own only it tells."""
        found = sorted(self._found.values(), key=lambda one: -self._told[one.peer])
        return tuple(found[:PROVIDERS_MAX])

    def _is_valid(self, provision: Provision) -> bool:
        is_live = not (provision.sealed and why_not(provision, self._now_ms))
        return provision.name == self._name and is_live

    def _keep(self, provision: Provision) -> bool:
        """Take a record in; True if its provider was not known."""
        known = self._found.get(provision.peer)
        if known is None and len(self._found) >= HEARD_MAX:
            return False
        if known is None or provision.expires_ms > known.expires_ms:
            self._found[provision.peer] = provision
        return known is None


class FindValue(Looking):
    """What the value of a name is: `result` is the newest, or of each author the newest.

    Over one path it ends when 5 of the nearest said the same; over several it reads the whole
    region. A value under `/pk` proves itself: the first is enough. Holders among the nearest that
    had nothing or something older are sent the newest (read repair).
    """

    def __init__(
        self, name: bytes, start: Start, *, paths: int = 1, held: tuple[Value, ...] = ()
    ) -> None:
        """`held`: what we hold ourselves, and nobody has to tell us."""
        self._name, self._may_end = name, paths == 1
        self._best = held
        self._heard = list[tuple[Contact, _Held]]()
        super().__init__(key_of(name), GetValue(name), start, paths=paths, is_read=True)

    def saw(self, contact: Contact, answer: Answer) -> bool:
        """Keep the newest that has not expired; count who says the same."""
        if not isinstance(answer, Values):
            return False
        values = tuple(value for value in answer.values if self._is_valid(value))
        self._heard.append((contact, frozenset(map(_mark, values))))
        if values and values != self._best:
            self._best = self._most_told(merge((*self._best, *values)))
        if not values or not self._may_end:
            return False
        if self._name.startswith(PK):
            return True
        return self._agreeing() >= AGREE

    def next_asks(self, moment: Moment) -> list[Wanted]:
        """As in `Operation`; with the end come the repairs."""
        was_done = self.lookup.is_done
        wanted = self.lookup.next_asks(moment, enough=self._enough())
        if was_done or not self.lookup.is_done:
            return wanted
        return self._repairs()

    @property
    def result(self) -> tuple[Value, ...]:
        """The newest; () if nobody had any."""
        return self._best

    def _most_told(self, values: tuple[Value, ...]) -> tuple[Value, ...]:
        """Return as many as may be; a liar's own only it tells."""
        if len(values) <= VALUES_MAX:
            return values
        told = Counter(mark for _, held in self._heard for mark in held)
        return merge(sorted(values, key=lambda one: -told[_mark(one)])[:VALUES_MAX])

    def _is_valid(self, value: Value) -> bool:
        return value.name == self._name and not why_not(value, self._now_ms)

    def _agreeing(self) -> int:
        """How many networks say the same: Sybils of four must not agree with themselves."""
        agree = (peer for peer, held in self._heard if self._agrees(peer, held))
        groups = dict[str, int]()
        return sum(take_place(groups_of(one), groups, 1) for one in agree)

    def _enough(self) -> int:
        """How many more have to say the same, and one to spare; 0 if all are read."""
        return max(AGREE - self._agreeing(), 0) + SPARE if self._may_end else 0

    def _agrees(self, contact: Contact, held: _Held) -> bool:
        """Whether one of the nearest holds all that is the newest."""
        return bool(held) and not self._lacks(held) and self.lookup.is_near(contact)

    def _lacks(self, held: _Held) -> tuple[Value, ...]:
        """Return what of the newest is not held."""
        return tuple(value for value in self._best if _mark(value) not in held)

    def _repairs(self) -> list[Wanted]:
        """Return what to send to those of the close set that answered without the newest."""
        if not self._best:
            return []
        puts = [
            (contact, PutValue(value))
            for contact, held in self._heard
            if self.lookup.is_near(contact)
            for value in self._lacks(held)
        ]
        return [
            Wanted(FIRST_REPAIR_TAG + number, contact, request)
            for number, (contact, request) in enumerate(puts[:REPAIRS_MAX])
        ]


def _mark(value: Value) -> int:
    """Tell values apart. Python salts hashes of bytes, so nobody chooses them to collide."""
    return hash((value.author, value.seq, value.sealed))
