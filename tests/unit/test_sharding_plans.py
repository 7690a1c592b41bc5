"""Where layers go, how a route is found, what a manifest is, and how text comes out of tokens."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.cli.answer_text import shown
from protocols.sharding.manifest import (
    BLOCK,
    EMBED,
    FRONT_MAX_BYTES,
    HEAD,
    SHARED,
    TOKENIZER,
    Manifest,
    Part,
    blocks_in_memory,
    decode_manifest,
    encode_manifest,
    is_tokenizer_file,
    memory_of_span,
    model_id,
    part_name,
    parts_of_front,
    parts_of_span,
    printable,
)
from protocols.sharding.placement import Offer, Span, place
from protocols.sharding.records import (
    EPOCH_MAX,
    ModelRecord,
    PlacementRecord,
    StageRecord,
    is_name,
    next_epoch,
    read,
    read_stage,
    stage_key,
    to_value,
)
from protocols.sharding.route import NoRoute, find_replacement, find_route
from protocols.sharding.text import Stops, Tail
from wire.errors import BadMessage, UsageError
from wire.ids import PeerId
from wire.ports import Item

A, B, C, D = (PeerId(name) for name in "abcd")
MODEL, CID = "ab" * 32, "b" + "a2" * 29


def offers(**blocks: int) -> list[Offer]:
    return [Offer(PeerId(peer), count) for peer, count in blocks.items()]


def shares(spans: list[Span]) -> dict[str, int]:
    return {span.peer: span.end - span.start for span in spans}


def test_layers_are_shared_evenly_in_peer_order() -> None:
    assert place(10, offers(c=99, a=99, b=99)) == [Span(A, 0, 4), Span(B, 4, 7), Span(C, 7, 10)]


def test_a_small_node_gets_what_it_has_room_for() -> None:
    spans = place(30, offers(b=100, c=100, a=4))
    assert spans == [Span(A, 0, 4), Span(B, 4, 17), Span(C, 17, 30)]


def test_the_nodes_with_most_room_are_chosen() -> None:
    assert shares(place(6, offers(a=3, b=9, c=9), nodes=2)) == {"b": 3, "c": 3}


def test_no_node_is_without_a_layer() -> None:
    assert shares(place(2, offers(a=9, b=9, c=9))) == {"a": 1, "b": 1}


def test_too_little_room_is_said_with_numbers() -> None:
    with pytest.raises(UsageError, match="2 nodes offer room for 5 of the model's 6 layers"):
        place(6, offers(a=2, b=3, c=0))


@given(
    st.integers(1, 200),
    st.dictionaries(st.text("abcdefgh", min_size=1, max_size=4), st.integers(0, 80), max_size=8),
)
def test_a_placement_covers_every_layer_once(n_layers: int, room: dict[str, int]) -> None:
    asked = [Offer(PeerId(peer), count) for peer, count in room.items()]
    try:
        spans = place(n_layers, asked)
    except UsageError:
        assert sum(room.values()) < n_layers or len(room) > n_layers
        return
    assert [span.start for span in spans] == [0, *(span.end for span in spans[:-1])]
    assert spans[-1].end == n_layers
    assert spans == place(n_layers, asked[::-1])
    taken = shares(spans)
    assert all(0 < count <= room[peer] for peer, count in taken.items())
    spare = [count for peer, count in taken.items() if count < room[peer]]
    assert not spare or max(taken.values()) - min(spare) <= 1


def test_a_route_takes_the_fewest_hops() -> None:
    ready = [Span(A, 0, 3), Span(B, 3, 6), Span(C, 6, 9), Span(D, 3, 9)]
    assert find_route(9, ready) == [Span(A, 0, 3), Span(D, 3, 9)]


def test_a_stage_is_never_entered_in_its_middle() -> None:
    with pytest.raises(NoRoute, match="no ready node goes on from layer 4 of 8"):
        find_route(8, [Span(A, 0, 4), Span(B, 3, 8)])


def test_equal_routes_are_decided_by_peer_id() -> None:
    ready = [Span(C, 0, 4), Span(B, 4, 8), Span(A, 4, 8), Span(B, 0, 4)]
    assert find_route(8, ready) == [Span(B, 0, 4), Span(A, 4, 8)]


def test_a_replacement_has_the_same_layers_and_was_not_lost_itself() -> None:
    ready = [Span(A, 0, 4), Span(B, 0, 4), Span(C, 0, 5), Span(D, 0, 4)]
    assert find_replacement(Span(A, 0, 4), ready, without={A, B}) == Span(D, 0, 4)
    assert find_replacement(Span(C, 0, 5), ready, without={C}) is None


def item(key: str, value: object, author: PeerId = A) -> Item:
    return Item(key, value, author, 0, 0)


def test_records_survive_the_store() -> None:
    record = ModelRecord(MODEL, CID, [A], 5)
    placement = PlacementRecord(MODEL, 2, [(A, 0, 4), (B, 4, 8)])
    assert read(item("m/manifest", to_value(record)), ModelRecord) == record
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(to_value(placement)))
    assert read(item("m/placement", again), PlacementRecord) == placement


def test_a_record_that_makes_no_sense_is_as_good_as_none() -> None:
    assert read(item("m/manifest", ["x"]), ModelRecord) is None
    assert read(item("m/placement", [MODEL, 1, [[A, 0, 10_000]]]), PlacementRecord) is None
    assert read(None, ModelRecord) is None


@pytest.mark.parametrize("epoch", [1, 1000, EPOCH_MAX, EPOCH_MAX + 1, 2**63 - 1, 2**64 - 1])
def test_no_epoch_that_a_member_writes_blocks_a_name(epoch: int) -> None:
    before = read(item("m/placement", [MODEL, epoch, []]), PlacementRecord)
    assert (before is None) == (epoch > EPOCH_MAX)
    after = PlacementRecord(MODEL, next_epoch(before, now_ms=1000), [])
    assert after.epoch != epoch
    assert read(item("m/placement", to_value(after)), PlacementRecord) == after


def test_a_lease_speaks_for_its_author_only() -> None:
    value = to_value(StageRecord(MODEL, 1, 0, 4, "ready"))
    assert read_stage("m", item(stage_key("m", A), value, A)) is not None
    assert read_stage("m", item(stage_key("m", A), value, B)) is None
    backwards = to_value(StageRecord(MODEL, 1, 4, 4, "ready"))
    assert read_stage("m", item(stage_key("m", A), backwards, A)) is None


def test_what_others_write_gives_no_orders_to_a_terminal() -> None:
    for text in ("\x1b[2J", "a\nb", "\x9b1m", "tail\n"):
        stage = [MODEL, 1, 0, 4, "failed", text, 0, 0]
        assert read(item(stage_key("m", A), stage), StageRecord) is None
        assert read(item("m/placement", [MODEL, 1, [[text, 0, 4]]]), PlacementRecord) is None
        whole = msgspec.structs.replace(manifest(), family=text)
        data = encode_manifest(whole)
        with pytest.raises(BadMessage):
            decode_manifest(data, model_id(data))
        stage[5] = printable(text)  # as we write it
        assert read(item(stage_key("m", A), stage), StageRecord) is not None


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


def test_what_only_began_like_a_stop_string_isshown() -> None:
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
