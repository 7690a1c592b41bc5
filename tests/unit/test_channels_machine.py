"""Flooding: what is news, where it goes, what waits."""

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.channels.machine import QUEUE_BYTES, QUEUE_MAX, Flood, SendQueue
from protocols.channels.wire import (
    BATCH_BYTES,
    BATCH_MAX,
    MESSAGE_OVERHEAD,
    PAYLOAD_MAX,
    PEER_MAX,
    PUSH,
    TOPIC_MAX,
    Gossip,
    Push,
)
from wire import codec
from wire.errors import BadMessage
from wire.ids import PeerId

A, B, C = (PeerId(name) for name in "ABC")
decoder = msgspec.msgpack.Decoder(Push)


def gossip(number: int, data: bytes = b"", origin: PeerId = B) -> Gossip:
    return Gossip("topic", origin, number, data)


def test_a_message_is_news_once() -> None:
    flood = Flood(A)
    assert flood.is_news(gossip(1), now=0.0)
    assert not flood.is_news(gossip(1), now=1.0)
    assert flood.is_news(gossip(2), now=1.0)
    assert flood.is_news(gossip(1, origin=C), now=1.0)


def test_our_own_message_is_never_news() -> None:
    flood = Flood(A)
    flood.publish(gossip(1, origin=A), now=0.0)
    assert not flood.is_news(gossip(1, origin=A), now=0.0)
    assert not flood.is_news(gossip(2, origin=A), now=0.0)  # from before a restart


def test_the_memory_is_bounded_in_age_and_number() -> None:
    flood = Flood(A, seen_max=3, seen_age_s=10.0)
    assert all(flood.is_news(gossip(n), now=float(n)) for n in range(3))
    assert not flood.is_news(gossip(0), now=9.9)
    assert flood.is_news(gossip(3), now=9.9)  # pushes the oldest out
    assert flood.is_news(gossip(0), now=9.9)
    assert flood.is_news(gossip(3), now=20.0)  # too old to remember


def test_it_goes_to_all_but_who_sent_and_who_wrote_it() -> None:
    flood, everybody = Flood(A), [B, C, PeerId("D"), PeerId("E")]
    assert flood.targets(gossip(1, origin=A), None, everybody) == everybody
    assert flood.targets(gossip(1, origin=B), C, everybody) == everybody[2:]
    assert flood.targets(gossip(1, origin=B), B, everybody) == everybody[1:]


def test_a_full_queue_drops_its_oldest() -> None:
    queue = SendQueue()
    for number in range(QUEUE_MAX + 3):
        queue.put(gossip(number))
    assert (len(queue), queue.dropped) == (QUEUE_MAX, 3)
    assert queue.take_batch()[0].number == 3
    big = SendQueue()
    for number in range(100):
        big.put(gossip(number, bytes(PAYLOAD_MAX)))
    assert len(big) == QUEUE_BYTES // PAYLOAD_MAX
    assert big.dropped == 100 - len(big)


@given(st.lists(st.integers(0, PAYLOAD_MAX), min_size=1, max_size=100))
def test_batches_keep_order_and_fit_into_a_frame(sizes: list[int]) -> None:
    queue = SendQueue()
    for number, size in enumerate(sizes):
        queue.put(gossip(number, bytes(size)))
    numbers = list[int]()
    while queue:
        batch = queue.take_batch()
        assert 1 <= len(batch) <= BATCH_MAX
        assert len(codec.encode(Push(batch))) <= PUSH.frame_max
        numbers += [message.number for message in batch]
    assert numbers == list(range(queue.dropped, len(sizes)))


def test_the_largest_message_keeps_to_the_overhead_we_count() -> None:
    largest = Gossip("t" * TOPIC_MAX, "P" * PEER_MAX, (1 << 63) - 1, bytes(PAYLOAD_MAX))
    assert len(codec.encode(largest)) <= PAYLOAD_MAX + MESSAGE_OVERHEAD
    assert PUSH.frame_max >= BATCH_BYTES + PAYLOAD_MAX


@pytest.mark.parametrize(
    "message",
    [
        Gossip("", "B", 1, b""),
        Gossip("Topic\n", "B", 1, b""),
        Gossip("t" * 65, "B", 1, b""),
        Gossip("t", "", 1, b""),
        Gossip("t", "B", -1, b""),
        Gossip("t", "B", 1, bytes(PAYLOAD_MAX + 1)),
    ],
)
def test_messages_over_a_bound_are_refused(message: Gossip) -> None:
    with pytest.raises(BadMessage):
        codec.decode(codec.encode(Push([message])), decoder, PUSH.frame_max)


def test_a_batch_is_neither_empty_nor_endless() -> None:
    for count in (0, BATCH_MAX + 1):
        with pytest.raises(BadMessage):
            codec.decode(codec.encode(Push([gossip(1)] * count)), decoder, PUSH.frame_max)


def test_an_independent_reader_understands_a_push() -> None:
    assert msgpack.unpackb(codec.encode(Push([gossip(7, b"x")]))) == [[["topic", "B", 7, b"x"]]]


@given(st.binary(max_size=300))
def test_any_bytes_are_a_push_or_bad(frame: bytes) -> None:
    try:
        push = codec.decode(frame, decoder, PUSH.frame_max)
    except BadMessage:
        return
    assert codec.decode(codec.encode(push), decoder, PUSH.frame_max) == push
