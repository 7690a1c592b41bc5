"""What the store says of served models, and how text comes out of tokens."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.cli.answer_text import shown
from protocols.sharding.manifest import printable
from protocols.sharding.records import (
    AuditRecord,
    ModelRecord,
    StageRecord,
    is_name,
    manifest_key,
    read,
    read_stage,
    stage_key,
    to_value,
)
from protocols.sharding.text import Stops, Tail
from wire.ids import PeerId
from wire.ports import Item

A, B = PeerId("a"), PeerId("b")
MODEL, CID = "ab" * 32, "b" + "a2" * 29


def item(key: str, value: object, author: PeerId = A) -> Item:
    return Item(key, value, author, 0, 0)


def lease(**changes: object) -> list[object]:
    """Return the value of a lease as somebody wrote it."""
    whole = msgspec.structs.asdict(StageRecord(MODEL, 0, 4, "failed", 1))
    return list({**whole, **changes}.values())


def test_records_survive_the_store() -> None:
    record = ModelRecord(MODEL, CID, [A], 5, hosted=True, nodes=3, replicas=2)
    stage = StageRecord(MODEL, 0, 4, "ready", 1, decode_us=900, load=250, delays=[(B, 20_000)])
    for one in (record, stage, AuditRecord(7, 1, 5, "picks")):
        again = msgspec.msgpack.decode(msgspec.msgpack.encode(to_value(one)))
        assert read(item("m/any", again), type(one)) == one


def test_a_record_that_makes_no_sense_is_as_good_as_none() -> None:
    assert read(item(manifest_key("m"), ["x"]), ModelRecord) is None
    assert read(item(manifest_key("m"), [MODEL + "\n", CID, [], 1, True]), ModelRecord) is None
    assert read(None, ModelRecord) is None
    for wrong in ({"end": 10_000}, {"load": 1001}, {"decode_us": -1}, {"state": "ready\n"},
                  {"claimed_ms": 1 << 60}, {"delays": [("b", 1)] * 17}):  # fmt: skip
        assert read(item(stage_key("m", A, 0), lease(**wrong)), StageRecord) is None


def test_a_lease_speaks_for_its_author_and_its_key_only() -> None:
    value = lease(state="ready")
    assert read_stage("m", item(stage_key("m", A, 0), value, A)) is not None
    assert read_stage("m", item(stage_key("m", A, 0), value, B)) is None
    assert read_stage("m", item(stage_key("m", A, 1), value, A)) is None
    backwards = lease(start=4)
    assert read_stage("m", item(stage_key("m", A, 4), backwards, A)) is None


def test_what_others_write_gives_no_orders_to_a_terminal() -> None:
    for text in ("\x1b[2J", "a\nb", "\x9b1m", "tail\n"):
        key = stage_key("m", A, 0)
        assert read(item(key, lease(note=text)), StageRecord) is None
        assert read(item(key, lease(note=printable(text))), StageRecord) is not None
        assert read(item("m/audit/@a/b", [1, 1, 0, text]), AuditRecord) is None


def test_an_answer_on_a_terminal_shows_its_control_characters_as_such(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = "one\n\ttwo \x1b]0;title\x07é"
    assert shown(answer) == answer  # into a file or a pipe: as it is
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert shown(answer) == "one\n\ttwo \ufffd]0;title\ufffdé"


def test_names_are_one_segment() -> None:
    assert is_name("SmolLM2-135M.q4")
    assert not any(is_name(name) for name in ("", "a/b", "-x", "a b", "x" * 64, "@a"))


def test_a_stop_string_is_found_across_pieces() -> None:
    stops = Stops(["\nUser:"])
    assert [stops.feed(piece) for piece in ("Yes.", "\n", "Us", "er: more")] == ["Yes.", "", "", ""]
    assert stops.found


def test_what_only_began_like_a_stop_string_is_shown() -> None:
    stops = Stops(["END"])
    assert [stops.feed(piece) for piece in ("E", "N", "Tent", " E")] == ["", "", "ENTent", " "]
    assert stops.finish() == "E"
    assert not stops.found


def test_the_earliest_stop_string_wins() -> None:
    stops = Stops(["cd", "b"])
    assert stops.feed("abcd") == "a"


@given(st.lists(st.text("abX", max_size=5), max_size=8), st.sampled_from(["X", "ab", "aab"]))
def test_pieces_make_the_same_text_as_the_whole(pieces: list[str], stop: str) -> None:
    stops = Stops([stop])
    shown = ""
    for piece in pieces:
        shown += stops.feed(piece)
        if stops.found:
            break
    shown += stops.finish()
    assert shown == "".join(pieces).split(stop)[0]


def test_a_tail_keeps_a_few_tokens_before_the_fresh_ones() -> None:
    tail = Tail.of_prompt(list(range(9)))
    tail.add(20)
    tail.add(21)
    assert (tail.before, tail.fresh) == ([4, 5, 6, 7, 8], [20, 21])
    tail.shown()
    assert (tail.before, tail.fresh) == ([6, 7, 8, 20, 21], [])
