"""What a hostile peer may ask and answer: bounded work, BadMessage, an end."""

import random
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crdt import answers, wire
from crdt.entry import Record
from crdt.fault import Fault
from crdt.holding import (
    LEAF_MAX,
    REFUSED_FIRST_S,
    REFUSED_LAST_S,
    REFUSED_MAX,
    Holding,
    Refusals,
)
from crdt.ranges import DEPTH_MAX
from crdt.reconcile import lead
from crdt.timeline import END, START, cut_evenly, short
from crdt.wire import (
    Ask,
    Compare,
    Differences,
    Entries,
    Heads,
    HeadsFound,
    Hello,
    Known,
    Law,
    LawFound,
    Pull,
    Push,
    Range,
    Run,
    Space,
    Standing,
    Taken,
    Welcome,
)
from tests.sim.crdt_pairs import GENESIS, NOW_MS, Side, history, replica_of, sync, unsigned
from wire import codec
from wire.errors import BadMessage, NotFound

NONCE = b"a nonce!"
POOL = history(6000, 7)
ID = GENESIS.id
LAW = Holding(replica_of([])).law(NONCE)
Script = Callable[[wire.Request], wire.Answer]


def run(mine: Holding, script: Script, most: int = 5000) -> list[wire.Request]:
    """Lead a session whose answers are the script's; nothing is taken."""
    steps, asked = lead({ID: mine}, NONCE, lambda: NOW_MS), list[wire.Request]()
    answer: wire.Answer | None = None
    while len(asked) < most:
        try:
            effect = steps.send(answer)
        except StopIteration:
            return asked
        answer = None
        if isinstance(effect, wire.Request):
            asked.append(effect)
            answer = wire.decode_answer(codec.encode(script(effect)))
    raise AssertionError("the session does not end")


def differs(whole: Range) -> Welcome:
    return Welcome(NOW_MS, [Standing(ID[:8], LAW, whole)])


def holding(count: int = 100) -> Holding:
    return Holding(replica_of(POOL[:count]))


def after_hello(answer: wire.Answer, whole: Range | None = None) -> Script:
    def script(request: wire.Request) -> wire.Answer:
        return differs(whole or Range(0, 50)) if isinstance(request, Hello) else answer

    return script


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


# -- requests


@pytest.mark.parametrize(
    "request_",
    [
        Compare(ID, NONCE, [Ask([START, b"\x01"]), Ask([b"\x01", END])]),  # the oldest first
        Compare(ID, NONCE, [Ask([b"\x01", END]), Ask([START, b"\x02"])]),  # overlapping
        Compare(ID, NONCE, [Ask([START, END])] * 2),
        Compare(ID, NONCE, [Ask([END, START])]),
        Compare(ID, NONCE, [Ask([START, START])]),
        Compare(ID, NONCE, [Ask([START, b"\x01", END])]),
        Compare(ID, NONCE, [Ask([START, b"\x01", END], bytes(8))]),
        Compare(ID, NONCE, [Ask([START, END], bytes(8), bytes(8))]),
        Compare(ID, NONCE, [Ask([START, END], ids=bytes(9))]),
        Pull(ID, [Run(bytes(16), 0)] * 2),
        Pull(ID, [Run(b"\x01" * 16, 0), Run(bytes(16), 0)]),
        Law(ID, NONCE, b"", b"\xff" * 17, [Known(bytes(16), 1, bytes(8))] * 2),
        Law(ID, NONCE, b"\x05", b"\xff" * 17, [Known(bytes(16), 1, bytes(8))]),
        Law(ID, NONCE, b"\xff", b"", []),
        Law(ID, NONCE, b"", b"\xff", [], bytes(9)),
    ],
)
def test_a_request_that_is_out_of_order_is_refused(request_: wire.Request) -> None:
    with pytest.raises(BadMessage):
        wire.decode_request(codec.encode(request_))


def test_a_large_request_without_entries_is_refused() -> None:
    asks = [Ask([bytes([at, 1]), bytes([at, 2])], ids=bytes(2048)) for at in range(99, 0, -1)]
    with pytest.raises(BadMessage, match="without entries"):
        wire.decode_request(codec.encode(Compare(ID, NONCE, asks)))


def test_only_what_is_held_is_served() -> None:
    mine = {ID: holding()}
    far = Compare(ID, NONCE, [Ask([END + b"\x01", END + END])])
    assert answers.respond(mine, far, 5) == (Differences(1), [])
    unknown = Pull(ID, [Run(bytes(16), 0)])
    assert answers.respond(mine, unknown, 5) == (Entries(1, 0), [])
    stranger = Hello(NONCE, 0, [Space(bytes(8), bytes(8))] * 16)
    assert answers.respond(mine, stranger, 5) == (Welcome(5), [])
    same = Hello(NONCE, 0, [Space(ID[:8], bytes(8))] * 16)
    assert len(answers.welcome(mine, same, 5).differing) == 1
    with pytest.raises(NotFound):
        answers.respond(mine, Heads(bytes(32), b""), 5)


def test_ids_that_are_not_held_are_answered_once_each() -> None:
    request = Compare(ID, NONCE, [Ask([START, END], ids=bytes(8) * LEAF_MAX)])
    answer, _ = answers.respond({ID: holding(0)}, request, 5)
    assert answer == Differences(1, lacks=bytes(8))


def test_a_leaf_over_everything_costs_no_pass_of_short_ids() -> None:
    """One id for a large range is answered by fingerprints: names are made for few entries only."""
    request = Compare(ID, NONCE, [Ask([START, END], ids=bytes(8))])
    answer, records = answers.respond({ID: holding(6000)}, request, 5)
    assert isinstance(answer, Differences)
    assert [one.count for one in answer.ranges] == [6000]
    assert not records


def test_answers_fit_whatever_is_asked() -> None:
    mine = Side(replica_of(POOL))
    bounds = [START, *cut_evenly([one.stamp for one in POOL], 2048), END]
    pieces = [bounds[at : at + 65] for at in range(0, len(bounds) - 1, 64)]
    asks = [Ask(piece, bytes(8 * (len(piece) - 1))) for piece in reversed(pieces)]
    leaves = [Ask([low, high]) for low, high in pairwise(bounds)][:-513:-1]
    for request in (Compare(ID, NONCE, asks), Compare(ID, NONCE, leaves)):
        frame = codec.encode(mine.answer(wire.decode_request(codec.encode(request))))
        assert len(frame) <= wire.FRAME_MAX
        answer = wire.decode_answer(frame)
        assert isinstance(answer, Differences)
        assert answer.handled


def test_a_want_of_everything_is_cut_and_goes_on() -> None:
    mine, low, got = {ID: holding(6000)}, START, list[bytes]()
    while True:
        answer, records = answers.respond(mine, Compare(ID, NONCE, [Ask([low, END])]), 5)
        assert isinstance(answer, Differences)
        assert len(records) <= wire.ENTRIES_MAX
        assert sum(one.size for one in records) <= wire.ENTRIES_BUDGET
        got += [one.stamp for one in records]
        if answer.handled:
            break
        assert low < answer.cut < END
        low = answer.cut
    assert sorted(got) == [one.stamp for one in POOL]


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


def test_refusals_are_bounded_and_the_oldest_go() -> None:
    refusals = Refusals()
    for one in POOL[: REFUSED_MAX + 100]:
        refusals.note(one.stamp, 0.0)
    assert len(refusals.stamps) == REFUSED_MAX
    assert POOL[0].stamp not in refusals.stamps
    refusals.expire(REFUSED_FIRST_S)
    assert len(refusals.stamps) == 0
    assert len(refusals._waits) == REFUSED_MAX
    refusals.expire(REFUSED_FIRST_S + REFUSED_LAST_S)
    assert not refusals._waits


# -- decoders

SIGNED = [one.signed for one in POOL[:3]]
MESSAGES: list[wire.Request | wire.Answer] = [
    Hello(NONCE, NOW_MS, [Space(ID[:8], bytes(8))]),
    Hello(NONCE, NOW_MS, every=bytes(8)),
    Compare(
        ID, NONCE, [Ask([b"\x01", END], ids=bytes(16)), Ask([START, b"\x00", b"\x01"], bytes(16))]
    ),
    Law(ID, NONCE, b"", b"\xff" * 17, [Known(bytes(16), 1, bytes(8))], bytes(8)),
    Heads(ID, b""),
    Pull(ID, [Run(bytes(16), 0), Run(b"\x01" * 16, 5)]),
    Push(ID, SIGNED, [Fault(SIGNED[0], SIGNED[1])]),
    Welcome(
        NOW_MS, [Standing(ID[:8], LAW, Range(0, 2, [b"\x01"], bytes(16)))], [Space(ID[:8], LAW)]
    ),
    Differences(1, b"\x01", [Range(1, 5), Range(2, 6, [b"\x01"], bytes(16))], bytes(8), SIGNED),
    LawFound(b"\xff" * 17, [Fault(SIGNED[0], SIGNED[1])], [bytes(16)], bytes(8), SIGNED),
    HeadsFound([Run(bytes(16), 3)]),
    Entries(0, 5, SIGNED),
    Taken(3),
]


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(MESSAGES), st.randoms(use_true_random=False))
def test_mutated_messages_are_bad_messages_at_worst(
    message: wire.Request | wire.Answer, rng: random.Random
) -> None:
    frame = bytearray(codec.encode(message))
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(frame))
        match rng.randrange(4):
            case 0:
                frame[at] = rng.randrange(256)
            case 1:
                del frame[at : at + rng.randrange(1, 9)]
            case 2:
                frame[at:at] = rng.randbytes(rng.randrange(1, 9))
            case _:
                frame[at:at] = frame[at : at + rng.randrange(1, 64)]
        if not frame:
            return
    side = Side(replica_of(POOL[:50]))
    try:
        request = wire.decode_request(bytes(frame))
        if not isinstance(request, Push):
            side.answer(request)
    except (BadMessage, NotFound):
        pass
    try:
        answer = wire.decode_answer(bytes(frame))
        run(side.holding, lambda _: answer)
        run(side.holding, after_hello(answer))
        run(holding(0), after_hello(answer, Range(0, 5000)))
    except BadMessage:
        pass


@given(st.binary(max_size=300))
def test_any_bytes(frame: bytes) -> None:
    for decode in (wire.decode_request, wire.decode_answer):
        try:
            message = decode(frame)
        except BadMessage:
            continue
        assert decode(codec.encode(message)) == message


def test_a_glance_agrees_with_the_whole() -> None:
    one: Record = unsigned(3, 1, 77)
    seen = wire.glance(one.signed)
    assert (seen.chain, seen.seq, seen.kind) == (one.chain, one.seq, one.kind)
    assert wire.stamp_of(one.signed) == one.stamp
