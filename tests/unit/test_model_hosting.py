"""What nodes offer and wish, how leases become what people and routes see, and what people type."""

from pathlib import Path

import click
import pytest

from node.cli.hosting import blocks_of, bytes_of
from node.config import ServeOptions
from node.model_offer import GIB, Offering, offer_of
from node.model_views import candidates, model_view
from node.model_wishes import Wishes
from protocols.sharding.manifest import Manifest, Part
from protocols.sharding.placement import Wish
from protocols.sharding.records import ModelRecord, StageRecord
from wire.ids import PeerId

A, B, ME = PeerId("a"), PeerId("b"), PeerId("me")
MODEL = "ab" * 32
CID = "b" + "a" * 58


def manifest(layers: int) -> Manifest:
    parts = [Part("block", n, f"block-{n:04}.safetensors", CID, 100) for n in range(layers)]
    return Manifest(2, "tiny", "llama", "float32", layers, 8, 16, 128, 1000, [], parts)


def lease(start: int, end: int, state: str = "ready", **more: object) -> StageRecord:
    return StageRecord(MODEL, start, end, state, 1, **more)  # type: ignore[arg-type]


def test_wishes_survive_a_restart_and_a_spoilt_file_is_as_good_as_none(tmp_path: Path) -> None:
    path = tmp_path / "models" / "wishes.json"
    wishes, wish = Wishes(path), Wish(2, 4, 5 * GIB, model=MODEL)
    assert wishes.get("tiny", MODEL) is None
    wishes.put("tiny", wish)
    wishes.put("other", Wish(never=True))
    again = Wishes(path)
    assert again.get("tiny", MODEL) == wish
    assert again.get("tiny", "cd" * 32) is None  # another model has the name now
    assert again.get("other", MODEL) == Wish(never=True)  # whatever has the name
    path.write_bytes(path.read_bytes()[:-3])
    assert Wishes(path).get("tiny", MODEL) is None
    path.write_text('{"../tiny": {"never": true}, "good": {"never": true}}')
    assert Wishes(path).get("../tiny", MODEL) is None
    assert Wishes(path).get("good", MODEL) == Wish(never=True)
    path.write_text('{"good": {"never": true, "end": -3}}')
    assert Wishes(path).get("good", MODEL) is None


def test_a_part_of_the_offer_is_for_sessions() -> None:
    offering = Offering(ServeOptions(memory_gib=4.0, cache_share=0.25))
    assert (offering.room_bytes, offering.cache_bytes) == (3 * GIB, GIB)
    told = offering.told()
    assert (told["serve"], told["memory_gib"], told["room_gib"]) == (True, 4.0, 3.0)
    nothing = Offering(ServeOptions(offer=False, memory_gib=4.0))
    assert nothing.told()["serve"] is False
    assert offer_of(A, nothing.told()).room_bytes == 0
    assert nothing.room_bytes == 3 * GIB  # what a person may still ask this node for


@pytest.mark.parametrize("value", ["8", True, -1, float("nan"), float("inf"), 1e30, None, [], {}])
def test_what_others_offer_is_not_trusted_to_make_sense(value: object) -> None:
    host = offer_of(A, {"serve": True, "room_gib": value, "speed": value})
    assert (host.room_bytes, host.speed) == (0, 0.0)


def test_a_model_is_ready_when_each_block_is() -> None:
    record = ModelRecord(MODEL, CID, [], 1, hosted=True)
    both = [(B, lease(2, 4)), (A, lease(0, 2))]
    view = model_view("tiny", record, manifest(4), both)
    assert (view.layers, view.ready) == (4, True)
    assert [(stage.peer, stage.start) for stage in view.stages] == [("a", 0), ("b", 2)]
    late = [(A, lease(0, 2)), (B, lease(2, 4, "loading"))]
    assert not model_view("tiny", record, manifest(4), late).ready
    assert not model_view("tiny", record, manifest(5), both).ready
    assert not model_view("tiny", record, None, both).ready  # who knows how many there are


def test_routes_see_ready_spans_within_the_model_and_our_own_measurement_first() -> None:
    told = lease(0, 2, decode_us=2000, load=500, delays=[("b", 3000), ("me", 9000)])
    leases = [(A, told), (B, lease(2, 4, "draining")), (B, lease(2, 9))]
    [found] = candidates(
        leases, layers=4, entry=ME, rtt_s=lambda _: 0.001, penalty={A: 0.5}.__getitem__
    )
    assert (found.peer, found.start, found.end) == (A, 0, 2)
    assert (found.decode_s, found.load, found.penalty) == (0.002, 0.5, 0.5)
    assert found.delays == {B: 0.003, ME: 0.001}
    [found] = candidates(
        leases[:1], layers=4, entry=ME, rtt_s=lambda _: None, penalty=lambda _: 0.0
    )
    assert found.delays[ME] == 0.009


def test_blocks_and_sizes_as_people_type_them() -> None:
    assert blocks_of("auto") == (0, 0)
    assert blocks_of("3:12") == (3, 12)
    assert bytes_of("8GiB") == bytes_of("8 gb") == 8 * GIB
    assert bytes_of("1.5MiB") == 3 << 19
    for text in ("3", "3:3", "4:3", ":", "a:b", "-1:4"):
        with pytest.raises(click.BadParameter):
            blocks_of(text)
    for text in ("8", "GiB", "8X", "-1GiB"):
        with pytest.raises(click.BadParameter):
            bytes_of(text)
