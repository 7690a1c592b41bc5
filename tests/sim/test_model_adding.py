"""Adding models: what is refused, the children that cut them, and who gives up."""

import os
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import trio

from node import model_library
from protocols.sharding.splitting import Split
from shoal.library import AddModel
from tests.sim.boards import SharedStore
from tests.sim.libraries import Nodes, add, cut_at_once, last, until
from tests.unit.sharding_models import LAYERS, save_model
from tests.unit.sharding_tokenizer import save_tokenizer
from tests.unit.test_sharding_hub import REPO, put
from wire.errors import UsageError


@pytest.fixture
def nodes(nursery: trio.Nursery, tmp_path: Path) -> Nodes:
    return Nodes(nursery, tmp_path)


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
    assert (done.name, done.dtype, done.layers) == ("tiny-llama", "bfloat16", LAYERS)
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


async def test_who_gives_up_and_begins_again_has_a_folder_of_its_own(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders, again = list[Path](), trio.Event()

    async def parts_of(source: str, dtype: str, scratch: Path, *rest: Any) -> Split:
        folders.append(scratch)
        if len(folders) == 1:
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):  # as while a child is buried
                    await again.wait()
        found = await cut_at_once(source, dtype, scratch, *rest)
        again.set()
        await until(lambda: not folders[0].exists())
        return found

    monkeypatch.setattr(model_library, "parts_of", parts_of)
    a = await nodes.add("a")
    async with aclosing(a.add(AddModel("org/tiny"))) as steps:
        await anext(steps)
        await until(lambda: folders)
    assert (await add(a)).model is not None


async def test_what_all_know_of_is_kept_though_its_adder_went_away(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_library, "parts_of", cut_at_once)
    put, written = SharedStore.put, trio.Event()

    async def slowly(self: SharedStore, *args: Any) -> None:
        await put(self, *args)
        written.set()
        await trio.sleep(0.05)

    monkeypatch.setattr(SharedStore, "put", slowly)
    a = await nodes.add("a")
    async with aclosing(a.add(AddModel("org/tiny"))) as steps:
        await anext(steps)
        await written.wait()
    await until(lambda: a._pins.get("tiny"))
    assert [view.pinned for view in await a.views()] == [[(0, 3)]]


def splitters() -> list[str]:
    """Return the splitters that are children of this process."""
    lists = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    pids = [pid for each in lists for pid in each.read_text().split()]
    return [pid for pid in pids if b"sharding.split" in Path(f"/proc/{pid}/cmdline").read_bytes()]
