"""One part of many names to provide: where to look, who gets what, and in which messages. Pure.

The names of a part are neighbours in the key space, and so are their holders. First it is looked
around until the `Atlas` is complete where names are; then it is decided for some names at a time
who holds them; then each holder is sent what it should have. Of who does not answer, the names go
to the next nearest.
"""

import math
from bisect import bisect_left
from collections.abc import Callable

from dht.atlas import Atlas
from dht.key import Key
from dht.lookup import Lookup
from dht.messages import PROVISIONS_BYTES, PROVISIONS_MAX, Contact, Provision
from dht.storing import STORES_AT_ONCE

Sign = Callable[[bytes, int], Provision]  # (name, wall_ms): a fresh provider record of ours

RECORD_BYTES = 8  # around each record, at most
NAMES_MAX = 2000  # planned and sent together: of 125 servers each gets 400, one message
CONFIRMED_MAX = 3  # careful looks as thin: then nobody lied, the network is smaller than thought
LOOKS_AT_ONCE = 8
LOOKS_MAX = 500  # in one part: liars who crowd every look cost no more
SLICE = 200  # names thought about, or records signed, before others have their turn: 10 ms
PAUSE_S = 12.0  # until who had too many of us is asked again: by then it takes 600 records
TRIES_MAX = 4  # of one message
PART_S = 600.0  # for one part; what is not done then is left undone
ROUNDS_MAX = 4  # of finding others in the place of who did not answer: 30 % dead leave 1 %


class Parcel:
    """Records for one peer: which names, by their number in the part."""

    __slots__ = ("contact", "names", "rest", "tries")

    def __init__(self, contact: Contact, names: list[int]) -> None:
        self.contact, self.names, self.tries = contact, names, 1
        self.rest = list[int]()  # for its next message: one is in flight to each peer


class Part:
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
        self._kept = [0] * len(names)  # how many of them keep it
        self._pending = dict[Key, Parcel]()  # not sent yet
        self._paused = list[tuple[float, Parcel]]()
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
        if self.atlas.is_thin(target, known):
            if target not in self.doubted and self._confirmed < CONFIRMED_MAX:
                self.doubted.add(target)
                self._to_repeat.append((target, self._looked_at[target]))
                return
            self._confirmed += 1
        self.atlas.learn(target, known)

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
                    parcel = self._pending.setdefault(contact.key, Parcel(contact, []))
                    parcel.names.append(number)
        del self._to_plan[-SLICE:]
        self.wake_at = now_s
        return bool(self._to_plan)

    # --- sending ---------------------------------------------------------------------------------

    def next_parcel(self, now_s: float) -> Parcel | None:
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

    def provisions(self, parcel: Parcel, sign: Sign, wall_ms: int) -> tuple[Provision, ...]:
        """Return its records, signed; what is too much for a message waits for the next."""
        records, size = list[Provision](), 0
        for number in parcel.names[:PROVISIONS_MAX]:
            record = self._records.get(number)
            if record is None:
                record = self._records[number] = sign(self.names[number][1], wall_ms)
            size += len(record.sealed) + RECORD_BYTES
            if records and size > PROVISIONS_BYTES:
                break
            records.append(record)
        parcel.rest += parcel.names[len(records) :]
        del parcel.names[len(records) :]
        return tuple(records)

    def landed(self, parcel: Parcel, kept: int, has_too_many: bool, now_s: float) -> None:
        """It was answered. Which were kept is not told: if most were, each probably was."""
        self._flying -= 1
        if 2 * kept >= len(parcel.names):
            for number in parcel.names:
                self._kept[number] += 1
        if has_too_many and parcel.tries < TRIES_MAX:
            parcel.tries += 1
            self._paused.append((now_s + PAUSE_S, parcel))
        elif parcel.rest:
            self._pending[parcel.contact.key] = Parcel(parcel.contact, parcel.rest)

    def lost(self, parcel: Parcel) -> None:
        """It was not answered: its names go to others, as does what else the peer was to get."""
        self._flying -= 1
        self.atlas.lose(parcel.contact)
        self._again.update(parcel.names, parcel.rest)
        for number in (*parcel.names, *parcel.rest):
            self._holders[number].discard(parcel.contact.key)

    def weak(self) -> list[bytes]:
        """Return the names that fewer than half of their close sets keep."""
        held = zip(self.names, self._holders, self._kept, strict=True)
        return [name for (_, name), to, kept in held if not kept or 2 * kept < len(to)]

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
