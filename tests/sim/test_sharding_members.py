"""What members write about models is checked: a hostile one fills no disk and gets no prompt."""

from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import trio

from node.model_files import DISK_RESERVE_BYTES
from node.model_host import duties
from node.models import Models
from protocols.sharding.manifest import (
    BLOCK,
    CONFIG,
    EMBED,
    HEAD,
    SHARED,
    Manifest,
    Part,
    encode_manifest,
    model_id,
    part_name,
)
from protocols.sharding.placement import Span
from protocols.sharding.records import (
    NAMESPACE,
    ModelRecord,
    PlacementRecord,
    StageRecord,
    manifest_key,
    placement_key,
    read,
    stage_key,
)
from tests.sim.net import Net
from tests.sim.serving import ServingSwarm, SharedStore
from wire.ids import PeerId

GIB = 1 << 30
MALLORY, VICTIM = PeerId("mallory"), PeerId("victim")
EVE, ONE, TWO = PeerId("eve"), PeerId("one"), PeerId("two")  # members whose nodes are not run
PATIENCE_S = 20.0  # seconds; nothing here starts a process


class Attack:
    """A node that offers 1 GiB, and a member who writes what it likes."""

    def __init__(self, swarm: ServingSwarm, victim: Models, folder: Path) -> None:
        self.swarm, self.victim, self.folder = swarm, victim, folder
        self.store = SharedStore(swarm.board, MALLORY)

    async def put(self, key: str, record: msgspec.Struct, *, by: PeerId = MALLORY) -> None:
        store = SharedStore(self.swarm.board, by)
        await store.put(NAMESPACE, key, msgspec.to_builtins(record))

    async def parts(self, *, said_bytes: int, real_bytes: int) -> list[Part]:
        """Return the parts of a one-layer model that are larger, or smaller, than they say."""
        path = self.folder / "part"
        path.write_bytes(bytes(real_bytes))
        cid = await self.swarm.shelves[MALLORY].put_file(path)
        files = [(BLOCK, 0, part_name(BLOCK, 0)), ("config", -1, CONFIG)]
        files += [(role, -1, part_name(role)) for role in (EMBED, HEAD, SHARED)]
        return [
            Part(
                role, block, name, cid, min(said_bytes, 1 << 20) if role == "config" else said_bytes
            )
            for role, block, name in files
        ]

    async def place(self, parts: list[Part], *, parameters: int = 0) -> str:
        """Write a manifest and a placement of its only layer on the victim."""
        whole = Manifest(1, "m", "llama", "float32", 1, 32, 97, 128, parameters, [2], parts)
        data = encode_manifest(whole)
        (self.folder / "manifest").write_bytes(data)
        cid = await self.swarm.shelves[MALLORY].put_file(self.folder / "manifest")
        model = model_id(data)
        await self.put(manifest_key("m"), ModelRecord(model, cid, [MALLORY], 1))
        await self.put(placement_key("m"), PlacementRecord(model, 1, [(VICTIM, 0, 1)]))
        return model

    async def verdict(self) -> StageRecord:
        """Wait for the victim's word on it."""
        with trio.fail_after(PATIENCE_S):
            while True:
                item = self.store.get(NAMESPACE, stage_key("m", VICTIM))
                said = read(item, StageRecord)
                if said is not None and said.state in ("refused", "failed"):
                    return said
                await trio.sleep(0.02)


@pytest.fixture
async def attack(nursery: trio.Nursery, tmp_path: Path) -> Attack:
    swarm = ServingSwarm(Net(nursery, latency_s=0.0))
    await swarm.add(tmp_path, MALLORY, memory_gib=0.0)
    return Attack(swarm, await swarm.add(tmp_path, VICTIM, memory_gib=1.0), tmp_path)


async def test_parts_beyond_the_offered_memory_are_refused_whatever_the_parameters_say(
    attack: Attack,
) -> None:
    await attack.place(await attack.parts(said_bytes=GIB, real_bytes=10), parameters=0)
    said = await attack.verdict()
    assert (said.state, said.note) == ("refused", "4097 MiB are needed, 1024 MiB are offered here")
    assert len(attack.swarm.shelves[VICTIM].fetched) == 1  # the manifest


async def test_a_part_that_is_larger_than_its_manifest_says_is_not_fetched(attack: Attack) -> None:
    await attack.place(await attack.parts(said_bytes=10, real_bytes=1000))
    said = await attack.verdict()
    assert said.state == "failed"
    assert "has 1000 B, over 10 B" in said.note
    assert len(attack.swarm.shelves[VICTIM].fetched) == 1


async def test_a_part_that_does_not_fit_the_disk_is_refused(
    attack: Attack, monkeypatch: pytest.MonkeyPatch
) -> None:

    def nearly_full(_: object) -> SimpleNamespace:
        return SimpleNamespace(free=DISK_RESERVE_BYTES + (4 << 20))

    monkeypatch.setattr("node.model_files.shutil.disk_usage", nearly_full)
    await attack.place(await attack.parts(said_bytes=1 << 20, real_bytes=1 << 20))
    said = await attack.verdict()
    expected = "5 MiB of disk are needed, 4 MiB can be had here"
    assert (said.state, said.note) == ("refused", expected)
    assert len(attack.swarm.shelves[VICTIM].fetched) == 1


async def test_a_stage_counts_only_if_the_placement_gives_that_node_that_span(
    attack: Attack,
) -> None:
    model = await attack.place(await attack.parts(said_bytes=10, real_bytes=10))
    await attack.put(placement_key("m"), PlacementRecord(model, 2, [(ONE, 0, 4), (TWO, 4, 8)]))
    claims = [
        (EVE, StageRecord(model, 2, 0, 8, "ready")),  # it was given nothing, and says it has all
        (ONE, StageRecord(model, 2, 0, 8, "ready")),  # more than it was given
        (ONE, StageRecord(model, 1, 0, 4, "ready")),  # what an earlier placement gave it
        (ONE, StageRecord("cd" * 32, 2, 0, 4, "ready")),  # of another model
        (TWO, StageRecord(model, 2, 4, 8, "ready")),
        (ONE, StageRecord(model, 2, 0, 4, "ready")),
    ]
    ready = list[bool]()
    for peer, claim in claims:
        await attack.put(stage_key("m", peer), claim, by=peer)
        ready.append(attack.victim.view("m").ready)
    assert ready == [False] * 5 + [True]
    spans = attack.victim._ready_spans("m", model)
    assert spans == [Span(ONE, 0, 4), Span(TWO, 4, 8)]


async def test_a_placement_by_another_than_who_serves_the_model_is_ignored(attack: Attack) -> None:
    model = await attack.place(await attack.parts(said_bytes=10, real_bytes=10))
    await attack.put(placement_key("m"), PlacementRecord(model, 3, [(EVE, 0, 1)]), by=EVE)
    await attack.put(stage_key("m", EVE), StageRecord(model, 3, 0, 1, "ready"), by=EVE)
    assert attack.victim.views() == []
    assert attack.victim._ready_spans("m", model) == []
    await attack.put(placement_key("m"), PlacementRecord(model, 4, [(VICTIM, 0, 1)]), by=EVE)
    assert duties(attack.store, VICTIM) == {}
