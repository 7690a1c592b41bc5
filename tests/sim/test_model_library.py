"""Models as content over nodes that share a store and blobs: kept here and there, repaired."""

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from node import model_library
from node.model_files import LINGER_S, ModelFiles, Refused
from node.model_library import LOOK_S
from protocols.sharding.manifest import BLOCK, Manifest, part_name, parts_of_span
from protocols.sharding.records import NAMESPACE, ModelRecord, StageRecord, stage_key, to_value
from shoal.library import PinModel
from tests.sim.boards import SharedStore
from tests.sim.libraries import FILES, LAYERS, SIZE, Nodes, add, cut_at_once, last, until
from wire.errors import BadMessage, NotFound, UsageError
from wire.ids import PeerId


@pytest.fixture
def nodes(nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Nodes:
    monkeypatch.setattr(model_library, "parts_of", cut_at_once)
    return Nodes(nursery, tmp_path)


ALL = sorted(["manifest", *(each.name for each in FILES)])


async def test_what_one_adds_all_know_and_the_adder_keeps(nodes: Nodes) -> None:
    a, b = await nodes.add("a"), await nodes.add("b")
    done = await add(a)
    assert done.model is not None
    assert (done.model.name, done.model.layers, done.model.dtype) == ("tiny", LAYERS, "float32")
    assert (done.model.size_bytes, done.model.here_bytes) == (SIZE, SIZE)
    assert done.model.pinned == done.model.here == [(0, LAYERS)]
    assert not done.model.hosted
    assert nodes.files("a") == ALL
    record = b.record("tiny")
    await until(lambda: b.manifest_here(record))
    (there,) = await b.views()
    assert (there.layers, there.here_bytes, there.pinned) == (LAYERS, 0, [])
    assert (there.ready, there.hosts, there.gaps) == (False, 0, [(0, LAYERS)])
    assert nodes.files("b") == ["manifest"]
    assert not list((nodes.folder / "a" / "models" / "split").iterdir())


async def test_the_same_source_is_the_same_model_and_another_provider(nodes: Nodes) -> None:
    a, b = await nodes.add("a"), await nodes.add("b")
    await add(a, replicas=2)
    first = a.record("tiny")
    done = await add(b)
    assert done.model is not None
    assert (done.model.model, done.model.manifest) == (first.model, first.manifest)
    assert a.record("tiny").providers == ["a", "b"]
    assert a.record("tiny").replicas == 2


async def test_a_name_belongs_to_the_first_model_that_had_it(nodes: Nodes) -> None:
    a, b = await nodes.add("a"), await nodes.add("b")
    await add(a)
    with pytest.raises(UsageError, match="the name tiny is taken by a model of a"):
        await add(b, "someone/tiny")
    assert b.record("tiny").providers == ["a"]
    record = b.record("tiny")
    await until(lambda: b.manifest_here(record))
    assert nodes.files("b") == ["manifest"]
    shelf = nodes.shelves[PeerId("b")].folder
    await until(lambda: len(list(shelf.iterdir())) == 2)  # two manifests: nothing of its parts
    done = await add(b, "someone/tiny", name="other")
    assert done.model is not None
    assert done.model.name == "other"
    with pytest.raises(UsageError, match="taken by a model of this node"):
        await add(b, "someone/third", name="other")


async def test_a_node_brings_only_the_parts_it_uses_from_whoever_has_them(nodes: Nodes) -> None:
    a, b, c = [await nodes.add(name) for name in "abc"]
    await add(a)
    record = b.record("tiny")
    seen: list[int] = []
    parts = parts_of_span(await b.manifest(record), 1, 2)
    with b.using(record, 1, 2):
        await b.bring(record, parts, seen.append)
    assert nodes.files("b") == ["block-0001.safetensors", "config.json", "manifest"]
    assert seen[-1] == sum(part.size_bytes for part in parts)
    # Its lease tells others that it has them: they do not need the one who added it.
    lease = StageRecord(record.model, 1, 2, "ready", 0)
    store = SharedStore(nodes.board, PeerId("b"))
    await store.put(NAMESPACE, stage_key("tiny", PeerId("b"), 1), to_value(lease))
    await c.manifest(record)
    for path in nodes.shelves[PeerId("a")].folder.iterdir():
        path.unlink()
    await c.bring(record, parts, lambda _: None)
    assert "block-0001.safetensors" in nodes.files("c")
    with pytest.raises(NotFound):
        await c.bring(record, parts_of_span(await c.manifest(record), 0, 1), lambda _: None)


async def test_a_pin_outlives_the_record_and_a_restart(nodes: Nodes) -> None:
    a, b = await nodes.add("a"), await nodes.add("b")
    await add(a)
    done = await last(b.pin("tiny", PinModel(1, 3)))
    assert done.model is not None
    assert done.model.pinned == [(1, 3)]
    assert done.model.providers == ["a"]
    done = await last(b.pin("tiny", PinModel()))
    assert done.model is not None
    assert done.model.pinned == [(0, LAYERS)]
    assert b.record("tiny").providers == ["a", "b"]
    await a.remove("tiny")
    await until(lambda: nodes.files("a") == [])
    again = await nodes.add("b")  # as after a restart
    (view,) = await again.views()
    assert (view.listed, view.pinned, nodes.files("b")) == (False, [(0, LAYERS)], ALL)
    assert (await again.unpin("tiny")).pinned == []
    assert nodes.files("b") == []
    assert await again.views() == []


async def test_what_is_pinned_and_was_lost_is_fetched_again(nodes: Nodes) -> None:
    a, b = await nodes.add("a"), await nodes.add("b")
    await add(a)
    await last(b.pin("tiny", PinModel(0, 1)))
    nodes.path("b", part_name(BLOCK, 0)).unlink()
    await nodes.add("b")
    await until(lambda: part_name(BLOCK, 0) in nodes.files("b"))


async def test_a_hosted_model_is_not_removed_by_mistake(nodes: Nodes) -> None:
    a = await nodes.add("a")
    await add(a, hosted=True, nodes=2)
    assert a.record("tiny").nodes == 2
    with pytest.raises(Refused, match="model tiny is to be hosted"):
        await a.remove("tiny")
    lease = StageRecord(a.record("tiny").model, 0, LAYERS, "ready", 0)
    store = SharedStore(nodes.board, PeerId("b"))
    await store.put(NAMESPACE, stage_key("tiny", PeerId("b"), 0), to_value(lease))
    (view,) = await a.views()
    assert (view.ready, view.hosts, view.gaps) == (True, 1, [])
    with pytest.raises(Refused, match=r"is hosted by 1 node$"):
        await a.remove("tiny")
    gone = await a.remove("tiny", force=True)
    assert gone.freed_bytes == SIZE
    assert nodes.files("a") == []
    with pytest.raises(NotFound):
        await a.remove("tiny")


async def test_a_damaged_part_is_found_and_mended_from_another_node(nodes: Nodes) -> None:
    a, b = await nodes.add("a"), await nodes.add("b")
    await add(a)
    await last(b.pin("tiny", PinModel()))
    assert (await last(b.verify("tiny"))).bad == []
    path = nodes.path("b", part_name(BLOCK, 1))
    good = path.read_bytes()
    path.write_bytes(b"?" + good[1:])
    done = await last(b.verify("tiny"))
    assert [(bad.name, bad.repaired) for bad in done.bad] == [(part_name(BLOCK, 1), True)]
    assert done.checked == len(FILES)
    assert nodes.path("b", part_name(BLOCK, 1)).read_bytes() == good
    assert (await last(b.verify("tiny"))).bad == []


async def test_a_damaged_part_that_nobody_else_has_is_said(nodes: Nodes) -> None:
    a = await nodes.add("a")
    await add(a)
    nodes.path("a", part_name(BLOCK, 0)).write_bytes(b"?")
    done = await last(a.verify("tiny"))
    assert [(bad.name, bad.repaired) for bad in done.bad] == [(part_name(BLOCK, 0), False)]
    assert "nobody has" in done.bad[0].why


async def test_a_part_stays_a_while_after_its_last_use(nodes: Nodes, mock_clock: MockClock) -> None:
    a, b = await nodes.add("a"), await nodes.add("b")
    await add(a)
    record = b.record("tiny")
    manifest = await b.manifest(record)
    with b.using(record, 0, 1):
        await b.bring(record, parts_of_span(manifest, 0, 1), lambda _: None)
        mock_clock.jump(2 * LINGER_S)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert part_name(BLOCK, 0) in nodes.files("b")
    for _ in range(int(LINGER_S / LOOK_S) - 2):
        mock_clock.jump(LOOK_S)
        await trio.testing.wait_all_tasks_blocked(0.001)
    assert part_name(BLOCK, 0) in nodes.files("b")
    for _ in range(5):
        mock_clock.jump(LOOK_S)
        await trio.testing.wait_all_tasks_blocked(0.01)
    assert nodes.files("b") == ["config.json", "manifest"]
    assert nodes.files("a") == ALL


async def test_records_of_strangers(nodes: Nodes) -> None:
    """Of what any member can write, nothing keeps the others from being known."""
    a, b = await nodes.add("a"), await nodes.add("b")
    await add(a)
    store = SharedStore(nodes.board, PeerId("evil"))
    gone = ModelRecord("ab" * 32, "b" + "a2" * 29, ["a"], 0, hosted=False)
    await store.put(NAMESPACE, "aaa/manifest", to_value(gone))  # of what nobody has
    await store.put(NAMESPACE, "../x/manifest", to_value(gone))
    await store.put(NAMESPACE, "bad/manifest", ["?"])
    other = ModelRecord("cd" * 32, b.record("tiny").manifest, ["a"], 0, hosted=False)
    await store.put(NAMESPACE, "lie/manifest", to_value(other))  # not the model that it says
    with pytest.raises(BadMessage, match="manifest is of model"):
        await b.manifest(b.record("lie"))
    await until(lambda: b.manifest_here(b.record("tiny")))
    assert {view.name: view.layers for view in await b.views()} == {"aaa": 0, "lie": 0, "tiny": 3}


async def test_records_of_what_nobody_has_do_not_keep_others_waiting(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = ModelFiles.manifest

    async def slowly(self: ModelFiles, record: ModelRecord, providers: list[PeerId]) -> Manifest:
        if not record.providers:
            await trio.sleep_forever()
        return await manifest(self, record, providers)

    monkeypatch.setattr(ModelFiles, "manifest", slowly)
    monkeypatch.setattr(model_library, "FIRST_S", 0.1)
    store = SharedStore(nodes.board, PeerId("evil"))
    for at in range(40):
        gone = ModelRecord(f"{at:02}" * 32, "b" + "a2" * 29, [], 0, hosted=False)
        await store.put(NAMESPACE, f"gone{at}/manifest", to_value(gone))
    a, b = await nodes.add("a"), await nodes.add("b")
    await trio.testing.wait_all_tasks_blocked()
    await add(a)
    await until(lambda: b.manifest_here(b.record("tiny")))
