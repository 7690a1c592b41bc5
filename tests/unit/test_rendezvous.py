"""Runs and models that meet in the DHT: what is put there, who is asked, and whom we dial."""

from dataclasses import dataclass, field

import trio
import trio.lowlevel
from trio.testing import MockClock

from dht.messages import Stored, Value
from dht.values import seal_multi
from node.rendezvous import AGAIN_S, LOOK_S, PATIENCE_S, TRIED_MAX, Rendezvous
from tests.sim.replicas import EPOCH_MS, signer
from wire import codec
from wire.errors import PeerUnreachable, ShoalError
from wire.ids import PeerId

ADDRESS = "/ip4/192.0.2.1/tcp/1"
RUN = b"/shoal/multi/run/r"


@dataclass
class Dht:
    """Values by name and author, shared by all nodes of a test."""

    number: int
    there: dict[bytes, dict[PeerId, Value]]
    contacts: int = 1
    own: dict[bytes, Value] = field(default_factory=dict[bytes, Value])
    asked: list[float] = field(default_factory=list[float])
    puts: int = 0
    error: ShoalError | None = None

    def published(self) -> list[Value]:
        return list(self.own.values())

    async def get(self, name: bytes) -> tuple[Value, ...]:
        self.asked.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        return tuple(self.there.get(name, {}).values())

    async def put_multi(self, name: str, data: bytes) -> Stored:
        await trio.lowlevel.checkpoint()
        self.puts += 1
        if self.error is not None:
            raise self.error
        own = signer(self.number)
        value = seal_multi(own, name, data, seq=EPOCH_MS + self.puts, expires_ms=EPOCH_MS + 1)
        self.own[value.name] = value
        self.there.setdefault(value.name, {})[own.peer] = value
        return Stored(1)

    async def forget(self, name: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.own.pop(name, None)


@dataclass
class Host:
    peer: PeerId
    dialled: list[tuple[PeerId, list[str]]] = field(default_factory=list[tuple[PeerId, list[str]]])
    dead: set[PeerId] = field(default_factory=set[PeerId])

    def connected(self) -> list[PeerId]:
        return [peer for peer, _ in self.dialled if peer not in self.dead]

    async def connect(self, target: PeerId, addrs: list[str]) -> PeerId:
        await trio.lowlevel.checkpoint()
        self.dialled.append((target, addrs))
        if target in self.dead:
            raise PeerUnreachable(target)
        return target


@dataclass
class Node:
    """One node with what it takes part in; change it at will."""

    dht: Dht
    host: Host
    runs: list[str] = field(default_factory=list[str])
    alone: list[str] = field(default_factory=list[str])
    addrs: list[str] = field(default_factory=lambda: [ADDRESS])

    def rendezvous(self) -> Rendezvous:
        kinds = {"run": (lambda: self.runs, lambda: self.alone)}
        return Rendezvous(self.dht, self.host, lambda: self.addrs, kinds)


def node(number: int, there: dict[bytes, dict[PeerId, Value]] | None = None) -> Node:
    return Node(Dht(number, {} if there is None else there), Host(signer(number).peer))


async def test_a_member_alone_finds_the_other_and_is_patient_first(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    there: dict[bytes, dict[PeerId, Value]] = {}
    a, b = node(1, there), node(2, there)
    a.runs = b.runs = b.alone = ["r"]
    for one in (a, b):
        await nursery.start(one.rendezvous().run)
    await trio.sleep(LOOK_S + 0.1)
    assert set(there[RUN]) == {a.host.peer, b.host.peer}
    assert b.dht.asked == []
    await trio.sleep(PATIENCE_S + LOOK_S)
    assert b.host.dialled == [(a.host.peer, [ADDRESS])]
    assert a.host.dialled == []  # it is not alone


async def test_it_is_put_again_only_when_it_has_changed_and_taken_back_at_the_end(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    there: dict[bytes, dict[PeerId, Value]] = {}
    a = node(1, there)
    a.runs = ["r"]
    rendezvous = a.rendezvous()
    await nursery.start(rendezvous.run)
    await trio.sleep(10 * LOOK_S)
    assert a.dht.puts == 1
    a.addrs = ["/ip4/192.0.2.9/tcp/1"]
    await trio.sleep(2 * LOOK_S)
    assert a.dht.puts == 2
    a.runs = []
    await trio.sleep(3 * LOOK_S)
    assert a.dht.puts == 3
    assert a.dht.published() == []
    b = node(2, there)
    assert await b.rendezvous().find("run", "r") == 0
    assert b.host.dialled == []


async def test_our_other_values_are_left_alone(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    a = node(1)
    await a.dht.put_multi("mine", b"x")
    await nursery.start(a.rendezvous().run)
    await trio.sleep(3 * LOOK_S)
    assert [value.data for value in a.dht.published()] == [b"x"]


async def test_who_stays_alone_asks_less_and_less(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    a = node(1)
    a.alone = ["r"]
    await nursery.start(a.rendezvous().run)
    await trio.sleep(6 * 3600)
    waits = [after - before for before, after in zip(a.dht.asked, a.dht.asked[1:], strict=False)]
    assert waits[0] < 2 * AGAIN_S[0]
    assert waits == sorted(waits)
    assert AGAIN_S[1] <= waits[-1] <= AGAIN_S[1] + LOOK_S
    assert len(a.dht.asked) < 60


async def test_without_contacts_nobody_is_asked_and_errors_end_nothing(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    a = node(1)
    a.runs = a.alone = ["r"]
    a.dht.contacts = 0
    await nursery.start(a.rendezvous().run)
    await trio.sleep(60)
    assert (a.dht.puts, a.dht.asked) == (0, [])
    a.dht.contacts, a.dht.error = 1, PeerUnreachable("nobody")
    await trio.sleep(60)
    assert a.dht.asked
    a.dht.error = None
    await trio.sleep(60)
    assert a.dht.published()


async def test_liars_cost_a_few_dials(autojump_clock: MockClock) -> None:
    a = node(1)
    place = codec.encode([[ADDRESS]])
    for number in range(10, 60):
        await Dht(number, a.dht.there).put_multi("run/r", place)
    await Dht(60, a.dht.there).put_multi("run/r", b"\xc1garbage")
    await Dht(61, a.dht.there).put_multi("run/r", codec.encode([["no address"] * 100]))
    a.host.dead = {signer(number).peer for number in range(10, 60)}
    assert await a.rendezvous().find("run", "r") == 0
    assert len(a.host.dialled) == TRIED_MAX
