"""What members write about models is checked: a hostile one fills no disk and stops no node."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import trio

from node.model_catalogue import LEASES_PER_PEER
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
from protocols.sharding.placement import Wish
from protocols.sharding.records import (
    COUNT_MAX,
    NAMESPACE,
    AuditRecord,
    ModelRecord,
    StageRecord,
    audit_key,
    manifest_key,
    stage_key,
)
from protocols.sharding.splitting import DISK_RESERVE_BYTES
from shoal.models import ServeRequest, Stage
from tests.sim.boards import SharedStore
from tests.sim.net import Net
from tests.sim.serving import ServingSwarm, peer_of
from wire.errors import UsageError
from wire.ids import PeerId

GIB = 1 << 30
MALLORY, VICTIM, EVE = peer_of("mallory"), peer_of("victim"), peer_of("eve")
PATIENCE_S = 20.0  # seconds; nothing here starts a process
CID = "b" + "a" * 58


class Attack:
    """A node that offers 1 GiB, three quarters of it for weights, and members who write at will."""

    def __init__(self, swarm: ServingSwarm, victim: Models, folder: Path) -> None:
        self.swarm, self.victim, self.folder = swarm, victim, folder

    async def put(self, key: str, value: object, *, by: PeerId = MALLORY) -> None:
        builtins = msgspec.to_builtins(value) if isinstance(value, msgspec.Struct) else value
        await SharedStore(self.swarm.board, by).put(NAMESPACE, key, builtins)

    async def parts(self, *, said_bytes: int, real_bytes: int) -> list[Part]:
        """Return the parts of a one-layer model that are larger, or smaller, than they say."""
        path = self.folder / "part"
        path.write_bytes(bytes(real_bytes))
        cid = await self.swarm.shelves[MALLORY].put_file(path)
        files = [(BLOCK, 0, part_name(BLOCK, 0)), ("config", -1, CONFIG)]
        files += [(role, -1, part_name(role)) for role in (EMBED, HEAD, SHARED)]
        small = min(said_bytes, 1 << 20)
        return [
            Part(role, block, name, cid, small if role == "config" else said_bytes)
            for role, block, name in files
        ]

    async def publish(self, name: str, parts: list[Part], *, parameters: int = 0) -> str:
        """Write the manifest of a model that the swarm shall host; return the model's id."""
        whole = Manifest(2, name, "llama", "float32", 1, 32, 97, 128, parameters, [2], parts)
        data = encode_manifest(whole)
        (self.folder / "manifest").write_bytes(data)
        cid = await self.swarm.shelves[MALLORY].put_file(self.folder / "manifest")
        model = model_id(data)
        await self.put(manifest_key(name), ModelRecord(model, cid, [MALLORY], 1, hosted=True))
        return model

    def stages(self, name: str, peer: PeerId = VICTIM) -> list[Stage]:
        return [stage for stage in self.victim.view(name).stages if stage.peer == peer]

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(PATIENCE_S):
            while not condition():  # noqa: ASYNC110 (the victim tells nobody)
                await trio.sleep(0.02)

    async def note(self, state: str) -> str:
        """Wait until the victim says this of its span of m; return its note."""
        await self.until(lambda: any(s.state == state and s.note for s in self.stages("m")))
        return next(s.note for s in self.stages("m"))


@pytest.fixture
async def attack(nursery: trio.Nursery, tmp_path: Path) -> Attack:
    swarm = ServingSwarm(Net(nursery, latency_s=0.0))
    await swarm.add(tmp_path, "mallory", memory_gib=0.0)
    return Attack(swarm, await swarm.add(tmp_path, "victim", memory_gib=1.0), tmp_path)


async def test_parts_beyond_the_offered_memory_are_left_alone_whatever_the_parameters_say(
    attack: Attack,
) -> None:
    await attack.publish("m", await attack.parts(said_bytes=GIB, real_bytes=10))
    await attack.until(lambda: len(attack.swarm.shelves[VICTIM].fetched) == 1)  # the manifest
    await attack.publish("small", await attack.parts(said_bytes=10, real_bytes=1000))
    await attack.until(lambda: bool(attack.stages("small")))  # it looked at both
    assert attack.stages("m") == []


async def test_a_part_that_is_larger_than_its_manifest_says_is_not_fetched(attack: Attack) -> None:
    await attack.publish("m", await attack.parts(said_bytes=10, real_bytes=1000))
    await attack.victim.host("m", Wish(0, 1))  # what the swarm wants takes a while to settle
    assert "has 1000 B, over 10 B" in await attack.note("loading")
    assert len(attack.swarm.shelves[VICTIM].fetched) == 1


async def test_a_part_that_does_not_fit_the_disk_is_refused(
    attack: Attack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nearly_full(_: object) -> SimpleNamespace:
        return SimpleNamespace(free=DISK_RESERVE_BYTES + (4 << 20))

    await attack.publish("m", await attack.parts(said_bytes=1 << 20, real_bytes=1 << 20))
    await attack.until(lambda: attack.victim.view("m").layers == 1)
    monkeypatch.setattr("node.model_files.shutil.disk_usage", nearly_full)
    await attack.victim.host("m", Wish(0, 1))
    assert await attack.note("refused") == "5 MiB of disk are needed, 4 MiB can be had here"
    assert len(attack.swarm.shelves[VICTIM].fetched) == 1


async def test_a_manifest_that_nobody_gives_keeps_no_other_model_waiting(
    attack: Attack, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = attack.swarm.shelves[VICTIM]
    fetch = shelf.fetch

    async def hang(cid: str, *args: object, **kwargs: object) -> None:
        if cid == CID:
            await trio.sleep_forever()
        await fetch(cid, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(shelf, "fetch", hang)
    for number in range(3):
        record = ModelRecord(f"{number:064}", CID, [MALLORY], 1, hosted=True)
        await attack.put(manifest_key(f"a{number}"), record)
    await trio.sleep(0.5)  # it asks for those
    await attack.publish("m", await attack.parts(said_bytes=10, real_bytes=1000))
    with trio.fail_after(8.0):  # by 20 s it has given up the others
        await attack.until(lambda: attack.victim.view("m").layers == 1)


async def test_records_of_any_content_stop_nothing(attack: Attack) -> None:
    model = await attack.publish("m", await attack.parts(said_bytes=10, real_bytes=1000))
    most = [model, 0, 1, "ready", COUNT_MAX, "x", *[COUNT_MAX] * 6, 1000, [["p", COUNT_MAX]] * 16]
    values: list[object] = [
        None,
        [],
        {"a": 1},
        "text",
        2**63,
        [model, 5, 3, "ready", 1],
        [model, 0, 10**6, "ready", 1],
        [model, -1, 1, "ready", 1],
        [model, 0, 1, "ready\n", 1],
        most,
        [COUNT_MAX, COUNT_MAX, COUNT_MAX, "\x1b[2J"],
        [COUNT_MAX, COUNT_MAX, COUNT_MAX, "why"],
        ["x" * 64, CID, ["p"] * 9, 1, True],
    ]
    keys = [f"m/stage/@{MALLORY}/{start}" for start in ("0", "5", "x", "")]
    keys += [f"m/stage/@{VICTIM}/0", f"m/stage/@{VICTIM}/1", "m/stage/", "m/stage", "", "/", "m//"]
    keys += [audit_key("m", MALLORY, VICTIM), audit_key("m", EVE, MALLORY), "m/audit/@/", "m/audit"]
    keys += ["../x/manifest", "\x1b/manifest", "x/manifest", "m/manifest/more", "m/other"]
    for key in keys:
        for value in values:
            await attack.put(key, value)
            await looked_at(attack.victim)
    await attack.publish("n", await attack.parts(said_bytes=10, real_bytes=1001))
    await attack.until(lambda: bool(attack.stages("n")))  # it still does its part


async def looked_at(victim: Models) -> None:
    assert set(victim.names()) <= {"m", "n", "x"}
    victim.views()
    await victim.library.views()
    victim.candidates("m")
    victim.audits.view("m")
    assert victim.audits.penalty(MALLORY) >= 0


async def test_only_its_own_node_speaks_of_a_span_and_of_few(attack: Attack) -> None:
    model = await attack.publish("m", await attack.parts(said_bytes=GIB, real_bytes=10))
    ready = StageRecord(model, 0, 1, "ready", 1)
    await attack.until(lambda: attack.victim.view("m").layers == 1)
    claims = [
        (MALLORY, EVE, ready),  # it speaks for another
        (EVE, EVE, ready),  # who is no member
        (MALLORY, MALLORY, msgspec.structs.replace(ready, model="cd" * 32)),  # of another model
        (MALLORY, MALLORY, msgspec.structs.replace(ready, end=2)),  # blocks that are not
    ]
    for by, of, claim in claims:
        await attack.put(stage_key("m", of, 0), claim, by=by)
        assert attack.victim.candidates("m") == []
    await attack.put(stage_key("m", MALLORY, 0), ready)
    assert [one.peer for one in attack.victim.candidates("m")] == [MALLORY]
    for start in range(1000):  # routing's cost is the square of their number
        record = msgspec.structs.replace(ready, start=start, end=start + 1)
        await attack.put(stage_key("m", MALLORY, start), record)
    told = attack.victim.library.catalogue.leases("m", model)
    assert [peer for peer, _ in told].count(MALLORY) == LEASES_PER_PEER


async def test_voices_of_others_ban_nobody(attack: Attack) -> None:
    for number in range(50):
        by = PeerId(f"sybil{number}")
        await attack.put(audit_key("m", by, EVE), AuditRecord(0, 9, COUNT_MAX, "x"), by=by)
    await attack.put(audit_key("m", VICTIM, EVE), AuditRecord(0, 9, COUNT_MAX, "x"))  # as our word
    assert 0 < attack.victim.audits.penalty(EVE) < 3.0


async def test_a_name_that_is_taken_over_gets_no_more_of_a_node_than_it_offers_to_all(
    attack: Attack, tmp_path: Path
) -> None:
    """A wish is for the model that it was said of; a name's next model needs one of its own."""
    swarm = attack.swarm
    told = await swarm.add(tmp_path, "told", memory_gib=0.0)  # offers nothing; asked by its people
    await attack.publish("m", await attack.parts(said_bytes=10, real_bytes=1000))
    await told.host("m", Wish(0, 1, 4 * GIB))
    await attack.until(lambda: bool(attack.stages("m", told.peer)))
    model = await attack.publish("m", await attack.parts(said_bytes=GIB // 2, real_bytes=1001))
    await attack.until(lambda: not attack.stages("m", told.peer))
    await attack.until(lambda: told.view("m").layers == 1)
    await trio.sleep(1.0)  # it looks again
    assert told.view("m").model == model
    assert attack.stages("m", told.peer) == []


async def test_what_nobody_could_read_is_not_written(attack: Attack) -> None:
    await attack.publish("m", await attack.parts(said_bytes=GIB, real_bytes=10))
    for request in (ServeRequest("m", replicas=0), ServeRequest("m", nodes=10**6)):
        with pytest.raises(UsageError, match="model m"):
            _ = [step async for step in attack.victim.serve(request)]
    assert attack.victim.view("m").name == "m"
