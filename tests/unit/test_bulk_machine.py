"""Which piece goes where and when: the books of both sides, without I/O."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.bulk.machine import (
    BURST_S,
    Inbound,
    Outbound,
    Piece,
    Pieces,
    Turns,
    piece_bytes_for,
)
from protocols.bulk.wire import PIECE_MAX, PIECE_MIN, RANGES_MAX, SIZE_MAX
from wire.errors import BadMessage

KB = 1000


def drain(outbound: Outbound, lane: int = 1, now: float = 0.0) -> list[Piece]:
    pieces = list[Piece]()
    while (piece := outbound.next(lane, now)) is not None:
        pieces.append(piece)
    return pieces


def deliver(inbound: Inbound, piece: Piece) -> bool:
    claimed = inbound.claim(piece.offset, piece.length)
    if claimed is None:
        return False
    inbound.kept(claimed)
    return True


def test_a_transfer_is_cut_into_pieces_that_cover_it_once() -> None:
    pieces = drain(Outbound(2500, 1000))
    assert [(p.index, p.offset, p.length) for p in pieces] == [
        (0, 0, 1000),
        (1, 1000, 1000),
        (2, 2000, 500),
    ]


def test_nothing_is_done_at_once() -> None:
    assert Outbound(0).is_done
    assert Inbound(0).is_complete
    assert Outbound(0).next(1, 0.0) is None


def test_what_was_on_a_lost_lane_goes_again_and_only_that() -> None:
    outbound = Outbound(6 * KB, KB)
    on_one = [outbound.next(1, 0.0) for _ in range(2)]
    on_two = [outbound.next(2, 0.0) for _ in range(2)]
    outbound.arrived([(1, 2)])
    outbound.lane_lost(1)
    assert on_one[0] is not None
    assert drain(outbound, 2) == [on_one[0], *drain(Outbound(6 * KB, KB))[4:]]
    assert all(on_two)
    outbound.arrived([(0, 1), (2, 6)])
    assert outbound.is_done


def test_a_piece_whose_report_comes_after_its_lane_was_lost_does_not_go_again() -> None:
    outbound = Outbound(2 * KB, KB)
    drain(outbound, 1)
    outbound.lane_lost(1)
    assert outbound.arrived([(0, 2)]) == 2 * KB
    assert outbound.ready_at() == math.inf
    assert drain(outbound, 2) == []


@pytest.mark.parametrize("ranges", [[(0, 3)], [(2, 1)], [(1, 1)], [(0, 1), (1, 9)]])
def test_a_peer_cannot_have_what_never_went(ranges: list[tuple[int, int]]) -> None:
    outbound = Outbound(5 * KB, KB)
    outbound.next(1, 0.0)
    outbound.next(1, 0.0)
    with pytest.raises(BadMessage):
        outbound.arrived(ranges)


@pytest.mark.parametrize("again", [[(0, 2)], [(2, 3), (2, 3)], [(2, 4), (3, 4)]])
def test_a_peer_cannot_report_a_piece_twice(again: list[tuple[int, int]]) -> None:
    outbound = Outbound(5 * KB, KB)
    drain(outbound)
    assert outbound.arrived([(0, 2)]) == 2 * KB
    with pytest.raises(BadMessage):
        outbound.arrived(again)


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (0, 999),
        (0, 1001),
        (1, 1000),
        (2000, 1000),
        (2500, 1),
        (3000, 1000),
        (3000, -500),
        (2**60, 1),
    ],
)
def test_bytes_that_are_no_piece_of_the_transfer_are_refused(offset: int, length: int) -> None:
    with pytest.raises(BadMessage):
        Inbound(2500, 1000).claim(offset, length)


def test_what_is_here_is_never_written_again() -> None:
    inbound = Inbound(KB, KB)
    piece = inbound.claim(0, KB)
    assert piece is not None
    assert inbound.is_arriving(0, KB)
    inbound.spoilt(piece)
    assert not inbound.is_arriving(0, KB)
    assert deliver(inbound, piece)
    assert inbound.claim(0, KB) is None
    assert inbound.is_complete


def test_news_come_once_as_ranges_and_in_bounded_reports() -> None:
    inbound = Inbound(4 * RANGES_MAX, 1)
    for index in range(0, 4 * RANGES_MAX, 2):  # every other piece: no two are neighbours
        deliver(inbound, Piece(index, index, 1))
    first, second = inbound.news(), inbound.news()
    assert len(first) == len(second) == RANGES_MAX
    assert inbound.news() == []
    assert [a for a, _ in first + second] == [*range(0, 4 * RANGES_MAX, 2)]
    for index in (5, 3, 7):
        deliver(inbound, Piece(index, index, 1))
    assert inbound.news() == [(3, 4), (5, 6), (7, 8)]


def test_transfers_take_turns_a_piece_each() -> None:
    turns = Turns()
    for transfer in (1, 2, 3):
        turns.add(transfer, Outbound(4 * KB, KB))
    order = list[int]()
    while isinstance(found := turns.next(1, 0.0), tuple):
        order.append(found[0])
    assert found == math.inf
    assert len(order) == 12
    for start in range(0, 12, 3):
        assert sorted(order[start : start + 3]) == [1, 2, 3]


def test_a_new_transfer_comes_first_and_one_that_is_over_sends_no_more() -> None:
    turns = Turns()
    for transfer in (1, 2):
        turns.add(transfer, Outbound(3 * KB, KB))
    assert turns.next(7, 0.0) == (2, Piece(0, 0, KB))
    turns.remove(2)
    turns.remove(2)
    for lane, index in ((7, 0), (8, 1), (8, 2)):
        assert turns.next(lane, 0.0) == (1, Piece(index, index * KB, KB))
    turns.lane_lost(7)
    turns.lane_lost(7)
    assert turns.next(8, 0.0) == (1, Piece(0, 0, KB))
    assert turns.next(8, 0.0) == math.inf


def test_a_capped_transfer_does_not_hold_the_others_up() -> None:
    turns, capped, free = Turns(), Outbound(100 * KB, KB, rate_bytes_s=KB), Outbound(9 * KB, KB)
    turns.add(1, capped)
    turns.add(2, free)
    sent = [turns.next(1, 0.0) for _ in range(11)]
    assert [entry[0] for entry in sent if isinstance(entry, tuple)].count(2) == 9
    wait_until = sent[-1]
    assert isinstance(wait_until, float)
    assert 0 < wait_until <= 1.0


@pytest.mark.parametrize("rate", [1e5, 1e6, 3.3e7, 1e9])
def test_the_rate_cap_is_kept_within_a_tenth_whenever_it_is_asked(rate: float) -> None:
    rng, now, seconds = random.Random(1), 0.0, 10.0
    outbound = Outbound(int(rate * seconds), piece_bytes_for(0, rate), rate_bytes_s=rate)
    sent_bytes = 0
    while outbound.ready_at() != math.inf:
        now = max(now, outbound.ready_at()) + rng.random() * 0.01  # sleepers wake late
        while (piece := outbound.next(1, now)) is not None:
            assert sent_bytes <= rate * (now + BURST_S) * 1.001
            sent_bytes += piece.length
    assert sent_bytes == int(rate * seconds)
    assert seconds * 0.9 <= now <= seconds * 1.1


def test_pieces_of_slow_transfers_are_small() -> None:
    assert piece_bytes_for(10**9, None) == PIECE_MAX
    assert piece_bytes_for(10**9, 1e3) == PIECE_MIN
    assert piece_bytes_for(10**9, 1e6) == 100_000
    assert piece_bytes_for(10**9, 1e10) == PIECE_MAX
    assert piece_bytes_for(SIZE_MAX, 1e3) == PIECE_MAX  # or it had more pieces than one may have


ACTIONS = st.tuples(st.sampled_from(["send", "take", "report", "hear", "cut"]), st.integers(0, 1))


@given(actions=st.lists(ACTIONS, max_size=80), count=st.integers(0, 12), odd=st.integers(0, 6))
def test_every_byte_arrives_once_whatever_lanes_are_lost_and_reports_are_late(
    actions: list[tuple[str, int]], count: int, odd: int
) -> None:
    """Lanes deliver in order and are cut anywhere; in the end, everything is let through."""
    size = max(0, count * 7 - odd)
    outbound, inbound = Outbound(size, 7), Inbound(size, 7)
    lanes: list[tuple[int, list[Piece]]] = [(1, []), (2, [])]
    reports, written = list[list[tuple[int, int]]](), bytearray(size)
    ending = [("send", 0), ("take", 0), ("take", 1), ("report", 0), ("hear", 0)] * 40
    for action, at in actions + ending:
        number, pieces = lanes[at]
        if action == "send" and (sent := outbound.next(number, 0.0)) is not None:
            pieces.append(sent)
        elif action == "take" and pieces:
            piece = pieces.pop(0)
            if deliver(inbound, piece):
                for byte in range(piece.offset, piece.offset + piece.length):
                    written[byte] += 1
        elif action == "report" and (ranges := inbound.news()):
            reports.append(ranges)
        elif action == "hear" and reports:
            outbound.arrived(reports.pop(0))
        elif action == "cut":
            outbound.lane_lost(number)
            lanes[at] = (number + 2, [])
    assert outbound.is_done
    assert inbound.is_complete
    assert written == b"\1" * size


def test_pieces_cover_any_size() -> None:
    pieces = Pieces(10**12, PIECE_MAX)
    last = pieces.piece(pieces.count - 1)
    assert last.offset + last.length == 10**12
    assert pieces.at(last.offset, last.length) == last


def test_no_piece_crosses_the_end_of_a_head() -> None:
    pieces = drain(Outbound(4500, 1000, head_bytes=1500))
    assert [(p.offset, p.length) for p in pieces] == [
        (0, 1000),
        (1000, 500),
        (1500, 1000),
        (2500, 1000),
        (3500, 1000),
    ]
    inbound = Inbound(4500, 1000, head_bytes=1500)
    for piece in pieces:
        assert deliver(inbound, piece)
    assert inbound.is_complete
    with pytest.raises(BadMessage):
        inbound.claim(1000, 1000)


@given(size=st.integers(0, 9000), head=st.integers(0, 9000), piece=st.integers(1, 1500))
def test_pieces_cover_a_transfer_with_a_head_once(size: int, head: int, piece: int) -> None:
    pieces = Pieces(size, piece, head_bytes=min(head, size))
    at = 0
    for index in range(pieces.count):
        found = pieces.piece(index)
        assert found.offset == at
        assert 0 < found.length <= piece
        assert pieces.at(found.offset, found.length) == found
        at += found.length
        assert pieces.front_bytes(index + 1) == at
    assert at == size


def test_what_is_not_there_yet_does_not_go() -> None:
    outbound = Outbound(2500, 1000, ready_bytes=0)
    assert outbound.ready_at() == math.inf
    outbound.grow(1999)
    assert [piece.offset for piece in drain(outbound)] == [0]
    outbound.grow(2500)
    assert [piece.offset for piece in drain(outbound)] == [1000, 2000]


def test_the_front_of_a_transfer_is_what_has_no_gap() -> None:
    inbound = Inbound(3 * KB + 5, KB)
    for offset, front in ((KB, 0), (0, 2 * KB), (3 * KB, 2 * KB), (2 * KB, 3 * KB + 5)):
        assert deliver(inbound, Piece(offset // KB, offset, min(KB, 3 * KB + 5 - offset)))
        assert inbound.prefix_bytes == front
