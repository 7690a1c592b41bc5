"""Syncs between nodes on a virtual clock: signatures, grants, proofs, cuts, clocks, limits."""

import random

import pytest
import trio
from trio.testing import MockClock

from crdt import exchange, sync, wire
from crdt.entry import REGISTER, Record
from crdt.exchange import CLOCKS_MIN, WORK_S, Clocks, Shares
from crdt.namespace import Grant, open_genesis
from tests.sim.crdt_syncers import Links, Node
from tests.unit.crdt_making import Chain, key_of, listed, missigned, signer, unsigned
from wire import codec
from wire.errors import BadMessage, Busy, ShoalError
from wire.ids import PeerId


def chain_records(author: int, count: int, *, start_ms: int = 0) -> list[Record]:
    """A run as it comes from elsewhere: proven by its last signature, not each by its own."""
    chain = Chain(author)
    made = [chain.put(f"k/{author}/{at}", ms=start_ms + at) for at in range(count)]
    return [unsigned(one) for one in made]


def checked(node: Node) -> int:
    return sum(record.is_checked for record in node.replica.records.values())


def equal(*nodes: Node) -> bool:
    return len({node.replica.fingerprint() for node in nodes}) == 1


async def test_one_signature_proves_a_run(autojump_clock: MockClock) -> None:
    links = Links()
    a, b = Node(links, 1), Node(links, 2)
    for author in range(3, 6):
        b.put(*chain_records(author, 500))
    report = await a.syncer.sync_with(b.peer)
    assert equal(a, b)
    assert report.entries_in == 1500
    assert checked(a) < 20
    assert checked(b) < 20
    assert a.synced == [b.peer]


async def test_what_stands_alone_is_checked_before_it_is_sent(autojump_clock: MockClock) -> None:
    """A wrong signature inside a run is its author's fault: nobody is blamed for passing it on."""
    links = Links()
    a, b = Node(links, 1), Node(links, 2)
    run = chain_records(3, 40)
    run[20] = missigned(run[20])  # its successor would name another link, so: alone
    a.put(*run[:20], *run[21:])
    b.put(*run)
    await a.syncer.sync_with(b.peer)
    assert [one.stamp for one in b.bad] == [run[20].stamp]
    assert run[20].stamp not in a.replica.records
    assert equal(a, b)
    a.put(run[20])
    await a.syncer.sync_with(b.peer)
    assert [one.stamp for one in a.bad] == [run[20].stamp]
    assert equal(a, b)


async def test_a_forged_entry_is_the_peers_fault_and_is_not_held_against_the_true_one(
    autojump_clock: MockClock,
) -> None:
    links = Links()
    a, b, c = (Node(links, number) for number in (1, 2, 3))
    true = Chain(4).put("k", ms=5)
    forged = missigned(true)
    forged.is_checked = True  # b lies
    b.put(forged)
    c.put(true)
    with pytest.raises(BadMessage, match="wrong signature"):
        await a.syncer.sync_with(b.peer)
    assert a.syncer.failed == 1
    await a.syncer.sync_with(c.peer)
    assert true.stamp in a.replica.records


async def test_grants_go_first_so_that_what_they_allow_is_accepted(
    autojump_clock: MockClock,
) -> None:
    genesis = listed(owner=9)
    links = Links()
    a, b = Node(links, 1, (genesis,)), Node(links, 2, (genesis,))
    owner = Chain(9, genesis.id)
    granted = [owner.grant(Grant(key_of(author)), ms=author) for author in range(10, 20)]
    b.put(*granted)
    for author, grant in zip(range(10, 20), granted, strict=True):
        chain = Chain(author, genesis.id)
        b.put(*(chain.put(f"k/{author}/{at}", ms=100 + at, grant=grant.id) for at in range(300)))
    report = await a.syncer.sync_with(b.peer)
    assert (report.entries_in, a.refusals) == (3010, [])
    assert equal(a, b)
    c = Node(links, 3, (genesis,))
    await b.syncer.sync_with(c.peer)
    assert c.refusals == []
    assert equal(b, c)


def forked(author: int) -> tuple[Record, Record]:
    chain = Chain(author)
    other = chain.fork()
    return chain.put("k", 1, ms=author), other.put("k", 2, ms=author)


async def test_proofs_of_faults_spread_both_ways(autojump_clock: MockClock) -> None:
    links = Links()
    a, b = Node(links, 1), Node(links, 2)
    for author in range(100, 700):  # more than one message names
        a.put(*forked(author)) if author % 3 else b.put(*forked(author))
    assert (len(a.replica.faults), len(b.replica.faults)) == (400, 200)
    await a.syncer.sync_with(b.peer)
    assert a.replica.faults.keys() == b.replica.faults.keys()
    assert len(a.replica.faults) == 600
    assert equal(a, b)
    assert (a.faults_taken, b.faults_taken) == (200, 400)


async def test_one_request_is_under_way_while_one_batch_is_taken(
    autojump_clock: MockClock,
) -> None:
    links = Links(latency_s=0.05)
    a, b = Node(links, 1), Node(links, 2)
    b.put(*chain_records(3, 4500))
    a.take_s = 0.1  # as long as a round trip
    start = trio.current_time()
    await a.syncer.sync_with(b.peer)
    took, batches = trio.current_time() - start, len(a.batches)
    assert equal(a, b)
    assert a.at_once_max == 1
    assert batches >= 4
    assert took < 0.1 * (batches + 5)  # and not 0.2 each


async def test_a_session_that_is_cut_is_not_whole_and_the_next_goes_on(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "SESSION_BYTES_MAX", 400_000)
    links = Links()
    a, b = Node(links, 1), Node(links, 2)
    b.put(*chain_records(3, 3000))
    held, sessions = 0, 0
    while not a.synced:
        await a.syncer.sync_with(b.peer)
        sessions += 1
        assert len(a.replica.records) > held
        held = len(a.replica.records)
    assert equal(a, b)
    assert sessions > 1


async def test_a_slow_peer_holds_a_session_for_a_bounded_time(autojump_clock: MockClock) -> None:
    links = Links(latency_s=10.0)
    a, b = Node(links, 1), Node(links, 2)
    b.put(*chain_records(3, 8_000))
    start = trio.current_time()
    await a.syncer.sync_with(b.peer)
    assert trio.current_time() - start == pytest.approx(exchange.SESSION_S)
    assert 0 < len(a.replica.records) < 8_000
    assert a.synced == []


@pytest.mark.parametrize("seed", range(5))
async def test_lost_answers_end_sessions_and_nothing_else(
    autojump_clock: MockClock, seed: int
) -> None:
    rng = random.Random(seed)
    links = Links(loses=lambda _: rng.random() < 0.25)
    a, b = Node(links, 1), Node(links, 2)
    records = [one for author in range(3, 8) for one in chain_records(author, 400)]
    for record in records:  # a chain is held without holes, or entry by entry
        record.is_checked = True
        rng.choice((a, b)).put(record)
    for _ in range(60):
        leader, other = rng.sample((a, b), 2)
        try:
            await leader.syncer.sync_with(other.peer)
        except ShoalError:
            continue
    links.loses = lambda _: False
    await a.syncer.sync_with(b.peer)
    assert equal(a, b)
    assert len(a.replica.records) == len(records)
    assert a.syncer.failed > 0


async def test_many_namespaces_are_compared_by_one_fingerprint_first(
    autojump_clock: MockClock,
) -> None:
    geneses = tuple(open_genesis("runs", bytes([number])) for number in range(40))
    links = Links()
    a, b = Node(links, 1, geneses), Node(links, 2, geneses)
    report = await a.syncer.sync_with(b.peer)
    assert (report.round_trips, report.overhead_bytes < 100) == (1, True)
    c = Node(links, 3, geneses[20:])
    for genesis in geneses[::2]:
        a.put(Chain(4, genesis.id).put("k", ms=1))
        c.put(*([Chain(5, genesis.id).put("k", ms=1)] if genesis.id in c.spaces else []))
    await a.syncer.sync_with(b.peer)
    assert all(b.spaces[one].fingerprint() == a.spaces[one].fingerprint() for one in a.spaces)
    await c.syncer.sync_with(a.peer)
    assert all(a.spaces[one].fingerprint() == c.spaces[one].fingerprint() for one in c.spaces)
    assert c.spaces.keys() < a.spaces.keys()


async def test_a_namespace_that_is_not_known_is_not_found(autojump_clock: MockClock) -> None:
    links = Links()
    a, b = Node(links, 1), Node(links, 2)
    for request in (wire.Heads(bytes(32), b""), wire.Push(bytes(32), [])):
        with pytest.raises(ShoalError, match="not replicated"):
            await a.request(b.peer, codec.encode(request), timeout_s=1.0)


async def test_the_clock_is_held_against_the_median_of_peers(autojump_clock: MockClock) -> None:
    links = Links(latency_s=0.5)
    a = Node(links, 1)
    for number, ahead_ms in enumerate((-2_000, 9_000, 7_000), 2):
        assert a.syncer.clock_skew_ms == 0
        await a.syncer.sync_with(Node(links, number, ahead_ms=ahead_ms).peer)
    assert a.syncer.clock_skew_ms == pytest.approx(-7_000, abs=2)
    await trio.sleep(exchange.CLOCK_S)
    assert a.syncer.clock_skew_ms == 0


def test_one_peer_has_one_voice_about_the_clock() -> None:
    clocks = Clocks()
    for at in range(5):
        clocks.note(signer(1).peer, 60_000, float(at))
    assert clocks.skew_ms(5.0) == 0
    for number in range(2, 2 + CLOCKS_MIN):
        clocks.note(signer(number).peer, -10, 5.0)
    assert clocks.skew_ms(5.0) == 10


def test_a_peer_has_a_share_of_the_loop() -> None:
    shares, peer, other = Shares(), signer(1).peer, signer(2).peer
    shares.charge(peer, WORK_S + 1.0, 0.0)
    shares.check(other, 0.0)
    with pytest.raises(Busy):
        shares.check(peer, 5.0)
    shares.check(peer, 10.1)


async def test_requests_beyond_a_few_of_one_peer_are_told_that_we_are_busy(
    autojump_clock: MockClock,
) -> None:
    links = Links()
    a, b = Node(links, 1), Node(links, 2)
    b.take_s = 1.0
    push = codec.encode(wire.Push(b.replica.id, [Chain(3).put("k").signed]))
    results: list[str] = []

    async def ask() -> None:
        try:
            await a.request(b.peer, push, timeout_s=10.0)
        except ShoalError as error:
            results.append(error.code)
        else:
            results.append("taken")

    async with trio.open_nursery() as nursery:
        for _ in range(sync.ANSWERS_MAX + 3):
            nursery.start_soon(ask)
    assert sorted(results) == ["busy"] * 3 + ["taken"] * sync.ANSWERS_MAX


async def test_peers_that_connect_sync_and_nobody_is_left_out(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    nodes = [Node(links, number, interval_s=30.0) for number in range(1, 13)]
    for number, node in enumerate(nodes):
        node.put(Chain(50 + number).put(f"k/{number}", ms=number))
        nursery.start_soon(node.syncer.run)
    nodes[0].syncer.peer_up(nodes[1].peer)
    nodes[0].syncer.peer_up(nodes[1].peer)  # is waiting already
    await trio.sleep(1.0)
    assert equal(*nodes[:2])
    assert len(nodes[0].synced) == 1
    await trio.sleep(120.0)
    assert equal(*nodes)
    await trio.sleep(11 * 38.0)
    everybody: set[PeerId] = {node.peer for node in nodes}
    for node in nodes:
        assert {*node.synced} == everybody - {node.peer}
    nursery.cancel_scope.cancel()


async def test_an_entry_from_the_future_comes_once(autojump_clock: MockClock) -> None:
    links = Links()
    a, b = Node(links, 1), Node(links, 2)
    b.put(Chain(3).write(REGISTER, "k", ms=3_600_000 + 50_000, value=b"\x01"))
    for entries in (1, 0, 0):
        report = await a.syncer.sync_with(b.peer)
        assert report.entries_in == entries
    assert a.refusals == ["future"]
    await trio.sleep(30.0)
    await a.syncer.sync_with(b.peer)
    assert equal(a, b)
