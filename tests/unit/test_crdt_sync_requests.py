"""What a hostile peer may ask, and what any bytes decode to: bounded work, BadMessage at worst."""

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crdt import answers, wire
from crdt.entry import Record
from crdt.fault import Fault
from crdt.holding import LEAF_MAX, REFUSED_FIRST_S, REFUSED_LAST_S, REFUSED_MAX, Refusals
from crdt.timeline import END, START, cut_evenly
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
from tests.sim.crdt_pairs import NOW_MS, Side, replica_of, unsigned
from tests.unit.crdt_leading import ID, LAW, NONCE, POOL, after_hello, holding, run
from wire import codec
from wire.errors import BadMessage, NotFound


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
