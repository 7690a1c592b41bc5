"""What a hostile peer may answer to a leader: BadMessage, or an end."""

import random
from itertools import pairwise

import pytest

from crdt import wire
from crdt.ranges import DEPTH_MAX
from crdt.timeline import END, START, short
from crdt.wire import (
    Compare,
    Differences,
    Entries,
    Heads,
    HeadsFound,
    Hello,
    LawFound,
    Range,
    Run,
    Standing,
    Taken,
    Welcome,
)
from tests.sim.crdt_pairs import NOW_MS, Side, replica_of, sync
from tests.unit.crdt_leading import ID, LAW, NONCE, POOL, Script, after_hello, differs, holding, run
from wire.errors import BadMessage


@pytest.mark.parametrize(
    "answer",
    [
        Taken(0),
        Welcome(NOW_MS, [Standing(bytes(8), LAW, Range(0, 1))]),
        Welcome(NOW_MS, [Standing(ID[:8], LAW, Range(0, 0))] * 2),
        differs(Range(0, 50, [b"\x02", b"\x01"], bytes(24))),
        differs(Range(0, 50, [b"\x01", b"\x01"], bytes(24))),
        differs(Range(0, 50, [b"\x01"], bytes(8))),
        differs(Range(0, 50, [b"\x01"], bytes(17))),
        differs(Range(0, 50, [b"\xff"], bytes(16))),
        differs(Range(0, 50, [b""], bytes(16))),
        differs(Range(0, 50, [b"\x01"], b"")),
    ],
)
def test_a_welcome_that_does_not_fit_is_the_peers_fault(answer: wire.Answer) -> None:
    with pytest.raises(BadMessage):
        run(holding(), lambda _: answer)


@pytest.mark.parametrize(
    "answer",
    [
        Taken(0),
        HeadsFound([]),
        Differences(0),
        Differences(2),
        Differences(0, cut=POOL[5].stamp),
        Differences(1, cut=POOL[5].stamp),
        Differences(1, ranges=[Range(99, 1)]),
        Differences(1, ranges=[Range(1, 1), Range(0, 1)]),
        Differences(1, ranges=[Range(1, 1), Range(1, 1)]),
        Differences(1, ranges=[Range(1, 50, [b"\xff"], bytes(16))]),
        Differences(1, lacks=bytes(8)),
        Differences(1, lacks=bytes(7)),
        Differences(1, lacks=short(NONCE, POOL[5].stamp)),  # nothing was offered yet
        Differences(1, entries=[POOL[500].signed]),
    ],
)
def test_an_answer_to_fingerprints_that_does_not_fit_is_the_peers_fault(
    answer: wire.Answer,
) -> None:
    with pytest.raises(BadMessage):
        run(holding(), after_hello(answer))


def leaf_of(low: int, high: int) -> Range:
    """We hold 100; say that all but those of a range are equal."""
    mine = holding()
    bounds = [POOL[low].stamp, POOL[high].stamp]
    prints = bytearray(mine.prints(NONCE, [START, *bounds, END]))
    prints[8:16] = bytes(8)
    return Range(0, 100, bounds, bytes(prints))


@pytest.mark.parametrize(
    "answer",
    [
        Differences(0, cut=POOL[20].stamp),
        Differences(0, cut=POOL[30].stamp),
        Differences(0, cut=POOL[35].stamp),
        Differences(1, entries=[POOL[19].signed]),
        Differences(1, entries=[POOL[30].signed]),
        Differences(0, cut=POOL[25].stamp, entries=[POOL[26].signed]),
        Differences(1, lacks=short(NONCE, POOL[31].stamp)),
    ],
)
def test_what_is_outside_the_leaf_that_was_asked_for_is_the_peers_fault(
    answer: wire.Answer,
) -> None:
    with pytest.raises(BadMessage):
        run(holding(), after_hello(answer, leaf_of(20, 30)))


def test_a_split_that_never_narrows_comes_to_an_end() -> None:
    def same_again(request: wire.Request) -> wire.Answer:
        if isinstance(request, Hello):
            return differs(leaf_of(20, 30))
        assert isinstance(request, Compare)
        return Differences(len(request.asks), ranges=[Range(0, 5)])

    with pytest.raises(BadMessage, match=f"{DEPTH_MAX}"):
        run(holding(), same_again)


@pytest.mark.parametrize("seed", range(3))
def test_splits_without_end_come_to_an_end(seed: int) -> None:
    """Every range differs, and is cut into 64 parts of nothing."""
    rng = random.Random(seed)

    def explode(request: wire.Request) -> wire.Answer:
        if isinstance(request, Hello):
            return differs(Range(0, 1000))
        assert isinstance(request, Compare)
        ranges, index = list[Range](), 0
        for ask in request.asks:
            for low, high in pairwise(ask.bounds):
                pool = sorted({(low + rng.randbytes(40))[:40] for _ in range(63)})
                inner = [bound for bound in pool if low < bound < high]
                prints = rng.randbytes(8 * (len(inner) + 1))
                ranges.append(Range(index, 2**40, inner, prints))
                index += 1
        return Differences(len(request.asks), ranges=ranges[:400])

    with pytest.raises(BadMessage, match=r"ranges that differ|still cut"):
        run(holding(), explode)


def test_a_peer_that_promises_and_does_not_deliver_ends_too() -> None:
    asked = run(holding(0), after_hello(Differences(1), Range(0, 1000)))
    assert [type(one) for one in asked] == [Hello, Compare]


def cold(answer_heads: wire.Answer, answer_pull: wire.Answer) -> Script:
    def script(request: wire.Request) -> wire.Answer:
        if isinstance(request, Hello):
            return differs(Range(0, 10_000))
        return answer_heads if isinstance(request, Heads) else answer_pull

    return script


CHAINS = sorted({one.chain for one in POOL})
RUNS = [Run(chain, 1000) for chain in CHAINS]


@pytest.mark.parametrize(
    ("heads", "pulled"),
    [
        (HeadsFound([RUNS[1], RUNS[0]]), Entries(1, 0)),
        (HeadsFound([RUNS[0], RUNS[0]]), Entries(1, 0)),
        (HeadsFound(RUNS), Entries(0, 0)),
        (HeadsFound(RUNS), Entries(9, 0)),
        (HeadsFound(RUNS[:1]), Entries(1, 0, [POOL[0].signed, POOL[1].signed, POOL[2].signed])),
        (HeadsFound(RUNS[:1]), Taken(0)),
        (Entries(0, 0), Entries(0, 0)),
    ],
)
def test_chains_that_were_not_asked_for_are_the_peers_fault(
    heads: wire.Answer, pulled: wire.Answer
) -> None:
    with pytest.raises(BadMessage):
        run(holding(0), cold(heads, pulled))


def test_a_chain_that_goes_back_is_the_peers_fault() -> None:
    with pytest.raises(BadMessage, match="goes back"):
        run(holding(0), cold(HeadsFound(RUNS[:1]), Entries(0, 7)))


@pytest.mark.parametrize(
    "answer",
    [
        LawFound(b""),
        LawFound(b"\xff" * 17, wanted=[bytes(16)]),
        LawFound(b"\xff" * 17, lacks=bytes(8)),
        LawFound(b"\xff" * 17, entries=[POOL[0].signed]),
    ],
)
def test_proofs_that_were_not_asked_for_are_the_peers_fault(answer: wire.Answer) -> None:
    def script(request: wire.Request) -> wire.Answer:
        if isinstance(request, Hello):
            return Welcome(NOW_MS, [Standing(ID[:8], bytes(8), Range(0, 0))])
        return answer

    with pytest.raises(BadMessage):
        run(holding(), script)


def test_a_leader_asks_on_where_an_answer_was_cut() -> None:
    mine, theirs = Side(replica_of(POOL[::3])), Side(replica_of(POOL))
    whole = theirs.answer

    def cut_short(request: wire.Request) -> wire.Answer:
        """One entry of one leaf at a time."""
        answer = whole(request)
        if not isinstance(answer, Differences) or not isinstance(request, Compare):
            return answer
        leaf = next((at for at, ask in enumerate(request.asks) if not ask.prints), None)
        if leaf != 0 or len(answer.entries) < 2:
            return answer
        low, high = request.asks[0].bounds
        stamps = sorted(map(wire.stamp_of, answer.entries))
        inside = [stamp for stamp in stamps if low <= stamp < high]
        if len(inside) < 2:
            return answer
        entries = [one for one in answer.entries if wire.stamp_of(one) == inside[0]]
        return Differences(0, inside[1], [], b"", entries)

    theirs.answer = cut_short  # type: ignore[method-assign]
    report = sync(mine, theirs)
    assert mine.replica.fingerprint() == theirs.replica.fingerprint()
    assert report.round_trips > 50  # and not 5
