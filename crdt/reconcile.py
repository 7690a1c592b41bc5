"""The leading side of a sync, sans-IO: a generator of what to ask, take and give.

Equal namespaces are done after one round trip. Where one differs: proofs, grants and revocations
first, so that what they allow is accepted; chains from where we have them, if the other has much
more; then ranges of the timeline, the newest first, until those that differ are small enough to
name what is in them. What is new is settled before the old is looked at: it replaces much of it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from crdt import answers
from crdt.absence import NEVER_SYNCED_MS
from crdt.entry import GRANT, Record
from crdt.holding import NEWEST, Holding, shorts
from crdt.ranges import Descent, Gifts, Give, Settle, Span, Steps, Take, TakeProofs, Turn, expect
from crdt.timeline import END, START, short
from crdt.wire import (
    GRANTS_MAX,
    KNOWN_MAX,
    PROOFS_MAX,
    RUNS_MAX,
    SPACES_MAX,
    Entries,
    Heads,
    HeadsFound,
    Hello,
    Known,
    Law,
    LawFound,
    Pull,
    Run,
    Space,
    Standing,
    Welcome,
    glance,
)
from wire.errors import BadMessage

RECENT_MIN = 2  # entries more or fewer among the NEWEST: one may be a hole like those of old
COLD_ENTRIES = 2_000  # chains are pulled whole if the other has so many more than twice ours
ALL_CHAINS = b"\xff" * 17  # a bound above all chains


def lead(holdings: Mapping[bytes, Holding], nonce: bytes, now_ms: Callable[[], int]) -> Steps[None]:
    """Lead one session. Send it the answer to each Request, None for other effects.

    Raises BadMessage for what is no answer to what was asked.
    """
    spaces = answers.listing(holdings.values(), nonce)
    if len(spaces) > SPACES_MAX:
        hello = Hello(nonce, now_ms(), every=answers.every_print(spaces, nonce))
        ours = {space.prefix: space.print for space in spaces}
        listed = expect((yield hello), Welcome).spaces
        spaces = [space for space in listed if ours.get(space.prefix, space.print) != space.print]
        spaces = [Space(space.prefix, ours[space.prefix]) for space in spaces]
    by_prefix = {one.replica.id[:8]: one for one in holdings.values()}
    for at in range(0, len(spaces), SPACES_MAX):
        asked = spaces[at : at + SPACES_MAX]
        answer = expect((yield Hello(nonce, now_ms(), asked)), Welcome)
        left = {space.prefix for space in asked}
        for standing in answer.differing:
            if standing.prefix not in left:
                raise BadMessage("a namespace that was not asked for, or twice")
            left.remove(standing.prefix)
            holding = by_prefix[standing.prefix]
            is_new = answer.quiet_ms == NEVER_SYNCED_MS
            leader = _Leader(holding, nonce, now_ms, Gifts(holding), is_new)
            yield from leader.run(standing)


@dataclass
class _Leader:
    """Leads a session about one namespace."""

    holding: Holding
    nonce: bytes
    now_ms: Callable[[], int]
    gifts: Gifts
    is_new: bool  # the other has never finished a sync: it leads one by itself

    @property
    def id(self) -> bytes:
        """The namespace."""
        return self.holding.replica.id

    def run(self, standing: Standing) -> Steps[None]:
        """Settle what differs."""
        if standing.law != self.holding.law(self.nonce):
            yield from self._law()
            yield Settle()
        is_cold = self._is_cold(standing)
        if is_cold:
            yield Turn()
            is_cold = self._is_cold(standing)
        if is_cold:
            yield from self._chains()
        descent = Descent(self.holding, self.nonce, self.gifts)
        for is_first in (not is_cold, False):
            if not is_first:
                yield Settle()
                again = yield from self._again()
                if again is None:
                    return
                standing = again
            here, there = len(self.holding.replica.timeline), standing.whole.count
            self.gifts.is_shut = self.is_new and here > there + COLD_ENTRIES
            spans = descent.differing(Span(START, END), standing.whole)
            newest = self._newest(spans) if is_first else spans
            yield from descent.settle(newest)
            if len(newest) == len(spans):
                return

    def _newest(self, spans: list[Span]) -> list[Span]:
        """Return those that differ without a gap from the newest back, if much of what is new
        differs; else all of them, as what differs is mostly old then.
        """
        above, count = END, 0
        for span in reversed(spans):
            if span.high != above:
                break
            above, count = span.low, count + 1
        if count == 1:
            here = self.holding.replica.timeline.count(above, END)
            count = 1 if abs(here - NEWEST) >= RECENT_MIN else 0
        return spans[-count:] if count else spans

    def _is_cold(self, standing: Standing) -> bool:
        return standing.whole.count > 2 * len(self.holding.replica.timeline) + COLD_ENTRIES

    def _again(self) -> Steps[Standing | None]:
        """Compare everything once more; None if nothing differs."""
        space = Space(self.id[:8], self.holding.print(self.nonce))
        answer = expect((yield Hello(self.nonce, self.now_ms(), [space])), Welcome)
        if [one.prefix for one in answer.differing] not in ([], [space.prefix]):
            raise BadMessage("a namespace that was not asked for")
        return answer.differing[0] if answer.differing else None

    # -- proofs, grants and revocations

    def _law(self) -> Steps[None]:
        low = START
        while low < ALL_CHAINS:
            faults = self.holding.replica.faults
            chains = sorted(chain for chain in faults if chain >= low)
            high = chains[KNOWN_MAX] if len(chains) > KNOWN_MAX else ALL_CHAINS
            known = [
                Known(chain, faults[chain].cut, faults[chain].digest[:8])
                for chain in chains[:KNOWN_MAX]
            ]
            rules = self.holding.rules() if low == START else []
            ids = None
            if low == START and len(rules) <= GRANTS_MAX:  # of more, none: they come like others
                ids = shorts(self.nonce, (one.stamp for one in rules))
            request = Law(self.id, self.nonce, low, high, known, ids)
            answer = expect((yield request), LawFound)
            if not low < answer.upto <= high or not {*answer.wanted} <= {*chains}:
                raise BadMessage("proofs that were not asked for, or no progress")
            if answer.proofs:
                yield TakeProofs(self.id, answer.proofs)
            if any(glance(signed).kind < GRANT for signed in answer.entries):
                raise BadMessage("neither a grant nor a revocation")
            if answer.entries:
                yield Take(self.id, answer.entries)
            yield from self._give_law(answer, rules if ids else [])
            low = answer.upto

    def _give_law(self, answer: LawFound, rules: list[Record]) -> Steps[None]:
        offered = {short(self.nonce, one.stamp): one.stamp for one in rules}
        self.gifts.add_lacked(answer.lacks, offered)
        faults = self.holding.replica.faults
        for at in range(0, len(answer.wanted), PROOFS_MAX):
            wanted = answer.wanted[at : at + PROOFS_MAX]
            yield Give(self.id, [], [faults[chain].fault for chain in wanted if chain in faults])
        yield from self.gifts.give()

    # -- chains

    def _chains(self) -> Steps[None]:
        after = START
        while True:
            page = expect((yield Heads(self.id, after)), HeadsFound).heads
            chains = [after, *(head.chain for head in page)]
            if any(a >= b for a, b in pairwise(chains)):
                raise BadMessage("chains out of order")
            seen = self.holding.replica.seen
            runs = [Run(head.chain, seen(head.chain)) for head in page]
            behind = [run for run, head in zip(runs, page, strict=True) if run.seq < head.seq]
            yield from self._pull(behind)
            if len(page) < RUNS_MAX:
                return
            after = chains[-1]

    def _pull(self, runs: list[Run]) -> Steps[None]:
        while runs:
            answer = expect((yield Pull(self.id, runs)), Entries)
            is_done = answer.handled == len(runs)
            if answer.handled > len(runs) or (not answer.handled and not answer.seq):
                raise BadMessage("no progress in the chains that were asked for")
            asked = {run.chain: run.seq for run in runs[: answer.handled + 1]}
            for signed in answer.entries:
                seen = glance(signed)
                if seen.seq <= asked.get(seen.chain, seen.seq):
                    raise BadMessage("an entry of a chain that was not asked for")
            runs = runs[answer.handled :]
            if answer.seq and not is_done:
                if answer.seq <= runs[0].seq:
                    raise BadMessage("a chain that goes back")
                runs = [Run(runs[0].chain, answer.seq), *runs[1:]]
            if answer.entries:
                yield Take(self.id, answer.entries)
