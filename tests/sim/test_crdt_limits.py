"""This node's own limits: what one author, one peer or very many of them can take here."""

import pytest
import trio
from trio.testing import MockClock

from crdt import exchange, hall, live, service, spaces, watch
from crdt.batch import StoreFull
from crdt.entry import NO_LINK, Record
from crdt.exchange import PUSH_S, WORK_S
from crdt.fault import Fault
from crdt.live import ChannelHandler
from crdt.namespace import open_genesis
from crdt.service import StoreService
from crdt.spaces import Spaces
from crdt.wire import Push
from tests.sim.crdt_syncers import Links as SyncLinks
from tests.sim.crdt_syncers import Node
from tests.sim.replicas import Links, Silence, SimClock, Wire, in_place, signer, start_store
from tests.unit.crdt_making import NOW_MS, OPEN, Chain
from wire import codec
from wire.errors import Busy, UsageError


def write_all(held: Spaces, chain: Chain, most: int = 1000) -> int:
    """Let an author write until it is refused; returns how many entries came in."""
    replica = held.replicas[chain.namespace]
    for count in range(most):
        before = chain.seq, chain.prev
        record = chain.put(f"{chain.author}/{count}")
        if replica.refusal(record, NOW_MS):
            chain.seq, chain.prev = before
            return count
        replica.merge(record, NOW_MS)
    return most


def test_one_author_leaves_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spaces, "ENTRIES_MAX", 100)
    held = Spaces()
    kv, runs = (held.find(name).id for name in ("kv", "runs"))
    one, again = Chain(1, kv), Chain(1, runs, instance=2)
    assert write_all(held, one) == 51
    assert write_all(held, again) == 0  # in another namespace neither
    assert write_all(held, Chain(2, kv)) == 25
    assert write_all(held, Chain(3, runs)) > 10
    assert held.replicas[kv].refusal(one.put("1/0"), NOW_MS) == ""  # what is there may change


def test_large_entries_have_a_limit_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spaces, "BYTES_MAX", 200_000)
    held = Spaces()
    kv = held.find("kv")
    chain = Chain(1, kv.id)
    for number in range(20):
        kv.merge(chain.put(f"k/{number}"), NOW_MS)
    grown = 0
    for number in range(20):
        record = chain.put(f"k/{number}", bytes(2000))
        if not kv.refusal(record, NOW_MS):
            kv.merge(record, NOW_MS)
            grown += 1
    assert grown == 20
    monkeypatch.setattr(spaces, "BYTES_MAX", held.size)
    assert kv.refusal(chain.put("k/0", bytes(2010)), NOW_MS) == "full"
    assert kv.refusal(chain.put("k/0", bytes(2000)), NOW_MS) == ""
    assert kv.refusal(chain.put("new"), NOW_MS) == "full"


async def test_many_namespaces_remember_no_more_refusals_than_one(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "REFUSED_ALL_MAX", 30)
    geneses = tuple(open_genesis(f"n{number}") for number in range(5))
    node = Node(SyncLinks(), 1, geneses)
    peer = Node(node.links, 2).peer
    ahead_ms = 10**9
    for number, genesis in enumerate(geneses):
        chain = Chain(3, genesis.id, instance=number)
        made = [chain.put(f"k/{at}", ms=ahead_ms + at).signed for at in range(20)]
        await node.syncer._exchange.take(peer, genesis.id, made)
    held = [len(one.refusals) for one in node.syncer._exchange.holdings().values()]
    assert sum(held) == 30
    assert held[-1] > 5
    assert min(held) > 0


async def test_who_pushes_without_end_is_told_to_wait(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "WORK_S", WORK_S / 50)
    node = Node(SyncLinks(), 1)
    peer, other = (Node(node.links, number).peer for number in (2, 3))
    frame = codec.encode(Push(OPEN.id, [Chain(3).put("a").signed]))
    pushes = 0

    async def flood() -> None:
        nonlocal pushes
        while pushes < 2 * exchange.WORK_S / PUSH_S:
            await node.syncer.answer(peer, frame)
            pushes += 1

    with pytest.raises(Busy):
        await flood()
    assert pushes > 0.9 * exchange.WORK_S / PUSH_S
    await node.syncer.answer(other, frame)
    await trio.sleep(1)
    await node.syncer.answer(peer, frame)


def forked(author: int, namespace: bytes) -> tuple[Record, Record]:
    chain = Chain(author, namespace)
    first = chain.put("a")
    chain.seq, chain.prev = 0, NO_LINK
    one, two = sorted((first, chain.put("b")), key=lambda record: record.id)
    return one, two


async def test_proofs_against_strangers_are_bounded(
    autojump_clock: MockClock, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hall, "FAULTS_MAX", 2)
    store = await start_store(nursery, Links(), 1)
    space, peer = store.id_of("runs"), signer(9).peer
    held, other = Chain(10, space), Chain(10, space, instance=7)
    await store.answer(peer, codec.encode(Push(space, [other.put("kept").signed])))
    for author in (3, 4, 5):
        a, b = forked(author, space)
        await store.answer(peer, codec.encode(Push(space, [], [Fault(a.signed, b.signed)])))
    assert store.stats().faults == 2
    assert store.stats().refused["faults_full"] == 1
    a, b = forked(held.author, space)
    await store.answer(peer, codec.encode(Push(space, [], [Fault(a.signed, b.signed)])))
    assert store.stats().faults == 3


async def test_a_watcher_that_does_not_read_keeps_the_latest(
    autojump_clock: MockClock, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "CHANGED_MAX", 3)
    store = await start_store(nursery, Links(), 1)
    async with store.watch("kv") as changes:
        for number in range(6):
            await store.put("kv", f"k{number}", number)
            await store.put("kv", "k3", number)
        assert {await anext(changes) for _ in range(3)} == {"k3", "k4", "k5"}


async def test_a_namespace_that_nobody_would_replicate_is_not_made(
    autojump_clock: MockClock, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "SPACES_MAX", 6)
    store = await start_store(nursery, Links(), 1)
    await store.create_namespace("one")
    with pytest.raises(StoreFull):
        await store.create_namespace("two")
    assert len(store.scan("namespaces")) == 1


class FewTopics(Silence):
    """A channel whose topics are taken."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.topics: list[str] = []

    def subscribe(self, topic: str, handler: ChannelHandler) -> None:
        if len(self.topics) >= self.most:
            raise UsageError("more than 256 subscriptions")
        self.topics.append(topic)


@pytest.mark.parametrize(("taken", "topics_max"), [(2, 128), (100, 2)])
async def test_a_namespace_without_a_topic_is_synced(
    autojump_clock: MockClock,
    nursery: trio.Nursery,
    monkeypatch: pytest.MonkeyPatch,
    taken: int,
    topics_max: int,
) -> None:
    monkeypatch.setattr(live, "TOPICS_MAX", topics_max)
    links, own = Links(), signer(1)
    other = await start_store(nursery, links, 2)
    channel = FewTopics(taken)
    store = StoreService(
        Wire(links, own.peer), channel, SimClock(), own, ":memory:", peers=list, off_loop=in_place
    )
    await nursery.start(store.run)
    links.answers[own.peer] = store.answer
    for number in range(3):
        await other.create_namespace(f"n{number}")
        await other.put(f"n{number}", "key", number)
    for _ in range(2):
        await store.sync_with(signer(2).peer)
    assert [item.value for number in range(3) for item in store.scan(f"n{number}")] == [0, 1, 2]
    assert len(channel.topics) == 2


async def test_a_key_that_is_no_text_is_the_callers_fault_alone(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    store = await start_store(nursery, Links(), 1)
    with pytest.raises(UsageError):
        await store.put("kv", "bad\udc80", 1)
    with pytest.raises(UsageError):
        await store.put_blob("kv", "key", "bafy", 2**70)
    await store.put("kv", "good", 1)
