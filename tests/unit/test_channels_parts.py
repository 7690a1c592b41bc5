"""The pure parts of channels: signing, policies, replays, history, queues."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.validators import signature_validator

from protocols.channels import policy, reference, signing, wire
from protocols.channels.channel import RATE_WINDOW_S, Meter
from protocols.channels.history import History, Keep, Kept
from protocols.channels.policy import AuthorRates, Bucket, Limits, Policy
from protocols.channels.reference import MAGIC, Reference
from protocols.channels.replay import AUTHORS_MAX, WINDOW_S, Replays, age_fits
from protocols.channels.send_queue import (
    BATCH_BYTES,
    CONTROL_BYTES,
    PAYLOAD_BYTES,
    PAYLOADS_MAX,
    SendQueue,
)
from protocols.channels.wire import FRAME_MAX, MESSAGES_MAX, Message
from wire.errors import BadMessage, UsageError
from wire.frames import FrameParser
from wire.ids import PeerId, Signer

SEED = bytes(range(32))
ANN = Signer(SEED)
AUTHOR = wire.author_of(ANN.peer)
S = 1_000_000_000  # nanoseconds
NOW_NS = 1_800_000_000 * S


def sealed(data: bytes = b"hello", number: int = 7, topic: str = "news") -> Message:
    return signing.seal(ANN, AUTHOR, topic, data, number)


# Signing.


def test_what_we_sign_is_what_libp2p_checks() -> None:
    theirs = rpc_pb2.Message()
    theirs.ParseFromString(sealed().raw)
    assert (theirs.data, theirs.topicIDs[:], theirs.seqno) == (b"hello", ["news"], bytes(7) + b"\7")
    assert signature_validator(theirs)
    theirs.data = b"other"
    assert not signature_validator(theirs)


def test_what_libp2p_signs_passes_here_with_its_key_field() -> None:
    keys = create_new_key_pair(SEED)
    theirs = rpc_pb2.Message(from_id=AUTHOR, data=b"hi", topicIDs=["news"], seqno=bytes(8))
    theirs.signature = keys.private_key.sign(b"libp2p-pubsub:" + theirs.SerializeToString())
    theirs.key = keys.public_key.serialize()
    rpc = rpc_pb2.RPC(publish=[theirs])
    message = wire.decode(rpc.SerializeToString()).messages[0]
    author = signing.check_form(message)
    assert author.peer == ANN.peer
    assert signing.is_signed(message, author)


@pytest.mark.parametrize("field", ["data", "topic", "seqno", "signature"])
def test_a_changed_message_is_not_signed(field: str) -> None:
    whole = sealed()
    message = wire.message(
        author=whole.author,
        seqno=bytes(8) if field == "seqno" else whole.seqno,
        topic="olds" if field == "topic" else whole.topic,
        data=b"bye" if field == "data" else whole.data,
        signature=bytes(64) if field == "signature" else whole.signature,
    )
    assert not signing.is_signed(message, signing.check_form(message))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("author", b""),
        ("author", b"\x12\x20" + bytes(32)),  # a hashed key (RSA): nothing to check with
        ("seqno", b""),
        ("seqno", bytes(9)),
        ("signature", b""),
        ("signature", bytes(65)),
        ("key", b"\x08\x01\x12\x20" + bytes(32)),  # somebody else's
    ],
)
def test_malformed_fields_are_refused(field: str, value: bytes) -> None:
    whole = sealed()
    fields = {
        "author": whole.author,
        "seqno": whole.seqno,
        "signature": whole.signature,
        field: value,
    }
    message = wire.message(topic="news", data=b"hello", **fields)
    with pytest.raises(BadMessage):
        signing.check_form(message)


# Policy.


def test_a_topic_under_own_is_its_peers() -> None:
    mine, other = f"own/{ANN.peer}/diary", Signer(bytes(32)).peer
    assert policy.may_write(mine, ANN.peer)
    assert not policy.may_write(mine, other)
    assert policy.may_write("news", other)
    with pytest.raises(UsageError, match="only"):
        policy.check_writer(mine, other)


@pytest.mark.parametrize("topic", ["", "two words", "ü", "x" * 129, "a\n", "own/bob/diary"])
def test_what_is_no_topic(topic: str) -> None:
    with pytest.raises(UsageError):
        policy.check_topic(topic)


def test_the_daemons_topics_are_not_the_users() -> None:
    policy.check_topic("shoal/crdt")
    with pytest.raises(UsageError, match="belong to the daemon"):
        policy.check_user_topic("shoal/crdt")


def test_an_author_over_its_rate_waits_for_the_next_tokens() -> None:
    rates = AuthorRates(Limits(messages_s=2, messages_burst=3, bytes_s=1e6, bytes_burst=1e6))
    assert [rates.allow(ANN.peer, 1, now=10.0) for _ in range(4)] == [True, True, True, False]
    assert rates.allow(PeerId("other"), 1, now=10.0)
    assert [rates.allow(ANN.peer, 1, now=10.5) for _ in range(2)] == [True, False]


def test_an_author_that_says_much_at_once_waits_too() -> None:
    rates = AuthorRates(Limits(bytes_s=100, bytes_burst=1000))
    assert [rates.allow(ANN.peer, 600, now=0.0) for _ in range(2)] == [True, False]
    assert rates.allow(ANN.peer, 600, now=2.0)


def test_a_flood_of_authors_makes_only_the_longest_silent_one_new() -> None:
    rates = AuthorRates(Limits(messages_s=1e-9, messages_burst=2))
    assert rates.allow(ANN.peer, 1, now=0.0)
    for number in range(policy.AUTHORS_MAX - 1):
        rates.allow(PeerId(f"p{number}"), 1, now=0.0)
    assert rates.allow(ANN.peer, 1, now=0.0)
    rates.allow(PeerId("p0"), 1, now=0.0)
    for number in range(2):
        rates.allow(PeerId(f"q{number}"), 1, now=0.0)
    assert not rates.allow(ANN.peer, 1, now=0.0)
    assert not rates.allow(PeerId("p0"), 1, now=0.0)
    assert [rates.allow(PeerId("p1"), 1, now=0.0) for _ in range(3)] == [True, True, False]


def test_a_list_of_writers_is_all_that_a_subscriber_hears() -> None:
    other = Signer(bytes(32)).peer
    assert Policy().accepts(other)
    assert [Policy(frozenset({ANN.peer})).accepts(who) for who in (ANN.peer, other)] == [
        True,
        False,
    ]


def test_a_borrowed_bucket_says_how_long_to_wait() -> None:
    bucket = Bucket.full(rate_s=100, burst=50)
    assert bucket.borrow(50, now=1.0) == 0
    assert bucket.borrow(25, now=1.0) == 0.25


# Replays.


def test_a_number_counts_once() -> None:
    replays = Replays()
    assert replays.is_fresh(AUTHOR, NOW_NS, NOW_NS)
    replays.remember(AUTHOR, NOW_NS, NOW_NS)
    assert not replays.is_fresh(AUTHOR, NOW_NS, NOW_NS + S)
    assert replays.is_fresh(AUTHOR, NOW_NS + 1, NOW_NS + S)
    assert replays.is_fresh(AUTHOR, NOW_NS - 1, NOW_NS + S)  # it was overtaken on the way


def test_a_time_that_is_long_past_or_to_come_is_old_even_after_a_restart() -> None:
    replays = Replays()
    for apart_s in (-WINDOW_S - 1, WINDOW_S + 1):
        assert not replays.is_fresh(AUTHOR, NOW_NS + int(apart_s * S), NOW_NS)
    assert replays.is_fresh(AUTHOR, NOW_NS - int((WINDOW_S - 1) * S), NOW_NS)


def test_random_numbers_are_judged_by_memory_alone() -> None:
    replays = Replays()
    replays.remember(AUTHOR, 1 << 63, NOW_NS)
    assert not replays.is_fresh(AUTHOR, 1 << 63, NOW_NS)
    assert replays.is_fresh(AUTHOR, NOW_NS - 3600 * S, NOW_NS)  # random, and happens to be a time


def test_what_is_forgotten_for_want_of_room_does_not_pass_again() -> None:
    replays = Replays(remembered=10)
    for number in range(20):
        replays.remember(AUTHOR, NOW_NS + number, NOW_NS)
    fresh = [replays.is_fresh(AUTHOR, NOW_NS + number, NOW_NS) for number in range(21)]
    assert fresh == [False] * 20 + [True]


def test_what_was_forgotten_never_passes_although_a_later_one_was_older() -> None:
    replays = Replays(remembered=1)
    for number in (5, 3, 9):
        replays.remember(AUTHOR, NOW_NS + number, NOW_NS)
    assert not replays.is_fresh(AUTHOR, NOW_NS + 5, NOW_NS)


def test_memory_is_kept_for_as_long_as_a_number_passes_the_window() -> None:
    replays, ahead = Replays(), NOW_NS + int((WINDOW_S - 1) * S)
    replays.remember(AUTHOR, ahead, NOW_NS)
    replays.remember(AUTHOR, 1 << 63, NOW_NS)
    later_ns = NOW_NS + int((2 * WINDOW_S - 2) * S)
    replays.remember(b"other", later_ns, later_ns)
    assert not replays.is_fresh(AUTHOR, ahead, later_ns)
    later_ns += 4 * S
    replays.remember(b"other", later_ns, later_ns)
    assert replays.is_fresh(AUTHOR, 1 << 63, later_ns)  # only the memory is bounded in time


def test_a_small_number_is_no_time() -> None:
    assert Replays().is_fresh(AUTHOR, 7, NOW_NS)


def test_of_too_many_authors_the_longest_silent_are_forgotten() -> None:
    replays, hour_ago = Replays(), NOW_NS - 3600 * S
    replays.remember(AUTHOR, 1 << 63, NOW_NS)
    for number in range(AUTHORS_MAX - 1):
        replays.remember(b"%d" % number, 1 << 63, NOW_NS)
    replays.remember(AUTHOR, (1 << 63) + 1, NOW_NS)
    replays.remember(b"one more", 1 << 63, NOW_NS)
    assert replays.is_fresh(AUTHOR, hour_ago, NOW_NS)
    assert replays.is_fresh(b"1", hour_ago, NOW_NS)
    assert not replays.is_fresh(b"0", hour_ago, NOW_NS)


def test_an_age_must_fit_a_number_that_is_a_time() -> None:
    sent_ns = NOW_NS - 3600 * S
    assert age_fits(sent_ns, 3_600_000, NOW_NS)
    assert not age_fits(sent_ns, 1000, NOW_NS)
    assert age_fits(1 << 63, 1000, NOW_NS)


# History.


def kept(number: int, at: float, size_bytes: int = 1) -> Kept:
    return Kept(b"%d" % number, ANN.peer, sealed(bytes(size_bytes), number), at, round(at * S))


def names(found: list[Kept]) -> list[bytes]:
    return [each.name for each in found]


def test_the_past_is_bounded_in_number_bytes_and_age() -> None:
    history = History(Keep(count=3, size_bytes=100, age_s=60))
    for number in range(5):
        history.add(kept(number, at=float(number)))
    assert names(history.since(5.0, age_s=60, last=10)) == [b"2", b"3", b"4"]
    assert names(history.since(5.0, age_s=60, last=4)) == [b"2", b"3", b"4"]
    assert names(history.since(5.0, age_s=60, last=2)) == [b"3", b"4"]
    assert names(history.since(5.0, age_s=1.5, last=10)) == [b"4"]
    history.add(kept(5, at=5.0, size_bytes=99))
    assert names(history.since(5.0, age_s=60, last=10)) == [b"4", b"5"]
    assert history.since(100.0, age_s=1000, last=10) == []


def test_what_comes_from_others_takes_its_place_in_time_once() -> None:
    history = History(Keep())
    history.add(kept(3, at=30.0))
    history.extend_back([kept(2, at=20.0), kept(1, at=10.0), kept(3, at=5.0)], now=40.0)
    assert names(history.since(40.0, age_s=600, last=10)) == [b"1", b"2", b"3"]
    assert b"2" in history


def test_what_is_here_already_takes_no_room() -> None:
    history = History(Keep(size_bytes=10))
    for _ in range(3):
        history.add(kept(1, at=1.0, size_bytes=4))
    for _ in range(3):
        history.extend_back([], now=1.0)
    assert len(history) == 1


def test_what_others_kept_too_long_is_not_taken() -> None:
    history = History(Keep(age_s=60))
    history.extend_back([kept(1, at=10.0), kept(2, at=50.0)], now=100.0)
    assert len(history) == 1
    assert Keep(10, 2, 30.0).most(Keep(1, 20, 3.0)) == Keep(10, 20, 30.0)


def test_what_nobody_wants_kept_is_not() -> None:
    history = History()
    history.add(kept(1, at=1.0))
    assert len(history) == 0


# References.


def test_a_reference_is_told_from_data() -> None:
    found = Reference("b" * 60, 1 << 20)
    assert reference.unpack(reference.pack(found)) == found
    assert reference.unpack(b"data") is None


@given(st.binary(max_size=300))
def test_any_bytes_behind_the_magic_are_a_reference_or_refused(data: bytes) -> None:
    try:
        found = reference.unpack(MAGIC + data)
    except BadMessage:
        return
    assert found is not None
    assert reference.unpack(reference.pack(found)) == found


# Sending.


def test_control_goes_first_and_messages_share_a_frame() -> None:
    queue = SendQueue()
    bodies = [wire.encode(wire.Rpc(messages=(sealed(number=number),))) for number in range(3)]
    for number, body in enumerate(bodies):
        queue.put_payload(b"%d" % number, body)
        queue.put_payload(b"known", b"to the peer")
    queue.forget(b"known")
    assert queue.put_control(b"\x02\x0a\x00")
    parser = FrameParser(FRAME_MAX)
    control, frame = map(bytes, parser.feed(queue.take()))
    assert control == b"\x0a\x00"
    assert [signing.number_of(message) for message in wire.decode(frame).messages] == [0, 1, 2]
    assert not queue


def test_a_full_queue_loses_its_oldest_messages_and_no_control() -> None:
    queue = SendQueue()
    queue.put_control(b"\x00")
    for number in range(PAYLOADS_MAX + 5):
        queue.put_payload(b"%d" % number, b"%05d" % number)
    assert queue.dropped == 5
    assert queue.take().startswith(b"\x00")
    batches = [queue.take() for _ in range(PAYLOADS_MAX // MESSAGES_MAX - 1)]
    assert batches[-1].endswith(b"%05d" % (PAYLOADS_MAX + 4))
    assert not queue


def test_a_queue_is_bounded_in_bytes_and_says_how_full_it_is() -> None:
    queue = SendQueue()
    queue.put_payload(b"0", bytes(BATCH_BYTES - 1))
    assert not queue.has_batch
    queue.put_payload(b"0", bytes(BATCH_BYTES))  # in place of the other
    assert queue.has_batch
    assert not queue.is_half_full
    each = PAYLOAD_BYTES // 8
    for number in range(4):
        queue.put_payload(b"%d" % number, bytes(each))
    assert not queue.is_half_full
    queue.put_payload(b"4", b"x")
    assert queue.is_half_full
    for number in range(4, 9):
        queue.put_payload(b"%d" % number, bytes(each))
    assert queue.dropped == 1
    while queue:
        queue.take()
    assert queue.sent == 8
    assert not queue.has_batch
    for number in range(PAYLOADS_MAX // 2):
        queue.put_payload(b"%d" % number, b"x")
    assert not queue.is_half_full
    queue.put_payload(b"more", b"x")
    assert queue.is_half_full


def test_a_batch_is_a_frame_that_the_other_end_takes() -> None:
    queue = SendQueue()
    for number in range(3):
        queue.put_payload(b"%d" % number, bytes(BATCH_BYTES // 2))
    queue.put_payload(b"large", bytes(FRAME_MAX - 10))
    sizes = [len(queue.take()) for _ in range(3)]
    assert not queue
    assert [size * 2 // BATCH_BYTES for size in sizes] == [2, 1, 3]
    assert max(sizes) <= FRAME_MAX


def test_a_peer_that_takes_no_control_is_given_up() -> None:
    queue = SendQueue()
    assert queue.put_control(bytes(CONTROL_BYTES))
    assert not queue.put_control(b"x")
    queue.take()
    assert queue.put_control(bytes(CONTROL_BYTES))


def test_a_meter_counts_whole_seconds() -> None:
    meter = Meter()
    for number in range(200):
        meter.count(100, now=number / 10)
    assert meter.rates(now=20.0) == (10.0, 1000.0)
    assert meter.rates(now=20.0 + RATE_WINDOW_S) == (0.0, 0.0)
