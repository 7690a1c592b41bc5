"""Providing many names at once, by regions of the key space: a message a server, no lookup each.

Names are sorted by key and done in parts, neighbours together. Of each part an `Atlas` is made by
looks at some of its names: short ones, that ask the two nearest whom they know around there, over
disjoint paths, and as many as it takes to have seen the whole part (one for every dozen servers).
So the close set of every name is known without asking for it. Then each server is sent all it
should hold in one message, which also shows whether it lives; of who does not, the names go to the
next nearest.
"""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from dht.key import KEY_BITS, SPACE, Key, key_of
from dht.limits import TOO_MANY
from dht.lookup import PATHS, Lookup
from dht.messages import (
    AddProviders,
    Answer,
    Contact,
    FindNode,
    Moment,
    Request,
    Stored,
    Trace,
)
from dht.operation import Wanted
from dht.parts import SLICE, Parcel, Part, Sign
from dht.storing import REASONS_MAX
from dht.table import K
from wire.ids import PeerId

Nearest = Callable[[Key, int], Sequence[Contact]]  # `Table.closest`

NAMES_MIN = 250  # in one part, if there are: with fewer, looks and stores of several run at once
BLOCK = 4  # a part ends at blocks of so many regions: they hold the close sets of their names
LOOK_PATHS = 3  # of a look: a liar who is asked first has the whole of one path
NEED = 2  # of the nearest answer in each path of a look; one may have gaps in its table


@dataclass(frozen=True, slots=True)
class Provided:
    """How far it is, and what it cost."""

    total: int  # names
    done: int  # names whose records were offered to all of their close set
    kept: int  # records, each counted at each peer
    looks: int  # requests of lookups
    stores: int  # requests with records
    refusals: Mapping[str, int] = field(default_factory=dict[str, int])  # reason -> requests
    weak: tuple[bytes, ...] = ()  # names done that fewer than half of their close sets keep

    def too_few(self, names: Sequence[bytes]) -> Sequence[bytes]:
        """Return those of the names that should be provided again soon."""
        return self.weak


class ProvideMany:
    """Store provider records of many names. `result` is `Provided`, and can be read at any time.

    sign: called once for each name, when its part comes. Dropping the operation cancels it.
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
    ) -> None:
        self._names = sorted((key_of(name), name) for name in set(names))
        self._region = region or SPACE - 1
        self._sign, self._own, self._nearest = sign, own, nearest
        self._done = 0
        self._part: Part | None = None
        self._weak = list[bytes]()
        self._count = Counter[str]()
        self._refusals = Counter[str]()
        self._tags = 0
        self._looks = dict[int, tuple[Lookup, int]]()  # tag -> whose request, by its own tag
        self._stores = dict[int, Parcel]()
        self.trace = Trace()  # stays empty: there are too many requests

    # --- what came of it -------------------------------------------------------------------------

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
            tuple(self._weak),
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
                self._part = Part(names, self._region, moment.s)
            part = self._part
            wanted = self._work(part, moment)
            if not part.is_done:
                break
            self._done += len(part.names)
            self._weak += part.weak()
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
        kept = min(kept, len(parcel.names))
        self._count["kept"] += kept
        if refusal:
            self._refuse(refusal)
        self._part.landed(parcel, kept, refusal == TOO_MANY and not kept, moment.s)

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

    def _work(self, part: Part, moment: Moment) -> list[Wanted]:
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

    def _go_on_looking(self, part: Part, moment: Moment) -> list[Wanted]:
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

    def _new_look(self, part: Part, key: Key, name: bytes, moment: Moment) -> Lookup:
        is_careful = key in part.doubted
        seeds = self._nearest(key, K)  # not the atlas: there, liars name each other
        return Lookup(
            key,
            self._own,
            FindNode(name),
            seeds,
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
