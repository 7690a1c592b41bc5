"""Providing many names at once, by regions of the key space: a message a server, no lookup each.

Names are sorted by key and done in parts, neighbours together. Of each part an `Atlas` is made by
looks at some of its names: short ones, that ask the nearest three whom they know around there, and
as many as it takes to have seen the whole part (one for every dozen servers). So the close set of
every name is known without asking for it. Then each server is sent all it should hold in one
message, which also shows whether it lives; of who does not, the names go to the next nearest.
"""

import math
import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from dht.atlas import Atlas
from dht.key import KEY_BITS, Key, key_of
from dht.lookup import PATHS, Lookup
from dht.messages import (
    AddProviders,
    Answer,
    Contact,
    FindNode,
    Moment,
    Provision,
    Request,
    Stored,
    Trace,
)
from dht.operation import Wanted
from dht.storing import REASONS_MAX, STORES_AT_ONCE
from dht.table import K
from wire.ids import PeerId

Sign = Callable[[bytes, int], Provision]  # (name, wall_ms): a fresh provider record of ours
Nearest = Callable[[Key, int], Sequence[Contact]]  # `Table.closest`

RECORDS_MAX = 500  # in one message
MESSAGE_BYTES = 96 * 1024  # of records in one message: a message has 128 KiB
RECORD_BYTES = 8  # around each record, at most
NAMES_MAX = 2000  # planned and sent together: of 125 servers each gets 400, one message
NAMES_MIN = 250  # in one part, if there are: with fewer, looks and stores of several run at once
BLOCK = 4  # a part ends at blocks of so many regions: they hold the close sets of their names
NEED = 3  # of the nearest have answered in each path of a look: two of them may know too little
LOOK_PATHS = 2  # of a look: a liar who is asked first has the whole of one path
THIN = 2  # regions: a look that sees its k nearest no nearer than this was lied to, or the size
CONFIRMED_MAX = 3  # of the network is thought too large: so many careful looks show which it is
LOOKS_AT_ONCE = 8
LOOKS_MAX = 500  # in one part: liars who crowd every look cost no more
SLICE = 200  # names thought about, or records signed, before others have their turn: 10 ms
PAUSE_S = 30.0  # until who had too many of us is asked again: it takes 20 records a second
TRIES_MAX = 4  # of one message: 100 s, so each server can be given 2,000 records
PART_S = 600.0  # for one part; what is not done then is left undone
ROUNDS_MAX = 4  # of finding others in the place of who did not answer: 30 % dead leave 1 %
TOO_MANY = "too many requests"


@dataclass(frozen=True, slots=True)
class Provided:
    """How far it is, and what it cost."""

    total: int  # names
    done: int  # names whose records were offered to all of their close set
    kept: int  # records, each counted at each peer
    looks: int  # requests of lookups
    stores: int  # requests with records
    refusals: Mapping[str, int] = field(default_factory=dict[str, int])  # reason -> requests


class ProvideMany:
    """Store provider records of many names. `result` is `Provided`, and can be read at any time.

    sign: called once for each name, when its part comes. Dropping the operation cancels it; `left`
    are then the names to go on with.
    """

    def __init__(
        self,
        names: Iterable[bytes],
        sign: Sign,
        own: PeerId,
        nearest: Nearest,
        moment: Moment,
        *,
        region: int = 0,
        rng: random.Random | None = None,
    ) -> None:
        self._names = sorted((key_of(name), name) for name in set(names))
        self._region = region or (1 << KEY_BITS) - 1
        self._sign, self._own, self._nearest = sign, own, nearest
        self._salt = rng.getrandbits(KEY_BITS) if rng is not None else 0
        self._done = 0
        self._part: _Part | None = None
        self._count = Counter[str]()
        self._refusals = Counter[str]()
        self._tags = 0
        self._looks = dict[int, tuple[Lookup, int]]()  # tag -> whose request, by its own tag
        self._stores = dict[int, _Parcel]()
        self.trace = Trace()  # stays empty: there are too many requests

    # --- what came of it -------------------------------------------------------------------------

    @property
    def left(self) -> list[bytes]:
        """Names that are not done."""
        return [name for _, name in self._names[self._done :]]

    @property
    def result(self) -> Provided:
        """How far it is."""
        count = self._count
        return Provided(
            len(self._names),
            self._done,
            count["kept"],
            count["looks"],
            count["stores"],
            dict(self._refusals),
        )

    @property
    def is_done(self) -> bool:
        """True when all names are done."""
        return self._done >= len(self._names)

    @property
    def wake_at(self) -> float:
        """When there may be more to send although nothing has come."""
        if self.is_done:
            return math.inf
        return self._part.wake_at if self._part is not None else -math.inf

    # --- events ----------------------------------------------------------------------------------

    def next_asks(self, moment: Moment) -> list[Wanted]:
        """Return what to send now."""
        wanted = list[Wanted]()
        while not wanted and not self.is_done:
            if self._part is None:
                end = self._end_of_part()
                names = self._names[self._done : end]
                self._part = _Part(names, self._region, moment.s)
            part = self._part
            wanted = self._work(part, moment)
            if not part.is_done:
                break
            self._done += len(part.names)
            self._part = None
            self._looks.clear()
            self._stores.clear()
        return wanted

    def answered(self, tag: int, answer: Answer, moment: Moment) -> None:
        """A look goes on, or a peer said how many records it keeps."""
        if tag in self._looks:
            look, its_tag = self._looks.pop(tag)
            look.answered(its_tag, answer, moment)
            return
        parcel = self._stores.pop(tag, None)
        if parcel is None or self._part is None:
            return
        kept, refusal = (answer.kept, answer.refusal) if isinstance(answer, Stored) else (0, "?")
        self._count["kept"] += min(kept, len(parcel.names))
        if refusal:
            self._refuse(refusal)
        self._part.landed(parcel, refusal == TOO_MANY and not kept, moment.s)

    def failed(self, tag: int, why: str, moment: Moment) -> None:
        """A peer did not answer: if it was to hold records, others get them."""
        if tag in self._looks:
            look, its_tag = self._looks.pop(tag)
            look.failed(its_tag, why, moment)
            return
        parcel = self._stores.pop(tag, None)
        if parcel is not None and self._part is not None:
            self._refuse(why)
            self._part.lost(parcel)

    # --- inside ----------------------------------------------------------------------------------

    def _end_of_part(self) -> int:
        """Return where the next part ends: at the end of a block."""
        names, first = self._names, self._done
        bits = min(KEY_BITS, (BLOCK * self._region - 1).bit_length())
        end = first
        while end < len(names) and end - first < NAMES_MIN:
            high = ((names[end][0] >> bits) + 1) << bits
            end = bisect_left(names, high, key=lambda one: one[0])
        return end

    def _work(self, part: "_Part", moment: Moment) -> list[Wanted]:
        wanted = self._go_on_looking(part, moment)
        if part.looks:
            part.wake_at = min(look.wake_at for look in part.looks)
            return wanted
        if part.plan(moment.s):
            return wanted
        signed = 0
        while signed < SLICE:
            parcel = part.next_parcel(moment.s)
            if parcel is None:
                break
            provisions = part.provisions(parcel, self._sign, moment.wall_ms)
            signed += len(provisions)
            self._stores[self._tags] = parcel
            wanted.append(self._wanted(parcel.contact, AddProviders(provisions)))
            self._count["stores"] += 1
        part.rest(moment.s, is_more=signed >= SLICE)
        return wanted

    def _go_on_looking(self, part: "_Part", moment: Moment) -> list[Wanted]:
        wanted = list[Wanted]()
        while True:
            for look in list(part.looks):
                asks = look.next_asks(moment)
                for ask in asks:
                    self._looks[self._tags] = look, ask.tag
                    wanted.append(self._wanted(ask.contact, ask.request))
                self._count["looks"] += len(asks)
                if look.is_done:
                    part.looked(look)
            name = part.next_to_look_at()
            if name is None:
                return wanted
            part.looks.append(self._new_look(part, *name, moment))

    def _new_look(self, part: "_Part", key: Key, name: bytes, moment: Moment) -> Lookup:
        is_careful = key in part.doubted
        seeds = {contact.key: contact for contact in self._nearest(key, K)}
        seeds.update((contact.key, contact) for contact in part.atlas.nearest(key))
        return Lookup(
            key,
            self._own,
            FindNode(name),
            seeds.values(),
            moment,
            paths=PATHS if is_careful else LOOK_PATHS,
            need=K if is_careful else NEED,
            alpha=0 if is_careful else 1,
        )

    def _wanted(self, contact: Contact, request: Request) -> Wanted:
        tag = self._tags
        self._tags += 1
        return Wanted(tag, contact, request)

    def _refuse(self, why: str) -> None:
        is_new = why not in self._refusals and len(self._refusals) >= REASONS_MAX
        self._refusals["other reasons" if is_new else why] += 1


class _Parcel:
    """Records for one peer: which names, by their number in the part."""

    __slots__ = ("contact", "names", "tries")

    def __init__(self, contact: Contact, names: list[int]) -> None:
        self.contact, self.names, self.tries = contact, names, 1


class _Part:
    """Neighbouring names: looks, then a plan of who gets what, then parcels."""

    def __init__(self, names: list[tuple[Key, bytes]], region: int, now_s: float) -> None:
        self.names = names
        self.atlas = Atlas(region)
        self.looks = list[Lookup]()
        self.is_done = False
        self.wake_at = -math.inf
        self._bits = max(0, region.bit_length() - 1)  # of the largest block that one look shows
        self._region = region
        self._looked_at = dict[Key, bytes]()
        self.doubted = set[Key]()  # looks at these were thin, and are repeated with care
        self._confirmed = 0  # careful looks that were thin, too
        self._to_repeat = list[tuple[Key, bytes]]()
        self._checked = 0  # names whose close set is known to be exact, or was looked at
        self._planned = 0  # names in this part so far
        self._to_plan = list[int]()  # numbers of names, last one first
        self._records = dict[int, Provision]()
        self._holders = [set[Key]() for _ in names]  # whom each was or will be sent to
        self._pending = dict[Key, _Parcel]()  # not sent yet
        self._paused = list[tuple[float, _Parcel]]()
        self._flying = 0
        self._again = set[int]()  # names of which a holder was lost
        self._rounds = 0
        self._ends_s = now_s + PART_S

    # --- looking ---------------------------------------------------------------------------------

    def next_to_look_at(self) -> tuple[Key, bytes] | None:
        """Return a name in a place not seen yet; or one whose close set is not exact."""
        if len(self.looks) >= LOOKS_AT_ONCE or len(self._looked_at) >= LOOKS_MAX:
            self._checked = len(self.names) if not self.looks else self._checked
            return None
        if self._to_repeat:
            return self._to_repeat.pop()
        at = 0
        while at < len(self.names):
            key = self.names[at][0]
            end = max(self.atlas.complete_until(key), self._being_seen_until(key))
            if end <= key:
                return self._look_at(at)
            at = bisect_left(self.names, end, key=lambda one: one[0])
        if not self.looks:
            last = min(len(self.names), self._checked + SLICE)
            for at in range(self._checked, last):
                key = self.names[at][0]
                if key not in self._looked_at and not self.atlas.is_exact(key):
                    self._checked = at
                    return self._look_at(at)
            self._checked = last
        return None

    def looked(self, look: Lookup) -> None:
        """A look has ended."""
        self.looks.remove(look)
        for contact in look.failures():
            self.atlas.lose(contact)
        known, target = look.known(), look.target
        if self._is_thin(target, known):
            if target not in self.doubted and self._confirmed < CONFIRMED_MAX:
                self.doubted.add(target)
                self._to_repeat.append((target, self._looked_at[target]))
                return
            self._confirmed += 1
        self.atlas.learn(target, known)

    def _is_thin(self, target: Key, known: list[Contact]) -> bool:
        farthest = known[K - 1].key ^ target if len(known) >= K else 1 << KEY_BITS
        return farthest > THIN * self._region and self._region < (1 << KEY_BITS) - 1

    def _look_at(self, at: int) -> tuple[Key, bytes]:
        key, name = self.names[at]
        self._looked_at[key] = name
        return key, name

    def _being_seen_until(self, key: Key) -> int:
        block = key >> self._bits
        is_seen = any(look.target >> self._bits == block for look in self.looks)
        return (block + 1) << self._bits if is_seen else key

    # --- planning --------------------------------------------------------------------------------

    def plan(self, now_s: float) -> bool:
        """Decide for some names who holds them; True if there is more to decide, later."""
        if self._checked < len(self.names):
            self.wake_at = now_s
            return True
        if not self._to_plan and self._is_idle:
            last = min(len(self.names), self._planned + NAMES_MAX)
            self._to_plan = list(range(self._planned, last))[::-1]
            self._planned, self._rounds = last, 0
            self._records.clear()
        for number in self._to_plan[-SLICE:]:
            for contact in self.atlas.close_set(self.names[number][0]):
                if contact.key not in self._holders[number]:
                    self._holders[number].add(contact.key)
                    parcel = self._pending.setdefault(contact.key, _Parcel(contact, []))
                    parcel.names.append(number)
        del self._to_plan[-SLICE:]
        self.wake_at = now_s
        return bool(self._to_plan)

    # --- sending ---------------------------------------------------------------------------------

    def next_parcel(self, now_s: float) -> _Parcel | None:
        """Return what to send next, if more may fly."""
        if self._flying >= STORES_AT_ONCE:
            return None
        for at, (until_s, parcel) in enumerate(self._paused):
            if until_s <= now_s:
                del self._paused[at]
                self._flying += 1
                return parcel
        key = next(iter(self._pending), None)
        if key is None:
            return None
        self._flying += 1
        return self._pending.pop(key)

    def provisions(self, parcel: _Parcel, sign: Sign, wall_ms: int) -> tuple[Provision, ...]:
        """Return its records, signed; what is too much for a message waits for the next."""
        records, size = list[Provision](), 0
        for number in parcel.names[:RECORDS_MAX]:
            record = self._records.get(number)
            if record is None:
                record = self._records[number] = sign(self.names[number][1], wall_ms)
            size += len(record.sealed) + RECORD_BYTES
            if records and size > MESSAGE_BYTES:
                break
            records.append(record)
        rest = parcel.names[len(records) :]
        del parcel.names[len(records) :]
        if rest:
            self._pending[parcel.contact.key] = _Parcel(parcel.contact, rest)
        return tuple(records)

    def landed(self, parcel: _Parcel, has_too_many: bool, now_s: float) -> None:
        """It was answered."""
        self._flying -= 1
        if has_too_many and parcel.tries < TRIES_MAX:
            parcel.tries += 1
            self._paused.append((now_s + PAUSE_S, parcel))

    def lost(self, parcel: _Parcel) -> None:
        """It was not answered: its names go to others, as does what else the peer was to get."""
        self._flying -= 1
        self.atlas.lose(parcel.contact)
        self._again.update(parcel.names)
        waiting = self._pending.pop(parcel.contact.key, None)
        if waiting is not None:
            self._again.update(waiting.names)

    @property
    def _is_idle(self) -> bool:
        return not (self._flying or self._pending or self._paused)

    def rest(self, now_s: float, *, is_more: bool) -> None:
        """Say when to go on; and with what, when everything was answered."""
        self.wake_at = now_s if is_more else min((at for at, _ in self._paused), default=math.inf)
        if self._is_idle:
            self._rounds += 1
            if self._rounds <= ROUNDS_MAX:
                self._to_plan = sorted(self._again, reverse=True)
            self._again.clear()
            self.is_done = not self._to_plan and self._planned == len(self.names)
            self.wake_at = now_s
        if now_s >= self._ends_s:
            self.is_done = True
        self.wake_at = min(self.wake_at, self._ends_s)
