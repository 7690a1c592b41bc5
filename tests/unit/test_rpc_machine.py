"""One call's rules: what either side may send, when, and how much."""

from collections.abc import Callable

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.rpc import wire
from protocols.rpc.machine import CallMachine, Ended, Event, Failed, Got, MessageTooBig, Opened
from wire import codec, frames
from wire.errors import BadMessage


def caller(frame_max: int = 100) -> CallMachine:
    return CallMachine("caller", frame_max=frame_max)


def server(frame_max: int = 100) -> CallMachine:
    return CallMachine("server", frame_max=frame_max)


def events(machine: CallMachine, data: bytes) -> list[Event]:
    machine.feed(data)
    found = list[Event]()
    while (event := machine.next_event()) is not None:
        found.append(event)
    return found


def test_a_unary_call_is_one_message_each_way() -> None:
    ours, theirs = caller(), server()
    sent = ours.open("dht.find", 500) + ours.send(b"question") + ours.end()
    assert events(theirs, sent) == [Opened("dht.find", 500), Got(b"question"), Ended()]
    answer = theirs.send(b"answer") + theirs.end()
    assert events(ours, answer) == [Got(b"answer"), Ended()]
    ours.feed_eof()
    theirs.feed_eof()


def test_each_direction_ends_on_its_own() -> None:
    ours, theirs = caller(), server()
    events(theirs, ours.open("m", 0) + ours.end())
    assert events(ours, theirs.send(b"1") + theirs.send(b"2")) == [Got(b"1"), Got(b"2")]
    assert events(ours, theirs.end()) == [Ended()]


def test_a_server_may_fail_even_after_its_last_message() -> None:
    ours, theirs = caller(), server()
    assert events(ours, theirs.send(b"1") + theirs.end()) == [Got(b"1"), Ended()]
    assert events(ours, theirs.fail("not_found", "no such thing")) == [
        Failed("not_found", "no such thing")
    ]


@given(st.integers(1, 40))
def test_bytes_may_arrive_in_any_pieces(step: int) -> None:
    ours, theirs = caller(), server()
    sent = ours.open("m", 0) + ours.send(b"x" * 90) + ours.end()
    found = list[Event]()
    for start in range(0, len(sent), step):
        found += events(theirs, sent[start : start + step])
    assert found == [Opened("m", 0), Got(b"x" * 90), Ended()]


@pytest.mark.parametrize(
    "send",
    [
        lambda ours: ours.send(b"1"),
        lambda ours: ours.end(),
        lambda ours: ours.open("m", 0) + ours.open("m", 0),
        lambda ours: ours.open("m", 0) + ours.end() + server().send(b"1"),
        lambda ours: ours.open("m", 0) + ours.end() + server().end(),
        lambda ours: ours.open("m", 0) + server().fail("failed", "only servers fail"),
        lambda ours: ours.open("m", 0) + caller(101).send(bytes(101)),
        lambda ours: ours.open("", 0) + ours.open("M", 0),
        lambda ours: ours.open("m/../n", 0),
        lambda ours: ours.open("m\n", 0),
        lambda ours: ours.open("m" * 65, 0),
        lambda ours: ours.open("m", -1),
        lambda ours: ours.open("m", wire.DEADLINE_MAX_MS + 1),
    ],
)  # fmt: skip
def test_a_server_refuses_what_breaks_the_rules(send: Callable[[CallMachine], bytes]) -> None:
    with pytest.raises(BadMessage):
        events(server(), send(caller()))


def test_a_caller_refuses_what_breaks_the_rules() -> None:
    with pytest.raises(BadMessage, match="Open came"):
        events(caller(), caller().open("m", 0))
    with pytest.raises(BadMessage, match="Data came after the end"):
        events(caller(), server().end() + server().send(b"1"))
    with pytest.raises(BadMessage, match="Fail came after the end"):
        events(caller(), server().fail("failed", "") + server().fail("failed", ""))


def test_a_stream_that_ends_early_is_no_call() -> None:
    for sent in (b"", caller().open("m", 0), caller().open("m", 0) + caller().end()[:-1]):
        theirs = server()
        events(theirs, sent)
        with pytest.raises(BadMessage, match="ended before"):
            theirs.feed_eof()


def test_the_bound_of_a_message_is_the_method_s_own() -> None:
    theirs = server(0)
    assert events(theirs, caller().open("m", 0)) == [Opened("m", 0)]
    theirs.frame_max = 5000
    assert events(theirs, caller(5000).send(bytes(5000))) == [Got(bytes(5000))]
    with pytest.raises(BadMessage, match="over the limit of"):
        events(theirs, frames.pack(bytes(5000 + wire.ENVELOPE_MAX + 1))[:4])


def test_before_the_method_is_known_a_frame_is_small() -> None:
    with pytest.raises(BadMessage, match="over the limit of 2048 B"):
        events(server(0), frames.pack(bytes(3000))[:2])


def test_we_never_send_more_than_the_method_allows() -> None:
    with pytest.raises(MessageTooBig, match="101 B is over the limit of 100"):
        caller(100).send(bytes(101))


def test_any_error_text_fits_into_a_fail() -> None:
    for code, text in (("Bad Code", "x" * 5000), ("x" * 33, "\ud800"), ("ok", "🐟" * 1000)):
        (event,) = events(caller(0), server(0).fail(code, text))
        assert isinstance(event, Failed)
        assert event.code in ("failed", "ok")


def test_an_error_of_a_peer_cannot_write_to_a_terminal_or_forge_a_log_line() -> None:
    evil = "no\x1b[2J\x9b1m\r\nINFO ok\u2028\u202e\x00 – größer 🐟"
    (event,) = events(caller(0), server(0).fail("failed", evil))
    assert event == Failed("failed", "no?[2J?1m??INFO ok???  – größer 🐟".replace("  ", " "))


def test_an_independent_reader_understands_a_call() -> None:
    sent = caller().open("m", 7) + caller().send(b"1") + caller().end()
    sent += server().fail("busy", "later")
    parser, seen = frames.FrameParser(100), list[object]()
    parser.feed(sent)
    while (frame := parser.next_frame()) is not None:
        seen.append(msgpack.unpackb(frame))
    assert seen == [["open", "m", 7], ["data", b"1"], ["end"], ["fail", "busy", "later"]]


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_bad(frame: bytes) -> None:
    try:
        message = codec.decode(frame, wire.decoder, wire.ENVELOPE_MAX)
    except BadMessage:
        return
    assert codec.decode(codec.encode(message), wire.decoder, wire.ENVELOPE_MAX) == message


@given(st.lists(st.binary(max_size=60), max_size=6), st.booleans())
def test_any_frames_are_events_or_bad(bodies: list[bytes], as_server: bool) -> None:
    machine = server() if as_server else caller()
    try:
        events(machine, b"".join(frames.pack(body) for body in bodies))
        machine.feed_eof()
    except BadMessage:
        return
