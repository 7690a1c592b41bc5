"""Histories of a namespace, drawn at random, and what must hold of replicas that live through them.

`python -m tests.soak.crdt_histories 100000` draws that many and prints one line of JSON; the test
suite draws a few hundred of the same (tests/unit/test_crdt_properties.py).

A history has several authors with several instances each, skewed clocks, entries of all kinds at
few keys, forks, signatures that are wrong, counters that fall, grants handed on and revoked.
"""

import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from unittest import mock

from crdt.entry import COUNTER, Counted, Dot, Record, Signed, is_signed, unseal
from crdt.fault import AUTHOR_FAULTS_MAX, FAULTS_MAX, check
from crdt.namespace import Genesis, Grant, Rules
from crdt.replica import Replica
from tests.unit.crdt_making import NOW_MS, Chain, dot, key_of
from wire import codec

GC_MS = 3_600_000
KEYS = ("a", "b", "c")
ELEMENTS = (1, 2)
ROUNDS_MAX = 8  # of everybody syncing with everybody; two are enough without proofs


@dataclass
class History:
    """What was written, in the order of writing, and what kind of history it is."""

    rng: random.Random
    genesis: Genesis
    is_young: bool
    is_honest: bool
    records: list[Record] = field(default_factory=list[Record])
    chains: list[Chain] = field(default_factory=list[Chain])
    grants: list[tuple[Record, Grant]] = field(default_factory=list[tuple[Record, Grant]])


def draw(
    seed: int, *, is_young: bool = False, is_honest: bool = False, listed: bool = False
) -> History:
    """Draw a history. is_young: nothing in it is old enough to be collected. is_honest: nobody
    breaks the rules of chains.
    """
    rng = random.Random(seed)
    limit = rng.choice((2, 4, 1000)) if listed else rng.choice((1, 3, 5, 1000))
    if is_young and is_honest and listed:
        limit = 1000  # a grant that falls out of a quota takes more than order may decide with it
    rules = Rules(author_entries=limit, gc_ms=GC_MS)
    owner = key_of(0) if listed else None
    genesis = Genesis(1, "history", owner, "list" if listed else "open", b"", rules)
    history = History(rng, genesis, is_young, is_honest)
    span_ms = GC_MS // 4 if is_young else GC_MS * 5 // 4
    for author in range(rng.randint(1, 4)):
        for instance in range(rng.randint(1, 3)):
            chain = Chain(author, genesis.id, instance)
            chain.ms = -rng.randrange(span_ms)
            history.chains.append(chain)
    for _ in range(rng.randint(2, 24)):
        _write(history)
    return history


def _write(history: History) -> None:
    rng = history.rng
    chain = rng.choice(history.chains)
    if not history.is_honest:
        lie = rng.random()
        if lie < 0.08 and chain.seq:
            history.chains.append(chain.fork())
        elif lie < 0.11:
            chain.ms -= rng.randrange(1, 1000)  # a clock that goes back
    step_ms = rng.choice((0, 1, 50, 60_000 if history.is_young else GC_MS // 3))
    ms = min(chain.ms + 1 + step_ms, 20_000)
    if history.is_honest and ms <= chain.ms:
        return
    record = _entry(history, chain, ms)
    if record is None:
        return
    if not history.is_honest and rng.random() < 0.04:
        record = unseal(Signed(record.signed.body, rng.randbytes(64)))
        chain.prev = record.link  # the chain goes on from it, so its author vouches for it
    history.records.append(record)


def _entry(history: History, chain: Chain, ms: int) -> Record | None:
    rng = history.rng
    grant = None
    if history.genesis.write == "list" and chain.author:
        under = [record for record, grant in history.grants if grant.subject == chain.key]
        if not under:
            return None
        grant = rng.choice(under).id
    if history.genesis.write == "list" and rng.random() < 0.4:
        return _rule(history, chain, ms, grant)
    key = rng.choice(KEYS)
    seen = [_seen(rng, record) for record in history.records if rng.random() < 0.3][:8]
    element = bytes((rng.choice(ELEMENTS),))
    kind = rng.randint(1, 6)
    value = None if rng.random() < 0.3 and kind in (1, 2, 5) else bytes((rng.randrange(4),))
    if kind == 3 and not seen:
        kind = 2
    if kind == 4:
        return _counted(history, chain, key, ms, grant)
    return chain.write(
        kind,
        key,
        ms=ms,
        element=element if kind in (2, 3) else b"",
        seen=seen if kind in (3, 5) else (),
        value=None if kind == 3 else value,
        expires_ms=NOW_MS + ms + rng.choice((10, 60_000, GC_MS)) if kind == 6 else 0,
        grant=grant,
    )


def _seen(rng: random.Random, record: Record) -> Dot:
    return Dot(record.chain, rng.choice((record.seq, record.seq, record.seq + 3)))


def _counted(history: History, chain: Chain, key: str, ms: int, grant: bytes | None) -> Record:
    rng = history.rng
    plus = chain.seq * 2 + rng.randrange(2)
    if not history.is_honest and rng.random() < 0.2:
        plus = 0
    base = rng.randrange(plus + 1)
    value = codec.encode(Counted(plus, 0, base, 0))
    return chain.write(COUNTER, key, ms=ms, value=value, grant=grant)


def _rule(history: History, chain: Chain, ms: int, under: bytes | None) -> Record:
    rng = history.rng
    above = next((grant for record, grant in history.grants if record.id == under), None)
    if history.grants and rng.random() < 0.5:
        target, _ = rng.choice(history.grants)
        kept = [dot(record) for record in history.records if rng.random() < 0.2]
        last = {one.chain: one for one in kept}
        return chain.revoke(target.id, list(last.values())[:8], ms=ms, under=under)
    depth = rng.randint(0, 2) if above is None else max(0, above.depth - rng.randint(0, 1))
    prefix = (above.prefix if above is not None else "") + rng.choice(("", "", "a"))
    grant = Grant(key_of(rng.randrange(4)), prefix=prefix, depth=depth)
    record = chain.grant(grant, ms=ms, under=under)
    history.grants.append((record, grant))
    return record


def deliver(replica: Replica, records: Sequence[Record], now_ms: int) -> None:
    """Hand records to a replica as its intake would: what waits for a grant is tried again."""
    waiting = list(records)
    while True:
        later: list[Record] = []
        for record in waiting:
            reason = replica.refusal(record, now_ms)
            if reason in ("no_grant", "future"):
                later.append(record)
            elif not reason and replica.is_news(record):
                replica.merge(unseal(record.signed), now_ms)
        if len(later) == len(waiting):
            return
        waiting = later


def exchange(replicas: Sequence[Replica], now_ms: int) -> bool:
    """Let everybody sync with everybody until all hold the same; False if they never do."""
    for _ in range(ROUNDS_MAX):
        now_ms += 5  # a key of many records is not looked at again in the same millisecond
        for one in replicas:
            one.pop_due(now_ms)
        if len({one.fingerprint() for one in replicas}) == 1:
            return True
        for giver in replicas:
            for taker in replicas:
                if giver is not taker:
                    _give(giver, taker, now_ms)
    return False


def _give(giver: Replica, taker: Replica, now_ms: int) -> None:
    for proven in list(giver.faults.values()):
        taker.merge_fault(check(proven.fault))
    for record in list(giver.records.values()):
        if record.stamp not in giver.records or record.stamp in taker.records:
            continue
        if not is_signed(record) and not _is_vouched(giver, record):
            giver.drop(record)  # as it can only travel alone, and nobody would take it
    news = [one for stamp, one in giver.records.items() if stamp not in taker.records]
    deliver(taker, sorted(news, key=lambda one: (one.chain, one.seq)), now_ms)


def _is_vouched(giver: Replica, record: Record) -> bool:
    """True if the next one of the chain is there, and proves this one."""
    after = giver.chain_after(record.chain, record.seq, 1)
    return bool(after) and after[0].entry.prev == record.link


def shown(replica: Replica, now_ms: int) -> object:
    """All that readers see, and the digests of what is behind it."""
    views = [
        (view.key, view.kind, view.latest.id, [one.id for one in view.values], view.total)
        for view in replica.scan("", now_ms)
    ]
    return views, replica.fingerprint(), replica.root()


def restarted(replica: Replica, rng: random.Random) -> Replica:
    """Return a replica that was given back all that one retained."""
    fresh, records = Replica(replica.genesis), list(replica.records.values())
    for proven in replica.faults.values():
        fresh.merge_fault(proven)
    rng.shuffle(records)
    fresh.restore(records, is_judged=True)
    return fresh


def converge(
    history: History,
    *,
    author_faults_max: int = AUTHOR_FAULTS_MAX,
    faults_max: int = FAULTS_MAX,
) -> str:
    """Let replicas live through a history in parts and orders of their own, with doubles, and at
    different times; returns what is wrong at the end, or "".

    author_faults_max: with so many faulty chains an author is out; histories are short.
    faults_max: so many proofs are kept.
    """
    with (
        mock.patch("crdt.fault.AUTHOR_FAULTS_MAX", author_faults_max),
        mock.patch("crdt.fault.FAULTS_MAX", faults_max),
    ):
        return _converge(history)


def _converge(history: History) -> str:
    rng, now_ms = history.rng, NOW_MS + 20_000
    replicas = [Replica(history.genesis) for _ in range(3)]
    for replica in replicas:
        part = [one for one in history.records if rng.random() < 0.7]
        part += rng.choices(part, k=len(part) // 4) if part else []
        rng.shuffle(part)
        cut = rng.randrange(len(part) + 1)
        deliver(replica, part[:cut], now_ms - rng.randrange(GC_MS))
        if rng.random() < 0.5:
            replica.pop_due(now_ms - rng.randrange(20_000))
        deliver(replica, part[cut:], now_ms)
    whole = Replica(history.genesis)
    deliver(whole, history.records, now_ms)
    replicas.append(whole)
    for wait_ms in (0, 70_000, GC_MS // 2 + 333, GC_MS + 333):
        if not exchange(replicas, now_ms + wait_ms):
            return f"different for ever, {wait_ms} ms later"
        then_ms = now_ms + wait_ms + 1000
        replicas[0] = restarted(replicas[0], rng)
        if any(shown(one, then_ms) != shown(whole, then_ms) for one in replicas):
            return f"one set, but two states, {wait_ms} ms later"
        for one in replicas:
            one.pop_due(then_ms)
        if len({one.fingerprint() for one in replicas}) != 1:
            return f"one set, but not the same goes, {wait_ms} ms later"
    return ""


def permute(history: History) -> str:
    """Merge a young and honest history in three orders: no sync is needed for the same state."""
    rng, now_ms = history.rng, NOW_MS + 20_000
    states: list[object] = []
    for _ in range(3):
        replica = Replica(history.genesis)
        part = history.records + rng.choices(history.records, k=3) if history.records else []
        rng.shuffle(part)
        deliver(replica, part, now_ms)
        before = replica.version
        deliver(replica, part, now_ms)
        if replica.version != before:
            return "merging again changed something"
        states.append(shown(replica, now_ms))
    return "" if all(state == states[0] for state in states) else "the order matters"


def run(seed: int) -> str:
    """Draw the history of a number, and check it."""
    listed = seed % 3 == 0
    if seed % 4 == 0:
        return permute(draw(seed, is_young=True, is_honest=True, listed=listed))
    history = draw(seed, is_young=seed % 5 == 0, is_honest=seed % 4 == 1, listed=listed)
    few = 2 if seed % 11 == 0 else FAULTS_MAX
    many = 2 if seed % 7 == 0 else AUTHOR_FAULTS_MAX
    return converge(history, author_faults_max=many, faults_max=few)


def main(count: int, first: int = 0) -> None:
    """Check `count` histories and print how it went."""
    start_s = time.monotonic()
    divergences: dict[int, str] = {}
    for seed in range(first, first + count):
        problem = run(seed)
        if problem:
            divergences[seed] = problem
    seconds = round(time.monotonic() - start_s, 1)
    print(json.dumps({"histories": count, "seconds": seconds, "divergences": divergences}))


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
