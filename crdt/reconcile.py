"""Anti-entropy between two replicas, sans-IO: one side leads a session, the other only answers.

The leader sends the sum over everything. Equal: done after one round trip. Otherwise it goes down
the tree of sums where they differ, learns which slots, then fetches what it lacks and sends what
the other lacks. Cost grows with the difference (times the depth of the tree), not with the state.
"""

from collections import deque
from dataclasses import dataclass, field

from crdt.digest import HEX, LEAF_MAX, Held
from crdt.entry import SHORT_ID_BYTES, Signed
from crdt.merge import Replica
from crdt.wire import (
    ASKS_MAX,
    FRAME_BUDGET,
    HELD_BYTES,
    SLOT_DIGITS,
    SPLIT_BYTES,
    WANTS_MAX,
    Answer,
    Ask,
    Compare,
    Differ,
    Entries,
    Leaf,
    LeafItem,
    Push,
    Request,
    Split,
    Taken,
    Want,
    fitting,
    size_of,
)
from wire.errors import BadMessage

ROUND_TRIPS_MAX = 1000  # of one session; about 50 MB. The next session goes on where it was cut


def compare(replica: Replica, message: Compare) -> Differ:
    """Answer: where the asker differs from us, as much as fits."""
    splits: list[Split] = []
    leaves: list[Leaf] = []
    size = handled = 0
    for ask in message.asks:
        if replica.digest.fingerprint(ask.prefix) != ask.fingerprint:
            count = replica.digest.count(ask.prefix)
            size += SPLIT_BYTES if count > LEAF_MAX else 64 + count * HELD_BYTES
            if size > FRAME_BUDGET:
                break
            if count > LEAF_MAX:
                splits.append(Split(ask.prefix, replica.digest.children(ask.prefix)))
            else:
                held = replica.digest.items(ask.prefix)
                items = [LeafItem(one.slot, one.hlc, one.id[:SHORT_ID_BYTES]) for one in held]
                leaves.append(Leaf(ask.prefix, items))
        handled += 1
    return Differ(handled, splits, leaves)


def supply(replica: Replica, message: Want) -> Entries:
    """Answer: what the slots hold, as much as fits."""
    found: list[Signed] = []
    room = FRAME_BUDGET
    for handled, slot in enumerate(message.slots):
        record = replica.at(slot)
        if record is None:
            continue
        room -= size_of(record.signed)
        if room < 0:
            return Entries(handled, found)
        found.append(record.signed)
    return Entries(len(message.slots), found)


@dataclass
class Session:
    """The leading side. `next_request`, send it, `receive` the answer; until there is no request.

    What `receive` returns goes through the checks of the store like everything from a peer.
    """

    replica: Replica
    round_trips: int = 0
    entries_in: int = 0
    entries_out: int = 0
    _asks: deque[str] = field(default_factory=lambda: deque([""]))
    _wants: deque[str] = field(default_factory=deque[str])
    _gifts: deque[str] = field(default_factory=deque[str])
    _bare: deque[str] = field(default_factory=deque[str])  # they have nothing below these, but for
    _settled: set[str] = field(default_factory=set[str])  # these slots
    _pending: Request | None = None

    def next_request(self) -> Request | None:
        """Return what to send next; None at the end."""
        if self.round_trips >= ROUND_TRIPS_MAX:
            return None
        is_full = len(self._wants) >= WANTS_MAX  # fetch before learning of more: bounded memory
        first = self._want() if is_full else self._compare()
        self._pending = first or self._want() or self._push()
        if self._pending is not None:
            self.round_trips += 1
        return self._pending

    def receive(self, answer: Answer) -> list[Signed]:
        """Take the answer to the last request; returns entries to merge. Raises BadMessage."""
        match self._pending, answer:
            case Compare(asks), Differ():
                self._descend(asks, answer)
            case Want(slots), Entries(handled, entries):
                if not 0 < handled <= len(slots) or len(entries) > handled:
                    raise BadMessage(f"{len(entries)} entries for {handled}/{len(slots)} slots")
                self._wants.extendleft(reversed(slots[handled:]))
                self.entries_in += len(entries)
                return entries
            case Push(entries), Taken():
                self.entries_out += len(entries)
            case _:
                raise BadMessage(f"{type(answer).__name__} does not answer our request")
        return []

    def _compare(self) -> Compare | None:
        asks = [
            Ask(prefix, self.replica.digest.fingerprint(prefix))
            for prefix in _take(self._asks, ASKS_MAX)
        ]
        return Compare(asks) if asks else None

    def _want(self) -> Want | None:
        slots = _take(self._wants, WANTS_MAX)
        return Want(slots) if slots else None

    def _push(self) -> Push | None:
        while self._bare and len(self._gifts) < WANTS_MAX:
            self._give_below(self._bare.popleft())
        slots = _take(self._gifts, WANTS_MAX)
        records = [record for slot in slots if (record := self.replica.at(slot)) is not None]
        entries = [record.signed for record in records]
        fit = fitting(entries)
        self._gifts.extendleft(record.slot for record in reversed(records[fit:]))
        return Push(entries[:fit]) if fit else None

    def _descend(self, asks: list[Ask], answer: Differ) -> None:
        if not 0 < answer.handled <= len(asks):
            raise BadMessage(f"{answer.handled} of {len(asks)} asks handled")
        asked = {ask.prefix for ask in asks[: answer.handled]}
        self._asks.extendleft(ask.prefix for ask in reversed(asks[answer.handled :]))
        for split in answer.splits:
            _use_up(asked, split.prefix)
            if len(split.prefix) >= SLOT_DIGITS:
                raise BadMessage(f"a split of the whole slot {split.prefix}")
            mine = self.replica.digest.children(split.prefix)
            for digit, ours, theirs in zip(HEX, mine, split.children, strict=True):
                if ours != theirs:  # depth first, so that the list of asks stays short
                    self._asks.appendleft(split.prefix + digit)
        for leaf in answer.leaves:
            _use_up(asked, leaf.prefix)
            self._settle(leaf)

    def _settle(self, leaf: Leaf) -> None:
        """Decide for each slot below a leaf who lacks what. The older of two is not sent."""
        for item in leaf.items:
            if not item.slot.startswith(leaf.prefix):
                raise BadMessage(f"slot {item.slot} is not below {leaf.prefix!r}")
            ours = next(iter(self.replica.digest.items(item.slot)), None)
            is_newer = ours is None or (item.hlc >= ours.hlc and not _is_same(ours, item))
            if is_newer and not self.replica.was_refused(item.slot, item.id):
                self._wants.append(item.slot)
            if ours is not None and ours.hlc >= item.hlc and not _is_same(ours, item):
                self._gifts.append(item.slot)
        settled = {item.slot for item in leaf.items}
        if self.replica.digest.count(leaf.prefix) > LEAF_MAX:
            self._settled |= settled
            self._bare.append(leaf.prefix)
            return
        mine = self.replica.digest.items(leaf.prefix)
        self._gifts.extend(held.slot for held in mine if held.slot not in settled)

    def _give_below(self, prefix: str) -> None:
        """Give what we hold below a prefix, a leaf at a time: it can be all we have."""
        if self.replica.digest.count(prefix) > LEAF_MAX:
            self._bare.extendleft(prefix + digit for digit in reversed(HEX))
            return
        for held in self.replica.digest.items(prefix):
            if held.slot not in self._settled:
                self._gifts.append(held.slot)


def _is_same(ours: Held, theirs: LeafItem) -> bool:
    return ours.hlc == theirs.hlc and ours.id[:SHORT_ID_BYTES] == theirs.id


def _take(queue: deque[str], count: int) -> list[str]:
    return [queue.popleft() for _ in range(min(count, len(queue)))]


def _use_up(asked: set[str], prefix: str) -> None:
    """Each ask is answered at most once: this bounds what one answer makes us do."""
    if prefix not in asked:
        raise BadMessage(f"an answer about {prefix!r}, which was not asked")
    asked.remove(prefix)
