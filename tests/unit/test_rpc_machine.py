"""One side of a call without I/O: pieces, windows, turns, and what hostile bytes come to."""

from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.rpc import wire
from protocols.rpc.line import Outbox
from protocols.rpc.machine import (
    WINDOW_MAX_BYTES,
    Budget,
    Incoming,
    MessageTooBig,
    Outgoing,
    check_size,
)
from protocols.rpc.wire import PIECE_BYTES, PIECE_COST, WINDOW_BYTES
from wire import codec, frames
from wire.errors import BadMessage, Busy

MIB = 1024 * 1024


def piece(body: bytes, *, is_last: bool = True) -> wire.Part | wire.Data:
    return (wire.Data if is_last else wire.Part)(0, memoryview(body))


def carry(outgoing: Outgoing, incoming: Incoming) -> int:
    """Let all that may go arrive; returns how many frames did."""
    parser, count = frames.FrameParser(wire.FRAME_MAX), 0
    while outgoing.is_ready:
        for frame in parser.feed(outgoing.next_frame()):
            message = codec.decode(frame, wire.caller_decoder, wire.FRAME_MAX)
            assert isinstance(message, wire.Part | wire.Data | wire.Reply)
            incoming.put(message)
            outgoing.credit(incoming.grant() if not incoming.has_message else 0)
            count += 1
    return count


sizes = st.one_of(
    st.integers(0, 300), st.integers(PIECE_BYTES - 2, PIECE_BYTES + 2), st.integers(0, 3 * MIB)
)


@given(st.lists(sizes, max_size=12), st.randoms(use_true_random=False))
def test_messages_of_any_size_arrive_in_order_within_the_window(
    lengths: list[int], random: Random
) -> None:
    frame_max, budget = 3 * MIB, Budget(64 * MIB)
    outgoing, incoming = Outgoing(0, frame_max, Budget(0)), Incoming(frame_max, budget)
    messages = [bytes([number]) * length for number, length in enumerate(lengths)]
    waiting, taken = list(messages), list[bytes]()
    for _ in range(10_000):
        if len(taken) == len(messages):
            break
        if waiting and outgoing.is_empty:
            outgoing.put(waiting.pop(0))
        carry(outgoing, incoming)
        assert incoming.held_bytes <= WINDOW_MAX_BYTES + frame_max + frame_max // 100
        if incoming.has_message and (random.random() < 0.5 or not waiting):
            taken.append(bytes(incoming.take()))
            outgoing.credit(incoming.grant())
    assert taken == messages
    incoming.release()
    assert budget.left_bytes == 64 * MIB


def test_an_unread_message_stops_the_sender_at_the_window() -> None:
    outgoing, incoming = Outgoing(0, MIB, Budget(0)), Incoming(MIB, Budget(0))
    sent = 0
    while outgoing.is_empty:
        outgoing.put(bytes(10_000))
        sent += carry(outgoing, incoming)
    assert sent == WINDOW_BYTES // (10_000 + PIECE_COST)
    while incoming.has_message:
        incoming.take()
        outgoing.credit(incoming.grant())
    assert carry(outgoing, incoming) == 1


def test_what_waits_unread_never_exceeds_the_window_while_it_is_read_one_by_one() -> None:
    outgoing, incoming = Outgoing(0, MIB, Budget(0)), Incoming(MIB, Budget(0))
    grants = 0
    for _ in range(200):
        while outgoing.is_empty:
            outgoing.put(bytes(10_000))
            carry(outgoing, incoming)
        assert incoming.held_bytes <= WINDOW_BYTES
        incoming.take()
        granted = incoming.grant()
        grants += granted > 0
        outgoing.credit(granted)
        carry(outgoing, incoming)
    assert 0 < grants <= 200 * (10_000 + PIECE_COST) // (WINDOW_BYTES // 2) + 1


def test_a_small_piece_is_copied_out_of_the_record_it_came_in() -> None:
    incoming = Incoming(MIB, Budget(0))
    incoming.put(piece(b"small"))
    incoming.put(piece(bytes(PIECE_BYTES)))
    assert [type(incoming.take()) for _ in range(2)] == [bytes, memoryview]


def test_empty_messages_cost_too() -> None:
    incoming = Incoming(MIB, Budget(0))
    for _ in range(WINDOW_BYTES // PIECE_COST):
        incoming.put(piece(b""))
    with pytest.raises(BadMessage, match="window"):
        incoming.put(piece(b""))


def test_a_reader_that_keeps_up_gets_a_larger_window() -> None:
    budget = Budget(64 * MIB)
    outgoing, incoming = Outgoing(0, MIB, Budget(0)), Incoming(MIB, budget)
    for _ in range(100):
        outgoing.put(bytes(100_000))
        carry(outgoing, incoming)
        incoming.take()
        outgoing.credit(incoming.grant())
    for _ in range(100):
        outgoing.put(bytes(100_000))
    assert carry(outgoing, incoming) * PIECE_BYTES > WINDOW_MAX_BYTES // 2
    assert 0 < budget.left_bytes < 64 * MIB


def test_a_message_of_a_chunk_arrives_without_waiting_for_credit() -> None:
    budget = Budget(2 * MIB)
    outgoing, incoming = Outgoing(0, MIB + 4096, Budget(0)), Incoming(MIB + 4096, budget)
    outgoing.credit(incoming.widen())
    outgoing.put(bytes(MIB + 4096))
    while outgoing.is_ready:
        outgoing.next_frame()
    assert outgoing.is_empty
    assert Incoming(MIB, budget).widen() == 0  # nothing is left: it waits its turns
    assert Incoming(64 * 1024, Budget(MIB)).widen() == 0  # fits the first window as it is
    incoming.release()
    assert budget.left_bytes == 2 * MIB


def test_large_messages_share_a_budget() -> None:
    budget = Budget(2 * MIB)
    first, second = Incoming(8 * MIB, budget), Incoming(8 * MIB, budget)
    with pytest.raises(Busy):  # noqa: PT012
        while True:
            for incoming in (first, second):
                incoming.put(piece(bytes(PIECE_BYTES), is_last=False))
                incoming.grant()
    first.release()
    second.release()
    assert budget.left_bytes == 2 * MIB


def test_a_message_over_the_limit_of_its_method_is_bad() -> None:
    incoming = Incoming(100_000, Budget(MIB))
    incoming.put(piece(bytes(60_000), is_last=False))
    with pytest.raises(BadMessage, match="over the limit"):
        incoming.put(piece(bytes(60_000)))
    check_size(bytes(100_000), 100_000)
    with pytest.raises(MessageTooBig):
        check_size(bytes(100_001), 100_000)


def test_nothing_comes_after_the_end() -> None:
    incoming = Incoming(MIB, Budget(MIB))
    incoming.put(piece(b"x"))
    incoming.end()
    for late in (incoming.end, lambda: incoming.put(piece(b"y"))):
        with pytest.raises(BadMessage):
            late()
    half = Incoming(MIB, Budget(MIB))
    half.put(piece(b"x", is_last=False))
    with pytest.raises(BadMessage, match="middle"):
        half.end()


def test_small_frames_go_first_and_large_messages_take_turns() -> None:
    outbox = Outbox()
    one, two = Outgoing(1, MIB, Budget(0)), Outgoing(2, MIB, Budget(0))
    for outgoing in (one, two):
        outgoing.put(bytes(3 * PIECE_BYTES))
        outbox.ready(outgoing)
    assert next_call(outbox) is one
    outbox.put(b"small")
    assert [next_call(outbox) for _ in range(7)] == [None, two, one, two, one, two, None]
    assert not outbox


def test_a_call_without_credit_waits_and_comes_back() -> None:
    outbox, outgoing = Outbox(), Outgoing(1, MIB, Budget(0))
    outgoing.put(bytes(8 * PIECE_BYTES))
    outbox.ready(outgoing)
    count = 0
    while next_call(outbox):
        count += 1
    assert count == WINDOW_BYTES // (PIECE_BYTES + PIECE_COST)
    outgoing.credit(PIECE_BYTES + PIECE_COST)
    outbox.ready(outgoing)
    assert next_call(outbox) is outgoing
    assert next_call(outbox) is None


def test_a_dropped_call_has_no_turn() -> None:
    outbox, outgoing = Outbox(), Outgoing(1, MIB, Budget(0))
    outgoing.put(bytes(3 * PIECE_BYTES))
    outbox.ready(outgoing)
    outbox.drop(outgoing)
    outbox.drop(outgoing)
    assert not outbox


def test_what_waits_is_counted_until_it_went_or_is_dropped() -> None:
    waiting = Budget(MIB)
    outgoing = Outgoing(1, MIB, waiting)
    outgoing.put(bytes(8 * PIECE_BYTES))
    assert waiting.left_bytes == MIB - 8 * PIECE_BYTES
    outgoing.next_frame()
    assert waiting.left_bytes == MIB - 7 * PIECE_BYTES
    outgoing.drop()
    assert waiting.left_bytes == MIB


def next_call(outbox: Outbox) -> Outgoing | None:
    found = outbox.next_frame()
    return found[1] if found else None


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_bad(frame: bytes) -> None:
    decoders: list[msgspec.msgpack.Decoder[wire.ToServer | wire.ToCaller]] = [
        msgspec.msgpack.Decoder(wire.ToServer),
        msgspec.msgpack.Decoder(wire.ToCaller),
    ]
    for decoder in decoders:
        try:
            message = codec.decode(frame, decoder, wire.FRAME_MAX)
        except BadMessage:
            continue
        assert codec.decode(codec.encode(message), decoder, wire.FRAME_MAX) == message


def test_packed_pieces_are_what_the_codec_reads() -> None:
    for size in (0, 1, 200, 16_000, PIECE_BYTES):
        body = bytes(size)
        (frame,) = frames.FrameParser(wire.FRAME_MAX).feed(wire.pack_ask(7, "m", 9, b"k", body))
        message = codec.decode(frame, wire.server_decoder, wire.FRAME_MAX)
        assert message == wire.Ask(7, "m", 9, b"k", memoryview(body))
