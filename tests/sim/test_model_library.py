"""Models as content over nodes that share a store and blobs: added here, kept there, repaired."""

import os
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from node import model_library
from node.model_files import LINGER_S, Refused
from node.model_library import LOOK_S, Library
from protocols.sharding.manifest import BLOCK, part_name, parts_of_span
from protocols.sharding.records import NAMESPACE, ModelRecord, StageRecord, stage_key, to_value
from protocols.sharding.splitting import Cut, Split
from shoal.library import AddModel, LibraryProgress, PinModel
from tests.sim.boards import Board, SharedStore, Shelf
from tests.unit.sharding_models import LAYERS as DEEP
from tests.unit.sharding_models import save_model
from tests.unit.sharding_tokenizer import save_tokenizer
from tests.unit.test_sharding_hub import REPO, put
from wire.clock import SystemClock
from wire.errors import BadMessage, NotFound, UsageError
from wire.ids import PeerId

LAYERS = 3
FILES = [
    *(Cut(BLOCK, i, part_name(BLOCK, i)) for i in range(LAYERS)),
    *(Cut(role, -1, part_name(role)) for role in ("embed", "head", "shared")),
    Cut("config", -1, "config.json"),
    Cut("tokenizer", -1, "tokenizer.json"),
]
SIZE = sum(100 + at for at in range(len(FILES)))


class Nodes:
    """Libraries over one board; each has blobs of its own."""

    def __init__(self, nursery: trio.Nursery, folder: Path) -> None:
        self.nursery, self.folder, self.board = nursery, folder, Board()
        self.shelves: dict[PeerId, Shelf] = {}
        self.lives: dict[str, trio.CancelScope] = {}

    async def add(self, name: str) -> Library:
        peer = PeerId(name)
        if peer not in self.shelves:
            self.shelves[peer] = Shelf(self.folder / name / "blobs", self.shelves)
        library = Library(
            self.folder / name / "models",
            store=SharedStore(self.board, peer),
            blobs=self.shelves[peer],
            peer=peer,
            clock=SystemClock(),
        )
        if name in self.lives:
            self.lives[name].cancel()
        self.lives[name] = trio.CancelScope()
        await self.nursery.start(self._run, name, library)
        return library

    async def _run(
        self,
        name: str,
        library: Library,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        with self.lives[name]:
            await library.run(task_status=task_status)

    def files(self, name: str) -> list[str]:
        """Return the file names in the node's only model folder."""
        folders = [p for p in (self.folder / name / "models").iterdir() if len(p.name) == 64]
        return sorted(path.name for folder in folders for path in folder.iterdir())

    def path(self, name: str, file: str) -> Path:
        return next((self.folder / name / "models").glob(f"*/{file}"))


@pytest.fixture
def nodes(nursery: trio.Nursery, tmp_path: Path) -> Nodes:
    return Nodes(nursery, tmp_path)


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a source be cut by nobody: its parts are a few bytes that depend on its name."""

    async def parts_of(
        source: str, dtype: str, scratch: Path, log: Path, report: Callable[[str, int, int], object]
    ) -> Split:
        del log
        for at, each in enumerate(FILES):
            (scratch / each.name).write_bytes(f"{source} {at} ".encode().ljust(100 + at, b"x"))
        report("splitting", SIZE, SIZE)
        await trio.lowlevel.checkpoint()
        kind = "float32" if dtype == "auto" else dtype
        return Split("", "llama", kind, LAYERS, 32, 97, 128, 3000, [2], FILES)

    monkeypatch.setattr(model_library, "parts_of", parts_of)


async def last(steps: AsyncGenerator[LibraryProgress]) -> LibraryProgress:
    async with aclosing(steps):
        found = [step async for step in steps]
    assert found[-1].state == "done"
    return found[-1]


async def add(library: Library, source: str = "org/tiny", **options: object) -> LibraryProgress:
    return await last(library.add(AddModel(source, **options)))  # type: ignore[arg-type]


async def until(is_so: Callable[[], object]) -> None:
    with trio.fail_after(10):
        while not is_so():  # noqa: ASYNC110 (files, and children of children)
            await trio.sleep(0.01)


ALL = sorted(["manifest", *(each.name for each in FILES)])


@pytest.mark.usefixtures("cut")
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


@pytest.mark.usefixtures("cut")
async def test_the_same_source_is_the_same_model_and_another_provider(nodes: Nodes) -> None:
    a, b = await nodes.add("a"), await nodes.add("b")
    await add(a, replicas=2)
    first = a.record("tiny")
    done = await add(b)
    assert done.model is not None
    assert (done.model.model, done.model.manifest) == (first.model, first.manifest)
    assert a.record("tiny").providers == ["a", "b"]
    assert a.record("tiny").replicas == 2


@pytest.mark.usefixtures("cut")
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


@pytest.mark.usefixtures("cut")
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


@pytest.mark.usefixtures("cut")
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


@pytest.mark.usefixtures("cut")
async def test_what_is_pinned_and_was_lost_is_fetched_again(nodes: Nodes) -> None:
    a, b = await nodes.add("a"), await nodes.add("b")
    await add(a)
    await last(b.pin("tiny", PinModel(0, 1)))
    nodes.path("b", part_name(BLOCK, 0)).unlink()
    await nodes.add("b")
    await until(lambda: part_name(BLOCK, 0) in nodes.files("b"))


@pytest.mark.usefixtures("cut")
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
    with pytest.raises(Refused, match="is hosted by 1 nodes"):
        await a.remove("tiny")
    gone = await a.remove("tiny", force=True)
    assert gone.freed_bytes == SIZE
    assert nodes.files("a") == []
    with pytest.raises(NotFound):
        await a.remove("tiny")


@pytest.mark.usefixtures("cut")
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


@pytest.mark.usefixtures("cut")
async def test_a_damaged_part_that_nobody_else_has_is_said(nodes: Nodes) -> None:
    a = await nodes.add("a")
    await add(a)
    nodes.path("a", part_name(BLOCK, 0)).write_bytes(b"?")
    done = await last(a.verify("tiny"))
    assert [(bad.name, bad.repaired) for bad in done.bad] == [(part_name(BLOCK, 0), False)]
    assert "nobody has" in done.bad[0].why


@pytest.mark.usefixtures("cut")
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


@pytest.mark.usefixtures("cut")
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


@pytest.mark.parametrize(
    ("request_", "match"),
    [
        (AddModel("tiny"), "neither an absolute path nor ORG/NAME"),
        (AddModel("../org/x"), "neither"),
        (AddModel("/no/such/folder"), "does not exist"),
        (AddModel("org/tiny", dtype="int8"), "is none of auto, float32"),
        (AddModel("org/tiny", name="a/b"), "cannot be a model's name"),
        (AddModel("org/tiny", replicas=0), "no such number"),
    ],
)
async def test_what_cannot_be_added(request_: AddModel, match: str, nodes: Nodes) -> None:
    with pytest.raises(UsageError, match=match):
        await last((await nodes.add("a")).add(request_))


async def test_a_model_of_the_hubs_cache_is_cut_by_children(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the programs as they are: their progress, their result, their error in one line."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    save_model(tmp_path / "model")
    save_tokenizer(tmp_path / "model")
    put(tmp_path / "hub", tmp_path / "model")
    a = await nodes.add("a")
    with pytest.raises(UsageError, match="someone/none is not in the hub's cache here"):
        await add(a, "someone/none")
    async with aclosing(a.add(AddModel(REPO, dtype="bfloat16"))) as steps:
        found = [step async for step in steps]
    states = list(dict.fromkeys(step.state for step in found))
    assert states[:3] == ["starting", "downloading", "splitting"]
    done = found[-1].model
    assert done is not None
    assert (done.name, done.dtype, done.layers) == ("tiny-llama", "bfloat16", DEEP)
    assert "tokenizer.json" in nodes.files("a")


async def test_who_goes_away_ends_the_child_and_leaves_nothing(
    nodes: Nodes, tmp_path: Path
) -> None:
    save_model(tmp_path / "model")
    a = await nodes.add("a")
    async with aclosing(a.add(AddModel(str(tmp_path / "model")))) as steps:
        await anext(steps)
        await until(splitters)
    place = tmp_path / "a" / "models" / "split"
    await until(lambda: not place.exists() or not list(place.iterdir()))
    assert a.catalogue.records() == {}
    await until(lambda: not splitters())


def splitters() -> list[str]:
    """Return the splitters that are children of this process."""
    lists = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    pids = [pid for each in lists for pid in each.read_text().split()]
    return [pid for pid in pids if b"sharding.split" in Path(f"/proc/{pid}/cmdline").read_bytes()]
