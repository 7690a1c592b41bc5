"""Twenty real DHT services on simulated links and a virtual clock."""

from dataclasses import dataclass, field

import pytest
import trio
from trio.testing import MockClock

from dht import wire
from dht.records import sign_peer, sign_provider
from dht.service import DhtService
from tests.sim.replicas import EPOCH_MS, Links, SimClock, Wire, signer
from wire import codec
from wire.errors import BadMessage
from wire.ids import PeerId


@dataclass
class Book:
    """An address book: what the host would dial."""

    own: list[str]
    known: dict[PeerId, list[str]] = field(default_factory=dict)

    def addresses(self) -> list[str]:
        return self.own

    def addresses_of(self, peer: PeerId) -> list[str]:
        return self.known.get(peer, [])

    def learn(self, peer: PeerId, addrs: list[str]) -> None:
        self.known[peer] = addrs


def address(number: int) -> str:
    return f"/ip4/10.0.0.{number}/tcp/4001"


async def start_dht(
    nursery: trio.Nursery, links: Links, number: int, peers: list[PeerId]
) -> DhtService:
    own = signer(number)
    book = Book([address(number)])
    dht = DhtService(Wire(links, own.peer), book, own, SimClock(), peers=lambda: peers)
    await nursery.start(dht.run)
    links.answers[own.peer] = dht.answer
    for peer in peers:
        dht.peer_up(peer)
    return dht


async def start_swarm(nursery: trio.Nursery, links: Links, size: int) -> list[DhtService]:
    """Everybody knows the first one only."""
    first = await start_dht(nursery, links, 1, [])
    rest = [await start_dht(nursery, links, n, [signer(1).peer]) for n in range(2, size + 1)]
    await trio.sleep(60)
    return [first, *rest]


async def test_everybody_finds_everybody_through_one_bootstrap_peer(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await start_swarm(nursery, Links(), 20)
    for dht in swarm:
        assert len(dht.table()) >= 18
    for number in range(1, 21):
        assert await swarm[number % 20].find_peer(signer(number).peer) == [address(number)]
    assert await swarm[3].find_peer(signer(99).peer) == []


async def test_a_new_address_is_found_after_its_owner_was_asked(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    swarm = await start_swarm(nursery, Links(), 5)
    moved = swarm[4]
    assert isinstance(moved._addresses, Book)
    moved._addresses.own = ["/ip4/192.0.2.9/tcp/1"]
    await trio.sleep(700)  # a refresh
    assert await swarm[0].find_peer(signer(5).peer) == ["/ip4/192.0.2.9/tcp/1"]


async def test_providers_are_found_with_a_third_of_the_swarm_dead(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    swarm = await start_swarm(nursery, links, 20)
    assert await swarm[2].provide(b"cid") >= 15
    assert await swarm[7].provide(b"cid") >= 15
    links.silent |= {signer(number).peer for number in range(14, 21)}
    start = trio.current_time()
    assert set(await swarm[9].providers(b"cid")) == {signer(3).peer, signer(8).peer}
    assert trio.current_time() - start < 15
    assert await swarm[9].providers(b"other") == []


async def test_a_withdrawn_or_dead_provider_is_forgotten_and_a_live_one_is_not(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    swarm = await start_swarm(nursery, links, 6)
    await swarm[1].provide(b"cid")
    await swarm[2].provide(b"cid")
    swarm[2].withdraw(b"cid")
    await trio.sleep(3 * 3600)
    assert await swarm[4].providers(b"cid") == [signer(2).peer]


async def test_what_nobody_took_is_offered_again(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    alone = await start_dht(nursery, links, 1, [])
    assert await alone.provide(b"cid") == 0
    assert await alone.providers(b"cid") == [signer(1).peer]
    other = await start_dht(nursery, links, 2, [signer(1).peer])
    await trio.sleep(90)
    assert len(other._records) == 1


async def test_the_dead_leave_the_table(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    links = Links()
    swarm = await start_swarm(nursery, links, 8)
    for number in (6, 7, 8):
        del links.answers[signer(number).peer]
    await trio.sleep(2 * 700)
    dead = {signer(number).peer for number in (6, 7, 8)}
    assert dead & {contact.peer for contact in swarm[0].table()} == set()
    assert len(swarm[0].table()) == 4


async def test_a_peer_that_only_asks_and_never_answers_does_not_enter(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    dht = await start_dht(nursery, links, 1, [])
    ghost = signer(2)
    me = sign_peer(ghost, [address(2)], seq=1, now_ms=EPOCH_MS)
    await dht.answer(ghost.peer, codec.encode(wire.Ping(me)))
    await trio.sleep(30)
    assert dht.table() == []


async def test_requests_in_anothers_name_and_garbage_are_the_peers_fault(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    dht, ghost = await start_dht(nursery, Links(), 1, []), signer(2)
    theirs = sign_peer(signer(3), [], seq=1, now_ms=EPOCH_MS)
    mine = sign_peer(ghost, [], seq=1, now_ms=EPOCH_MS)
    record = sign_provider(signer(3), bytes(32), expires_ms=EPOCH_MS + 60_000)
    frames = [
        codec.encode(wire.Ping(theirs)),
        codec.encode(wire.Provide(mine, record)),
        codec.encode(wire.Pong(mine)),
        b"",
        b"\xff" * 70_000,
    ]
    for frame in frames:
        with pytest.raises(BadMessage):
            await dht.answer(ghost.peer, frame)
    assert len(dht._records) == 0


async def test_a_peer_that_answers_in_anothers_name_does_not_enter(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    links = Links()
    liar = signer(2)

    async def lie(peer: PeerId, message: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        return codec.encode(wire.Pong(sign_peer(signer(3), [], seq=1, now_ms=EPOCH_MS)))

    links.answers[liar.peer] = lie
    dht = await start_dht(nursery, links, 1, [liar.peer])
    await trio.sleep(10)
    assert dht.table() == []
